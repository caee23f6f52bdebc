"""A power cut at the n-th thing that is done to a disk: nothing after it happens.

What was written and not synced is lost: such files are cut in half afterwards. Names that were given
without syncing the folder stay, which is the harder case: they may name what was lost.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DONE_TO_DISKS = (
    "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "chmod", "fchmod",
    "pwrite", "write", "ftruncate",
)  # fmt: skip


class Cut(BaseException):
    """The power is gone."""


class PowerCut:
    """Counts what is done to disks from now on, and cuts the power before the ``at``-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.count = 0
        self._synced: dict[int, tuple[int, int]] = {}
        self._real = {name: getattr(os, name) for name in DONE_TO_DISKS}
        for name in DONE_TO_DISKS:
            monkeypatch.setattr(os, name, self._counting(name))

    def _counting(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def counting(*arguments: Any, **options: Any) -> Any:
            if not self._is_memory(arguments[0]):
                self.count += 1
                if self.count >= self.at:
                    raise Cut
            result = real(*arguments, **options)
            if name == "fsync":
                facts = os.fstat(arguments[0])
                self._synced[facts.st_ino] = (facts.st_size, facts.st_mtime_ns)
            return result

        return counting

    @staticmethod
    def _is_memory(target: object) -> bool:
        return isinstance(target, int) and os.readlink(f"/proc/self/fd/{target}").startswith(
            "/memfd:"
        )

    def come_back(self, monkeypatch: pytest.MonkeyPatch, folder: Path, before: set[int]) -> None:
        """Let the power come back; ``before`` are the inodes that were durable when it all began."""
        monkeypatch.undo()
        for path in folder.rglob("*"):
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode) or facts.st_ino in before:
                continue
            if self._synced.get(facts.st_ino) != (facts.st_size, facts.st_mtime_ns):
                os.truncate(path, facts.st_size // 2)


def inodes(folder: Path) -> set[int]:
    """Return the inodes of all files in a folder."""
    return {path.lstat().st_ino for path in folder.rglob("*")}
