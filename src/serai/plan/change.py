"""What `set` makes of a guest's spec, and what it refuses: pure."""

import msgspec

from serai.errors import Code, Conflict, Invalid
from serai.model.guest import GuestChange, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.node import Capabilities
from serai.plan.admission import check_cpus, check_disk, check_memory
from serai.units import check_labels, format_size


def changed_spec(
    spec: GuestSpec, change: GuestChange, image: Image, capabilities: Capabilities
) -> GuestSpec:
    """Return ``spec`` with ``change`` applied, checked as a launch would check it.

    Raises Invalid for sizes out of range and Conflict (``shrink-refused``) for a smaller disk.
    """
    named = {
        field: value
        for field in change.__struct_fields__
        if (value := getattr(change, field)) is not msgspec.UNSET
    }
    if not named:
        raise Invalid(
            Code.VALUE_INVALID, "nothing to change", hint="Name what to change: cpus, memory, …"
        )
    after = msgspec.structs.replace(spec, **named)
    check_cpus(after.cpus, capabilities)
    check_memory(after.memory, image, capabilities)
    check_labels(after.labels)
    if "disk" in named:
        _check_growth(max(spec.disk, image.virtual_size), after.disk, image)
    return after


def _check_growth(before: int, after: int, image: Image) -> None:
    if before == 0:
        raise Conflict(
            Code.NEEDS_STOP,
            "this guest has no disk to grow",
            hint="Launch another with --disk SIZE.",
        )
    check_disk(after, image)
    if after < before:
        raise Conflict(
            Code.SHRINK_REFUSED,
            f"the disk is {format_size(before)} and would lose what is behind {format_size(after)}",
            hint="A disk only grows. Copy the data to a guest with a smaller one.",
        )


def has_disk(spec: GuestSpec, image: Image) -> bool:
    """Tell whether a guest of this spec has a writable disk."""
    return image.kind is not ImageKind.KERNEL or spec.disk > 0
