"""The folders of pools: where the heads of volumes lie, and the layers that they become.

    volumes/            the pool ``default``, which is always there: heads; its layers are the house's
    PATH/               another pool, on whatever file system
      serai-pool.json   the mark: which pool this is, so that no two share a folder
      volumes/          heads
      layers/           layers

A head becomes a layer by a hard link, so each pool has its layers beside its heads. A pool whose mark
is not there is *unavailable* (its disk is not mounted): nothing is made in its folder, and nothing in it
is taken for gone. Not for: which pools there are (the store knows).
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, sync_folder, write_durably
from serai.disk.layers import LayerFolder
from serai.errors import Code, Conflict, HostFailure, Invalid
from serai.model.guest import Volume
from serai.model.snapshot import Layer
from serai.model.volume import DEFAULT_POOL, PoolRecord
from serai.plan.volume import layer_pool
from serai.units import shorten

MARK = "serai-pool.json"
HEAD = re.compile(r"v[0-9a-f]{12}(-[0-9a-f]{8})?\.qcow2", re.ASCII)
PATH_LENGTH = 512


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What the mark says."""

    pool: str
    id: str


class PoolFolders:
    """All pools by name. ``layers`` is the house's own folder, and that of the pool ``default``."""

    def __init__(self, default: Path, layers: LayerFolder) -> None:
        self._default = default
        self._layers = layers
        self._records: dict[str, PoolRecord] = {}
        self._opened: dict[str, LayerFolder] = {}
        default.mkdir(mode=0o700, parents=True, exist_ok=True)

    def know(self, record: PoolRecord) -> None:
        """Take a pool in; its folder may be away."""
        self._records[record.name] = record

    def forget(self, name: str) -> None:
        """Know of a pool no more."""
        self._records.pop(name, None)
        self._opened.pop(name, None)

    def is_available(self, name: str) -> bool:
        """Tell whether a pool's folder is there and is its own."""
        record = self._records.get(name)
        return name in ("", DEFAULT_POOL) or (record is not None and _is_marked(record))

    def heads(self, name: str) -> Path:
        """Return the folder of a pool's heads; HostFailure (``pool-unavailable``)."""
        return self._default if name == DEFAULT_POOL else self._root(name) / "volumes"

    def layers(self, name: str) -> LayerFolder:
        """Return the layers of a pool, "" for the house's; HostFailure (``pool-unavailable``)."""
        if layer_pool(name) == "":
            return self._layers
        root = self._root(name)
        if name not in self._opened:
            self._opened[name] = LayerFolder(root / "layers")
        return self._opened[name]

    def layers_of(self, layer: Layer) -> LayerFolder:
        """Return the folder that a layer lies in."""
        return self.layers(layer.pool)

    def root(self, name: str) -> Path:
        """Return the folder of a pool whose room counts."""
        return self._default if name == DEFAULT_POOL else Path(self._record(name).path)

    def head_size(self, volume: Volume) -> int:
        """Return what the head of a volume in a pool takes; 0 where it can't be seen."""
        try:
            return (self.heads(volume.pool) / volume.head).stat().st_blocks * 512
        except (OSError, HostFailure):
            return 0

    def room(self, name: str, reserve: int) -> tuple[int, int]:
        """Return the size of a pool and what may still be written, ``reserve`` kept back; 0, 0 if away."""
        if not self.is_available(name):
            return 0, 0
        facts = os.statvfs(self.root(name))
        free = max(0, facts.f_bavail * facts.f_frsize - reserve)
        return facts.f_blocks * facts.f_frsize, free

    def sweep(self, heads: Collection[tuple[str, str]], layers: Iterable[Layer]) -> list[str]:
        """Remove heads and layers that nobody knows, of pools that are there; return their names.

        ``heads`` are all known as pairs of pool and file. Call it when nothing is being made.
        """
        gone = []
        known = list(layers)
        for name in (DEFAULT_POOL, *self._records):
            if not self.is_available(name):
                continue
            folder = self.heads(name)
            with naming_disk_problems("sweeping the volumes"):
                for path in sorted(folder.iterdir()):
                    known_here = (name, path.name) in heads
                    if not known_here and (path.name.startswith(".") or HEAD.fullmatch(path.name)):
                        path.unlink()
                        gone.append(path.name)
            if layer_pool(name):
                gone += self.layers(name).sweep({each.id for each in known if each.pool == name})
        return gone

    def _record(self, name: str) -> PoolRecord:
        record = self._records.get(name)
        if record is None:
            raise HostFailure(Code.POOL_UNAVAILABLE, f"there is no pool {shorten(name)} any more")
        return record

    def _root(self, name: str) -> Path:
        record = self._record(name)
        if not _is_marked(record):
            raise HostFailure(
                Code.POOL_UNAVAILABLE,
                f"the folder {record.path} of the pool {name} is not there, or is another pool's",
                hint="Mount its disk, then try again.",
            )
        return Path(record.path)


def _is_marked(record: PoolRecord) -> bool:
    try:
        untrusted = (Path(record.path) / MARK).read_bytes()
        return msgspec.json.decode(untrusted, type=_Mark).id == record.id
    except (OSError, msgspec.DecodeError):
        return False


def check_pool_path(untrusted: str) -> Path:
    """Return the path if a pool can be there: absolute, plain, and no file; else Invalid."""
    path = Path(untrusted)
    plain = untrusted.isprintable() and len(untrusted) <= PATH_LENGTH and ".." not in path.parts
    if not path.is_absolute() or not plain or path == Path("/"):
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(untrusted)} can't be the folder of a pool",
            hint="Give an absolute path, like /srv/volumes.",
        )
    return path


def create_pool(record: PoolRecord, known: Collection[str]) -> None:
    """Make the folder of a new pool and mark it; durable when it returns.

    The folder may be there, if it is empty: else Conflict (``pool-exists``). What an earlier try for a
    pool of this name left, whose id is not ``known``, is taken up.
    """
    path = Path(record.path)
    with naming_disk_problems(f"making the pool {record.name}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_marked(record):
            _remove_left_over(path, record.name, known)
            if any(each.name != "lost+found" for each in path.iterdir()):
                raise Conflict(
                    Code.POOL_EXISTS,
                    f"there is something in {path} already",
                    hint="Give an empty folder, or a new one.",
                )
            for name in ("volumes", "layers"):
                (path / name).mkdir(mode=0o700)
            mark = msgspec.json.encode(_Mark(pool=record.name, id=record.id))
            write_durably(path / MARK, mark)
        sync_folder(path)
        sync_folder(path.parent)


def _remove_left_over(path: Path, name: str, known: Collection[str]) -> None:
    """Remove the mark and the empty folders of a pool that was never stored."""
    try:
        mark = msgspec.json.decode((path / MARK).read_bytes(), type=_Mark)
    except (OSError, msgspec.DecodeError):
        return
    if mark.pool == name and mark.id not in known:
        left = PoolRecord(name=name, id=mark.id, path=str(path), created_at=0.0)
        remove_pool(left)


def remove_pool(record: PoolRecord) -> None:
    """Take an empty pool's mark and folders away; the folder itself stays if it was not ours alone."""
    path = Path(record.path)
    if not _is_marked(record):
        return
    with naming_disk_problems(f"removing the pool {record.name}"):
        for name in ("volumes", "layers"):
            for left in (path / name).glob(".*"):
                left.unlink()
            (path / name).rmdir()
        (path / MARK).unlink()
        sync_folder(path)
