"""The header of an untrusted qcow2 file: read strictly, refused with a reason.

What the fields mean is in QEMU's docs/interop/qcow2.txt. Refused is whatever makes another file or
the network part of the disk (backing file, external data file), what hides the content
(encryption), what this parser does not know (versions, incompatible features, header fields) and
what cannot be (sizes and offsets outside of the file). The tables behind it: ``qcow2_tables``.
"""

import struct
from dataclasses import dataclass

from serai.disk.reader import Reader, refused
from serai.units import format_size

MAGIC = b"QFI\xfb"
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION_TYPE, EXTENDED_L2 = 1, 2, 4, 8, 16
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2
AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_EXTERNAL = 1, 2

EXT_END = 0x00000000
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_ENCRYPTION = 0x0537BE77
EXT_DATA_FILE = 0x44415441
MAX_EXTENSIONS = 64

V2_LENGTH, V3_LENGTH, KNOWN_LENGTH = 72, 104, 112
CLUSTER_BITS = range(9, 22)
SUBCLUSTER_BITS = range(14, 22)
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Header:
    """The fields of a header that was found sound. Offsets and sizes are bytes unless named else."""

    version: int
    cluster_bits: int
    virtual_size: int
    l1_entries: int
    l1_offset: int
    reftable_offset: int
    reftable_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    autoclear: int
    length: int
    zstd: bool
    extensions: tuple[tuple[int, bytes], ...]

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """True when L2 entries are 16 bytes and have subclusters."""
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entries(self) -> int:
        """How many clusters one L2 table maps."""
        return self.cluster // (16 if self.extended_l2 else 8)

    @property
    def l1_needed(self) -> int:
        """How many L1 entries the virtual size takes."""
        return -(-self.virtual_size // (self.cluster * self.l2_entries))


def read_header(reader: Reader, limit: int) -> Qcow2Header:
    """Read and check the header and its extensions; Invalid (``image-refused``) says what is wrong.

    ``limit`` is the largest virtual size taken.
    """
    start = reader.read(0, V2_LENGTH, "the qcow2 header")
    (_, version, backing_offset, backing_length, cluster_bits, virtual_size, encryption, l1_entries,
     l1_offset, reftable_offset, reftable_clusters, snapshots, snapshots_offset) = _V2.unpack(start)  # fmt: skip
    if start[:4] != MAGIC or version not in (2, 3):
        raise refused(f"its qcow version is {version}; 2 and 3 are known")
    if backing_offset or backing_length:
        raise refused(
            "it names a backing file: a part of its content would come from another file",
            hint="Make it self-contained: qemu-img convert -O qcow2 IT NEW",
        )
    if encryption:
        raise refused("it is encrypted")
    if cluster_bits not in CLUSTER_BITS:
        raise refused(f"its cluster size of 2^{cluster_bits} bytes is impossible")
    check_virtual_size(virtual_size, limit)
    incompatible, autoclear, length, zstd = _read_v3(reader, cluster_bits, version)
    header = Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_size=virtual_size,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        reftable_offset=reftable_offset,
        reftable_clusters=reftable_clusters,
        snapshots=snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        autoclear=autoclear,
        length=length,
        zstd=zstd,
        extensions=_read_extensions(reader, length, 1 << cluster_bits),
    )
    _check_extensions(header)
    _check_places(reader, header)
    return header


def check_virtual_size(size: int, limit: int) -> None:
    """Refuse a virtual size that is none: zero, not in sectors, or over ``limit``."""
    if size > limit:
        raise refused(
            f"it claims a size of {format_size(size)}; at most {format_size(limit)} is taken",
            hint="The setting image_limit raises the limit.",
        )
    if size <= 0 or size % 512:
        raise refused(f"its size of {size} bytes is not a whole number of sectors above 0")


def _read_v3(reader: Reader, cluster_bits: int, version: int) -> tuple[int, int, int, bool]:
    """Return incompatible and autoclear features, the header's length, and whether zstd is used."""
    if version == 2:
        return 0, 0, V2_LENGTH, False
    fields = reader.read(V2_LENGTH, _V3.size, "the qcow2 header")
    incompatible, _compatible, autoclear, refcount_order, length = _V3.unpack(fields)
    _check_features(incompatible, autoclear)
    if refcount_order > 6:
        raise refused(f"its reference counts of 2^{refcount_order} bits are impossible")
    if incompatible & EXTENDED_L2 and cluster_bits not in SUBCLUSTER_BITS:
        raise refused("its clusters are too small for subclusters")
    if length < V3_LENGTH or length % 8 or length > 1 << cluster_bits:
        raise refused(f"its header length of {length} is impossible")
    rest = reader.read(V3_LENGTH, length - V3_LENGTH, "the qcow2 header")
    if any(rest[1:]):
        raise refused("its header has fields that are not known")
    compression = rest[0] if rest else 0
    if compression > 1 or bool(compression) != bool(incompatible & COMPRESSION_TYPE):
        raise refused(
            f"its compression type {compression} is not known or contradicts its features"
        )
    return incompatible, autoclear, length, compression == 1


def _check_features(incompatible: int, autoclear: int) -> None:
    if incompatible & EXTERNAL_DATA or autoclear & AUTOCLEAR_RAW_EXTERNAL:
        raise refused(
            "its data is in an external file",
            hint="Make it self-contained: qemu-img convert -O qcow2 IT NEW",
        )
    if incompatible & ~KNOWN_INCOMPATIBLE:
        raise refused(f"it has unknown incompatible features ({incompatible:#x})")
    if incompatible & CORRUPT:
        raise refused(
            "it is marked corrupt", hint="Where it comes from, try: qemu-img check -r all"
        )


def _read_extensions(reader: Reader, offset: int, end: int) -> tuple[tuple[int, bytes], ...]:
    found: list[tuple[int, bytes]] = []
    while offset + 8 <= end:
        kind, length = struct.unpack(">II", reader.read(offset, 8, "a header extension"))
        if kind == EXT_END:
            return tuple(found)
        if length > end - offset - 8 or len(found) == MAX_EXTENSIONS:
            raise refused("its header extensions don't end where they should")
        found.append((kind, reader.read(offset + 8, length, "a header extension")))
        offset += 8 + -(-length // 8) * 8
    return tuple(found)


def _check_extensions(header: Qcow2Header) -> None:
    for kind, content in header.extensions:
        if kind == EXT_DATA_FILE:
            raise refused("it names an external data file")
        if kind == EXT_ENCRYPTION:
            raise refused("it is encrypted")
        if kind == EXT_BITMAPS and len(content) != 24:
            raise refused("its list of bitmaps has an impossible length")


def _check_places(reader: Reader, header: Qcow2Header) -> None:
    """Refuse tables that are not where and as large as they can be."""
    if header.l1_entries * 8 > MAX_L1_BYTES:
        raise refused("its L1 table is absurdly large")
    if header.l1_entries < header.l1_needed:
        raise refused("its L1 table is too small for its size")
    if not 0 < header.reftable_clusters * header.cluster <= MAX_REFTABLE_BYTES:
        raise refused("its refcount table has an impossible size")
    if header.snapshots > MAX_SNAPSHOTS:
        raise refused("it claims an absurd number of snapshots")
    places = [
        (header.l1_offset, header.l1_entries * 8, "the L1 table"),
        (header.reftable_offset, header.reftable_clusters * header.cluster, "the refcount table"),
    ]
    for offset, length, what in places:
        if offset % header.cluster or offset < header.cluster or offset + length > reader.size:
            raise refused(f"{what} lies outside of the file (truncated, or it lies)")
