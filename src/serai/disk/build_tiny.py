"""The ``tiny`` image: Debian's cloud kernel, busybox and the real guest agent in one initramfs.

Made of packages that apt downloads; nothing of theirs is run but a compiler and the dynamic loader,
which lists the libraries that the agent needs. The same packages give the same bytes.

What is in it and how it starts: ``recipes/tiny``. The order matters for the time to the agent's
first answer: the modules of its port are loaded before anything else.
"""

import logging
import re
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path

from serai.disk.bare import COMPILER, LIBRARY_FOLDERS, LOADER, compile_program
from serai.disk.cpio import Entry, a_device, a_file, a_folder, a_link, pack
from serai.disk.images import NewImage
from serai.disk.linux import has_pvh_entry, packed_in
from serai.disk.packages import depends_on, download, ensure_lists, unpack, versions
from serai.disk.work import Progress
from serai.errors import Code, HostFailure
from serai.host.process import run
from serai.model.image import Expect, ImageKind
from serai.units import MIB

log = logging.getLogger(__name__)

MATERIAL = (
    "busybox-static",
    "qemu-guest-agent",
    "libc6",
    "libgcc-s1",
    "libglib2.0-0",
    "libnuma1",
    "libpcre2-8-0",
    "libudev1",
    "liburing2",
    *(each for each in COMPILER if each != "libc6"),
)
KERNELS = ("linux-image-cloud-amd64", "linux-image-amd64")
FIRST_MODULES = ("virtio_pci", "virtio_console")
DISK_MODULES = ("virtio_blk",)
THEN_MODULES = (
    "virtio_net",
    "virtio-rng",
    "virtio_balloon",
    "button",
    "evdev",
    "pvpanic-mmio",
    "vmgenid",
    "acpiphp",
)
MEDIUM_MODULES = ("virtio_scsi", "sr_mod", "isofs")
"""Loaded only where there is a CD drive."""
AGENT = "usr/sbin/qemu-ga"
CMDLINE = (
    "console=ttyS0 quiet loglevel=3 rdinit=/sbin/init no_timer_check tsc=reliable mitigations=off "
    "random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux audit=0 cryptomgr.notests"
)
MIN_MEMORY = 96 * MIB
SIZE_LIMIT = 25_000_000

SCRIPTS = {
    "etc/rc": "rc",
    "etc/agent": "agent",
    "etc/nic": "nic",
    "etc/lease": "lease",
    "etc/resolve": "resolve",
    "etc/hotplug": "hotplug",
    "etc/acpi/PWRF/00000080": "power",
    "sbin/shutdown": "shutdown",
}
PROGRAMS = ("reborn.c", "tiny/names.c")
TEXTS = {"etc/inittab": "inittab", "etc/profile": "profile"}


async def build_tiny(scratch: Path, progress: Progress) -> NewImage:
    """Build the image from packages; its files are left in ``scratch`` for publishing.

    Raises HostFailure ``build-failed`` with what to do when apt can't give the packages.
    """
    await ensure_lists()
    kernel_package = await _kernel_package()
    downloaded = await download([kernel_package, *MATERIAL], scratch / "debs", progress)
    tree = scratch / "tree"
    await unpack(downloaded, tree, progress)
    libraries = await _libraries(tree)
    programs = [await compile_program(each, tree, scratch) for each in PROGRAMS]
    progress("pack", 0, 1, "packing the initramfs")
    kernel = next(tree.glob("boot/vmlinuz-*"))
    initrd = scratch / "initrd"
    initrd.write_bytes(pack(_entries(tree, libraries, programs)))
    _check_size(kernel, initrd)
    unpacked = await _unpack_kernel(kernel, scratch)
    return NewImage(
        name="tiny",
        kind=ImageKind.KERNEL,
        kernel=kernel,
        initrd=initrd,
        unpacked=unpacked,
        cmdline=CMDLINE,
        agent=Expect.YES,
        cloud_init=Expect.NO,
        firmware=("bios", "uefi"),
        min_memory=MIN_MEMORY,
        source="built from Debian packages",
        details=versions(downloaded),
    )


async def _kernel_package() -> str:
    try:
        return await depends_on(KERNELS[0], "linux-image-")
    except HostFailure:
        return await depends_on(KERNELS[1], "linux-image-")


async def _unpack_kernel(kernel: Path, scratch: Path) -> Path | None:
    """Return the kernel as it runs, if QEMU can start that; None: it will have to unpack itself."""
    packed, unpacked = scratch / "kernel.lz4", scratch / "kernel.unpacked"
    packed.write_bytes(packed_in(kernel.read_bytes()))
    try:
        await run(["lz4", "-dqf", str(packed), str(unpacked)], timeout=60.0)
    except HostFailure as error:
        log.info("the kernel is not unpacked beforehand: %s", error.message)
        return None
    return unpacked if has_pvh_entry(unpacked.read_bytes()) else None


def _check_size(kernel: Path, initrd: Path) -> None:
    size = kernel.stat().st_size + initrd.stat().st_size
    if size > SIZE_LIMIT:
        raise HostFailure(
            Code.BUILD_FAILED, f"the image would have {size} bytes, more than {SIZE_LIMIT}"
        )


async def _libraries(tree: Path) -> list[str]:
    """Return the libraries that the agent needs, relative to the tree, as its own loader says.

    The loader works in the tree, so that no character in the tree's own path means anything to it.
    Raises HostFailure ``build-failed`` when the tree does not have them all.
    """
    done = await run(
        [str(tree / LOADER), "--library-path", ":".join(LIBRARY_FOLDERS), "--list", AGENT],
        cwd=tree,
        timeout=20.0,
        ok=(0, 127),
    )
    told = done.stdout.decode(errors="replace")
    found = re.findall(r"^\s*[^/\s]+ => (\S+)", told, re.M)
    if done.code or not found or any(not (tree / each).is_file() for each in found):
        raise HostFailure(Code.BUILD_FAILED, f"libraries of the agent are missing: {told.strip()}")
    return found


def _entries(tree: Path, libraries: Sequence[str], programs: Sequence[Path]) -> list[Entry]:
    recipe = package_files("serai.disk") / "recipes" / "tiny"
    first = _in_order(tree, FIRST_MODULES)
    disk = [name for name in _in_order(tree, DISK_MODULES) if name not in first]
    then = [name for name in _in_order(tree, THEN_MODULES) if name not in (*first, *disk)]
    medium = [name for name in _in_order(tree, MEDIUM_MODULES) if name not in (*first, *then)]
    entries = [a_folder(name) for name in ("dev", "mnt", "proc", "root", "run", "sys", "var")]
    entries += [a_folder("tmp", 0o1777), a_device("dev/console", 5, 1), a_device("dev/null", 1, 3)]
    entries += [a_file(to, (recipe / name).read_bytes(), 0o755) for to, name in SCRIPTS.items()]
    entries += [a_file(to, (recipe / name).read_bytes()) for to, name in TEXTS.items()]
    entries += [
        a_file("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"),
        a_file("etc/group", b"root:x:0:\n"),
        a_file("etc/modules.first", " ".join(first).encode()),
        a_file("etc/modules.disk", " ".join(disk).encode()),
        a_file("etc/modules.then", " ".join(then).encode()),
        a_file("etc/modules.medium", " ".join(medium).encode()),
    ]
    entries += [_module(tree, name) for name in (*first, *disk, *then, *medium)]
    entries += [a_file(f"sbin/{each.name}", each.read_bytes(), 0o755) for each in programs]
    entries.append(a_link("sbin/reseed", "reborn"))
    entries += [_program(tree, name) for name in (AGENT, LOADER, *libraries)]
    return entries + _busybox(tree)


def _program(tree: Path, name: str) -> Entry:
    return a_file(name, (tree / name).resolve().read_bytes(), 0o755)


def _module_file(tree: Path, name: str) -> Path | None:
    wanted = name.replace("-", "_")
    for path in tree.glob("lib/modules/*/kernel/**/*.ko"):
        if path.stem.replace("-", "_") == wanted:
            return path
    return None


def _module(tree: Path, name: str) -> Entry:
    path = _module_file(tree, name)
    assert path is not None
    return a_file(f"lib/modules/{name}.ko", path.read_bytes())


def _in_order(tree: Path, wanted: Sequence[str]) -> list[str]:
    """Return modules with all they depend on before them; what is built in is left out."""
    order: list[str] = []

    def add(name: str) -> None:
        path = _module_file(tree, name)
        if path is None or name in order:
            return
        for needed in _needed_modules(path.read_bytes()):
            add(needed)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _needed_modules(module: bytes) -> list[str]:
    """Read a module's own list of what it depends on (its .modinfo section)."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.decode() for name in match[1].split(b",") if name] if match else []


def _busybox(tree: Path) -> list[Entry]:
    """The one program, and a link for each of its applets, where a system has it."""
    binary = (tree / "bin/busybox").read_bytes()
    recipe = package_files("serai.disk") / "recipes" / "tiny"
    entries = [a_file("bin/busybox", binary, 0o755)]
    for line in (recipe / "applets").read_text().splitlines():
        folder, *names = line.split()
        entries += [a_link(f"{folder}/{name}", "/bin/busybox") for name in names]
    return entries
