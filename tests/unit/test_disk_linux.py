"""Kernels, initial ram disks and command lines are looked at before QEMU loads them."""

import os
import struct
from collections.abc import Iterator

import pytest

from serai.disk.linux import (
    CMDLINE_LIMIT,
    check_cmdline,
    check_initrd,
    has_pvh_entry,
    inspect_kernel,
    packed_in,
)
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


def test_what_is_packed_in_a_kernel() -> None:
    image = kernel()
    struct.pack_into("<II", image, 0x248, 100, 20)
    image[5 * 512 + 100 : 5 * 512 + 120] = b"0123456789abcdefSIZE"
    assert packed_in(bytes(image)) == b"0123456789abcdef"
    struct.pack_into("<II", image, 0x248, 0xFFFFFFF0, 0xFFFFFFF0)
    assert packed_in(bytes(image)) == b""
    assert packed_in(b"short") == packed_in(bytes(2000)) == b""


def an_elf(*notes: tuple[int, bytes, bytes]) -> bytes:
    """Return an ELF file of one program header, of these notes."""
    body = b"".join(
        struct.pack("<III", len(name), len(data), kind)
        + name.ljust((len(name) + 3) // 4 * 4, b"\0")
        + data.ljust((len(data) + 3) // 4 * 4, b"\0")
        for kind, name, data in notes
    )
    head = bytearray(64)
    head[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    program = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(body), len(body), 4)
    return bytes(head) + program + body


@pytest.mark.parametrize(
    ("content", "has"),
    [
        (an_elf((6, b"Xen\0", b"linux\0"), (18, b"Xen\0", bytes(8))), True),
        (an_elf((6, b"Xen\0", b"linux\0")), False),
        (an_elf((18, b"GNU\0", bytes(8))), False),
        (an_elf((18, b"Xen\0", bytes(8)))[:130], False),
        (an_elf()[:100], False),
        (bytes(kernel()), False),
        (b"", False),
    ],
)
def test_a_kernel_that_says_where_to_enter_it(content: bytes, has: bool) -> None:
    assert has_pvh_entry(content) is has
