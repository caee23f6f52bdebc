"""Writing qcow2 heads in plain Python: the empty, writable top of a volume.

Starting qemu-img for this would take longer than all the rest of a launch. A head is five
clusters, nearly all holes:

    0  header and our note     1  refcount table     2  refcount block     3…  L1 table (empty)

* Clusters of 128 KiB with subclusters of 4 KiB (``extended_l2``): a first write of 4 KiB copies
  nothing from the layer below, and the tables stay small.
* **No backing file name is recorded.** QEMU is given the layers as open descriptors and told
  explicitly what is below what; a name in the header could only be followed by mistake, by a tool
  or by QEMU itself, and then it names the wrong thing. What lies below is noted for people in a
  header extension of our own, which QEMU keeps and never interprets.
"""

import os
import struct
from pathlib import Path

import msgspec

from serai.disk.files import sync_folder
from serai.disk.qcow2_header import EXTENDED_L2, KNOWN_LENGTH, MAGIC, Qcow2Header, read_header
from serai.disk.reader import Reader
from serai.errors import Code, Conflict, Invalid
from serai.model.image import DiskFormat
from serai.units import MAX_SIZE, format_size

CLUSTER_BITS = 17
CLUSTER = 1 << CLUSTER_BITS
L2_COVERS = CLUSTER // 16 * CLUSTER
"""Bytes of the disk that one L2 table maps, so one L1 entry: 1 GiB."""
REFCOUNT_ORDER = 4
EXT_NOTE = 0x73657261
"""The type of our header extension: "sera"."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_SIZE_AT, _L1_ENTRIES_AT = 24, 36


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What our header extension says: which layer the head was made over. For people only."""

    backing: str
    format: DiskFormat


def build_head(virtual_size: int, note: Note | None = None) -> dict[int, bytes]:
    """Return what to write where for an empty head; all the rest up to ``head_length`` is zeros."""
    l1_clusters = _l1_clusters(virtual_size)
    header = build_header(virtual_size, l1_entries=_l1_entries(virtual_size), l1_offset=3 * CLUSTER)
    return {
        0: header + _extension(note) + bytes(8),
        1 * CLUSTER: struct.pack(">Q", 2 * CLUSTER),
        2 * CLUSTER: struct.pack(">H", 1) * (3 + l1_clusters),
    }


def build_header(virtual_size: int, *, l1_entries: int, l1_offset: int) -> bytes:
    """Return the header of a file of our shape, whose refcount table is its second cluster."""
    return _HEADER.pack(
        MAGIC, 3,
        0, 0,  # no backing file
        CLUSTER_BITS, virtual_size,
        0,  # not encrypted
        l1_entries, l1_offset,
        1 * CLUSTER, 1,  # the refcount table and its clusters
        0, 0,  # no snapshots
        EXTENDED_L2, 0, 0,  # incompatible, compatible, autoclear features
        REFCOUNT_ORDER, KNOWN_LENGTH,
        0,  # zlib
    )  # fmt: skip


def _extension(note: Note | None) -> bytes:
    if note is None:
        return b""
    content = msgspec.json.encode(note)
    return struct.pack(">II", EXT_NOTE, len(content)) + content + bytes(-len(content) % 8)


def _l1_entries(virtual_size: int) -> int:
    return -(-virtual_size // L2_COVERS)


def _l1_clusters(virtual_size: int) -> int:
    return -(-_l1_entries(virtual_size) * 8 // CLUSTER)


def head_length(virtual_size: int) -> int:
    """Return how long the file of an empty head is."""
    return (3 + _l1_clusters(virtual_size)) * CLUSTER


def create_head(
    path: Path, *, virtual_size: int, backing: str = "", backing_format: DiskFormat = DiskFormat.RAW
) -> None:
    """Write an empty head to ``path``, which must not exist; durable when it returns.

    ``backing`` only becomes our note. The file appears complete or not at all. Raises Invalid
    (``size-invalid``) and OSError.
    """
    if virtual_size <= 0 or virtual_size % 512 or virtual_size > MAX_SIZE:
        raise Invalid(Code.SIZE_INVALID, f"a disk can't have {virtual_size} bytes")
    note = Note(backing=backing, format=backing_format) if backing else None
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        _write(temporary, build_head(virtual_size, note), head_length(virtual_size))
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write(path: Path, pieces: dict[int, bytes], length: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, length)
        for offset, piece in pieces.items():
            if os.pwrite(descriptor, piece, offset) != len(piece):
                raise OSError(28, os.strerror(28), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_note(header: Qcow2Header) -> Note | None:
    """Return our note, or None where there is none that can be read."""
    for kind, content in header.extensions:
        if kind == EXT_NOTE:
            try:
                return msgspec.json.decode(content, type=Note)
            except msgspec.MsgspecError:
                return None
    return None


def read_head(path: Path) -> Qcow2Header:
    """Return the header of a head. It is checked as strictly as a stranger's: a guest that broke
    out of its QEMU may have written it. Raises Invalid (``image-refused``) and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return read_header(Reader(descriptor), MAX_SIZE)
    finally:
        os.close(descriptor)


def is_empty(path: Path) -> bool:
    """Tell whether nothing was ever written to a head or layer that nothing has open for writing.

    Raises as ``read_head`` does.
    """
    header = read_head(path)
    with path.open("rb") as file:
        file.seek(header.l1_offset)
        return not any(file.read(header.l1_entries * 8))


def grow_head(path: Path, virtual_size: int) -> None:
    """Make the disk of a head that nothing has open larger; durable when it returns.

    The L1 table is lengthened within its last cluster; when that is too small, Invalid
    (``size-invalid``) asks to grow the disk of the running guest instead, where QEMU moves the table.
    The header changes last and in one write, so a power cut leaves the old size or the new one.
    """
    header = read_head(path)
    if virtual_size < header.virtual_size:
        raise Conflict(
            Code.SHRINK_REFUSED,
            f"the disk has {format_size(header.virtual_size)} and can't be made smaller",
        )
    if virtual_size % 512 or virtual_size > MAX_SIZE:
        raise Invalid(Code.SIZE_INVALID, f"a disk can't have {virtual_size} bytes")
    covers = header.cluster * header.l2_entries
    entries = max(header.l1_entries, -(-virtual_size // covers))
    if entries * 8 > -(-header.l1_entries * 8 // header.cluster) * header.cluster:
        raise Invalid(
            Code.SIZE_INVALID,
            "a stopped guest's disk can't grow that much",
            hint="Start the guest and set the size then.",
        )
    _lengthen(path, header, entries, virtual_size)


def _lengthen(path: Path, header: Qcow2Header, entries: int, virtual_size: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        added = bytes((entries - header.l1_entries) * 8)
        os.pwrite(descriptor, added, header.l1_offset + header.l1_entries * 8)
        os.fsync(descriptor)
        start = bytearray(os.pread(descriptor, 512, 0))
        struct.pack_into(">Q", start, _SIZE_AT, virtual_size)
        struct.pack_into(">I", start, _L1_ENTRIES_AT, entries)
        os.pwrite(descriptor, start, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
