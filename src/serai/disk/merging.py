"""Making one qcow2 file of two layers, in plain Python.

    child     what it has itself (data, or zeros) stays
    parent    shows where the child has nothing
    merged    has both; where neither has anything, what lies below shows through as before

qemu-img can't do this without writing to one of the files that guests have open (``commit``), or
without comparing the whole disk with what lies below (``rebase``). Layers are made from heads, which
are all of one shape (``disk.qcow2``): clusters of 128 KiB with 32 subclusters each, never
compressed. So a cluster of the result is one of the child, one of the parent, or made of
subclusters of both:

    data  = child's data, and parent's data where the child has nothing
    zeros = child's zeros, and parent's zeros where the child has nothing

The file has no holes in its structure: header, refcount table and blocks, L1 table, then L2 tables and
data in the order of the disk, each cluster used once. Blocks of zeros in the data are holes. Both
sources are checked as strictly as a stranger's file (``qcow2_tables``), and read only within their
bounds. Format: QEMU's docs/interop/qcow2.txt.
"""

import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serai.disk.files import write_data
from serai.disk.qcow2 import CLUSTER, CLUSTER_BITS, REFCOUNT_ORDER, build_header
from serai.disk.qcow2_header import Qcow2Header, read_header
from serai.disk.qcow2_tables import COMPRESSED, COPIED, OFFSET, check_tables, read_table
from serai.disk.reader import Reader, refused
from serai.disk.work import Pulse
from serai.units import MAX_SIZE

SUBCLUSTER = CLUSTER // 32
ALL = (1 << 32) - 1
ENTRIES = CLUSTER // 16
PER_REFBLOCK = CLUSTER * 8 // (1 << REFCOUNT_ORDER)


@dataclass(frozen=True, slots=True)
class Source:
    """A layer that is open and was found sound."""

    reader: Reader
    header: Qcow2Header
    l1: Sequence[int]

    def table(self, index: int) -> Sequence[int]:
        """Return an L2 table, entries and bitmaps in turn; zeros where there is none."""
        offset = self.l1[index] & OFFSET if index < len(self.l1) else 0
        return read_table(self.reader, offset, 2 * ENTRIES, "an L2 table") if offset else _EMPTY


_EMPTY: Sequence[int] = array("Q", bytes(CLUSTER))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of the result: which subclusters are data of the child and of the parent, and zeros."""

    index: int
    child_offset: int
    child_data: int
    parent_offset: int
    parent_data: int
    zeros: int


def write_merged(path: Path, child: Path, parent: Path, pulse: Pulse) -> None:
    """Write the new file ``path`` and sync it (its name is the caller's to make durable).

    Raises Invalid (``image-refused``) when a source is unsound or of another shape, and OSError; then
    ``path`` is the caller's to remove.
    """
    with _opened(child) as upper, _opened(parent) as lower:
        above, below = _source(upper, pulse), _source(lower, pulse)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _Merger(descriptor, above, below, pulse).run()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_layer(path: Path, pulse: Pulse) -> None:
    """Look at every table of a layer; Invalid (``image-refused``) for what is unsound."""
    with _opened(path) as descriptor:
        _source(descriptor, pulse)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _source(descriptor: int, pulse: Pulse) -> Source:
    reader = Reader(descriptor)
    header = read_header(reader, MAX_SIZE)
    if header.cluster_bits != CLUSTER_BITS or not header.extended_l2 or header.snapshots:
        raise refused("it has not the shape of a layer")
    check_tables(reader, header, pulse, most_clusters=MAX_SIZE // CLUSTER)
    l1 = read_table(reader, header.l1_offset, header.l1_entries, "the L1 table")
    return Source(reader, header, l1)


def _clusters(above: Source, below: Source, index: int) -> Iterator[Cluster]:
    """Yield the clusters of the result that an L2 table of it names."""
    upper, lower = above.table(index), below.table(index)
    if upper is _EMPTY and lower is _EMPTY:
        return
    end = below.header.virtual_size
    first = index * ENTRIES
    for place in range(0, 2 * ENTRIES, 2):
        if (upper[place] | lower[place]) & COMPRESSED:
            raise refused("it has not the shape of a layer")
        child_bits, parent_bits = upper[place + 1], lower[place + 1]
        if not child_bits and not parent_bits:
            continue
        child_data, child_zeros = child_bits & ALL, child_bits >> 32
        free = ALL & ~(child_data | child_zeros) & _before(end, (first + place // 2) * CLUSTER)
        yield Cluster(
            first + place // 2,
            upper[place] & OFFSET,
            child_data,
            lower[place] & OFFSET,
            parent_bits & free,
            child_zeros | (parent_bits >> 32 & free),
        )


def _before(end: int, start: int) -> int:
    """Return the bits of the subclusters of the cluster at ``start`` that begin before ``end``."""
    if end >= start + CLUSTER:
        return ALL
    return (1 << max(0, -(-(end - start) // SUBCLUSTER))) - 1


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of each run of set bits."""
    place = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        place += skip
        count = (~bits & (bits + 1)).bit_length() - 1
        yield place, count
        bits >>= count
        place += count


class _Merger:
    """Writes the merged file: first everything is counted, then it is laid out and written."""

    def __init__(self, target: int, above: Source, below: Source, pulse: Pulse) -> None:
        self._target = target
        self._above = above
        self._below = below
        self._pulse = pulse
        self._l1_entries = above.header.l1_needed
        self._buffer = bytearray(CLUSTER)
        self._next = 0

    def run(self) -> None:
        """Write everything but a sync."""
        tables, data = self._count()
        l1_clusters = -(-self._l1_entries * 8 // CLUSTER)
        blocks = 1
        while (total := 2 + blocks + l1_clusters + tables + data) > blocks * PER_REFBLOCK:
            blocks += 1
        self._next = 2 + blocks + l1_clusters
        l1 = self._write_tables(total)
        self._write(_to_bytes(l1), (2 + blocks) * CLUSTER)
        self._write_refcounts(blocks, total)
        self._write(self._header(2 + blocks), 0)
        os.ftruncate(self._target, total * CLUSTER)

    def _count(self) -> tuple[int, int]:
        """Return how many L2 tables and how many clusters with data there will be."""
        tables = data = 0
        for index in range(self._l1_entries):
            self._pulse.beat(index, 2 * self._l1_entries)
            found = [bool(c.child_data | c.parent_data) for c in self._clusters(index)]
            tables += bool(found)
            data += sum(found)
        there = self._above.reader.size + self._below.reader.size
        if data * CLUSTER > there:
            raise refused("its clusters are used more than once")
        return tables, data

    def _clusters(self, index: int) -> Iterator[Cluster]:
        return _clusters(self._above, self._below, index)

    def _write_tables(self, total: int) -> "array[int]":
        l1 = array("Q", bytes(self._l1_entries * 8))
        for index in range(self._l1_entries):
            self._pulse.beat(self._l1_entries + index, 2 * self._l1_entries)
            l2 = array("Q", bytes(CLUSTER))
            table = 0
            for cluster in self._clusters(index):
                table = table or self._take(total)
                self._write_cluster(cluster, l2, total)
            if table:
                self._write(_to_bytes(l2), table)
                l1[index] = table | COPIED
        return l1

    def _take(self, total: int) -> int:
        """Return the offset of the next free cluster."""
        if self._next == total:
            raise refused("it changed while it was read")
        self._next += 1
        return (self._next - 1) * CLUSTER

    def _write_cluster(self, cluster: Cluster, l2: "array[int]", total: int) -> None:
        place = cluster.index % ENTRIES * 2
        data = cluster.child_data | cluster.parent_data
        if data:
            offset = self._take(total)
            self._copy(self._above, cluster.child_offset, cluster.child_data, offset, CLUSTER)
            limit = self._below.header.virtual_size - cluster.index * CLUSTER
            self._copy(self._below, cluster.parent_offset, cluster.parent_data, offset, limit)
            l2[place] = offset | COPIED
        l2[place + 1] = data | cluster.zeros << 32

    def _copy(self, source: Source, start: int, bits: int, target: int, limit: int) -> None:
        """Copy subclusters; of the cluster only the first ``limit`` bytes count, the rest is zeros."""
        for first, count in _runs(bits):
            self._pulse.beat()
            begin = first * SUBCLUSTER
            length = min(count * SUBCLUSTER, limit - begin)
            piece = source.reader.peek(start + begin, length)
            write_data(self._target, piece, len(piece), target + begin)

    def _write_refcounts(self, blocks: int, total: int) -> None:
        """Every cluster is used once."""
        table = array("Q", [(2 + block) * CLUSTER for block in range(blocks)])
        self._write(_to_bytes(table), CLUSTER)
        for block in range(blocks):
            used = min(PER_REFBLOCK, total - block * PER_REFBLOCK)
            self._write(b"\0\1" * used, (2 + block) * CLUSTER)

    def _header(self, l1_cluster: int) -> bytes:
        return build_header(
            self._above.header.virtual_size,
            l1_entries=self._l1_entries,
            l1_offset=l1_cluster * CLUSTER,
        )

    def _write(self, content: bytes, offset: int) -> None:
        write_data(self._target, content, len(content), offset)


def _to_bytes(numbers: "array[int]") -> bytes:
    """Return 64-bit numbers as they stand in the file: big-endian."""
    if sys.byteorder == "little":
        numbers = array("Q", numbers)
        numbers.byteswap()
    return numbers.tobytes()
