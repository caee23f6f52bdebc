"""From another program's machine to a guest of ours: what is taken, and what has to be said. Pure."""

import re
from collections.abc import Collection

from serai.model.foreign import ForeignDisk, ForeignMachine, ForeignMedia
from serai.model.guest import Firmware, GuestSpec
from serai.model.image import Image, ImageKind
from serai.plan.admission import MIN_MEMORY
from serai.plan.foreign_xml import MAX_TEXT, definition_refused, listed, mac_of
from serai.plan.volume import PORTS
from serai.units import shorten

MAX_NOTES = 100
MOST_DISKS = 1 + len(PORTS)
"""The root, and one in each place that a guest has for volumes."""
ROOT_ONLY = (
    "Take the first disk alone: --root-only; bring in the others one by one: serai volume import"
)


def guest_name_from(text: str) -> str:
    """Make a guest's name of a machine's or a file's; "" where nothing of it can be one."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())
    return name.lstrip("-0123456789")[:63].rstrip("-")


def disks_to_take(machine: ForeignMachine, *, root_only: bool) -> tuple[ForeignDisk, ...]:
    """Return the disk that the machine boots from, then, unless ``root_only``, all others.

    Raises Invalid (``definition-refused``) when there is none, or one of them can't be had: a guest
    without its data would look whole.
    """
    disks = _disks_of(machine)
    if not disks or not disks[0].source:
        raise definition_refused("it has no disk")
    if root_only:
        return (disks[0],)
    if len(disks) > MOST_DISKS:
        raise definition_refused(
            f"it has {len(disks)} disks, and a guest here at most {MOST_DISKS}", hint=ROOT_ONLY
        )
    for each in disks:
        if not each.source:
            raise definition_refused(
                f"its disk {shorten(each.name)} is not a file that stands by itself",
                hint=ROOT_ONLY,
            )
    return tuple(disks)


def _disks_of(machine: ForeignMachine) -> list[ForeignDisk]:
    return [each for each in machine.disks if each.media is ForeignMedia.DISK]


def check_machine(machine: ForeignMachine) -> None:
    """Refuse what no reader of ours gives: the machine may have come over the API."""
    texts = [machine.name, *machine.notes, *(each.name for each in machine.disks)]
    fine = all(len(each) <= MAX_TEXT and each.isprintable() for each in texts)
    if not fine or len(machine.notes) > MAX_NOTES:
        raise definition_refused("its texts are too long or not printable")


def plan_guest(
    machine: ForeignMachine,
    image: Image,
    *,
    name: str,
    cpus: int,
    memory: int,
    taken: Collection[str] = (),
) -> tuple[GuestSpec, tuple[str, ...]]:
    """Return the guest that the machine becomes, and sentences about what is different there.

    ``image`` is what its root disk became, ``taken`` the names of the others that become volumes;
    ``cpus`` and ``memory`` overrule the machine where not 0.
    """
    if image.kind is not ImageKind.DISK:
        raise definition_refused("its first disk is an installation medium")
    notes = list(machine.notes)
    firmware = machine.firmware
    if firmware not in image.firmware:
        firmware = Firmware(image.firmware[0])
        notes.append(f"its disk does not start with {machine.firmware}: it gets {firmware}")
    least = max(MIN_MEMORY, image.min_memory)
    if not memory and machine.memory < least:
        notes.append(f"its memory is raised to {least >> 20} MiB")
    others = {each.name for each in _disks_of(machine)[1:]}.difference(taken)
    if others:
        notes.append(f"disks that are not taken over: {listed(others)}")
    if any(each.source for each in machine.disks if each.media is ForeignMedia.CDROM):
        notes.append("what is in its CD drive is not taken over")
    if len(machine.macs) != 1:
        cards = f"{len(machine.macs)} network cards" if machine.macs else "no network card"
        notes.append(f"it has {cards}, and gets one")
    spec = GuestSpec(
        image=image.name,
        name=name,
        cpus=cpus or machine.cpus,
        memory=memory or max(least, machine.memory),
        firmware=firmware,
    )
    return spec, tuple(notes)


def first_mac(machine: ForeignMachine) -> str:
    """Return the address of its first network card, "" where it can't be kept."""
    return mac_of(machine.macs[0]) if machine.macs else ""
