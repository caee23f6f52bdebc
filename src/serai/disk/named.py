"""A folder of small files, each named by what is in it, and kept as long as somebody names it."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


class NamedFolder:
    """Such a folder; what is in the files is its heirs' business."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: Counter[str] = Counter()

    def path(self, name: str) -> Path:
        """Return where the file of that name is, or would be."""
        return self._path / name

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Keep it for the length of the block, though no record names it yet."""
        self._held[name] += 1
        try:
            yield
        finally:
            self._held[name] -= 1

    def keep_only(self, names: Collection[str]) -> None:
        """Delete what is not among ``names`` and not held."""
        if not self._path.exists():
            return
        for path in self._path.iterdir():
            if path.name not in names and not self._held[path.name]:
                path.unlink(missing_ok=True)
