"""Volumes: who may have one, where it is plugged in, how it boots, and what is shown of it. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from serai.errors import Code, Conflict, HostFailure, Invalid
from serai.model.guest import GuestRecord, Volume
from serai.model.machine import Machine
from serai.model.snapshot import FrozenVolume
from serai.model.volume import (
    DEFAULT_POOL,
    Attachment,
    Limits,
    VolumeInfo,
    VolumeRecord,
    VolumeSnapshot,
    VolumeSnapshotInfo,
)
from serai.plan.layers import Layers, users_of
from serai.units import MAX_SIZE, MIB, format_size, shorten

ROOT = "root"
PORTS = tuple(f"spare{index}" for index in range(8))
"""The root ports that every machine has free. Volumes take them from the last one down, so that
network ports, which take them from the first one up, meet them as late as can be."""
MIN_VOLUME = MIB
SERIAL_LENGTH = 20
MOST_LIMIT = 10**13
ID_DIGITS = 12


def default_serial(volume_id: str) -> str:
    """Return the serial number that a volume has unless it is given one: as long as virtio takes."""
    return volume_id.replace("-", "")[:SERIAL_LENGTH]


def check_serial(serial: str) -> str:
    """Return ``serial`` if a disk can have it, else raise Invalid (``value-invalid``)."""
    plain = serial.isascii() and serial.replace("-", "").replace("_", "").isalnum()
    if not plain or len(serial) > SERIAL_LENGTH:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(serial)} can't be a serial number",
            hint=f"Use 1 to {SERIAL_LENGTH} letters, digits, '-' and '_'.",
        )
    return serial


def check_limits(limits: Limits) -> Limits:
    """Return ``limits`` if QEMU can keep them, else raise Invalid (``value-invalid``)."""
    pairs = (("iops", limits.iops, limits.iops_burst), ("bps", limits.bps, limits.bps_burst))
    for name, often, burst in pairs:
        if not (0 <= often <= MOST_LIMIT and 0 <= burst <= MOST_LIMIT):
            raise Invalid(Code.VALUE_INVALID, f"a limit of {often} ({burst}) for {name}: too much")
        if burst and burst <= often:
            raise Invalid(
                Code.VALUE_INVALID,
                f"a burst of {burst} {name} is no more than the limit of {often}",
                hint="Give a higher burst, or leave it out.",
            )
        if burst and not often:
            raise Invalid(
                Code.VALUE_INVALID,
                f"a burst of {burst} {name} without a limit is none",
                hint=f"Give the limit as well: {name}.",
            )
    if not 1 <= limits.burst_seconds <= 3600:
        raise Invalid(Code.VALUE_INVALID, "a burst lasts from 1 to 3600 seconds")
    return limits


def round_size(size: int) -> int:
    """Return the size of a volume for a wish, whole MiB; Invalid (``size-invalid``)."""
    if not MIN_VOLUME <= size <= MAX_SIZE:
        raise Invalid(
            Code.SIZE_INVALID,
            f"a volume of {size} bytes: it has from 1 MiB to 64 TiB",
            hint="Write it like 10GiB.",
        )
    return -(-size // MIB) * MIB


def check_room(size: int, used: int, free: int, pool: str) -> None:
    """Raise HostFailure (``pool-full``) with the arithmetic when the pool can't hold the volume.

    ``used`` is what the volume takes already; ``free`` what the pool can still take.
    """
    if size - used > free:
        more = f", {format_size(used)} of it are there" if used else ""
        raise HostFailure(
            Code.POOL_FULL,
            f"a volume of {format_size(size)} does not fit{more}: the pool {pool} has "
            f"{format_size(free)} left",
            hint=f"Take less, or another pool: serai pool list; free some: serai volume list --pool {pool}",
            details={"needed": str(size - used), "free": str(free)},
        )


def check_growth(name: str, before: int, after: int) -> None:
    """Raise Conflict (``shrink-refused``) for a smaller size."""
    if after < before:
        raise Conflict(
            Code.SHRINK_REFUSED,
            f"the volume {name} has {format_size(before)} and would lose what is behind {format_size(after)}",
            hint="A volume only grows. Copy the data to a smaller one.",
        )


# -- who has it ------------------------------------------------------------------------------------


def readers_of(volume: VolumeRecord, guests: Iterable[GuestRecord]) -> list[GuestRecord]:
    """Return the guests that have the volume read-only."""
    return [
        guest
        for guest in guests
        if any(each.id == volume.id and each.read_only for each in guest.volumes)
    ]


def entry_of(guest: GuestRecord, volume_id: str) -> Volume | None:
    """Return the volume as its guest has it; None where it has none."""
    return next((each for each in guest.volumes if each.id == volume_id), None)


def find_entry(guest: GuestRecord, name_or_id: str) -> Volume:
    """Return a disk of the guest by name or id; Conflict (``volume-not-attached``)."""
    for each in guest.volumes:
        if name_or_id in (each.name, each.id):
            return each
    raise Conflict(
        Code.VOLUME_NOT_ATTACHED,
        f"{guest.spec.name} has no volume {shorten(name_or_id)}",
        hint="See who has it: serai volume list",
    )


def current(volume: VolumeRecord, guests: Iterable[GuestRecord]) -> VolumeRecord:
    """Return the record with the head, layer and size that the volume has now.

    While it is attached its guest's record says so.
    """
    for guest in guests:
        if guest.id == volume.attached_to:
            entry = entry_of(guest, volume.id)
            if entry is not None:
                return msgspec.structs.replace(
                    volume, head=entry.head, layer=entry.layer, size=entry.size
                )
    return volume


def check_attach(
    volume: VolumeRecord, guests: Sequence[GuestRecord], guest: GuestRecord, *, read_only: bool
) -> None:
    """Raise Conflict (``volume-in-use``) with who has it, unless ``guest`` may have it.

    One may write to it, or any number may read it.
    """
    names = {each.id: each.spec.name for each in guests}
    if volume.attached_to:
        holder = names.get(volume.attached_to, volume.attached_to)
        raise Conflict(
            Code.VOLUME_IN_USE,
            f"{holder} has the volume {volume.name}"
            + (" and writes to it" if volume.attached_to != guest.id else " already"),
            hint=f"Detach it there first: serai volume detach {volume.name}; or take a copy: "
            f"serai volume clone {volume.name} NAME",
            details={"guest": volume.attached_to},
        )
    readers = readers_of(volume, guests)
    mine = any(each.id == guest.id for each in readers)
    if mine or (readers and not read_only):
        shown = ", ".join(sorted(each.spec.name for each in readers)[:5])
        raise Conflict(
            Code.VOLUME_IN_USE,
            f"{guest.spec.name} reads the volume {volume.name} already"
            if mine
            else f"the volume {volume.name} is read by {shown}: nobody may write to it",
            hint=f"Attach it read-only too, or take a copy: serai volume clone {volume.name} NAME",
            details={"guest": (guest.id if mine else readers[0].id)},
        )
    if any(each.name == volume.name for each in guest.volumes):
        raise Conflict(
            Code.VOLUME_IN_USE,
            f"{guest.spec.name} has a disk called {volume.name} of its own",
            hint=f"Take a copy with another name: serai volume clone {volume.name} NAME",
        )


def check_free(volume: VolumeRecord, guests: Sequence[GuestRecord], doing: str) -> None:
    """Raise Conflict (``volume-in-use``) with who has it, unless nobody has."""
    names = {each.id: each.spec.name for each in guests}
    holders = [each.spec.name for each in readers_of(volume, guests)]
    if volume.attached_to:
        holders.append(names.get(volume.attached_to, volume.attached_to))
    if holders:
        raise Conflict(
            Code.VOLUME_IN_USE,
            f"can't {doing} the volume {volume.name}: {', '.join(sorted(holders)[:5])} has it",
            hint=f"Detach it first: serai volume detach {volume.name}",
        )


def check_detachable(guest: GuestRecord, entry: Volume) -> None:
    """Raise Conflict for a disk that stays with its guest."""
    if not entry.port:
        raise Conflict(
            Code.VOLUME_IS_ROOT,
            f"{entry.name} is the disk that {guest.spec.name} was made with, and stays with it",
            hint=f"Delete the guest, or fork it: serai fork {guest.spec.name} NAME",
        )
    if not entry.id:
        raise Conflict(
            Code.VOLUME_OWN,
            f"{entry.name} is {guest.spec.name}'s own copy, made when it was forked; it goes with it",
            hint="Copy what is in it to a volume of its own: serai volume create",
        )


# -- how it is plugged in --------------------------------------------------------------------------


def pick_port(guest: GuestRecord, machine: Machine | None, busy: Collection[str]) -> str:
    """Return the port for one more volume; Conflict (``no-port``) when all are taken.

    ``machine`` is what runs, and ``busy`` the ports that QEMU says are taken.
    """
    taken = {each.port for each in guest.volumes} | set(busy) | set(PORTS[: len(guest.ports)])
    if machine is not None:
        taken |= {drive.port for drive in machine.drives} | {nic.place for nic in machine.nics}
    for port in reversed(PORTS):
        if port not in taken:
            return port
    raise Conflict(
        Code.NO_PORT,
        f"{guest.spec.name} has something in each of its {len(PORTS)} free places",
        hint="Detach a volume or a network port first.",
    )


def attach_all(guest: GuestRecord, volumes: Iterable[VolumeRecord]) -> GuestRecord:
    """Return a new guest's record with all these volumes attached; Conflict (``no-port``)."""
    for volume in volumes:
        port = pick_port(guest, None, ())
        entry = attached(volume, port=port, read_only=False, boot=0)
        guest = msgspec.structs.replace(guest, volumes=(*guest.volumes, entry))
    return guest


def boot_places(volumes: Sequence[Volume], others: Sequence[str]) -> Mapping[str, int]:
    """Return for each drive its place in the order of booting, from 1; the others have none.

    ``others`` are the drives that always have one, in their order; a volume with ``boot`` N comes at
    the Nth place.
    """
    order = list(others)
    for volume in sorted((each for each in volumes if each.boot), key=lambda each: each.boot):
        order.insert(volume.boot - 1, volume.name)
    return {name: place for place, name in enumerate(order, 1)}


def head_stem(volume: Volume) -> str:
    """Return how the files of a volume's heads begin: no two volumes' of one folder begin alike.

    A head's name is that of a node in QEMU too, so it is short.
    """
    if not volume.port:
        return volume.name
    return f"v{volume.id.replace('-', '')[:ID_DIGITS]}" if volume.id else volume.port


def layer_pool(pool: str) -> str:
    """Return the pool whose layers the heads of ``pool`` become; "": the house's own."""
    return "" if pool == DEFAULT_POOL else pool


def attached(volume: VolumeRecord, *, port: str, read_only: bool, boot: int) -> Volume:
    """Return a volume as the guest has it that it is attached to."""
    return Volume(
        name=volume.name,
        head="" if read_only else volume.head,
        layer=volume.layer,
        size=volume.size,
        id=volume.id,
        pool="" if read_only else volume.pool,
        read_only=read_only,
        serial=volume.serial,
        port=port,
        boot=boot,
        limits=volume.limits,
    )


def released(volume: VolumeRecord, entry: Volume) -> VolumeRecord:
    """Return the record of a volume that its guest gives back."""
    if entry.read_only:
        return volume
    return msgspec.structs.replace(
        volume,
        version=volume.version + 1,
        head=entry.head,
        layer=entry.layer,
        size=entry.size,
        attached_to="",
    )


def copies_over(
    guest: GuestRecord, frozen: Iterable[FrozenVolume], unique: str, known: Collection[str]
) -> tuple[Volume, ...]:
    """Return the volumes of a fork over what was frozen of ``guest``: heads of its own.

    What was shared read-only is shared with the fork too, if the volume is still ``known``; else the
    fork reads on what it was. ``unique`` tells its files from older ones, "" for a guest without any.
    """
    layers = {each.name: each for each in frozen}
    found = []
    for entry in guest.volumes:
        if entry.name not in layers:
            continue
        top = layers[entry.name]
        if not entry.read_only:
            entry = msgspec.structs.replace(entry, id="", pool="", head="")
            head = f"{head_stem(entry)}{f'-{unique}' if unique else ''}.qcow2"
            entry = msgspec.structs.replace(entry, head=head)
        elif entry.id not in known:
            entry = msgspec.structs.replace(entry, id="")
        found.append(msgspec.structs.replace(entry, layer=top.layer, size=top.size))
    return tuple(found)


# -- what is shown ---------------------------------------------------------------------------------


class Usage:
    """What volumes take, and what each shares; made once for a list. ``heads``: sizes by volume id."""

    def __init__(self, layers: Layers, tops: Mapping[str, int], heads: Mapping[str, int]) -> None:
        self._layers = layers
        self._users = users_of(layers, tops)
        self._heads = heads

    def own(self, volume: VolumeRecord) -> int:
        """Return what would be free without the volume and its snapshots, about."""
        return self._heads.get(volume.id, 0) + self._alone(volume.layer)[0]

    def shared(self, volume: VolumeRecord) -> int:
        """Return what it uses together with snapshots, guests and other volumes."""
        _, top = self._alone(volume.layer)
        return self._under(top)

    def of_snapshot(self, snapshot: VolumeSnapshot) -> int:
        """Return what would be free without a snapshot."""
        return self._alone(snapshot.layer)[0]

    def _alone(self, top: str) -> tuple[int, str]:
        size = 0
        while top in self._layers and self._users[top] == 1:
            size += self._layers[top].size
            top = self._layers[top].parent
        return size, top

    def _under(self, top: str) -> int:
        size = 0
        while top in self._layers:
            size += self._layers[top].size
            top = self._layers[top].parent
        return size


def view_volume(volume: VolumeRecord, guests: Sequence[GuestRecord], usage: Usage) -> VolumeInfo:
    """Join the record with who has the volume and what it takes; it is as ``current`` gives it."""
    return VolumeInfo(
        name=volume.name,
        id=volume.id,
        pool=volume.pool,
        size=volume.size,
        own=usage.own(volume),
        shared=usage.shared(volume),
        serial=volume.serial,
        limits=volume.limits,
        note=volume.note,
        created_at=volume.created_at,
        version=volume.version,
        attached=_attachments(volume, guests),
        snapshots=tuple(_view_snapshot(each, usage) for each in volume.snapshots),
    )


def _attachments(volume: VolumeRecord, guests: Sequence[GuestRecord]) -> tuple[Attachment, ...]:
    found = []
    for guest in guests:
        entry = entry_of(guest, volume.id)
        if entry is not None:
            found.append(
                Attachment(
                    guest=guest.spec.name,
                    guest_id=guest.id,
                    read_only=entry.read_only,
                    boot=entry.boot,
                )
            )
    return tuple(sorted(found, key=lambda each: each.guest))


def _view_snapshot(snapshot: VolumeSnapshot, usage: Usage) -> VolumeSnapshotInfo:
    return VolumeSnapshotInfo(
        name=snapshot.name,
        id=snapshot.id,
        created_at=snapshot.created_at,
        size=snapshot.size,
        own=usage.of_snapshot(snapshot),
        note=snapshot.note,
    )
