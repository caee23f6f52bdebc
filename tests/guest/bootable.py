"""Disks that boot by themselves, by BIOS and by UEFI, into the system of the tiny image: up in seconds.

They are put together as the debian image's disk is, with GRUB. A disk has a name, and a guest that was
started from it finds ``disk=NAME`` in /proc/cmdline.
"""

import asyncio
import subprocess
from importlib.resources import files
from pathlib import Path

from serai.disk.boot_disk import DiskPlan, make_boot_disk

ROOT_SIZE = 40 << 20
ROOT_ID = "0f9d8a4e-5a3c-4c19-9a38-c0ffee0000{:02}"
CONFIG = """set timeout=0
menuentry tiny {{
    linux /boot/kernel {cmdline} disk={name}
    initrd /boot/initrd
}}
"""


def make_bootable(folder: Path, state: Path, name: str, number: int = 1) -> Path:
    """Make the raw disk ``folder``/NAME.raw of the tiny image in ``state``; ``number`` tells its UUIDs."""
    (image,) = (state / "images").glob("sha256-*")
    tree, scratch, root = (
        folder / f"{name}-tree",
        folder / f"{name}-scratch",
        folder / f"{name}.ext4",
    )
    (tree / "boot" / "grub").mkdir(parents=True)
    scratch.mkdir()
    for part in ("kernel", "initrd"):
        (tree / "boot" / part).write_bytes((image / part).read_bytes())
    config = CONFIG.format(
        cmdline="console=ttyS0 quiet rdinit=/sbin/init no_timer_check", name=name
    )
    (tree / "boot" / "grub" / "grub.cfg").write_text(config)
    root_id = ROOT_ID.format(number)
    argv = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-U",
        root_id,
        "-d",
        str(tree),
        str(root),
        str(ROOT_SIZE >> 10),
    ]
    subprocess.run(argv, check=True)
    early = files("serai.disk") / "recipes" / "debian" / "early.cfg"
    (scratch / "early.cfg").write_text(early.read_text().replace("@ROOT_UUID@", root_id))
    plan = DiskPlan(
        root=root,
        early_config=scratch / "early.cfg",
        disk_id=ROOT_ID.format(number + 10),
        part_ids=(
            ROOT_ID.format(number + 20),
            ROOT_ID.format(number + 30),
            ROOT_ID.format(number + 40),
        ),
        esp_serial=f"C0FFEE{number:02}",
        epoch=1_700_000_000,
    )
    disk = folder / f"{name}.raw"
    asyncio.run(make_boot_disk(plan, scratch, disk))
    return disk
