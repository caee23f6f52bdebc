"""A bootable disk as one file, without loop devices or mounting: BIOS and UEFI from one table.

    sector 0      boot.img of GRUB, told where core.img is
    2048          partition 1, BIOS boot: core.img of GRUB for i386-pc
    4096          partition 2, EFI system: GRUB for x86_64-efi under the name that firmware looks for
    69632         partition 3, the root file system, last so that it can grow

What ``grub-bios-setup`` would patch is patched here: the sector of core.img in boot.img (offset
0x5c, its drive check at 0x66), and in core.img's first sector where its second is (0x1f4).
Source: GRUB's grub-core/boot/i386/pc/boot.S and diskboot.S, include/grub/i386/pc/boot.h.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from serai.host.process import run

SECTOR = 512
BIOS_START, BIOS_SECTORS = 2048, 2048
ESP_START, ESP_SECTORS = 4096, 65536
ROOT_START = 69632
END_SECTORS = 2048
GRUB_FOLDER = Path("/usr/lib/grub")

KERNEL_SECTOR, DRIVE_CHECK, BOOT_CODE = 0x5C, 0x66, 440
BLOCKLIST_START = 0x1F4

COMMON_MODULES = (
    "part_gpt", "ext2", "search", "search_fs_uuid", "normal", "configfile", "linux", "echo",
    "serial", "terminal", "test", "boot", "minicmd", "reboot", "halt", "ls", "cat",
)  # fmt: skip
BIOS_MODULES = (*COMMON_MODULES, "biosdisk")
EFI_MODULES = (*COMMON_MODULES, "fat", "efi_gop", "all_video")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What makes a disk: ``root`` is an ext4 file system in a file, ids are UUIDs as text."""

    root: Path
    early_config: Path
    disk_id: str
    part_ids: tuple[str, str, str]
    esp_serial: str
    epoch: int


async def make_boot_disk(plan: DiskPlan, scratch: Path, target: Path) -> int:
    """Write the disk to ``target`` and return its size in bytes."""
    root_sectors = plan.root.stat().st_size // SECTOR
    size = (ROOT_START + root_sectors + END_SECTORS) * SECTOR
    with target.open("xb") as disk:
        disk.truncate(size)
    await _partition(plan, target, root_sectors)
    core = await _bios_core(plan, scratch)
    esp = await _efi_partition(plan, scratch)
    with target.open("r+b") as disk:
        _write_at(disk.fileno(), 0, _boot_sector())
        _write_at(disk.fileno(), BIOS_START, core)
        _write_at(disk.fileno(), ESP_START, esp.read_bytes())
        _copy_root(plan.root, disk.fileno())
        os.fsync(disk.fileno())
    return size


async def _partition(plan: DiskPlan, target: Path, root_sectors: int) -> None:
    bios, esp, root = plan.part_ids
    table = f"""label: gpt
label-id: {plan.disk_id}
start={BIOS_START}, size={BIOS_SECTORS}, type=21686148-6449-6E6F-744E-656564454649, uuid={bios}
start={ESP_START}, size={ESP_SECTORS}, type=uefi, uuid={esp}
start={ROOT_START}, size={root_sectors}, type=linux, uuid={root}
"""
    argv = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(target)]
    await run(argv, timeout=30.0, input=table.encode())


async def _mkimage(plan: DiskPlan, form: str, modules: tuple[str, ...], target: Path) -> bytes:
    argv = ["grub-mkimage", "-O", form, "-o", str(target), "-p", "/boot/grub"]
    argv += ["-c", str(plan.early_config), *modules]
    await run(argv, timeout=60.0, env={"SOURCE_DATE_EPOCH": str(plan.epoch)})
    return target.read_bytes()


async def _bios_core(plan: DiskPlan, scratch: Path) -> bytes:
    """Return core.img, told where its own second sector is."""
    core = bytearray(await _mkimage(plan, "i386-pc", BIOS_MODULES, scratch / "core.img"))
    struct.pack_into("<Q", core, BLOCKLIST_START, BIOS_START + 1)
    return bytes(core)


def _boot_sector() -> bytes:
    """Return the code of the first sector; the table behind it is sfdisk's."""
    boot = bytearray((GRUB_FOLDER / "i386-pc/boot.img").read_bytes()[:BOOT_CODE])
    struct.pack_into("<Q", boot, KERNEL_SECTOR, BIOS_START)
    boot[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"
    return bytes(boot)


async def _efi_partition(plan: DiskPlan, scratch: Path) -> Path:
    """Make the EFI system partition with GRUB in it."""
    loader = scratch / "BOOTX64.EFI"
    await _mkimage(plan, "x86_64-efi", EFI_MODULES, loader)
    esp = scratch / "esp.fat"
    with esp.open("xb") as file:
        file.truncate(ESP_SECTORS * SECTOR)
    epoch = {"SOURCE_DATE_EPOCH": str(plan.epoch)}
    argv = ["mkfs.vfat", "-F", "16", "-n", "EFI", "-i", plan.esp_serial, str(esp)]
    await run(argv, timeout=30.0, env=epoch)
    os.utime(loader, (plan.epoch, plan.epoch))
    for folder in ("::EFI", "::EFI/BOOT"):
        await run(["mmd", "-i", str(esp), folder], timeout=30.0, env=epoch)
    copy = ["mcopy", "-m", "-i", str(esp), str(loader), "::EFI/BOOT/BOOTX64.EFI"]
    await run(copy, timeout=30.0, env=epoch)
    return esp


def _write_at(fd: int, sector: int, data: bytes) -> None:
    os.pwrite(fd, data, sector * SECTOR)


def _copy_root(root: Path, disk: int) -> None:
    """Copy the file system with its holes kept."""
    chunk, at = 1 << 20, 0
    with root.open("rb") as source:
        while data := source.read(chunk):
            if data.count(0) != len(data):
                os.pwrite(disk, data, ROOT_START * SECTOR + at)
            at += len(data)
