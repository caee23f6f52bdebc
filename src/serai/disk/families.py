"""Which memories are over which base: read from the disk once, then kept up to date.

Asked and told from several threads. What can't be read is in no family.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serai.disk.memory_base import ABOUT_NAME
from serai.disk.memory_pages import PagesAbout
from serai.disk.sealed import read_sealed
from serai.errors import HostFailure


class Families:
    """``list_folders`` gives the folders of all stored memories that are no bases."""

    def __init__(self, list_folders: Callable[[], list[Path]]) -> None:
        self._list_folders = list_folders
        self._lock = threading.Lock()
        self._over: dict[str, list[str]] | None = None

    def over(self, base_id: str) -> list[str]:
        """Return the memories over a base, the oldest first."""
        with self._lock:
            return list(self._all().get(base_id, ()))

    def bases_of(self, memory_ids: set[str]) -> set[str]:
        """Return the bases that any of these memories is over."""
        with self._lock:
            return {base for base, over in self._all().items() if memory_ids.intersection(over)}

    def siblings(self, memory_id: str) -> list[str]:
        """Return the other memories over the same base."""
        with self._lock:
            families = [over for over in self._all().values() if memory_id in over]
            return [each for over in families for each in over if each != memory_id]

    def add(self, base_id: str, memory_id: str) -> None:
        """Note that a memory was stored; it is the newest of its family."""
        with self._lock:
            over = self._all().setdefault(base_id, [])
            if memory_id not in over:
                over.append(memory_id)

    def drop(self, memory_id: str) -> None:
        """Note that a memory, or a base, is gone."""
        with self._lock:
            self._all().pop(memory_id, None)
            for over in self._all().values():
                if memory_id in over:
                    over.remove(memory_id)

    def _all(self) -> dict[str, list[str]]:
        if self._over is None:
            self._over = {}
            for folder in sorted(self._list_folders(), key=lambda path: path.stat().st_mtime_ns):
                with suppress(HostFailure):
                    about, _ = read_sealed(folder / ABOUT_NAME, PagesAbout, folder.name)
                    self._over.setdefault(about.base, []).append(folder.name)
        return self._over
