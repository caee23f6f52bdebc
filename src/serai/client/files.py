"""Folders as tar: packed as they are sent, and unpacked without trusting whoever packed them.

A guest is hostile: what it sends as a folder could name files outside, go through links, claim to
be a device, or hold headers without an end. ``unpack_folder`` takes files and folders, and links
that stay inside; the rest is left out and named. It does not rely on the extraction filters of
``tarfile`` (PEP 706), which Debian 12's Python 3.11.2 has not.
"""

import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from serai.errors import Code, Conflict, Invalid

CHUNK = 256 << 10
BLOCK = 512
END = bytes(2 * BLOCK)
HEADER_LIMIT = 1 << 20
"""The most that is read at a time: no header that a guest makes up costs more memory."""
LEFT_OUT_LIMIT = 1000

OnLeftOut = Callable[[str], None]


def read_pieces(file: BinaryIO) -> Iterator[bytes]:
    """Give a file in pieces."""
    while piece := file.read(CHUNK):
        yield piece


# -- packing ---------------------------------------------------------------------------------------


def pack_folder(folder: Path, on_left_out: OnLeftOut) -> Iterator[bytes]:
    """Give the content of ``folder`` as a tar, owned by root, links as links.

    ``on_left_out`` is told the name of every socket, pipe and device: they are left out. Raises
    OSError for a file that can't be read, Conflict (``file-failed``) for one that became shorter.
    GNU's form of long names: busybox does not read that of PAX.
    """
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        status = path.lstat()
        member = _member(name, path, status)
        if member is None:
            on_left_out(name)
            continue
        yield member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        if member.isreg():
            yield from _content(path, member.size)
    yield END


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in found:
        yield folder / name
        if is_folder:
            yield from _walk(folder / name)


def _member(name: str, path: Path, status: os.stat_result) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(status.st_mode)
    member.mtime = int(status.st_mtime)
    member.uname = member.gname = "root"
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        member.type = tarfile.SYMTYPE
        member.linkname = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        member.size = status.st_size
    else:
        return None
    return member


def _content(path: Path, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise Conflict(
                    Code.FILE_FAILED,
                    f"{path} became shorter while it was copied",
                    hint="Try again.",
                )
            left -= len(piece)
            yield piece
    if padding := -size % BLOCK:
        yield bytes(padding)


# -- unpacking -------------------------------------------------------------------------------------


def unpack_folder(untrusted_archive: BinaryIO, target: Path) -> list[str]:
    """Unpack into the folder ``target``; return the names of what was left out (1,000 at most).

    Nothing is written outside ``target`` and nothing goes through a link, also none that was there
    before. Files get the modes of the archive without set-uid and write permission for others, and
    belong to whoever calls. Raises Invalid (``file-failed``) for what is no tar or names files
    outside; what came before is there then.
    """
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    left_out: list[str] = []
    try:
        with tarfile.open(fileobj=_Bounded(untrusted_archive), mode="r:") as tar:  # type: ignore[call-overload]
            for member in _members(tar):
                if not _unpack(tar, member, root) and len(left_out) < LEFT_OUT_LIMIT:
                    left_out.append("/".join(_parts(member.name)))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise Invalid(
            Code.FILE_FAILED, f"what the guest sent was not unpacked to its end: {error}"
        ) from error
    finally:
        os.close(root)
    return left_out


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A file of which nobody reads much at a time, as ``tarfile`` would for a header."""

    file: BinaryIO

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Give all members without keeping them, as ``tarfile``'s own iterator does."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        yield member


def _unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, root: int) -> bool:
    """Unpack one member; False when it is of a kind that is left out."""
    parts = _parts(member.name)
    if not parts:
        return True  # the folder itself
    with _opened_parent(root, parts) as (parent, name):
        if member.isdir():
            _make_folder(parent, name, member.mode & 0o755 | 0o700)
        elif member.isreg() and not member.issparse():
            _write_file(tar, member, parent, name)
        elif member.issym() and _stays_inside(member.linkname, len(parts) - 1):
            _clear(parent, name)
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            _link(root, parts, _parts(member.linkname), parent)
        else:
            return False
    return True


def _parts(untrusted_name: str) -> list[str]:
    parts = [part for part in untrusted_name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in untrusted_name:
        raise tarfile.ReadError(f"{untrusted_name[:200]!r} is outside of the folder")
    return parts


def _stays_inside(untrusted_target: str, depth: int) -> bool:
    """Tell whether a link that is ``depth`` folders deep can't lead out, over whatever other links.

    Its target may go up only at its beginning: ``a/../..`` would go up from wherever ``a`` leads.
    """
    if posixpath.isabs(untrusted_target) or "\0" in untrusted_target or not untrusted_target:
        return False
    parts = [part for part in untrusted_target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    return ups <= depth and ".." not in parts[ups:]


@contextmanager
def _opened_parent(root: int, parts: list[str]) -> Iterator[tuple[int, str]]:
    """Open the folder that holds the last of ``parts``; make what is missing, follow no link."""
    parent = os.dup(root)
    try:
        for part in parts[:-1]:
            _make_folder(parent, part, 0o755)
            inner = _open_folder(parent, part)
            os.close(parent)
            parent = inner
        yield parent, parts[-1]
    finally:
        os.close(parent)


def _open_folder(parent: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except OSError as error:
        raise tarfile.ReadError(f"{name[:200]!r} is no folder here: {error.strerror}") from error


def _make_folder(parent: int, name: str, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        os.close(_open_folder(parent, name))


def _clear(parent: int, name: str) -> None:
    """Remove a file or link that is in the way; a folder is not."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass


def _write_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    content = tar.extractfile(member)
    assert content is not None
    _clear(parent, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, member.mode & 0o755 | 0o600, dir_fd=parent)
    with os.fdopen(fd, "wb") as file:
        while piece := content.read(CHUNK):
            file.write(piece)
        file.flush()
        os.utime(fd, (member.mtime, member.mtime))


def _link(root: int, parts: list[str], source: list[str], parent: int) -> None:
    """Make a second name for a file that was unpacked before."""
    if not source or source == parts:
        raise tarfile.ReadError(f"{parts[-1][:200]!r} is a hard link to itself")
    with _opened_parent(root, source) as (folder, file):
        try:
            is_file = stat.S_ISREG(os.stat(file, dir_fd=folder, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            is_file = False
        if not is_file:
            raise tarfile.ReadError(f"{parts[-1][:200]!r} is a hard link to no file")
        _clear(parent, parts[-1])
        os.link(file, parts[-1], src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
