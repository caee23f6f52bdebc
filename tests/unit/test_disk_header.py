"""Raw disks, media and everything that is neither: recognised, or refused with the reason."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.disk.header import ImageHeader, inspect_image
from serai.disk.magic import MAGICS, TAIL_MAGICS, Look
from serai.errors import Code, Invalid
from serai.model.image import DiskFormat, ImageKind
from serai.units import MIB

LIMIT = 64 * MIB
ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")


def write(content: bytes) -> int:
    descriptor = os.memfd_create("image")
    os.write(descriptor, content)
    return descriptor


def inspect(content: bytes, name: str = "thing") -> ImageHeader:
    descriptor = write(content)
    try:
        return inspect_image(descriptor, LIMIT, name=name)
    finally:
        os.close(descriptor)


def refusal(content: bytes, name: str = "thing") -> str:
    with pytest.raises(Invalid) as caught:
        inspect(content, name)
    assert caught.value.code is Code.IMAGE_REFUSED
    return caught.value.message


def disk(*, code: bytes = b"", partition: int = 0x83, esp: bool = False) -> bytearray:
    """Return a raw disk of 1 MiB with an MBR; with partition 0xEE a GPT, too."""
    image = bytearray(MIB)
    image[: len(code)] = code
    image[446 + 4] = partition
    image[510:512] = b"\x55\xaa"
    if partition == 0xEE:
        image[512:520] = b"EFI PART"
        struct.pack_into("<QII", image, 512 + 72, 2, 128, 128)
        image[1024 + 128 : 1024 + 144] = ESP if esp else b"\1" * 16
    return image


def medium(*platforms: int, blocks: int = 40) -> bytearray:
    """Return an ISO 9660 medium whose El Torito catalogue has an entry for each platform."""
    image = bytearray(40 * 2048)
    image[0x8000:0x8006] = b"\1CD001"
    image[0x8028:0x8048] = b"SOME LABEL".ljust(32)
    struct.pack_into("<I", image, 0x8000 + 80, blocks)
    struct.pack_into("<H", image, 0x8000 + 128, 2048)
    if platforms:
        image[0x8800:0x8820] = b"\0CD001\x01EL TORITO SPECIFICATION\0\0"
        struct.pack_into("<I", image, 0x8800 + 0x47, 30)
        entries = b"\1" + bytes([platforms[0]]) + bytes(30) + b"\x88".ljust(32, b"\0")
        for platform in platforms[1:]:
            entries += bytes([0x91, platform, 1]).ljust(32, b"\0") + b"\x88".ljust(32, b"\0")
        image[30 * 2048 : 30 * 2048 + len(entries)] = entries
    return image


@pytest.mark.parametrize(
    ("content", "firmware"),
    [
        (disk(code=b"\xfa"), ("bios",)),
        (disk(partition=0xEE, esp=True), ("uefi",)),
        (disk(code=b"\xfa", partition=0xEE, esp=True), ("bios", "uefi")),
        (disk(code=b"\xfa", partition=0xEE), ("bios",)),
        (disk(partition=0xEF), ("uefi",)),
        (disk(), ("bios", "uefi")),  # it can't be told
    ],
)
def test_raw_disk(content: bytearray, firmware: tuple[str, ...]) -> None:
    found = inspect(bytes(content))
    assert (found.format, found.kind, found.convert) == (DiskFormat.RAW, ImageKind.DISK, "")
    assert found.virtual_size == found.file_size == MIB
    assert found.firmware == firmware


def test_raw_disk_must_be_whole_sectors() -> None:
    assert "sectors" in refusal(bytes(disk())[:-1])


def test_disk_that_shows_nothing_is_raw_by_its_name_only() -> None:
    assert inspect(b"\1" * 4096, "x.raw").format is DiskFormat.RAW
    assert inspect(b"\1" * 4096, "X.IMG").format is DiskFormat.RAW
    assert "neither" in refusal(b"\1" * 4096, "x.txt")


@pytest.mark.parametrize("name", ["x.raw", "x.img", "x"])
@pytest.mark.parametrize("magic", [m for m in MAGICS if m.look is not Look.DISK])
def test_no_other_format_passes_as_raw(magic: object, name: str) -> None:
    image = disk()
    image[magic.offset : magic.offset + len(magic.bytes)] = magic.bytes  # type: ignore[attr-defined]
    refusal(bytes(image), name)


@pytest.mark.parametrize("magic", TAIL_MAGICS)
def test_format_told_by_its_end_is_refused(magic: object) -> None:
    image = disk()
    image[-512:] = magic.bytes.ljust(512, b"\0")  # type: ignore[attr-defined]
    refusal(bytes(image), "x.raw")


@pytest.mark.parametrize(
    ("platforms", "firmware"),
    [
        ((), ("bios", "uefi")),
        ((0,), ("bios",)),
        ((0xEF,), ("uefi",)),
        ((0, 0xEF), ("bios", "uefi")),
    ],
)
def test_medium(platforms: tuple[int, ...], firmware: tuple[str, ...]) -> None:
    found = inspect(bytes(medium(*platforms)))
    assert (found.format, found.kind, found.virtual_size) == (DiskFormat.RAW, ImageKind.CDROM, 0)
    assert found.firmware == firmware
    assert found.details["label"] == "SOME LABEL"


def test_hybrid_medium_is_a_medium() -> None:
    image = medium(0)
    image[:512] = disk(code=b"\xfa")[:512]
    assert inspect(bytes(image)).kind is ImageKind.CDROM


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (medium(blocks=41), "truncated"),
        (medium()[: 0x8000 + 100], "outside"),
        (medium() + b"x", "truncated"),
    ],
)
def test_truncated_medium_is_refused(content: bytearray, reason: str) -> None:
    assert reason in refusal(bytes(content))


def test_empty_and_large_files_are_refused() -> None:
    assert "empty" in refusal(b"")
    descriptor = write(bytes(disk()))
    os.ftruncate(descriptor, LIMIT + 512)
    with pytest.raises(Invalid, match="at most"):
        inspect_image(descriptor, LIMIT)
    os.close(descriptor)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="regular"):
        inspect_image(tmp_path / "pipe", LIMIT)
    with pytest.raises(OSError, match="symbolic links"):
        inspect_image(tmp_path / "link", LIMIT)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([disk(partition=0xEE, esp=True), medium(0, 0xEF)]),
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(400, 1400), st.integers(0x8000, 0x8860), st.integers(61440, 61700)
            ),
            st.binary(min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_any_damage_is_taken_or_refused_but_nothing_else(
    sample: bytearray, damage: list[tuple[int, bytes]]
) -> None:
    image = bytearray(sample)
    for offset, content in damage:
        image[offset : offset + len(content)] = content
    try:
        assert inspect(bytes(image)).format is DiskFormat.RAW
    except Invalid as error:
        assert error.code is Code.IMAGE_REFUSED
