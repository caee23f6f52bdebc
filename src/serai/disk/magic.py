"""What a file is, told from a few bytes of it. Pure; no format is trusted further than its name.

``recognise`` knows what serai takes (disk images, media, kernels, compressed files, exports of
its own) and, so that nothing of the kind passes as a raw disk, what it does not take. The numbers
are from file(1)'s magic and from the ``probe`` functions of QEMU's block drivers: a file that QEMU
would take for another format than we recorded is never let in as raw.
"""

from dataclasses import dataclass
from enum import StrEnum


class Look(StrEnum):
    """What a file looks like."""

    QCOW2 = "qcow2"
    VMDK = "vmdk"
    ISO = "iso"
    DISK = "disk"  # raw, with a boot sector or a partition table
    KERNEL = "kernel"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    TAR = "tar"
    FOREIGN = "foreign"  # known, and not taken
    UNKNOWN = "unknown"


COMPRESSED = frozenset({Look.GZIP, Look.XZ, Look.ZSTD, Look.BZIP2})

HEAD = 0x8800
"""How many bytes of the beginning ``recognise`` looks at: up to the first ISO 9660 descriptor."""
TAIL = 512


@dataclass(frozen=True, slots=True)
class Magic:
    """``bytes`` at ``offset`` say that a file is ``look``; ``name`` is for people."""

    offset: int
    bytes: bytes
    look: Look
    name: str


_NOT_TAKEN = Look.FOREIGN
MAGICS: tuple[Magic, ...] = (
    Magic(0, b"QFI\xfb", Look.QCOW2, "a qcow image"),
    Magic(0, b"KDMV", Look.VMDK, "a VMDK sparse extent"),
    Magic(0, b"COWD", _NOT_TAKEN, "an old (COWD) VMDK extent"),
    Magic(0, b"\xbe\xba\xfe\xca\x00\x00\x00\x00", _NOT_TAKEN, "a seSparse VMDK extent"),
    Magic(
        0, b"# Disk DescriptorFile", _NOT_TAKEN, "a VMDK descriptor whose disk is in other files"
    ),
    Magic(0, b"conectix", _NOT_TAKEN, "a VHD image"),
    Magic(0, b"cxsparse", _NOT_TAKEN, "a VHD image"),
    Magic(0, b"vhdxfile", _NOT_TAKEN, "a VHDX image"),
    Magic(0, b"QED\0", _NOT_TAKEN, "a QED image"),
    Magic(0, b"WithoutFreeSpace", _NOT_TAKEN, "a Parallels image"),
    Magic(0, b"WithouFreSpacExt", _NOT_TAKEN, "a Parallels image"),
    Magic(0, b"Bochs Virtual HD Image", _NOT_TAKEN, "a Bochs image"),
    Magic(0, b"#!/bin/sh\n#V2.0 Format\n", _NOT_TAKEN, "a cloop image"),
    Magic(0, b"LUKS\xba\xbe", _NOT_TAKEN, "an encrypted (LUKS) disk"),
    Magic(0, b"<<< ", _NOT_TAKEN, "a VirtualBox image"),
    Magic(0x40, b"\x7f\x10\xda\xbe", _NOT_TAKEN, "a VirtualBox (VDI) image"),
    Magic(0, b"\x1f\x8b", Look.GZIP, "gzip"),
    Magic(0, b"\xfd7zXZ\0", Look.XZ, "xz"),
    Magic(0, b"\x28\xb5\x2f\xfd", Look.ZSTD, "zstd"),
    Magic(0, b"BZh", Look.BZIP2, "bzip2"),
    Magic(0, b"PK\x03\x04", _NOT_TAKEN, "a zip archive"),
    Magic(0, b"PK\x05\x06", _NOT_TAKEN, "a zip archive"),
    Magic(0, b"7z\xbc\xaf\x27\x1c", _NOT_TAKEN, "a 7z archive"),
    Magic(0, b"Rar!", _NOT_TAKEN, "a rar archive"),
    Magic(0, b"\x04\x22\x4d\x18", _NOT_TAKEN, "an lz4 file"),
    Magic(0, b"LZIP", _NOT_TAKEN, "an lzip file"),
    Magic(0, b"!<arch>\n", _NOT_TAKEN, "an ar archive or Debian package"),
    Magic(0, b"070701", _NOT_TAKEN, "a cpio archive"),
    Magic(0, b"hsqs", _NOT_TAKEN, "a squashfs file system"),
    Magic(0, b"\x7fELF", _NOT_TAKEN, "an ELF program"),
    Magic(257, b"ustar", Look.TAR, "a tar archive"),
    Magic(0x202, b"HdrS", Look.KERNEL, "a Linux kernel"),
)
"""In the order in which they are tried. Image formats come first, so that nothing hides one."""

TAIL_MAGICS: tuple[Magic, ...] = (
    Magic(0, b"conectix", _NOT_TAKEN, "a VHD image of fixed size"),
    Magic(0, b"koly", _NOT_TAKEN, "an Apple disk image"),
)
"""The same for the last ``TAIL`` bytes of a file, tried next."""

LOOSE_MAGICS: tuple[Magic, ...] = (
    Magic(0x8001, b"CD001", Look.ISO, "an ISO 9660 medium"),
    Magic(0x8001, b"BEA01", _NOT_TAKEN, "a UDF medium without ISO 9660"),
    Magic(0x200, b"EFI PART", Look.DISK, "a disk with GPT"),
    Magic(0x1000, b"EFI PART", _NOT_TAKEN, "a disk with sectors of 4096 bytes"),
    Magic(0x1FE, b"\x55\xaa", Look.DISK, "a disk with a boot sector"),
)
"""What disks and media of other kinds may show as well, tried last."""

_UNKNOWN = Magic(0, b"", Look.UNKNOWN, "nothing that is known")


def recognise(head: bytes, tail: bytes = b"") -> Magic:
    """Return the first entry that fits the first ``HEAD`` and last ``TAIL`` bytes of a file."""
    for magics, part in ((MAGICS, head), (TAIL_MAGICS, tail), (LOOSE_MAGICS, head)):
        for magic in magics:
            if part.startswith(magic.bytes, magic.offset):
                return magic
    return _UNKNOWN
