"""The strict qcow2 parser: what is sound passes, and every known attack is refused with its reason."""

import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.disk.header import ImageHeader, inspect_image
from serai.disk.qcow2_header import read_header
from serai.disk.qcow2_tables import read_guest
from serai.disk.reader import Reader
from serai.errors import Code, Invalid
from serai.model.image import DiskFormat
from serai.units import GIB, MIB

LIMIT = 1 * GIB
CLUSTER = 65536
L1_AT, L2_AT, DATA_AT = 3 * CLUSTER, 4 * CLUSTER, 5 * CLUSTER
BOOT_SECTOR = b"\xfa" + bytes(509) + b"\x55\xaa"


def sample(*, version: int = 3, extension: bytes = b"") -> bytearray:
    """Return a small sound file: header, refcounts, one L2 table, one data cluster, 10 MiB."""
    image = bytearray(6 * CLUSTER)
    struct.pack_into(
        ">4sIQIIQIIQQIIQ", image, 0,
        b"QFI\xfb", version, 0, 0, 16, 10 * MIB, 0, 1, L1_AT, CLUSTER, 1, 0, 0,
    )  # fmt: skip
    if version == 3:
        struct.pack_into(">QQQII", image, 72, 0, 0, 0, 4, 112)
    start = 112 if version == 3 else 72
    image[start : start + len(extension)] = extension
    struct.pack_into(">Q", image, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">6H", image, 2 * CLUSTER, *[1] * 6)
    struct.pack_into(">Q", image, L1_AT, L2_AT | 1 << 63)
    struct.pack_into(">Q", image, L2_AT, DATA_AT | 1 << 63)
    image[DATA_AT : DATA_AT + 512] = BOOT_SECTOR
    return image


def inspect(content: bytes, *, limit: int = LIMIT, name: str = "x.qcow2") -> ImageHeader:
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, content)
        return inspect_image(descriptor, limit, name=name)
    finally:
        os.close(descriptor)


def refusal(content: bytes, *, name: str = "x.qcow2") -> str:
    with pytest.raises(Invalid) as caught:
        inspect(content, name=name)
    assert caught.value.code is Code.IMAGE_REFUSED
    return caught.value.message


def test_sound_file_is_taken_as_it_is() -> None:
    header = inspect(sample())
    assert header.format is DiskFormat.QCOW2
    assert (header.virtual_size, header.convert) == (10 * MIB, "")
    assert header.firmware == ("bios",)  # read from the boot sector, through the tables


def test_old_version_is_converted() -> None:
    assert inspect(sample(version=2)).convert


def extension(kind: int, content: bytes = b"") -> bytes:
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


HOSTILE = {
    "backing file": (8, ">QI", (512, 11), "backing file"),
    "backing file without a length": (8, ">QI", (512, 0), "backing file"),
    "version": (4, ">I", (4,), "version"),
    "first version": (4, ">I", (1,), "version"),
    "tiny clusters": (20, ">I", (8,), "cluster size"),
    "huge clusters": (20, ">I", (63,), "cluster size"),
    "63 PiB": (24, ">Q", (63 << 50,), "at most"),
    "no size": (24, ">Q", (0,), "sectors"),
    "odd size": (24, ">Q", (10 * MIB + 1,), "sectors"),
    "encryption": (32, ">I", (1,), "encrypted"),
    "luks": (32, ">I", (2,), "encrypted"),
    "large L1": (36, ">I", (1 << 31,), "L1 table"),
    "no L1": (36, ">I", (0,), "L1 table"),
    "L1 outside": (40, ">Q", (1 << 40,), "L1 table"),
    "L1 in the header": (40, ">Q", (0,), "L1 table"),
    "L1 not aligned": (40, ">Q", (L1_AT + 512,), "L1 table"),
    "refcounts outside": (48, ">Q", (1 << 62,), "refcount table"),
    "no refcounts": (56, ">I", (0,), "refcount table"),
    "absurd refcounts": (56, ">I", (0xFFFFFFFF,), "refcount table"),
    "absurd snapshots": (60, ">I", (0xFFFFFFFF,), "snapshots"),
    "snapshots outside": (60, ">IQ", (1, 1 << 60), "snapshots"),
    "snapshots in the header": (60, ">IQ", (1, 8), "snapshots"),
    "marked corrupt": (72, ">Q", (2,), "corrupt"),
    "external data": (72, ">Q", (4,), "external"),
    "unknown feature": (72, ">Q", (1 << 5,), "incompatible"),
    "last unknown feature": (72, ">Q", (1 << 63,), "incompatible"),
    "raw external data": (88, ">Q", (2,), "external"),
    "refcount order": (96, ">I", (7,), "reference counts"),
    "short header": (100, ">I", (96,), "header length"),
    "long header": (100, ">I", (1 << 31,), "header length"),
    "unknown header fields": (105, ">B", (1,), "not known"),
    "compression without the feature": (104, ">B", (1,), "compression"),
    "compression feature without a type": (72, ">Q", (8,), "compression"),
    "L2 outside": (L1_AT, ">Q", (1 << 50,), "L2 table"),
    "L2 not aligned": (L1_AT, ">Q", (L2_AT + 512,), "L2 table"),
    "L1 reserved bits": (L1_AT, ">Q", (L2_AT | 1,), "L2 table"),
    "data outside": (L2_AT, ">Q", (1 << 50,), "outside"),
    "data not aligned": (L2_AT, ">Q", (DATA_AT + 512,), "L2 table"),
    "L2 reserved bits": (L2_AT, ">Q", (DATA_AT | 2,), "L2 table"),
    "compressed data outside": (L2_AT, ">Q", (1 << 62 | 1 << 53,), "compressed cluster lies"),
    "compressed data in the header": (L2_AT, ">Q", (1 << 62,), "compressed cluster lies"),
    "compressed and copied": (L2_AT, ">Q", (3 << 62 | DATA_AT,), "compressed cluster lies"),
    "refcount block outside": (CLUSTER, ">Q", (1 << 50,), "refcount"),
    "refcount reserved bits": (CLUSTER, ">Q", (2 * CLUSTER | 1,), "refcount"),
    "refcount block twice": (CLUSTER, ">QQ", (2 * CLUSTER, 2 * CLUSTER), "twice"),
    "L2 table twice": (36, ">I", (2,), "twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_field_is_refused(name: str) -> None:
    offset, form, values, reason = HOSTILE[name]
    image = sample()
    if name == "L2 table twice":
        struct.pack_into(">Q", image, L1_AT + 8, L2_AT | 1 << 63)
    struct.pack_into(form, image, offset, *values)
    assert reason in refusal(bytes(image))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (extension(0x44415441, b"/etc/shadow"), "external data"),
        (extension(0x0537BE77, bytes(16)), "encrypted"),
        (struct.pack(">II", 0x12345678, 0xFFFFFFFF), "extensions"),
        (struct.pack(">II", 0x12345678, CLUSTER), "extensions"),
        (extension(0x12345678) * 100, "extensions"),
        (extension(0x23852875, b"abc"), "bitmaps"),
    ],
)
def test_hostile_extension_is_refused(content: bytes, reason: str) -> None:
    assert reason in refusal(bytes(sample(extension=content)))


def test_unknown_extension_is_ignored() -> None:
    inspect(bytes(sample(extension=extension(0x12345678, b"hello") + extension(0))))


@pytest.mark.parametrize("length", [0, 3, 71, 103, CLUSTER, L1_AT + 4, L2_AT + 100])
def test_truncated_file_is_refused(length: int) -> None:
    refusal(bytes(sample()[:length]))


def test_subclusters_must_not_contradict() -> None:
    image = sample()
    struct.pack_into(">Q", image, 72, 16)
    struct.pack_into(">QQ", image, L2_AT, DATA_AT | 1 << 63, 0xFFFF_FFFF)
    assert inspect(bytes(image)).firmware == ("bios",)
    struct.pack_into(">Q", image, L2_AT + 8, 1 << 32 | 1)
    assert "subclusters" in refusal(bytes(image))
    struct.pack_into(">QQ", image, L2_AT, 0, 1)
    assert "subclusters" in refusal(bytes(image))


def test_tables_for_tiny_clusters_are_refused_before_they_are_read() -> None:
    image = sample()
    struct.pack_into(">I", image, 20, 9)
    struct.pack_into(">QII", image, 24, 64 * GIB, 0, 1 << 21)
    descriptor = os.memfd_create("image")
    os.write(descriptor, image)
    os.ftruncate(descriptor, 64 * MIB)
    with pytest.raises(Invalid, match="clusters are so small"):
        inspect_image(descriptor, 64 * GIB)
    os.close(descriptor)


def test_name_that_says_raw_makes_qcow2_suspicious() -> None:
    assert "called a raw disk" in refusal(bytes(sample()), name="guest.raw")


def test_compressed_boot_sector_is_read() -> None:
    image, packed = sample(), deflate(BOOT_SECTOR + bytes(CLUSTER - 512))
    image[DATA_AT : DATA_AT + len(packed)] = packed
    struct.pack_into(">Q", image, L2_AT, 1 << 62 | DATA_AT)
    assert inspect(bytes(image)).firmware == ("bios",)


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(data) + packer.flush()


def test_subclusters_that_are_not_allocated_read_as_zeros() -> None:
    image = sample()
    struct.pack_into(">Q", image, 72, 16)
    struct.pack_into(">QQ", image, L2_AT, DATA_AT | 1 << 63, 0xFFFF_FFFE)
    assert inspect(bytes(image)).firmware == ("bios", "uefi")  # the boot sector is not there


def test_guest_data_is_read_across_clusters(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(sample())
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    reader = Reader(descriptor)
    header = read_header(reader, LIMIT)
    assert read_guest(reader, header, 510, 4) == b"\x55\xaa\0\0"
    assert read_guest(reader, header, CLUSTER - 2, 4) == bytes(4)
    assert read_guest(reader, header, 10 * MIB, 1) is None
    os.close(descriptor)


POSITIONS = st.one_of(
    st.integers(0, 150),
    st.integers(CLUSTER, CLUSTER + 24),
    st.integers(L1_AT, L1_AT + 16),
    st.integers(L2_AT, L2_AT + 24),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(POSITIONS, st.binary(min_size=1, max_size=9)), min_size=1, max_size=6))
def test_any_damage_is_taken_or_refused_but_nothing_else(damage: list[tuple[int, bytes]]) -> None:
    image = sample()
    for offset, content in damage:
        image[offset : offset + len(content)] = content
    try:
        header = inspect(bytes(image), name="x")
    except Invalid as error:
        assert error.code is Code.IMAGE_REFUSED
    else:
        assert header.virtual_size <= LIMIT
        assert image[8:20] == bytes(12)  # whatever passed names no backing file
