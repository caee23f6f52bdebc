"""Which firmware a disk or medium was made to boot with, told from its boot sectors.

Read through a function, so that it works for raw files and through qcow2 tables alike. What can't
be told counts as both: a guess must not refuse a guest that would have started.
"""

import struct
from collections.abc import Callable

from serai.model.guest import Firmware

ReadGuest = Callable[[int, int], bytes | None]
"""``read(offset, length)`` returns that much of the disk, or None when it can't be told."""

BOTH = (Firmware.BIOS.value, Firmware.UEFI.value)

MBR_SIGNATURE = b"\x55\xaa"
MBR_CODE = 440
MBR_GPT, MBR_ESP = 0xEE, 0xEF
GPT_SIGNATURE = b"EFI PART"
GPT_ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
GPT_ENTRY = 128
GPT_ENTRIES = 128

CD_SECTOR = 2048
EL_TORITO = b"\0CD001\x01EL TORITO SPECIFICATION"
EL_TORITO_PLATFORMS = {0x00: Firmware.BIOS.value, 0xEF: Firmware.UEFI.value}
SECTION, LAST_SECTION = 0x90, 0x91
BOOTABLE = 0x88


def disk_firmware(read: ReadGuest) -> tuple[str, ...]:
    """Return what a disk boots with: BIOS when its boot sector has code, UEFI when it has an ESP."""
    first = read(0, 512)
    if first is None or not first.endswith(MBR_SIGNATURE):
        return BOTH
    types = {first[446 + 16 * i + 4] for i in range(4)}
    has_esp = _has_gpt_esp(read) if MBR_GPT in types else MBR_ESP in types
    found = {Firmware.BIOS: any(first[:MBR_CODE]), Firmware.UEFI: has_esp}
    return tuple(name.value for name, there in found.items() if there) or BOTH


def _has_gpt_esp(read: ReadGuest) -> bool:
    """True when the GPT has an EFI system partition (UEFI specification, 5.3)."""
    header = read(512, 512)
    if header is None or not header.startswith(GPT_SIGNATURE):
        return False
    start, count, size = struct.unpack_from("<QII", header, 72)
    entries = read(start * 512, min(count, GPT_ENTRIES) * GPT_ENTRY)
    if size != GPT_ENTRY or entries is None:
        return False
    return any(entries.startswith(GPT_ESP, at) for at in range(0, len(entries), GPT_ENTRY))


def medium_firmware(read: ReadGuest) -> tuple[str, ...]:
    """Return what an ISO 9660 medium boots with, from its El Torito catalogue (version 1.0)."""
    record = read(17 * CD_SECTOR, CD_SECTOR)
    if record is None or not record.startswith(EL_TORITO):
        return BOTH
    (place,) = struct.unpack_from("<I", record, 0x47)
    catalogue = read(place * CD_SECTOR, CD_SECTOR)
    if catalogue is None or catalogue[0] != 1:
        return BOTH
    found = set()
    platform = catalogue[1]
    for at in range(32, CD_SECTOR, 32):
        if catalogue[at] in (SECTION, LAST_SECTION):
            platform = catalogue[at + 1]
        elif catalogue[at] == BOOTABLE and platform in EL_TORITO_PLATFORMS:
            found.add(EL_TORITO_PLATFORMS[platform])
    return tuple(name for name in BOTH if name in found) or BOTH
