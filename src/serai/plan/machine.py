"""From a guest's record to the complete description of its machine: pure, nothing left open.

Every default is filled here: how many CPUs may be plugged later, which drives there are and in
which order they boot. What is opened at start (memory, sockets, files) is named by path or not at
all; ``qemu.commandline`` renders the result.
"""

import dataclasses
from dataclasses import replace
from pathlib import PurePath

from serai.errors import Code, Conflict, HostFailure
from serai.model.guest import Firmware, GuestRecord, Volume
from serai.model.image import DiskFormat, Image, ImageKind
from serai.model.machine import Drive, LayerFile, Machine, Media, Nic
from serai.model.node import Capabilities
from serai.plan.volume import PORTS, ROOT, boot_places

UEFI_VARS_NAME = "uefi-vars.fd"
CD = "cd0"
SEED_NAME = "seed.iso"
USER_NIC = "net0"
"""The NIC of a guest without ports, at QEMU's own network."""


def uid_of(record: GuestRecord, capabilities: Capabilities, uid_base: int) -> int | None:
    """Return the uid that the guest's QEMU runs as; None: the daemon's own (unprivileged mode)."""
    return uid_base + record.number if capabilities.privileged else None


def check_fit(image: Image, firmware: Firmware, memory: int, capabilities: Capabilities) -> None:
    """Raise where this image cannot start with this firmware and memory on this host."""
    if firmware not in image.firmware:
        known = " and ".join(image.firmware)
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} does not start with {firmware}",
            hint=f"It starts with {known}: use --firmware {image.firmware[0]}.",
        )
    if memory < image.min_memory:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} needs at least {image.min_memory >> 20} MiB of memory",
            hint=f"Use --memory {image.min_memory >> 20}MiB or more.",
        )
    if firmware is Firmware.UEFI and not capabilities.uefi_code:
        raise HostFailure(
            Code.FIRMWARE_MISSING,
            "this host has no UEFI firmware",
            hint="Install it: apt-get install ovmf",
        )


def plan_machine(
    record: GuestRecord,
    image: Image,
    volumes: tuple[tuple[LayerFile, ...], ...],
    *,
    capabilities: Capabilities,
    image_folder: PurePath,
    guest_folder: PurePath,
    ram: str = "",
) -> Machine:
    """Complete the description of the guest's machine; ``ram`` names the memory that it gets.

    ``volumes`` are the guest's writable volumes, the root first. A kernel image is loaded by QEMU
    itself; an installation medium is a drive after the empty root, so that the machine boots from
    it only until something is installed. The disc for the first boot comes last.
    """
    uefi = record.spec.firmware is Firmware.UEFI
    drives = _plan_drives(record, image, volumes, image_folder, guest_folder)
    return Machine(
        id=record.id,
        name=record.spec.name,
        machine_type=record.machine_type,
        accel=capabilities.accel,
        cpus=record.spec.cpus,
        max_cpus=max(record.spec.cpus, capabilities.cpus),
        memory=record.spec.memory,
        firmware=record.spec.firmware,
        genid=record.genid,
        drives=drives,
        nics=plan_nics(record),
        kernel=str(image_folder / image.kernel.name) if image.kernel else "",
        initrd=str(image_folder / image.initrd.name) if image.initrd else "",
        cmdline=image.cmdline,
        uefi_code=capabilities.uefi_code if uefi else "",
        uefi_vars=str(guest_folder / UEFI_VARS_NAME) if uefi else "",
        sandbox=capabilities.sandbox,
        devices=capabilities.devices,
        ram=ram,
        spares=len(PORTS),
        birth_port=True,
        queues=record.spec.cpus,
        # without it each QEMU has 1.7 MiB less; without HPET a guest's first steps take a third longer
        sata=any(drive.media is Media.CDROM for drive in drives),
    )


def plan_nics(record: GuestRecord) -> tuple[Nic, ...]:
    """Return the NICs of a guest that is started: its ports, each where it can be pulled again."""
    if not record.ports:
        return (Nic(name=USER_NIC, mac=record.mac),)
    taken = {volume.port for volume in record.volumes}
    places = [place for place in PORTS if place not in taken]
    return tuple(
        Nic(name=port.name, mac=port.mac, tap=port.tap, place=place)
        for port, place in zip(record.ports, places, strict=False)
    )


def nic_of(frozen: Nic, record: GuestRecord) -> Nic:
    """Return what a NIC of a frozen machine is for the guest that takes it up: in the same place.

    One whose port the guest has not got (any more) is there without a cable.
    """
    if not frozen.place:
        return dataclasses.replace(frozen, mac=record.mac)
    ports = {port.name: port for port in record.ports}
    if frozen.name not in ports:
        return dataclasses.replace(frozen, tap="")
    port = ports[frozen.name]
    return dataclasses.replace(frozen, mac=port.mac, tap=port.tap)


def _plan_drives(
    record: GuestRecord,
    image: Image,
    volumes: tuple[tuple[LayerFile, ...], ...],
    image_folder: PurePath,
    guest_folder: PurePath,
) -> tuple[Drive, ...]:
    entries = record.volumes[: len(volumes)] or tuple(
        Volume(name=ROOT, head="", size=0) for _ in volumes
    )
    own = [each.name for each in entries if not each.port]
    drive = _plan_cd(record, image, image_folder)
    places = boot_places(entries, [*own, *([drive.name] if drive else [])])
    drives = [
        plan_drive(record, entry, chain, places.get(entry.name, 0))
        for entry, chain in zip(entries, volumes, strict=True)
    ]
    if drive is not None:
        drives.append(replace(drive, boot_index=places[drive.name]))
    if record.seed:
        disk = LayerFile(path=str(guest_folder / SEED_NAME), format=DiskFormat.RAW, read_only=True)
        drives.append(
            Drive(name="seed", media=Media.SEED, chain=(disk,), boot_index=len(places) + 1)
        )
    return tuple(drives)


def _plan_cd(record: GuestRecord, image: Image, image_folder: PurePath) -> Drive | None:
    """Describe the CD drive with what is in it; None where the guest has none.

    A guest of an installation medium boots from it, so its drive is one that everybody knows. All others
    have a system already, often with a cloud kernel.
    """
    media = Media.CDROM if image.kind is ImageKind.CDROM else Media.SCSI_CDROM
    chain: tuple[LayerFile, ...] = ()
    if record.medium is not None:
        if record.medium.file:
            digest = record.medium.digest.replace(":", "-")
            chain = (plan_medium(image_folder.parent / digest / record.medium.file),)
    elif image.kind is ImageKind.CDROM and image.disk is not None:
        chain = (plan_medium(image_folder / image.disk.name),)
    else:
        return None
    return Drive(name=CD, media=media, chain=chain, boot_index=0)


def plan_medium(path: PurePath) -> LayerFile:
    """Describe the file of a medium."""
    return LayerFile(path=str(path), format=DiskFormat.RAW, read_only=True)


def plan_drive(
    record: GuestRecord, entry: Volume, chain: tuple[LayerFile, ...], boot_index: int
) -> Drive:
    """Describe a disk of the guest. One that is plugged into a port has names of its own in QEMU:
    several volumes of a guest may stand on the same layer."""
    if not entry.port:
        serial = entry.serial or f"{record.id[:12]}-0"
        return Drive(
            name=entry.name,
            media=Media.DISK,
            chain=chain,
            boot_index=boot_index,
            serial=serial,
            limits=entry.limits,
        )
    number = entry.port.removeprefix("spare")
    named = tuple(
        replace(layer, node=f"{layer.node}-{number}") if layer.read_only else layer
        for layer in chain
    )
    return Drive(
        name=f"vol-{entry.name}",
        media=Media.DISK,
        chain=named,
        boot_index=boot_index,
        serial=entry.serial,
        port=entry.port,
        limits=entry.limits,
    )
