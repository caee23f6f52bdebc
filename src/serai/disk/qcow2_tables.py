"""The tables of an untrusted qcow2 file: every entry is looked at before QEMU sees the file.

``check_tables`` refuses entries that point outside of the file (where there is anything to read),
are not aligned or have reserved bits set, and tables that are used twice (which would make a small file take for ever to read).
Reading guest data (``read_guest``) is for looking at boot sectors, not for copying disks.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence

from serai.disk.qcow2_header import (
    AUTOCLEAR_BITMAPS,
    EXT_BITMAPS,
    Qcow2Header,
)
from serai.disk.reader import Reader, refused
from serai.disk.work import Pulse

OFFSET = 0x00FF_FFFF_FFFF_FE00
COMPRESSED = 1 << 62
COPIED = 1 << 63
ZERO = 1
MAX_MAPPED_CLUSTERS = 1 << 24
"""Largest number of clusters whose entries are looked at: 64 GiB in clusters of 4 KiB."""

_SNAPSHOT = struct.Struct(">QIHHIIQII")
_BITMAPS = struct.Struct(">IIQQ")
MAX_SNAPSHOT_EXTRA = 1024


def check_tables(
    reader: Reader,
    header: Qcow2Header,
    pulse: Pulse,
    *,
    most_clusters: int = MAX_MAPPED_CLUSTERS,
) -> None:
    """Look at all entries of all tables; Invalid (``image-refused``) for the first unsound one."""
    if -(-header.virtual_size // header.cluster) > most_clusters:
        raise refused(
            "its clusters are so small that its tables are absurdly large",
            hint="Make it anew with larger clusters: qemu-img convert -O qcow2 IT NEW",
        )
    _check_refcounts(reader, header)
    _check_snapshots(reader, header)
    _check_bitmaps(reader, header)
    l1 = read_table(reader, header.l1_offset, header.l1_entries, "the L1 table")
    tables = list(_table_offsets(reader, header, l1, "L2"))
    check = _check_extended if header.extended_l2 else _check_standard
    for done, offset in enumerate(tables):
        pulse.beat(done, len(tables))
        check(reader, header, reader.read(offset, header.cluster, "an L2 table"))


def read_table(reader: Reader, offset: int, entries: int, what: str) -> Sequence[int]:
    """Return a table of 64-bit numbers; refuses one that is not within the file."""
    return _to_array(reader.read(offset, entries * 8, what))


def _to_array(table: bytes) -> Sequence[int]:
    """Return the big-endian 64-bit numbers of ``table``."""
    numbers = array("Q")
    numbers.frombytes(table)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _table_offsets(
    reader: Reader, header: Qcow2Header, entries: Sequence[int], what: str
) -> Iterator[int]:
    """Yield where the tables are that ``entries`` name; each must be whole, in the file and unique."""
    seen: set[int] = set()
    flags = COPIED if what == "L2" else 0
    for entry in entries:
        offset = entry & OFFSET
        if not entry:
            continue
        if (entry & ~(OFFSET | flags)) or offset % header.cluster or not offset:
            raise refused(f"the entry of an {what} table has impossible bits")
        if offset + header.cluster > reader.size:
            raise refused(f"an {what} table lies outside of the file (truncated, or it lies)")
        if offset in seen:
            raise refused(f"an {what} table is used twice")
        seen.add(offset)
        yield offset


def _check_refcounts(reader: Reader, header: Qcow2Header) -> None:
    entries = header.reftable_clusters * header.cluster // 8
    table = read_table(reader, header.reftable_offset, entries, "the refcount table")
    for _ in _table_offsets(reader, header, table, "refcount"):
        pass


def _check_standard(reader: Reader, header: Qcow2Header, table: bytes) -> None:
    """Check a table of 8-byte entries."""
    if table.count(0) == len(table):
        return
    size, inside = reader.size, header.cluster - 1
    allowed = OFFSET | COPIED | (ZERO if header.version > 2 else 0)
    for entry in _to_array(table):
        if not entry:
            continue
        if entry & COMPRESSED:
            _check_compressed(reader, header, entry)
        elif entry & ~allowed or entry & OFFSET & inside:
            raise refused("an entry of an L2 table has impossible bits")
        elif entry & OFFSET >= size and not entry & ZERO:
            raise refused("a cluster lies outside of the file (truncated, or it lies)")


def _check_extended(reader: Reader, header: Qcow2Header, table: bytes) -> None:
    """Check a table of 16-byte entries: as above, and a bitmap of subclusters."""
    if table.count(0) == len(table):
        return
    size, inside = reader.size, header.cluster - 1
    numbers = _to_array(table)
    for entry, bitmap in zip(numbers[::2], numbers[1::2], strict=True):
        if not entry and not bitmap:
            continue
        if entry & COMPRESSED:
            _check_compressed(reader, header, entry)
            if bitmap:
                raise refused("a compressed cluster has subclusters")
            continue
        offset = entry & OFFSET
        allocated, zeros = bitmap & 0xFFFF_FFFF, bitmap >> 32
        if entry & ~(OFFSET | COPIED) or offset & inside:
            raise refused("an entry of an L2 table has impossible bits")
        if offset >= size and allocated:
            raise refused("a cluster lies outside of the file (truncated, or it lies)")
        if allocated & zeros or (allocated and not offset):
            raise refused("the subclusters of a cluster contradict each other")


def _compressed_place(header: Qcow2Header, entry: int) -> tuple[int, int]:
    """Return where a compressed cluster begins and how many bytes may belong to it."""
    shift = 62 - (header.cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
    return offset, sectors * 512 - offset % 512


def _check_compressed(reader: Reader, header: Qcow2Header, entry: int) -> None:
    offset, length = _compressed_place(header, entry)
    end = -(-reader.size // header.cluster) * header.cluster
    if entry & COPIED or offset < header.cluster or offset >= reader.size or offset + length > end:
        raise refused("a compressed cluster lies outside of the file (truncated, or it lies)")


def _check_snapshots(reader: Reader, header: Qcow2Header) -> None:
    """Walk the list of internal snapshots. (They are dropped: such an image is converted.)"""
    offset = header.snapshots_offset
    for _ in range(header.snapshots):
        if offset < header.cluster or offset % 8:
            raise refused("its list of snapshots lies where it can't be")
        record = reader.read(offset, _SNAPSHOT.size, "the list of snapshots")
        l1_offset, l1_entries, id_length, name_length, *_, extra = _SNAPSHOT.unpack(record)
        if extra > MAX_SNAPSHOT_EXTRA:
            raise refused("a snapshot has absurdly many details")
        if l1_offset % header.cluster or l1_offset + l1_entries * 8 > reader.size:
            raise refused("the table of a snapshot lies outside of the file")
        offset += -(-(_SNAPSHOT.size + extra + id_length + name_length) // 8) * 8


def _check_bitmaps(reader: Reader, header: Qcow2Header) -> None:
    """Check where dirty bitmaps are, if they count. (They are dropped, too.)"""
    for kind, content in header.extensions:
        if kind == EXT_BITMAPS and header.autoclear & AUTOCLEAR_BITMAPS:
            _count, _reserved, length, offset = _BITMAPS.unpack(content)
            if offset % header.cluster or offset + length > reader.size:
                raise refused("its list of bitmaps lies outside of the file")


def read_guest(reader: Reader, header: Qcow2Header, offset: int, length: int) -> bytes | None:
    """Return bytes that a guest would see, or None when they can't be told (zstd, or past the end).

    Call it only after ``check_tables`` found the file sound.
    """
    if offset + length > header.virtual_size:
        return None
    pieces: list[bytes] = []
    while length:
        within = offset % header.cluster
        take = min(length, header.cluster - within)
        cluster = _read_cluster(reader, header, offset // header.cluster)
        if cluster is None:
            return None
        pieces.append(cluster[within : within + take].ljust(take, b"\0"))
        offset, length = offset + take, length - take
    return b"".join(pieces)


def _read_cluster(reader: Reader, header: Qcow2Header, number: int) -> bytes | None:
    l1_index, l2_index = divmod(number, header.l2_entries)
    table = read_table(reader, header.l1_offset + l1_index * 8, 1, "the L1 table")[0] & OFFSET
    if not table:
        return b""
    width = 2 if header.extended_l2 else 1
    entry, *bitmap = read_table(reader, table + l2_index * 8 * width, width, "an L2 table")
    if entry & COMPRESSED:
        return _inflate(reader, header, entry)
    if not entry & OFFSET or entry & ZERO:
        return b""
    data = reader.peek(entry & OFFSET, header.cluster).ljust(header.cluster, b"\0")
    return _mask_subclusters(data, bitmap[0]) if bitmap else data


def _inflate(reader: Reader, header: Qcow2Header, entry: int) -> bytes | None:
    if header.zstd:
        return None
    offset, length = _compressed_place(header, entry)
    try:
        return zlib.decompressobj(-12).decompress(reader.peek(offset, length), header.cluster)
    except zlib.error as error:
        raise refused(f"a compressed cluster can't be unpacked: {error}") from error


def _mask_subclusters(data: bytes, bitmap: int) -> bytes:
    """Return ``data`` with zeros where a subcluster is not allocated."""
    size = len(data) // 32
    pieces = (data[i * size : (i + 1) * size] for i in range(32))
    return b"".join(p if bitmap >> i & 1 else bytes(size) for i, p in enumerate(pieces))
