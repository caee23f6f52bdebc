"""What was imported really starts: a disk under its head, memtest86+ and Debian's installer.

Bare QEMU on the files that importing, publishing and ``create_root`` leave; the rest of serai has no
part in it, so that a failure here is a failure of the disk room.
"""

import asyncio
import gzip
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from packaged import MEMTEST_ISO, from_package, memtest

from serai.disk.images import ImageFolder
from serai.disk.importing import import_image
from serai.disk.volumes import create_root
from serai.host.process import run
from serai.host.supervise import wait_until
from serai.model.actions import ImportImage
from serai.model.guest import Accel
from serai.model.image import Image
from serai.model.machine import LayerFile
from serai.model.node import Capabilities
from serai.settings import read_settings
from serai.units import GIB, MIB

INSTALLER = "debian-installer-12-netboot-amd64"
INSTALLER_FOLDER = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
CAPABILITIES = Capabilities(
    qemu_path="",
    qemu_version="",
    machine_type="",
    accel=Accel.TCG,
    accel_reason="",
    privileged=os.geteuid() == 0,
)
MACHINE = ("-accel", "tcg", "-M", "q35", "-nodefaults", "-no-user-config", "-display", "none")
VGA_TEXT = 0xB8000


async def bring(tmp_path: Path, source: str, **options: object) -> tuple[Image, Path]:
    """Import and publish; return the image and its folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o700)
    new = await import_image(
        ImportImage(source=source, name="thing", **options),  # type: ignore[arg-type]
        scratch=scratch,
        settings=read_settings({}, Path("/nonexistent")),
        capabilities=CAPABILITIES,
        progress=lambda *told: None,
    )
    folder = ImageFolder(tmp_path / "images")
    image = await folder.publish(new, now=1.0)
    return image, folder.folder(image)


@asynccontextmanager
async def booted(tmp_path: Path, *argv: str, memory: int = 256) -> AsyncIterator[Path]:
    """Start a bare QEMU; yield its serial log. It is killed at the end."""
    serial = tmp_path / "serial.log"
    serial.touch()
    full = ["qemu-system-x86_64", *MACHINE, "-m", str(memory), "-serial", f"file:{serial}", *argv]
    task = asyncio.ensure_future(run(full, timeout=110))
    try:
        yield serial
    finally:
        ended = task.done()
        task.cancel()
        await asyncio.wait({task})
    assert not ended, task.exception()


async def wait_for(text: str, serial: Path) -> None:
    await wait_until(
        f"{text!r} on the serial line",
        lambda: text.encode() in serial.read_bytes(),
        timeout=100,
        every=0.2,
    )


def blockdev(chain: tuple[LayerFile, ...]) -> str:
    """Return a volume's description with each layer named explicitly, as serai gives it to QEMU."""
    node: dict[str, object] | None = None
    for layer in reversed(chain):
        file = {"driver": "file", "filename": layer.path, "read-only": layer.read_only}
        below = {"backing": node} if layer.format == "qcow2" else {}
        node = {"driver": layer.format.value, "read-only": layer.read_only, "file": file, **below}
    return json.dumps({**(node or {}), "node-name": "root"})


def boot_sector(text: str) -> bytes:
    """Return a boot sector that prints ``text`` on the first serial line and halts."""
    code = bytes.fromhex("fa 31c0 8ed8 be167c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
    return (code + text.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize("form", ["raw", "raw.gz", "qcow2", "vmdk"])
async def test_disk_boots_under_its_head(tmp_path: Path, form: str) -> None:
    source = tmp_path / f"disk.{form}"
    raw = boot_sector("hello from the layer") + os.urandom(4 * MIB)
    (tmp_path / "plain").write_bytes(raw)
    if form in ("qcow2", "vmdk"):
        argv = ["qemu-img", "convert", "-f", "raw", "-O", form, tmp_path / "plain", source]
        subprocess.run(argv, check=True)
    else:
        source.write_bytes(gzip.compress(raw) if form == "raw.gz" else raw)
    image, folder = await bring(tmp_path, str(source))
    (tmp_path / "guest").mkdir()
    chain = create_root(tmp_path / "guest", image, folder, 1 * GIB)
    argv = ["-blockdev", blockdev(chain), "-device", "virtio-blk-pci,drive=root"]
    async with booted(tmp_path, *argv) as serial:
        await wait_for("hello from the layer", serial)


async def test_memtest_kernel(tmp_path: Path) -> None:
    image, folder = await bring(
        tmp_path, str(memtest()), kernel=True, cmdline="console=ttyS0,115200"
    )
    async with booted(
        tmp_path, "-kernel", str(folder / "kernel"), "-append", image.cmdline
    ) as serial:
        await wait_for("Memtest86+", serial)


async def test_memtest_medium_beside_an_empty_disk(tmp_path: Path) -> None:
    image, folder = await bring(tmp_path, str(memtest(MEMTEST_ISO)))
    (tmp_path / "guest").mkdir()
    chain = create_root(tmp_path / "guest", image, folder, 0)
    screen, monitor = tmp_path / "screen", tmp_path / "monitor.sock"
    argv = [
        "-blockdev", blockdev(chain), "-device", "virtio-blk-pci,drive=root,bootindex=0",
        "-drive", f"if=none,id=cd0,media=cdrom,format=raw,readonly=on,file={folder / 'disk.iso'}",
        "-device", "ide-cd,drive=cd0,bootindex=1",
        "-vga", "std", "-monitor", f"unix:{monitor},server=on,wait=off",
    ]  # fmt: skip
    async with booted(tmp_path, *argv):
        await wait_until("the monitor", monitor.exists, timeout=10, every=0.05)
        reader, writer = await asyncio.open_unix_connection(monitor)

        async def shows_memtest() -> bool:
            writer.write(f'pmemsave {VGA_TEXT} 4000 "{screen}"\n'.encode())
            await reader.readuntil(b"(qemu) ")
            text = screen.read_bytes()[::2] if screen.exists() else b""
            return b"Memtest86+" in text and b"Errors:" in text

        await wait_until("memtest on the screen", shows_memtest, timeout=100, every=0.3)
        writer.close()


async def test_debian_installer(tmp_path: Path) -> None:
    linux, initrd = from_package(
        INSTALLER, f"{INSTALLER_FOLDER}/linux", f"{INSTALLER_FOLDER}/initrd.gz"
    )
    image, folder = await bring(
        tmp_path,
        str(linux),
        kernel=True,
        initrd=str(initrd),
        cmdline="console=ttyS0 DEBIAN_FRONTEND=text",
    )
    argv = ["-kernel", str(folder / "kernel"), "-initrd", str(folder / "initrd")]
    async with booted(tmp_path, *argv, "-append", image.cmdline, memory=1024) as serial:
        await wait_for("Choose the language", serial)
