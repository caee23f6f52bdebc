"""Our own strict look at an untrusted image, before any tool of QEMU touches it.

``inspect_image`` says what a file is, or refuses it with the reason: raw disks and ISO 9660 media
here, qcow2 and VMDK in the modules beside it. What it says is recorded and the file is never
probed again, so a guest that writes a qcow2 header into its raw disk gains nothing.

What counts as a raw disk: a file of whole sectors with a boot sector or partition table, or, when
it has neither, one whose name ends in ``.raw``, ``.img`` or ``.bin``. A file that begins like
another format is never a raw disk, and a name ending in ``.raw`` does not make it one: that is
what an attack looks like, so it is refused.

The caller must own the file alone: nobody else may be able to change it after it was inspected.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serai.disk.boot import BOTH, ReadGuest, disk_firmware, medium_firmware
from serai.disk.magic import HEAD, TAIL, Look, Magic, recognise
from serai.disk.qcow2_header import DIRTY, Qcow2Header, check_virtual_size, read_header
from serai.disk.qcow2_tables import check_tables, read_guest
from serai.disk.reader import SECTOR, Reader, refused
from serai.disk.vmdk import check_vmdk
from serai.disk.work import Pulse
from serai.model.image import DiskFormat, ImageKind

RAW_SUFFIXES = (".raw", ".img", ".bin")
PRIMARY_VOLUME = 0x8000
CONVERT_HINT = "Where it comes from: qemu-img convert -O qcow2 IT NEW.qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What a sound file is. ``virtual_size`` is what a guest sees, in bytes.

    ``convert`` says why the file must be converted before use; empty: it can be used as it is.
    """

    format: DiskFormat
    kind: ImageKind
    virtual_size: int
    file_size: int
    firmware: tuple[str, ...] = BOTH
    convert: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


def look_at(reader: Reader) -> Magic:
    """Say what the file looks like from its first and last bytes."""
    tail = reader.peek(max(0, reader.size - TAIL), TAIL) if reader.size >= TAIL else b""
    return recognise(reader.peek(0, HEAD), tail)


def inspect_image(
    file: int | Path, limit: int, *, name: str = "", pulse: Pulse | None = None
) -> ImageHeader:
    """Say what the file is, or raise Invalid (``image-refused``) with the reason.

    ``limit`` bounds file and virtual size; ``name`` is what the file was called (for raw disks
    that show nothing). Blocking: reads all tables, up to some seconds for a large qcow2.
    """
    if isinstance(file, int):
        return _inspect(Reader(file), limit, name, pulse or Pulse())
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return _inspect(Reader(descriptor), limit, name or file.name, pulse or Pulse())
    finally:
        os.close(descriptor)


def _inspect(reader: Reader, limit: int, name: str, pulse: Pulse) -> ImageHeader:
    if reader.size == 0:
        raise refused("the file is empty")
    if reader.size > limit:
        raise refused(
            f"the file has {reader.size} bytes; at most {limit} are taken",
            hint="The setting image_limit raises the limit.",
        )
    magic = look_at(reader)
    if name.lower().endswith(".raw") and magic.look not in (Look.DISK, Look.ISO, Look.UNKNOWN):
        raise refused(f"it is called a raw disk, but begins like {magic.name}")
    if magic.look is Look.QCOW2:
        return _inspect_qcow2(reader, limit, pulse)
    if magic.look is Look.VMDK:
        return _inspect_vmdk(reader, limit, pulse)
    if magic.look is Look.ISO:
        return _inspect_iso(reader)
    if magic.look is Look.DISK:
        return _inspect_raw(reader, limit, magic.name)
    if magic.look is Look.UNKNOWN:
        return _inspect_unknown(reader, limit, name)
    raise refused(f"it is {magic.name}, not a disk", hint=_hint_for(magic))


def _hint_for(magic: Magic) -> str:
    if magic.look is Look.KERNEL:
        return "Import it with --kernel."
    return CONVERT_HINT if "image" in magic.name or "VMDK" in magic.name else ""


def _inspect_qcow2(reader: Reader, limit: int, pulse: Pulse) -> ImageHeader:
    header = read_header(reader, limit)
    check_tables(reader, header, pulse)
    return ImageHeader(
        format=DiskFormat.QCOW2,
        kind=ImageKind.DISK,
        virtual_size=header.virtual_size,
        file_size=reader.size,
        firmware=disk_firmware(lambda offset, size: read_guest(reader, header, offset, size)),
        convert=_why_convert(header),
        details={"cluster": str(header.cluster), "qcow2": f"version {header.version}"},
    )


def _why_convert(header: Qcow2Header) -> str:
    """Say why a sound qcow2 file is not used as it is; empty when it is."""
    if header.version == 2:
        return "version 2 has no zero clusters"
    if header.snapshots:
        return "it has snapshots inside"
    if header.autoclear:
        return "it has bitmaps inside"
    if header.incompatible & DIRTY:
        return "it was not closed properly"
    return ""


def _inspect_vmdk(reader: Reader, limit: int, pulse: Pulse) -> ImageHeader:
    header, kind = check_vmdk(reader, limit, pulse)
    return ImageHeader(
        format=DiskFormat.VMDK,
        kind=ImageKind.DISK,
        virtual_size=header.virtual_size,
        file_size=reader.size,
        convert="guests use qcow2 and raw only",
        details={"vmdk": kind},
    )


def _inspect_iso(reader: Reader) -> ImageHeader:
    """Check an ISO 9660 medium, hybrid or not, against its primary volume descriptor (ECMA-119)."""
    descriptor = reader.read(PRIMARY_VOLUME, 2048, "the volume descriptor")
    blocks, block = struct.unpack_from("<I", descriptor, 80)[0], descriptor[128:130]
    size = blocks * int.from_bytes(block, "little")
    if descriptor[0] != 1 or int.from_bytes(block, "little") not in (512, 1024, 2048):
        raise refused("its volume descriptor is not a primary one")
    if size > reader.size:
        raise refused(f"it is truncated: {reader.size} bytes of {size}")
    if reader.size % SECTOR:
        raise refused("its length is not a whole number of sectors: it is truncated")
    label = descriptor[40:72].decode("ascii", "replace").strip()
    return ImageHeader(
        format=DiskFormat.RAW,
        kind=ImageKind.CDROM,
        virtual_size=0,
        file_size=reader.size,
        firmware=medium_firmware(_reading(reader)),
        details={"label": "".join(c for c in label if c.isprintable() and c != "\ufffd")},
    )


def _inspect_raw(reader: Reader, limit: int, what: str) -> ImageHeader:
    if reader.size % SECTOR:
        raise refused("its length is not a whole number of sectors: it is truncated")
    check_virtual_size(reader.size, limit)
    return ImageHeader(
        format=DiskFormat.RAW,
        kind=ImageKind.DISK,
        virtual_size=reader.size,
        file_size=reader.size,
        firmware=disk_firmware(_reading(reader)),
        details={"content": what},
    )


def _inspect_unknown(reader: Reader, limit: int, name: str) -> ImageHeader:
    if not name.lower().endswith(RAW_SUFFIXES):
        raise refused(
            "it is neither qcow2, VMDK nor ISO 9660 and has no boot sector",
            hint="If it is a raw disk all the same, give it a name that ends in .raw",
        )
    return _inspect_raw(reader, limit, "nothing that is known")


def _reading(reader: Reader) -> ReadGuest:
    def read(offset: int, length: int) -> bytes | None:
        return reader.read(offset, length, "it") if offset + length <= reader.size else None

    return read
