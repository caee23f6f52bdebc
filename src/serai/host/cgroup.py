"""Control groups: one a guest, on v1, v2 and the mix of both, where this host lets us.

Without the rights for it guests run in the daemon's own group: a note in ``Cgroups.note`` says so,
and nothing fails. Source: the kernel's documentation, cgroup-v1/ and cgroup-v2.rst.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from serai.model.node import CgroupLayout

ROOT = Path("/sys/fs/cgroup")
OURS = "serai"
V1_CONTROLLERS = ("memory", "pids")
"""What is limited. Moving a process waits for the kernel, mostly once for all of them (0012)."""
PIDS_LIMIT = 512

T = TypeVar("T")


def find_layout(root: Path = ROOT) -> CgroupLayout:
    """Return how control groups are mounted under ``root``."""
    v2 = (root / "cgroup.controllers").exists()
    if v2:
        return CgroupLayout.V2
    v1 = (root / "memory").is_dir() or (root / "pids").is_dir()
    if v1:
        return CgroupLayout.HYBRID if (root / "unified").is_dir() else CgroupLayout.V1
    return CgroupLayout.NONE


class Cgroup:
    """One guest's group: a folder in each hierarchy."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self.folders = folders

    def try_within(self, start: Callable[[], T]) -> T | None:
        """Call ``start`` within the group: what it starts is in it from birth. v1 only.

        The group is entered, in microseconds, by a thread that ends with this call; everybody else
        of us stays where he is, and the caller waits. None, and ``start`` was not called, where no
        thread may enter. What ``start`` raises is raised.
        """
        if not all((folder / "tasks").exists() for folder in self.folders):
            return None
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._within, start).result()

    def _within(self, start: Callable[[], T]) -> T | None:
        try:
            for folder in self.folders:
                _move_thread(folder)
        except OSError:
            self._leave()
            return None
        try:
            return start()
        finally:
            self._leave()

    def _leave(self) -> None:
        """Let go of the group at once, not when the kernel is done with a thread that has ended."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                _move_thread(folder.parent)

    def add(self, pid: int) -> None:
        """Put a process, with all its threads, into the group; one that has ended is no error.

        Where we may not move it, it stays in ours, like everything on a host without such rights.
        """
        for folder in self.folders:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the group; a group that still has processes stays until the next time."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _move_thread(folder: Path) -> None:
    """Move the calling thread alone, which waits for nobody (Linux 5.5, ``cgroup_procs_write_start``).

    By its number it would: only of the writer itself the kernel knows that it does nothing else.
    """
    fd = os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


class Cgroups:
    """Makes and removes guests' groups. ``note`` says why there are none, if there are none."""

    def __init__(self, root: Path = ROOT) -> None:
        self.layout = find_layout(root)
        self.note = ""
        self._parents = self._make_parents(root)

    def _make_parents(self, root: Path) -> tuple[Path, ...]:
        try:
            if self.layout is CgroupLayout.V2:
                return (_parent_v2(root),)
            if self.layout is CgroupLayout.NONE:
                self.note = "this host has no control groups"
                return ()
            return tuple(
                _parent_v1(root / name) for name in V1_CONTROLLERS if (root / name).is_dir()
            )
        except OSError as error:
            self.note = f"guests share the daemon's control group: {error.strerror}"
            return ()

    def create(self, name: str, *, memory: int = 0) -> Cgroup | None:
        """Make the group of a guest; ``memory`` is its limit in bytes. None where we may not."""
        folders = tuple(parent / name for parent in self._parents)
        try:
            for folder in folders:
                folder.mkdir(exist_ok=True)
                _set_limits(folder, memory)
        except OSError as error:
            self.note = f"guests share the daemon's control group: {error.strerror}"
            Cgroup(folders).remove()
            return None
        return Cgroup(folders) if folders else None

    def remove(self, name: str) -> None:
        """Remove the group of a guest that has ended; fine if there is none."""
        Cgroup(tuple(parent / name for parent in self._parents)).remove()


def _parent_v1(controller: Path) -> Path:
    own = _own_path_v1(controller.name)
    parent = controller / own.lstrip("/") / OURS if os.geteuid() else controller / OURS
    return _made(parent)


def _own_path_v1(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"


def _parent_v2(root: Path) -> Path:
    """As root: a group at the top. As a user: one beside our own, in the delegated tree.

    A user moves a process only between groups whose common parent is its own (cgroup-v2.rst,
    "Delegation Containment").
    """
    if os.geteuid() == 0:
        parent = root / OURS
        _let_control(root)
    else:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        common = (root / own.lstrip("/")).parent
        _check_writable(common / "cgroup.procs")
        parent = common / f"{OURS}-{os.geteuid()}"
    _let_control(_made(parent))
    return parent


def _made(parent: Path) -> Path:
    """Make the folder of all guests' groups; PermissionError if it is there and somebody else's."""
    parent.mkdir(exist_ok=True)
    _check_writable(parent)
    return parent


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _let_control(folder: Path) -> None:
    """Let the groups in ``folder`` have limits, as far as we and the kernel can."""
    for controller in ("memory", "pids", "cpu"):
        with contextlib.suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _set_limits(folder: Path, memory: int) -> None:
    limits = {"pids.max": PIDS_LIMIT, "memory.max": memory, "memory.limit_in_bytes": memory}
    for name, value in limits.items():
        if value and (folder / name).exists():
            with contextlib.suppress(OSError):
                (folder / name).write_text(str(value))
