"""Sizes, durations, names: the only place where they are parsed and printed.

Inside serai a size is an ``int`` of bytes and a time is a ``float`` of seconds. Not for: reading
clocks or making random ids; those come in as arguments from whoever owns them.
"""

import re
from collections.abc import Mapping

from serai.errors import Code, Invalid

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

SIZE_UNITS: Mapping[str, int] = {
    "": 1,
    "b": 1,
    "k": KIB, "kb": 1000, "kib": KIB,
    "m": MIB, "mb": 1000**2, "mib": MIB,
    "g": GIB, "gb": 1000**3, "gib": GIB,
    "t": TIB, "tb": 1000**4, "tib": TIB,
}  # fmt: skip

MAX_SIZE = 64 * TIB
NAME_LENGTH = 63

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})", re.ASCII)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d|w)?", re.ASCII)
_DURATION_UNITS = {
    None: 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
_GUEST_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_GUEST_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_IMAGE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?", re.ASCII)


def shorten(text: str, limit: int = 60) -> str:
    """Return ``text`` quoted and cut, fit to stand in a message whatever it holds."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def parse_size(text: str) -> int:
    """Read ``256MiB``, ``2G``, ``1.5 GiB`` or plain bytes; K, M, G and T are binary.

    Raises Invalid (``size-invalid``) for anything else, zero and sizes over 64 TiB.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) < 40 else None
    factor = SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise Invalid(
            Code.SIZE_INVALID,
            f"{shorten(text)} is not a size",
            hint="Write a number and a unit, like 512MiB or 2GiB.",
        )
    size = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if not 0 < size <= MAX_SIZE:
        raise Invalid(Code.SIZE_INVALID, f"{shorten(text)} is not between 1 byte and 64 TiB")
    return size


def format_size(size: int) -> str:
    """Print a size in the largest binary unit that keeps it at 1 or more: ``1.5 GiB``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"


def parse_duration(text: str) -> float:
    """Read ``90``, ``1.5s``, ``500ms``, ``2h``, ``7d`` as seconds; Invalid otherwise."""
    match = _DURATION.fullmatch(text.strip()) if len(text) < 40 else None
    if match is None:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(text)} is not a duration",
            hint="Write a number and ms, s, m, h, d or w, like 90s.",
        )
    return float(match[1]) * _DURATION_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """Print a duration in two units at most: ``3d 4h``, ``12.3 s``, ``45 ms``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for big, small, factor, part in (("d", "h", 86400, 3600), ("h", "m", 3600, 60)):
        if whole >= factor:
            return f"{whole // factor}{big} {whole % factor // part}{small}"
    return f"{whole // 60}m {whole % 60}s"


def check_guest_name(name: str) -> str:
    """Return ``name`` if it can be a guest's name: a host name label (RFC 1123), lower case.

    It starts with a letter, so that it is never taken for a number or an option, and it is none
    that another guest may have as its id.
    """
    if not _GUEST_NAME.fullmatch(name) or _GUEST_ID.fullmatch(name):
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be the name of a guest",
            hint="Use 1 to 63 of a-z, 0-9 and '-', starting with a letter and not ending with '-'; not a UUID.",
        )
    return name


def check_volume_name(name: str) -> str:
    """Return ``name`` if it can be a volume's or a pool's: as a guest's, and none that a guest uses."""
    if not _GUEST_NAME.fullmatch(name) or _GUEST_ID.fullmatch(name) or name == "root":
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be the name of a volume or a pool",
            hint="Use 1 to 63 of a-z, 0-9 and '-', starting with a letter and not ending with '-'; not root, not a UUID.",
        )
    return name


def check_image_name(name: str) -> str:
    """Return ``name`` if it can be an image's name, else raise Invalid (``name-invalid``)."""
    if not _IMAGE_NAME.fullmatch(name):
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be the name of an image",
            hint="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit.",
        )
    return name


def check_snapshot_name(name: str) -> str:
    """Return ``name`` if it can be a snapshot's name: as an image's, and never taken for an id."""
    if not _IMAGE_NAME.fullmatch(name) or _GUEST_ID.fullmatch(name):
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be the name of a snapshot",
            hint="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting and ending with a letter or digit; not a UUID.",
        )
    return name


def split_source(text: str) -> tuple[str, str]:
    """Read ``GUEST`` or ``GUEST@SNAPSHOT``; without a snapshot the second is "".

    Raises Invalid (``name-invalid``) when a name is missing or there is more than one ``@``. Whether
    there are such a guest and snapshot is not looked at.
    """
    guest, at, snapshot = text.partition("@")
    if not guest or (at and not snapshot) or "@" in snapshot:
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(text)} names no guest and no snapshot of one",
            hint="Write GUEST for a guest as it is now, or GUEST@SNAPSHOT.",
        )
    return guest, snapshot


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return ``labels`` if all keys and values are printable and short, and at most 64 of them."""
    if len(labels) > 64:
        raise Invalid(Code.VALUE_INVALID, "a guest has at most 64 labels")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or len(value) > 256 or not value.isprintable():
            raise Invalid(
                Code.VALUE_INVALID,
                f"the label {shorten(f'{key}={value}')} is not usable",
                hint="A key is 1 to 63 of letters, digits and . _ - /; a value at most 256 printable characters.",
            )
    return dict(labels)
