"""Files that no record names where disks lie: a guest's folder, a file among a pool's volumes.

They may hold somebody's disk, so a check tells of them and deletes none. Which files are there is compared
with the records in one go; whether somebody was at work on them is the caller's to know (``checking``).
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from serai.disk.check import Known
from serai.disk.pools import HEAD, PoolFolders
from serai.model.check import Fault, Finding, FindingKind
from serai.model.volume import DEFAULT_POOL
from serai.plan.volume import current


def find_stray_folders(known: Known, guests: Path) -> list[Finding]:
    """Return the folders of guests that no record is of. Blocking, quick.

    None while there are records that can't be read: it may be one of theirs.
    """
    ids = {each.id for each in known.guests}
    strays = [each for each in _entries(guests) if each.name not in ids] if known.is_whole else []
    return [_finding(FindingKind.GUEST, each, "the folder of no guest") for each in strays]


def find_stray_files(known: Known, folders: PoolFolders, pools: Iterable[str]) -> list[Finding]:
    """Return the files among the volumes of ``pools``, and of the default one, that are none's.

    Blocking, quick. None while there are records that can't be read; a pool that is away has none.
    """
    if not known.is_whole:
        return []
    heads = {(each.pool, current(each, known.guests).head) for each in known.volumes}
    heads |= {(each.pool, each.head) for guest in known.guests for each in guest.volumes}
    return [
        _finding(FindingKind.VOLUME, path, f"a file of no volume of the pool {pool}")
        for pool in (DEFAULT_POOL, *pools)
        if folders.is_available(pool)
        for path in _entries(folders.heads(pool))
        if (pool, path.name) not in heads
    ]


def _entries(folder: Path) -> Iterator[Path]:
    """Give what is in a folder, but for what is being written."""
    if folder.is_dir():
        yield from sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _finding(kind: FindingKind, path: Path, what: str) -> Finding:
    name = os.fsencode(path.name).decode("utf-8", "replace")
    where = os.fsencode(path).decode("utf-8", "replace")
    is_swept = kind is FindingKind.VOLUME and HEAD.fullmatch(name)
    then = ", but the daemon removes it when it starts anew" if is_swept else ""
    return Finding(
        fault=Fault.ORPHAN,
        kind=kind,
        id=name,
        message=f"{where} is {what} ({_size(path)} bytes); it may hold somebody's disk: --repair "
        f"leaves it{then}",
    )


def _size(path: Path) -> int:
    """Return what a file, or those right in a folder, take; 0 where that can't be seen."""
    try:
        files = path.iterdir() if path.is_dir() and not path.is_symlink() else [path]
        return sum(each.stat(follow_symlinks=False).st_blocks for each in files) * 512
    except OSError:
        return 0
