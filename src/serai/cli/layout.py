"""How things are laid out as text: tables and lists of facts. Pure, and light to import."""

import time
from collections.abc import Mapping, Sequence

GUEST_COLUMNS = ("NAME", "STATE", "ACCEL", "IMAGE", "CPUS", "MEMORY", "DISK", "ADDRESS", "AGE")
STATE_COLOURS = {
    "running": "32",
    "paused": "33",
    "io-error": "1;31",
    "unresponsive": "1;31",
    "crashed": "31",
    "stopped": "2",
}

SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
AGES = ((86400 * 7, "w"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns; the last is not padded."""
    return "\n".join(_lines(columns, rows))


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"%-{width}s" for width in widths[:-1]) + "  %s" if widths[1:] else "%s"
    return [(form % tuple(line)).rstrip() for line in lines]


def guest_table(guests: Sequence[Mapping[str, object]], *, colours: bool) -> str:
    """Return guests as a table, for a terminal with their states in colours."""
    rows = [guest_row(guest) for guest in guests]
    lines = _lines(GUEST_COLUMNS, rows)
    if colours:
        start = lines[0].index("STATE")
        lines[1:] = [_paint(line, start, row[1]) for line, row in zip(lines[1:], rows, strict=True)]
    return "\n".join(lines)


def _paint(line: str, start: int, state: str) -> str:
    colour = STATE_COLOURS.get(state)
    if colour is None:
        return line
    return f"{line[:start]}\x1b[{colour}m{state}\x1b[0m{line[start + len(state) :]}"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return one fact a line, the values aligned."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name + ':':<{width + 1}} {value}".rstrip() for name, value in pairs)


def size(value: object) -> str:
    """Return bytes in the largest unit that keeps them at 1 or more; ``-`` for none."""
    number = value if isinstance(value, int) else 0
    for factor, unit in SIZES:
        if number >= factor:
            return f"{number / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number} B" if number else "-"


def age(since: object, now: float) -> str:
    """Return how long ago something was, in its largest unit."""
    seconds = max(0, int(now - since)) if isinstance(since, int | float) and since else 0
    for factor, unit in AGES:
        if seconds >= factor:
            return f"{seconds // factor}{unit}"
    return "now"


def ago(then: float, now: float) -> str:
    """Return when something was, as a person says it."""
    since = age(then, now)
    return since if since == "now" else f"{since} ago"


def _address(ports: object) -> str:
    """Return the first address of a guest's ports."""
    for port in ports if isinstance(ports, list | tuple) else ():
        if address := port["address"] or port["address6"]:
            return str(address)
    return "-"


def cut(text: str, most: int) -> str:
    """Return ``text`` with no more than ``most`` characters; the last says that there were more."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def guest_row(guest: Mapping[str, object]) -> tuple[str, ...]:
    """Return a guest as a row under ``GUEST_COLUMNS``."""
    return (
        str(guest["name"]),
        str(guest["state"]),
        str(guest["accel"]),
        str(guest["image"]),
        str(guest["cpus"]),
        size(guest["memory"]),
        size(guest["disk"]),
        _address(guest.get("ports")),
        age(guest["created_at"], time.time()),
    )
