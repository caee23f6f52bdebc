"""The strict VMDK parser: only one extent that is the file itself gets through."""

import os
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.disk.header import ImageHeader, inspect_image
from serai.errors import Code, Invalid
from serai.model.image import DiskFormat
from serai.units import GIB, MIB

LIMIT = 1 * GIB
SECTOR = 512
CAPACITY = 10 * MIB // SECTOR
GRAIN = 128
DIRECTORY, TABLE, DATA = 30, 32, 128
AT_END = 0xFFFF_FFFF_FFFF_FFFF
HEADER = "<4sIIQQQQIQQQB4sH"

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=c96717f0
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 20480 SPARSE "some disk.vmdk"

ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def header(
    *,
    version: int = 1,
    flags: int = 1,
    capacity: int = CAPACITY,
    grain: int = GRAIN,
    descriptor: int = 1,
    entries: int = 512,
    backup: int = 0,
    directory: int = DIRECTORY,
    newlines: bytes = b"\n \r\n",
    compression: int = 0,
) -> bytes:
    packed = struct.pack(
        HEADER, b"KDMV", version, flags, capacity, grain, descriptor, 20, entries, backup,
        directory, DATA, 0, newlines, compression,
    )  # fmt: skip
    return packed.ljust(SECTOR, b"\0")


def sample(start: bytes = b"", descriptor: str = DESCRIPTOR) -> bytearray:
    image = bytearray((DATA + GRAIN) * SECTOR)
    image[:SECTOR] = start or header()
    text = descriptor.encode()
    image[SECTOR : SECTOR + len(text)] = text
    struct.pack_into("<I", image, DIRECTORY * SECTOR, TABLE)
    struct.pack_into("<I", image, TABLE * SECTOR, DATA)
    return image


def stream(footer: bytes = b"", end: bytes = bytes(SECTOR)) -> bytes:
    """Return a streamOptimized file: one compressed grain, the directory named by the footer."""
    facts = {"flags": 0x30001, "compression": 1, "version": 3}
    image = sample(
        header(directory=AT_END, **facts), DESCRIPTOR.replace("monolithicSparse", "streamOptimized")
    )
    grain = zlib.compress(bytes(GRAIN * SECTOR))
    struct.pack_into("<QI", image, DATA * SECTOR, 0, len(grain))
    image[DATA * SECTOR + 12 : DATA * SECTOR + 12 + len(grain)] = grain
    marker = struct.pack("<QII", 0, 0, 3).ljust(SECTOR, b"\0")
    return bytes(image) + marker + (footer or header(**facts)) + end


def inspect(content: bytes) -> ImageHeader:
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, content)
        return inspect_image(descriptor, LIMIT, name="x.vmdk")
    finally:
        os.close(descriptor)


def refusal(content: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        inspect(content)
    assert caught.value.code is Code.IMAGE_REFUSED
    return caught.value.message


@pytest.mark.parametrize("content", [bytes(sample()), stream()])
def test_self_contained_kinds_are_taken(content: bytes) -> None:
    found = inspect(content)
    assert found.format is DiskFormat.VMDK
    assert found.virtual_size == 10 * MIB
    assert found.convert


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (header(capacity=0), "other files"),
        (header(capacity=1 << 50), "at most"),
        (header(version=4), "version"),
        (header(flags=1 | 1 << 8), "unknown features"),
        (header(newlines=b"\n \n\n"), "line ends"),
        (header(grain=0), "grains"),
        (header(grain=3), "grains"),
        (header(grain=1 << 40), "grains"),
        (header(entries=0), "grain"),
        (header(entries=1 << 31), "grain"),
        (header(descriptor=0), "description"),
        (header(descriptor=2), "description"),
        (header(compression=1), "compression"),
        (header(compression=2), "compression"),
        (header(directory=AT_END), "streams"),
        (header(directory=1 << 60), "outside"),
        (header(flags=3, backup=1 << 40), "outside"),
    ],
)
def test_hostile_header_is_refused(start: bytes, reason: str) -> None:
    assert reason in refusal(bytes(sample(start)))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('SPARSE "some disk.vmdk"', 'FLAT "/etc/shadow" 0', "elsewhere"),
        ('SPARSE "some disk.vmdk"', 'VMFS "x.vmdk"', "elsewhere"),
        ('SPARSE "some disk.vmdk"', 'SPARSE "/etc/shadow"', "another folder"),
        ('SPARSE "some disk.vmdk"', 'SPARSE "..\\x"', "another folder"),
        ('SPARSE "some disk.vmdk"', 'SPARSE "x.vmdk" 0', "elsewhere"),
        ("RW 20480", "NOACCESS 20480", "elsewhere"),
        ("RW 20480", "RW 20481", "another size"),
        ("ddb.adapterType", 'RW 1 FLAT "/etc/passwd" 0\nddb.adapterType', "2 extents"),
        ("RW 20480", "# RW 20480", "0 extents"),
        ("monolithicSparse", "monolithicFlat", "own data"),
        ("monolithicSparse", "twoGbMaxExtentSparse", "own data"),
        ("parentCID=ffffffff", "parentCID=12345678", "another disk"),
        ("parentCID=ffffffff", 'parentCID=ffffffff\nparentFileNameHint="/etc/shadow"', "parent"),
        ("ddb.adapterType", '#\nparentFileNameHint="nbd://x/y"', "parent"),
        ("version=1", "version=9", "version"),
        ("CID=c96717f0", "version=1", "twice"),
        ("CID=c96717f0", "what is this", "not known"),
    ],
)
def test_hostile_description_is_refused(old: str, new: str, reason: str) -> None:
    assert reason in refusal(bytes(sample(descriptor=DESCRIPTOR.replace(old, new, 1))))


def test_parent_hidden_behind_the_end_of_the_description_is_refused() -> None:
    image = sample()
    image[15 * SECTOR : 15 * SECTOR + 30] = b'\nparentFileNameHint="/etc/x"\n\n'
    assert "parent" in refusal(bytes(image))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RW 20480", "RDONLY 20480"),  # as VMware and VirtualBox write streams
        ("some disk", "Festplatte f\xfcr mich"),
        ("ddb.adapterType", 'encoding="windows-1252"\nddb.uuid.image="1-2"\nddb.comment=""\n#'),
    ],
)
def test_what_other_programs_write_is_taken(old: str, new: str) -> None:
    text = DESCRIPTOR.replace(old, new, 1).encode("latin-1")
    image = sample()
    image[SECTOR : SECTOR + len(text)] = text
    assert inspect(bytes(image)).virtual_size == 10 * MIB


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (stream(header(flags=0x30001, compression=1, version=3, capacity=0)), "contradicts"),
        (stream(header(flags=0x30001, compression=1, version=3, directory=AT_END)), "contradicts"),
        (stream(header(flags=0x30001, compression=1, version=3, directory=1 << 40)), "outside"),
        (stream(bytes(SECTOR)), "no VMDK header"),
        (stream(end=b"\1" * SECTOR), "no footer"),
        (stream()[:-SECTOR], "no footer"),
        (stream()[:-1], "truncated"),
    ],
)
def test_hostile_footer_is_refused(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


@pytest.mark.parametrize("place", [DIRECTORY * SECTOR, TABLE * SECTOR])
def test_entry_outside_of_the_file_is_refused(place: int) -> None:
    image = sample()
    struct.pack_into("<I", image, place, 0xFFFF_FFF0)
    assert "outside" in refusal(bytes(image))


@pytest.mark.parametrize("length", [4, 79, SECTOR, 3 * SECTOR, DIRECTORY * SECTOR, DATA * SECTOR])
def test_truncated_file_is_refused(length: int) -> None:
    refusal(bytes(sample()[:length]))


POSITIONS = st.one_of(
    st.integers(0, 80),
    st.integers(SECTOR, SECTOR + len(DESCRIPTOR)),
    st.integers(DIRECTORY * SECTOR, DIRECTORY * SECTOR + 8),
    st.integers(TABLE * SECTOR, TABLE * SECTOR + 8),
    st.integers((DATA + GRAIN + 1) * SECTOR, (DATA + GRAIN + 1) * SECTOR + 80),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.booleans(),
    st.lists(st.tuples(POSITIONS, st.binary(min_size=1, max_size=9)), min_size=1, max_size=6),
)
def test_any_damage_is_taken_or_refused_but_nothing_else(
    streamed: bool, damage: list[tuple[int, bytes]]
) -> None:
    image = bytearray(stream()) if streamed else sample()
    for offset, content in damage:
        image[offset : offset + len(content)] = content
    try:
        found = inspect(bytes(image))
    except Invalid as error:
        assert error.code is Code.IMAGE_REFUSED
    else:
        assert found.virtual_size <= LIMIT
