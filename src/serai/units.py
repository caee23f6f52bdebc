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


_AT = re.compile(
    r"(?:(?P<day>[a-z]{3}|[0-9]{1,2}) )?(?:(?P<hour>[0-9]{1,2}):)?(?P<minute>[0-9]{2})", re.ASCII
)
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT_HINTS = {
    "hourly": "Write the minute, like :15.",
    "daily": "Write hour and minute, UTC, like 03:30.",
    "weekly": "Write day, hour and minute, UTC, like 'sun 03:30' (mon unless it is said).",
    "monthly": "Write day, hour and minute, UTC, like '15 03:30' (the 1st to the 28th).",
}


def parse_at(every: str, text: str) -> float:
    """Read when in an hour, day, week or month something is: seconds after its beginning (UTC).

    ``:15`` for ``hourly``; ``03:30`` for ``daily``; that or ``sun 03:30`` for ``weekly``; that or
    ``15 03:30`` for ``monthly``. Raises Invalid (``value-invalid``) for anything else.
    """
    match = _AT.fullmatch(text.strip().lower().removeprefix(":")) if len(text) < 40 else None
    seconds = _at_of(every, match) if match and every in _AT_HINTS else -1
    if seconds < 0:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(text)} is no time of something {every}",
            hint=_AT_HINTS.get(every, "Only hourly, daily, weekly and monthly have one."),
        )
    return float(seconds)


def _at_of(every: str, match: "re.Match[str]") -> int:
    """Return the seconds, -1 for a part that is missing, too much, or out of range."""
    day, hour, minute = match["day"], match["hour"], int(match["minute"])
    if (hour is None) != (every == "hourly") or minute > 59 or int(hour or 0) > 23:
        return -1
    number = 0
    if day is not None and every == "weekly" and day in _WEEKDAYS:
        number = _WEEKDAYS.index(day)
    elif day is not None and every == "monthly" and day.isdecimal() and 1 <= int(day) <= 28:
        number = int(day) - 1
    elif day is not None:
        return -1
    return number * 86400 + int(hour or 0) * 3600 + minute * 60


def format_at(every: str, at: float) -> str:
    """Print what ``parse_at`` reads; for all but ``hourly`` with the zone."""
    days, rest = divmod(int(at), 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}"
    if every == "hourly":
        return clock[2:]
    day = {"weekly": _WEEKDAYS[days % 7], "monthly": str(days + 1)}.get(every, "")
    return f"{day} {clock} UTC".strip()


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


def check_schedule_name(name: str) -> str:
    """Return ``name`` if it can be a schedule's name: as a snapshot's, which gets its name from it."""
    if not _IMAGE_NAME.fullmatch(name) or _GUEST_ID.fullmatch(name):
        raise Invalid(
            Code.NAME_INVALID,
            f"{shorten(name)} cannot be the name of a schedule",
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
