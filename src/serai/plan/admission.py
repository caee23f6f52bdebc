"""May this happen? The refusals of the tables as errors, and the limits of a launch: pure."""

from collections.abc import Mapping

from serai.errors import Busy, Code, Conflict, Invalid
from serai.model.guest import GuestKind, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.lifecycle import GuestState, Reason, Verb
from serai.model.node import Capabilities
from serai.units import GIB, MAX_SIZE, MIB, check_labels, format_size

MIN_MEMORY = 16 * MIB
MIN_DISK = 1 * MIB
MOST_CPUS = 255
ROOM_PER_GUEST = 64 * MIB
"""What QEMU itself takes beside the guest's memory, generously."""

HINTS: Mapping[Reason, str] = {
    Reason.NOT_RUNNING: "Start it first: serai start {name}",
    Reason.STILL_RUNNING: "Stop it first: serai stop {name}; or: serai delete --force {name}",
    Reason.BEING_CREATED: "Wait until it is there: serai job list",
    Reason.BEING_STARTED: "Wait until it runs, or: serai stop --force {name}",
    Reason.BEING_STOPPED: "Wait until it has stopped, or: serai stop --force {name}",
    Reason.BEING_DELETED: "",
    Reason.PAUSED: "Let it go on first: serai resume {name}",
    Reason.DISK_FULL: "Free space on the host; it goes on by itself, or: serai resume {name}",
    Reason.UNRESPONSIVE: "Wait for it, or: serai stop --force {name}",
}

WORDS: Mapping[Reason, str] = {
    Reason.NOT_RUNNING: "it is not running",
    Reason.STILL_RUNNING: "it is running",
    Reason.BEING_CREATED: "it is being created",
    Reason.BEING_STARTED: "it is being started",
    Reason.BEING_STOPPED: "it is being stopped",
    Reason.BEING_DELETED: "it is being deleted",
    Reason.PAUSED: "it is paused",
    Reason.DISK_FULL: "it is held because the host's disk is full",
    Reason.UNRESPONSIVE: "its QEMU does not answer",
}

DOINGS: Mapping[Verb, str] = {
    Verb.TALK: "talk to",
    Verb.LOOK: "look at",
    Verb.KILL: "stop",
    Verb.SET: "change",
    Verb.DESTROY: "delete",
    Verb.SNAPSHOT: "freeze",
}


def refusal(name: str, state: GuestState, verb: Verb, reason: Reason) -> Conflict:
    """Return the error that says why ``verb`` is refused for a guest in ``state``."""
    return Conflict(
        Code.GUEST_STATE,
        f"can't {DOINGS.get(verb, str(verb))} {name}: {WORDS[reason]}",
        hint=HINTS[reason].format(name=name),
        details={"state": str(state), "verb": str(verb), "reason": str(reason)},
    )


def check_cpus(cpus: int, capabilities: Capabilities) -> None:
    """Raise Invalid unless the guest can have that many CPUs on this host."""
    most = min(MOST_CPUS, max(1, capabilities.cpus) * 8)
    if not 1 <= cpus <= most:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{cpus} CPUs: this host gives a guest 1 to {most}",
            hint=f"It has {capabilities.cpus}; eight times that is the most.",
        )


def check_memory(memory: int, image: Image, capabilities: Capabilities) -> None:
    """Raise Invalid unless ``memory`` bytes can be a guest's memory on this host."""
    least = max(MIN_MEMORY, image.min_memory)
    most = capabilities.memory or 1024 * GIB
    if memory % MIB or not least <= memory <= most:
        raise Invalid(
            Code.SIZE_INVALID,
            f"a memory of {memory} bytes: it is whole MiB, from {format_size(least)} to {format_size(most)}",
            hint=f"Write it like {max(256, least // MIB)}MiB.",
        )


def check_disk(disk: int, image: Image) -> None:
    """Raise Invalid unless ``disk`` bytes can be the size of a guest's disk; 0: the image's own."""
    if disk == 0:
        return
    if disk % 512 or not MIN_DISK <= disk <= MAX_SIZE:
        raise Invalid(
            Code.SIZE_INVALID,
            f"a disk of {disk} bytes: it is whole sectors of 512, from 1 MiB to 64 TiB",
            hint="Write it like 10GiB.",
        )
    if image.kind is ImageKind.DISK and disk < image.virtual_size:
        raise Conflict(
            Code.SHRINK_REFUSED,
            f"the image {image.name} holds a disk of {format_size(image.virtual_size)}",
            hint=f"Use --disk {image.virtual_size} or more, or leave it out.",
        )


def check_launch(spec: GuestSpec, image: Image, capabilities: Capabilities) -> None:
    """Raise what is wrong with a spec, without looking at the moment."""
    if spec.kind is not GuestKind.VM:
        raise Invalid(
            Code.VALUE_INVALID,
            f"a guest of the kind {spec.kind} can't be run yet",
            hint=f"Leave the kind out, or use {GuestKind.VM}.",
        )
    check_cpus(spec.cpus, capabilities)
    check_memory(spec.memory, image, capabilities)
    check_disk(spec.disk, image)
    check_labels(spec.labels)


def check_room(memory: int, available: int) -> None:
    """Raise Busy (``memory-short``) with the arithmetic when the guest can't fit now."""
    needed = memory + ROOM_PER_GUEST
    if needed > available:
        raise Busy(
            Code.MEMORY_SHORT,
            f"it needs {format_size(needed)} ({format_size(memory)} for the guest and "
            f"{format_size(ROOM_PER_GUEST)} around it), and {format_size(available)} are free",
            hint="Stop a guest, or take less: --memory",
            details={"needed": str(needed), "available": str(available)},
        )
