"""An initramfs as bytes: the newc format of cpio, made the same way every time.

Format: the kernel's documentation, driver-api/early-userspace/buffer-format.rst. All files belong
to root and carry the same time, so the same content gives the same bytes.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file: ``mode`` with its type; ``data`` is content or the target of a link."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def a_file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path=path, mode=stat.S_IFREG | mode, data=data)


def a_folder(path: str, mode: int = 0o755) -> Entry:
    """A folder."""
    return Entry(path=path, mode=stat.S_IFDIR | mode)


def a_link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def a_device(path: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(path=path, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def with_folders(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries sorted by path, with all folders that they need before them."""
    found = {entry.path: entry for entry in entries}
    for path in list(found):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            found.setdefault(folder, a_folder(folder))
    return [found[path] for path in sorted(found)]


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive."""
    archive = bytearray()
    for number, entry in enumerate(with_folders(entries), start=1):
        archive += _record(entry, number)
    archive += _record(Entry(path=TRAILER, mode=0), 0)
    return bytes(archive.ljust(-(-len(archive) // 512) * 512, b"\0"))


def _record(entry: Entry, number: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")
