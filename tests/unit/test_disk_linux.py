"""Kernels, initial ram disks and command lines are looked at before QEMU loads them."""

import os
import struct
from collections.abc import Iterator

import pytest

from serai.disk.linux import CMDLINE_LIMIT, check_cmdline, check_initrd, inspect_kernel
from serai.disk.reader import Reader
from serai.errors import Code, Invalid


def kernel(*, magic: bytes = b"HdrS", protocol: int = 0x20C, flags: int = 1) -> bytearray:
    """Return a kernel of 4 setup sectors and 64 KiB of code."""
    image = bytearray(5 * 512 + 65536)
    image[0x1F1] = 4
    struct.pack_into("<I", image, 0x1F4, 65536 // 16)
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = magic
    struct.pack_into("<H6xH", image, 0x206, protocol, 0x100)
    image[0x211] = flags
    image[0x300:0x30B] = b"6.1.0 serai"
    return image


@pytest.fixture
def read() -> Iterator[object]:
    opened: list[int] = []

    def make(content: bytes) -> Reader:
        opened.append(os.memfd_create("file"))
        os.write(opened[-1], content)
        return Reader(opened[-1])

    yield make
    for descriptor in opened:
        os.close(descriptor)


def test_kernel_is_taken(read) -> None:  # type: ignore[no-untyped-def]
    found = inspect_kernel(read(bytes(kernel())))
    assert (found.protocol, found.version, found.firmware) == (0x20C, "6.1.0 serai", ("bios",))


def test_kernel_with_an_efi_stub_boots_with_both(read) -> None:  # type: ignore[no-untyped-def]
    image = kernel()
    image[:2] = b"MZ"
    assert inspect_kernel(read(bytes(image))).firmware == ("bios", "uefi")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "boot header"),
        (b"\x7fELF" + bytes(2000), "boot header"),
        (kernel(magic=b"HdrT"), "boot header"),
        (kernel(protocol=0x201), "too old"),
        (kernel(flags=0), "too old"),
        (kernel()[:0x210], "outside"),
        (kernel()[:-64], "truncated"),
        (kernel()[:1023], "outside"),
    ],
)
def test_what_is_no_whole_kernel_is_refused(read, content: bytes, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Invalid) as caught:
        inspect_kernel(read(bytes(content)))
    assert caught.value.code is Code.IMAGE_REFUSED
    assert reason in caught.value.message


def test_initrd(read) -> None:  # type: ignore[no-untyped-def]
    check_initrd(read(b"070701" + bytes(100)))
    check_initrd(read(b"\x1f\x8b" + bytes(100)))
    for content in (b"", b"MZ", b"QFI\xfb" + bytes(100)):
        with pytest.raises(Invalid, match="ram disk"):
            check_initrd(read(content))


def test_cmdline() -> None:
    assert check_cmdline("console=ttyS0,115200 a='b c'") == "console=ttyS0,115200 a='b c'"
    for bad in ("a\nb", "a\0b", "ä", "a" * (CMDLINE_LIMIT + 1)):
        with pytest.raises(Invalid):
            check_cmdline(bad)
