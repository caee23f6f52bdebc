"""Whether the host routes between its interfaces: switched on when a network needs it, and put back.

What a setting was before is written to a file before it is changed, so that a daemon that died in
between still puts it back. A setting that somebody changed meanwhile is theirs.
"""

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from serai.host.namespaces import inside, network_error
from serai.net.links import SYSCTL, write_sysctl

V4 = "ipv4/ip_forward"
V6 = "ipv6/conf/all/forwarding"


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """A setting: what it was, and what we made of it."""

    before: int
    ours: int


async def ensure_forwarding(memory: Path, *, v4: bool, v6: bool, namespace: str = "") -> list[str]:
    """Have the host route IPv4 and IPv6 as needed; return the settings that were changed.

    What was before is kept in the file ``memory`` and put back once it is not needed any more.
    Raises Denied (``network-unavailable``).
    """

    def work() -> list[str]:
        return _put_back(memory, v4=v4, v6=v6) + _switch_on(memory, v4=v4, v6=v6)

    try:
        return await asyncio.to_thread(inside, namespace, work)
    except OSError as error:
        raise network_error("let this host route", error) from error


def _switch_on(memory: Path, *, v4: bool, v6: bool) -> list[str]:
    wanted: dict[str, int] = {V4: 1} if v4 else {}
    if v6 and _read(V6) == 0:
        # a host that routes IPv6 takes no route from its own router, unless told so (ip-sysctl.rst)
        wanted |= dict.fromkeys(_listening(), 2)
    if v6:
        wanted[V6] = 1
    changes = {
        name: Remembered(before=before, ours=value)
        for name, value in wanted.items()
        if (before := _read(name)) is not None and before != value
    }
    if changes:
        known = _recall(memory)
        _keep(memory, known | {name: each for name, each in changes.items() if name not in known})
    return [name for name, each in changes.items() if write_sysctl(name, each.ours)]


def _listening() -> list[str]:
    """Return the settings of interfaces that take routes from a router, as hosts do."""
    names = (f"ipv6/conf/{each.name}/accept_ra" for each in (SYSCTL / "ipv6/conf").iterdir())
    return [name for name in names if _read(name) == 1 and "/all/" not in name]


def _put_back(memory: Path, *, v4: bool, v6: bool) -> list[str]:
    known = _recall(memory)
    gone = {name: each for name, each in known.items() if not (v4 if name == V4 else v6)}
    changed = [
        name
        for name, each in gone.items()
        if _read(name) == each.ours and write_sysctl(name, each.before)
    ]
    if gone:
        _keep(memory, {name: each for name, each in known.items() if name not in gone})
    return changed


def _read(name: str) -> int | None:
    try:
        return int((SYSCTL / name).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _recall(memory: Path) -> dict[str, Remembered]:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, Remembered])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _keep(memory: Path, known: dict[str, Remembered]) -> None:
    if not known:
        with contextlib.suppress(FileNotFoundError):
            memory.unlink()
        return
    memory.parent.mkdir(parents=True, exist_ok=True)
    new = memory.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(msgspec.json.encode(known))
        file.flush()
        os.fsync(file.fileno())
    new.replace(memory)
