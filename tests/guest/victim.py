"""Daemons that can be made to die at an exact step, and die soon after another: for ``faults``.

A process that has imported the daemon and forks one for each line that it reads, so that a daemon is
there within a tenth of a second. In each, everything that is done to disks, to the database and to QEMU
is a *step*; the file ``Trap`` says before which of them the daemon ends itself by SIGKILL. Nothing of
this is in the daemon itself: its functions are wrapped before it runs.

    python victim.py          reads lines ``READY_FD_PATH``, answers each with the daemon's pid
"""

import json
import logging
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serai import daemon as daemon_module
from serai.host import userfault
from serai.qemu import life
from serai.qemu.agent_wire import AgentWire
from serai.qemu.ahead import Ahead
from serai.qemu.birth_wire import BirthWire
from serai.qemu.qmp import Monitor
from serai.settings import current_places, read_settings
from serai.store.database import Store

ON_DISKS = ("link", "rename", "replace", "unlink", "mkdir", "rmdir", "fsync", "truncate")
QUIET_CALLS = frozenset({"guest-ping", "guest-exec-status"})
SIZE = 1 << 16
NAME_SIZE = 64
COUNT, AT, BY, NAME, TOLD = slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 24 + NAME_SIZE), 88


class Trap:
    """A file that two processes map: how many steps were made, before which to die, what they were."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, SIZE)
            self._map = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self._lock = threading.Lock()

    def set(self, at: int | str, by: int = signal.SIGKILL) -> None:
        """Count from now on; send the daemon ``by`` before a step, once.

        ``at`` is its number (0: never), or how its name begins: the first such step is meant. Numbers
        differ a little from one time to the next, so what is to hit one kind of step gives a name.
        """
        name = at.encode() if isinstance(at, str) else b""
        assert len(name) <= NAME_SIZE
        with self._lock:
            self._map[AT], self._map[NAME] = bytes(8), bytes(NAME_SIZE)
            self._map[COUNT], self._map[BY] = bytes(8), by.to_bytes(8)
            self._map[TOLD:] = bytes(SIZE - TOLD)
            self._map[NAME] = name.ljust(NAME_SIZE, b"\0")
            self._map[AT] = (at if isinstance(at, int) else 0).to_bytes(8)

    def steps(self) -> list[str]:
        """Return what was done since ``set``; the last one was not done if that was deadly."""
        return self._map[TOLD:].rstrip(b"\0").decode().splitlines()

    def step(self, name: str) -> None:
        """Make a step, or die."""
        with self._lock:
            count = int.from_bytes(self._map[COUNT]) + 1
            self._map[COUNT] = count.to_bytes(8)
            end = TOLD + len(self._map[TOLD:].rstrip(b"\0"))
            line = f"{name}\n".encode()
            if end + len(line) < SIZE:
                self._map[end : end + len(line)] = line
            wanted = self._map[NAME].rstrip(b"\0")
            is_named = bool(wanted) and line.startswith(wanted)
            if is_named:
                self._map[NAME] = bytes(NAME_SIZE)
            if is_named or count == int.from_bytes(self._map[AT]):
                os.kill(os.getpid(), int.from_bytes(self._map[BY]))


def wrap(trap: Trap) -> None:
    """Make a step of everything that lasts beyond the daemon."""
    for name in ON_DISKS:
        setattr(os, name, _on_disk(trap, name, getattr(os, name)))
    commit, execute, spawn, call = (
        Store.commit,
        Monitor.execute,
        vars(life)["spawn"],
        AgentWire.call,
    )

    async def committing(self: Store, *changes: Any) -> Any:
        kinds = ",".join(sorted({type(each).__name__ for each in changes} - {"AddEvent", "PutJob"}))
        if {type(each).__name__ for each in changes} <= {"AddEvent"}:
            return await commit(self, *changes)
        trap.step(f"commit {kinds}")
        done = await commit(self, *changes)
        trap.step(f"committed {kinds}")
        return done

    async def executing(self: Monitor, command: str, *arguments: Any, **options: Any) -> Any:
        if not command.startswith("query-"):
            trap.step(f"qmp {command}")
        return await execute(self, command, *arguments, **options)

    async def spawning(*arguments: Any, **options: Any) -> Any:
        trap.step("spawn")
        made = await spawn(*arguments, **options)
        trap.step("spawned")
        return made

    async def calling(self: AgentWire, command: str, *arguments: Any, **options: Any) -> Any:
        if command not in QUIET_CALLS:
            trap.step(f"agent {command}")
        return await call(self, command, *arguments, **options)

    say, hear = BirthWire.say, BirthWire.hear

    def saying(self: BirthWire, line: str) -> None:
        trap.step("birth say")
        say(self, line)

    async def hearing(self: BirthWire, nonce: str, timeout: float) -> None:
        trap.step("birth hear")
        await hear(self, nonce, timeout)

    for name in ("copy", "catch_up", "copy_rest", "gather"):
        setattr(Ahead, name, _on_memory(trap, f"memory {name}", getattr(Ahead, name)))
    for name in ("call_in", "borrow_file"):
        setattr(userfault, name, _on_memory(trap, f"plant {name}", getattr(userfault, name)))
    AgentWire.call = calling  # type: ignore[method-assign]
    BirthWire.say, BirthWire.hear = saying, hearing  # type: ignore[method-assign]
    Store.commit = committing  # type: ignore[method-assign]
    Monitor.execute = executing  # type: ignore[method-assign]
    setattr(life, "spawn", spawning)  # noqa: B010 - it is not one that others import


def _on_disk(trap: Trap, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def doing(target: Any, *more: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if not path.startswith("/memfd:"):
            trap.step(f"{name} {_short(Path(path))}")
        return real(target, *more, **options)

    return doing


def _on_memory(trap: Trap, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def doing(*arguments: Any) -> Any:
        trap.step(name)
        return real(*arguments)

    return doing


def _short(path: Path) -> str:
    """Return a path's last two names without what is different each time."""
    names = [name if len(name) < 20 else f"*{Path(name).suffix}" for name in path.parts[-2:]]
    return "/".join(names)


def _be_daemon(ready: str) -> None:
    os.setsid()
    places = current_places()
    log = os.open(places.state.parent / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target in (1, 2):
        os.dup2(log, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    wrap(Trap(places.state.parent / "trap"))
    settings = read_settings(os.environ, places.state / "serai.toml")
    daemon_module.run_daemon(settings, places, os.open(ready, os.O_WRONLY))


def main() -> None:
    """Fork a daemon for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _be_daemon(line.strip())
            finally:
                os._exit(0)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
