"""Untrusted VMDK files: only those that are one self-contained sparse extent are taken.

Layout: VMware's "Virtual Disk Format 5.0" and QEMU's block/vmdk.c, whose habits matter because
QEMU converts what passes here: it takes a header with capacity 0 for a pointer to a descriptor that
names other files; it lets the footer of a streamOptimized file overrule the header; and it
looks for a parent in the twenty sectors after the header, whatever the header says. Whoever wants to
hide a host file in an image uses one of these. So the footer must repeat the header, the
descriptor must be where everybody writes it and name one extent, and nothing may name a parent.
"""

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from serai.disk.qcow2_header import check_virtual_size
from serai.disk.reader import SECTOR, Reader, refused
from serai.disk.work import Pulse

MAGIC = b"KDMV"
SPARSE, STREAM = "monolithicSparse", "streamOptimized"
FLAG_NEWLINE, FLAG_RGD, FLAG_ZERO_GRAIN = 1, 2, 4
FLAG_COMPRESSED, FLAG_MARKERS = 1 << 16, 1 << 17
KNOWN_FLAGS = FLAG_NEWLINE | FLAG_RGD | FLAG_ZERO_GRAIN | FLAG_COMPRESSED | FLAG_MARKERS
AT_END = 0xFFFF_FFFF_FFFF_FFFF
MARKER_END, MARKER_FOOTER = 0, 3
NEWLINES = b"\n \r\n"
GRAIN_SECTORS = frozenset(1 << bits for bits in range(3, 13))
TABLE_ENTRIES = 512
DESCRIPTOR_SECTORS = 20
PIECE_ENTRIES = 1 << 20

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_EXTENT = re.compile(r'(RW|RDONLY|NOACCESS) ([0-9]{1,19}) ([A-Z]{1,20}) "([^"\r\n]{1,255})"(.*)')
_SETTING = re.compile(r'([A-Za-z][A-Za-z0-9_.]{0,127}) *= *"?([^"]{0,1023})"?')


@dataclass(frozen=True, slots=True, kw_only=True)
class VmdkHeader:
    """The fields of a sparse extent's header. Places and lengths are sectors of 512 bytes."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_length: int
    table_entries: int
    backup_directory: int
    directory: int
    overhead: int
    newlines: bytes
    compression: int

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk."""
        return self.capacity * SECTOR

    @property
    def tables(self) -> int:
        """How many grain tables the directory names."""
        return -(-self.capacity // (self.grain * self.table_entries))


def check_vmdk(reader: Reader, limit: int, pulse: Pulse) -> tuple[VmdkHeader, str]:
    """Look at all of the file's structure; return its header and createType, or refuse it."""
    if reader.size % SECTOR:
        raise refused("its length is not a whole number of sectors: it is truncated")
    header = _read_header(reader, 0)
    _check_header(header, limit)
    if header.directory == AT_END:
        header = _read_footer(reader, header)
    if header.overhead * SECTOR > reader.size:
        raise refused("it is truncated")
    kind = _check_descriptor(reader, header)
    _check_directory(reader, header, header.directory, pulse)
    if header.flags & FLAG_RGD:
        _check_directory(reader, header, header.backup_directory, pulse)
    return header, kind


def _read_header(reader: Reader, offset: int) -> VmdkHeader:
    fields = reader.read(offset, SECTOR, "the VMDK header")
    (magic, version, flags, capacity, grain, descriptor, descriptor_length, table_entries, backup,
     directory, overhead, _unclean, newlines, compression) = _HEADER.unpack_from(fields)  # fmt: skip
    if magic != MAGIC:
        raise refused("it has no VMDK header where one should be")
    return VmdkHeader(
        version=version,
        flags=flags,
        capacity=capacity,
        grain=grain,
        descriptor=descriptor,
        descriptor_length=descriptor_length,
        table_entries=table_entries,
        backup_directory=backup,
        directory=directory,
        overhead=overhead,
        newlines=newlines,
        compression=compression,
    )


def _check_header(header: VmdkHeader, limit: int) -> None:
    if header.version not in (1, 2, 3):
        raise refused(f"its VMDK version is {header.version}; 1 to 3 are known")
    if header.flags & ~KNOWN_FLAGS:
        raise refused(f"it has unknown features ({header.flags:#x})")
    if header.flags & FLAG_NEWLINE and header.newlines != NEWLINES:
        raise refused("its line ends were changed on the way, so its data was, too")
    if header.capacity == 0:
        raise refused("it has no disk of its own, only a description of other files")
    check_virtual_size(header.virtual_size, limit)
    if header.grain not in GRAIN_SECTORS or header.table_entries != TABLE_ENTRIES:
        raise refused("its grains or grain tables have an impossible size")
    if header.compression > 1 or header.compression != bool(header.flags & FLAG_COMPRESSED):
        raise refused("its compression is not known or contradicts its features")
    if header.descriptor != 1 or not 0 < header.descriptor_length <= 1024:
        raise refused("its description is missing or not where it should be")


def _read_footer(reader: Reader, header: VmdkHeader) -> VmdkHeader:
    """Return the footer, which must say what the header said but for the directory's place."""
    if not header.compression:
        raise refused("its directory is said to be at its end, which only streams do")
    start = reader.size - 3 * SECTOR
    for offset, marker in ((start, MARKER_FOOTER), (start + 2 * SECTOR, MARKER_END)):
        _, size, kind = struct.unpack_from("<QII", reader.read(offset, SECTOR, "the footer"))
        if size or kind != marker:
            raise refused("it has no footer where one should be: it is truncated")
    footer = _read_header(reader, start + SECTOR)
    if footer.directory == AT_END or replace(footer, directory=AT_END) != header:
        raise refused("its footer contradicts its header")
    return footer


def _check_descriptor(reader: Reader, header: VmdkHeader) -> str:
    """Check the embedded description; return its createType."""
    length = max(header.descriptor_length, DESCRIPTOR_SECTORS) * SECTOR
    region = reader.peek(SECTOR, length)
    if b"parentFileNameHint" in region:
        raise refused("it names a parent: a part of its content would come from another file")
    untrusted_text = region[: header.descriptor_length * SECTOR].partition(b"\0")[0]
    lines = untrusted_text.decode(errors="replace").splitlines()  # names may be in any charset
    settings, extents = _read_descriptor(lines)
    kind = settings.get("createType", "")
    if kind not in (SPARSE, STREAM):
        raise refused(f"its type is {kind[:40]!r}; only {SPARSE} and {STREAM} hold their own data")
    if settings.get("version", "") not in ("1", "2", "3"):
        raise refused("its description has no version that is known")
    if settings.get("parentCID", "").lower() != "ffffffff":
        raise refused("it is a difference to another disk")
    _check_extents(extents, header)
    return kind


def _read_descriptor(lines: list[str]) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """Return the settings and the extents of a description; refuse a line that is neither."""
    settings: dict[str, str] = {}
    extents: list[tuple[str, ...]] = []
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        if extent := _EXTENT.fullmatch(line):
            extents.append(extent.groups())
        elif setting := _SETTING.fullmatch(line):
            if setting[1] in settings:
                raise refused(f"its description says {setting[1][:40]} twice")
            settings[setting[1]] = setting[2].strip()
        else:
            raise refused(f"its description has a line that is not known: {line[:60]!r}")
    return settings, extents


def _check_extents(extents: list[tuple[str, ...]], header: VmdkHeader) -> None:
    if len(extents) != 1:
        raise refused(f"it has {len(extents)} extents instead of one: its data is elsewhere")
    access, sectors, kind, name, rest = extents[0]
    if access not in ("RW", "RDONLY") or kind != "SPARSE" or rest.strip():
        raise refused(f"its extent is {access} {kind}, not RW SPARSE: its data is elsewhere")
    if int(sectors) != header.capacity:
        raise refused("its extent has another size than the disk")
    if "/" in name or "\\" in name or not name.isprintable():
        raise refused("its extent is a file in another folder")


def _check_directory(reader: Reader, header: VmdkHeader, place: int, pulse: Pulse) -> None:
    """Check that the directory, its tables and all grains lie in the file."""
    for done, table in enumerate(_read_numbers(reader, place, header.tables, "the directory")):
        pulse.beat(done, header.tables)
        if not table:
            continue
        entries = min(TABLE_ENTRIES, -(-header.capacity // header.grain) - done * TABLE_ENTRIES)
        raw = reader.read(table * SECTOR, entries * 4, "a grain table")
        grains = _to_array(raw)
        if max(grains) * SECTOR >= reader.size:
            raise refused("a grain lies outside of the file (truncated, or it lies)")


def _read_numbers(reader: Reader, place: int, count: int, what: str) -> Iterator[int]:
    for start in range(0, count, PIECE_ENTRIES):
        length = min(PIECE_ENTRIES, count - start) * 4
        yield from _to_array(reader.read(place * SECTOR + start * 4, length, what))


def _to_array(table: bytes) -> Sequence[int]:
    """Return the little-endian 32-bit numbers of ``table``."""
    return array("I", struct.unpack(f"<{len(table) // 4}I", table))
