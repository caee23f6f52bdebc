"""Kernels and initial ram disks that are to be loaded by QEMU itself: checked before they are taken.

A kernel that QEMU loads as it runs, instead of one that unpacks itself first, is up sooner, under
emulation by a tenth of its boot (docs/design/0051). It must have an entry for that (PVH, Xen's Documentation/misc/pvh.pandoc).

The boot protocol's header is described in Linux's Documentation/arch/x86/boot.rst; memtest86+ and
others that can be started in place of Linux have it, too. QEMU reads the header's sizes, so they
must fit the file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from serai.disk.boot import BOTH
from serai.disk.reader import Reader, refused
from serai.model.guest import Firmware

BOOT_FLAG_AT, BOOT_FLAG = 0x1FE, b"\x55\xaa"
HEADER_AT, HEADER_MAGIC = 0x202, b"HdrS"
MIN_PROTOCOL = 0x0202
LOADED_HIGH = 1
MAX_SETUP_SECTORS = 64
KERNEL_LIMIT = 1 << 28
INITRD_LIMIT = 1 << 31
CMDLINE_LIMIT = 2047
"""What every kernel since 2.6.22 takes (boot.rst, cmdline_size)."""

PAYLOAD_AT = 0x248
"""Where the payload begins, after the setup code, and its length (boot.rst, payload_offset)."""
PT_NOTE, PHYS32_ENTRY = 4, 18

INITRD_MAGICS = (
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"BZh",
    b"]\0\0",
    b"\x02\x21\x4c\x18",
    b"\x04\x22\x4d\x18",
    b"\x89LZO",
)
"""cpio and what the kernel unpacks by itself: gzip, xz, zstd, bzip2, lzma, lz4 (both), lzo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHeader:
    """What the boot protocol says of a kernel. ``version`` is the text inside, for people."""

    protocol: int
    version: str
    firmware: tuple[str, ...]


def inspect_kernel(reader: Reader) -> KernelHeader:
    """Check that the file is a whole x86 kernel; Invalid (``image-refused``) says why not."""
    if reader.size > KERNEL_LIMIT:
        raise refused("it is too large for a kernel")
    setup = reader.peek(0, 1024)
    if setup[HEADER_AT : HEADER_AT + 4] != HEADER_MAGIC or setup[BOOT_FLAG_AT:][:2] != BOOT_FLAG:
        raise refused(
            "it is not an x86 kernel: it has no Linux boot header",
            hint="A kernel is a bzImage, like vmlinuz or memtest86+x64.bin.",
        )
    reader.read(0, 1024, "the boot header")
    sectors = setup[0x1F1] or 4
    (size,) = struct.unpack_from("<I", setup, 0x1F4)
    protocol, pointer = struct.unpack_from("<H6xH", setup, 0x206)
    if protocol < MIN_PROTOCOL or not setup[0x211] & LOADED_HIGH:
        raise refused(f"its boot protocol {protocol:#06x} is too old")
    if sectors > MAX_SETUP_SECTORS:
        raise refused("its setup code is absurdly large")
    if (sectors + 1) * 512 + (size - 1) * 16 >= reader.size:
        raise refused("it is truncated")
    stub = setup.startswith(b"MZ")
    return KernelHeader(
        protocol=protocol,
        version=_read_version(reader, pointer),
        firmware=BOTH if stub else (Firmware.BIOS.value,),
    )


def _read_version(reader: Reader, pointer: int) -> str:
    if not pointer:
        return ""
    text = reader.peek(pointer + 0x200, 256).partition(b"\0")[0].decode("ascii", "replace")
    return "".join(c for c in text if c.isprintable() and c != "\ufffd")[:128]


def packed_in(kernel: bytes) -> bytes:
    """Return what a kernel unpacks when it starts, without the length behind it; b"" where it has none."""
    if len(kernel) < 1024:
        return b""
    start, length = struct.unpack_from("<II", kernel, PAYLOAD_AT)
    begin = ((kernel[0x1F1] or 4) + 1) * 512 + start
    return kernel[begin : begin + max(0, length - 4)]


def has_pvh_entry(kernel: bytes) -> bool:
    """Tell whether an unpacked kernel is a 64-bit ELF file that says where to enter it (PVH)."""
    try:
        return any(_is_pvh_note(note) for note in _elf_notes(kernel))
    except struct.error:
        return False


def _elf_notes(kernel: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the owner of each note of an ELF file (gABI, "Note Section")."""
    if kernel[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", kernel, 32)
    size, count = struct.unpack_from("<HH", kernel, 54)
    for number in range(count):
        kind, at, length = struct.unpack_from("<I4xQ16xQ", kernel, table + number * size)
        end = at + length if kind == PT_NOTE else 0
        while at + 12 <= end:
            name, data, note = struct.unpack_from("<III", kernel, at)
            yield note, kernel[at + 12 : at + 12 + name]
            at += 12 + (name + 3) // 4 * 4 + (data + 3) // 4 * 4


def _is_pvh_note(note: tuple[int, bytes]) -> bool:
    return note == (PHYS32_ENTRY, b"Xen\0")


def check_initrd(reader: Reader) -> None:
    """Check that the file begins like something that a kernel unpacks as its first file system."""
    if reader.size > INITRD_LIMIT:
        raise refused("it is too large for an initial ram disk")
    if not reader.peek(0, 16).startswith(INITRD_MAGICS):
        raise refused("it is not an initial ram disk: neither cpio nor compressed by a known way")


def check_cmdline(cmdline: str) -> str:
    """Return ``cmdline`` if a kernel takes it: printable ASCII of at most ``CMDLINE_LIMIT`` bytes."""
    if len(cmdline) > CMDLINE_LIMIT or not (cmdline.isascii() and cmdline.isprintable()):
        raise refused(
            f"its command line must be printable ASCII, at most {CMDLINE_LIMIT} characters"
        )
    return cmdline
