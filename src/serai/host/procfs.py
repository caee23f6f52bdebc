"""What ``/proc`` tells of running programs, ours or not (proc(5)).

Only reads; whoever acts on what is found holds the program first (``held``). Every answer may be
out of date when it arrives, and an argv is whatever its program wrote there.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

ARGV_READ = 1 << 20


def option_of(pid: int, option: str) -> str | None:
    """Return what follows ``option`` in the argv of a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            untrusted_words = file.read(ARGV_READ).split(b"\0")
        return untrusted_words[untrusted_words.index(option.encode()) + 1].decode()
    except (OSError, ValueError, IndexError):
        return None


def holds_memory(pid: int, name: str) -> bool:
    """Tell whether a process has a memfd of this name open (memfd_create(2)).

    Looking into a process of another user needs CAP_SYS_PTRACE, even for root (ptrace(2)).
    """
    return _find_memory(pid, name) is not None


def read_memory(pid: int, name: str, limit: int = 4096) -> bytes | None:
    """Return the begin of the memfd of this name that a process has open; None if it has none."""
    path = _find_memory(pid, name)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError:
        return None


def _find_memory(pid: int, name: str) -> str | None:
    wanted = f"/memfd:{name} (deleted)"
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):
                if os.readlink(path) == wanted:
                    return path
    return None


def kept_waiting(pid: int) -> float:
    """Return for how many seconds the thread of a process that was worst off could run and was not let to.

    From its start on; 0 where the kernel does not count that (sched-stats in the kernel's documentation).
    """
    delays = [0]
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                counted = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
                delays.append(int(counted.split()[1]))
    return max(delays) / 1e9


def find_processes(option: str, values: Collection[str]) -> dict[str, list[int]]:
    """Return the pids of the processes whose argv has ``option`` and the value, for each value found.

    One pass over /proc. A process that has ended but was not reaped has no argv, and is not found.
    """
    found: dict[str, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            value = option_of(int(name), option)
            if value is not None and value in values:
                found.setdefault(value, []).append(int(name))
    return found
