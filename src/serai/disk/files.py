"""Files that survive a power cut: copy, hash, sync, and name the problem when the disk is full.

Everything here is blocking; long work takes a ``Pulse`` and is run by ``work.run_in_thread``.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serai.disk.work import Pulse
from serai.errors import Code, HostFailure, Invalid
from serai.units import format_size

PIECE = 1 << 20
EVERYTHING = 1 << 62
BLOCK = 4096
"""Holes are kept and made in units of this: the block size of nearly every file system."""

_ZEROS = bytes(BLOCK)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def disk_full(what: str) -> HostFailure:
    """Return the problem ``disk-full`` for ``what`` (a gerund: "writing the image")."""
    return HostFailure(
        Code.DISK_FULL,
        f"{what}: the disk is full",
        hint="Free some space, for instance with `serai image delete`, and try again.",
    )


@contextmanager
def naming_disk_problems(what: str) -> Iterator[None]:
    """Turn an OSError into the problem it means: ``disk-full``, ``permission``, ``file-failed``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(what) from error
        code = Code.PERMISSION if error.errno in _FORBIDDEN else Code.FILE_FAILED
        raise HostFailure(code, f"{what}: {error.strerror}: {error.filename or ''}") from error


def check_room(folder: Path, need: int, *, reserve: int, what: str) -> int:
    """Return the bytes that may be written below ``folder`` so that ``reserve`` stays free.

    Raises HostFailure (``disk-full``) when that is less than ``need``.
    """
    facts = os.statvfs(folder)
    room = max(0, facts.f_bavail * facts.f_frsize - reserve)
    if room < need or room == 0:
        error = disk_full(what)
        error.details = {"needed": str(need), "free": str(room), "reserve": str(reserve)}
        raise error
    return room


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a new file and sync it (its folder is the caller's to sync); it must not exist."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a private file that is whole or not there, whoever has the old one open."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    write_durably(new, content)
    os.replace(new, path)
    sync_folder(path.parent)


def hash_file(
    path: Path, pulse: Pulse, *, done: int = 0, total: int = 0, algorithm: str = "sha256"
) -> str:
    """Return ``sha256:HEX`` of the content; ``done`` and ``total`` place it in a longer work."""
    digest = hashlib.new(algorithm)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        while piece := os.read(descriptor, PIECE):
            digest.update(piece)
            done += len(piece)
            pulse.beat(done, total)
    finally:
        os.close(descriptor)
    return f"{algorithm}:{digest.hexdigest()}"


def copy_sparse(
    source: int, target: int, pulse: Pulse, *, limit: int, length: int = EVERYTHING, total: int = 0
) -> str:
    """Copy what ``source`` still has to the empty file ``target``; return its ``sha256:HEX``.

    ``length`` stops it earlier. Blocks of zeros become holes. Raises Invalid (``image-refused``) when there is more than
    ``limit`` bytes, whatever the source's size said before.
    """
    digest = hashlib.sha256()
    done = 0
    while piece := os.read(source, min(PIECE, length - done)):
        if done + len(piece) > limit:
            raise Invalid(
                Code.IMAGE_REFUSED, f"the file is larger than the limit of {format_size(limit)}"
            )
        digest.update(piece)
        write_data(target, piece, len(piece), done)
        done += len(piece)
        pulse.beat(done, total)
    os.ftruncate(target, done)
    return f"sha256:{digest.hexdigest()}"


def data_runs(content: bytes | bytearray, length: int) -> Iterator[tuple[int, int]]:
    """Yield where the first ``length`` bytes of ``content`` have runs of blocks that are not zeros."""
    start = -1
    for place in range(0, length, BLOCK):
        zeros = _ZEROS if place + BLOCK <= length else _ZEROS[: length - place]
        if content.startswith(zeros, place):
            if start >= 0:
                yield start, place
                start = -1
        elif start < 0:
            start = place
    if start >= 0:
        yield start, length


def write_data(target: int, content: bytes | bytearray, length: int, offset: int) -> None:
    """Write the first ``length`` bytes at ``offset``, which must be a hole, but no blocks of zeros."""
    view = memoryview(content)
    for start, end in data_runs(content, length):
        write_all(target, view[start:end], offset + start)


def write_all(target: int, view: memoryview, offset: int) -> None:
    """Write all of ``view`` at ``offset``."""
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
