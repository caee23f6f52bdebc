"""The ``debian`` image: a full system that boots from its own disk, by BIOS and by UEFI.

Built by mmdebstrap from the host's own apt sources; no loop device and no mount is needed, so it
works for an unprivileged user too. What is settled in the system: ``recipes/debian``. How the disk is
put together: ``boot_disk``.

Ids and times come from the recipe, the release and the packages' names, not from chance. What still
differs between two builds is what packages' own scripts leave behind, if they do.
"""

import json
import os
import re
import uuid
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from serai.disk.bare import build_program
from serai.disk.boot_disk import DiskPlan, make_boot_disk
from serai.disk.images import NewImage
from serai.disk.packages import ensure_lists
from serai.disk.work import Progress
from serai.errors import Code, HostFailure, Invalid
from serai.host.process import find_program, run
from serai.model.image import DiskFormat, Expect, ImageKind
from serai.units import GIB, MIB, shorten

PACKAGES = (
    "systemd-sysv", "libpam-systemd", "dbus", "udev", "systemd-resolved", "linux-image-cloud-amd64",
    "initramfs-tools", "zstd", "cloud-init", "cloud-guest-utils", "qemu-guest-agent",
    "openssh-server", "sudo", "iproute2", "iputils-ping", "e2fsprogs", "util-linux", "kmod",
    "ca-certificates", "less", "nano", "netbase", "procps", "apt-utils",
)  # fmt: skip
ROOT_SIZE = 2 * GIB
MIN_MEMORY = 256 * MIB
BUILD_TIMEOUT = 1800.0
EPOCH = 1_700_000_000
NAMESPACE = uuid.UUID("8d7a0d6e-1f0c-5b5e-9a35-5e7a1f0c5b5e")
SUITE = re.compile(r"[a-z][a-z-]{1,30}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,80}")
EXPECTED_STEPS = 260
"""About how many packages are set up; only the progress bar depends on it."""


async def build_debian(
    scratch: Path, suite: str, include: Sequence[str], progress: Progress
) -> NewImage:
    """Build the image; its disk is left in ``scratch`` for publishing.

    ``suite`` empty means the host's own release. Raises Invalid for names that are none,
    HostFailure ``build-failed`` or ``tool-missing`` with what to do.
    """
    suite = suite or _host_suite()
    _check_names(suite, include)
    if os.geteuid() != 0:
        find_program("newuidmap")  # mmdebstrap's own words for this tell nobody what to do
    await ensure_lists()
    await build_program("reborn.c", scratch, progress)
    ids = _ids(suite, include)
    with as_file(files("serai.disk") / "recipes" / "debian") as recipe:
        await _bootstrap(scratch, recipe, suite, include, ids, progress)
        progress("pack", 0, 1, "putting the disk together")
        early = scratch / "early.cfg"
        early.write_text((recipe / "early.cfg").read_text().replace("@ROOT_UUID@", ids["root"]))
    disk = scratch / "disk.raw"
    plan = DiskPlan(
        root=scratch / "root.ext4",
        early_config=early,
        disk_id=ids["disk"],
        part_ids=(ids["bios-part"], ids["esp-part"], ids["root-part"]),
        esp_serial=_esp_serial(ids),
        epoch=EPOCH,
    )
    size = await make_boot_disk(plan, scratch, disk)
    return NewImage(
        name="debian",
        kind=ImageKind.DISK,
        disk=disk,
        disk_format=DiskFormat.RAW,
        virtual_size=size,
        agent=Expect.YES,
        cloud_init=Expect.YES,
        firmware=("bios", "uefi"),
        min_memory=MIN_MEMORY,
        source=f"built from Debian {suite}",
        details=_details(scratch, suite),
    )


def _host_suite() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return "stable"


def _check_names(suite: str, include: Sequence[str]) -> None:
    if not SUITE.fullmatch(suite):
        raise Invalid(Code.VALUE_INVALID, f"{shorten(suite)} is no release of Debian")
    for name in include:
        if not PACKAGE.fullmatch(name):
            raise Invalid(Code.VALUE_INVALID, f"{shorten(name)} is no name of a package")


def _ids(suite: str, include: Sequence[str]) -> dict[str, str]:
    """Return the UUIDs of the disk's parts, the same for the same recipe."""
    what = json.dumps([suite, sorted(include), sorted(PACKAGES)])
    names = ("root", "disk", "bios-part", "esp-part", "root-part", "esp")
    return {name: str(uuid.uuid5(NAMESPACE, f"{name} {what}")) for name in names}


def _esp_serial(ids: dict[str, str]) -> str:
    return ids["esp"][:8].upper()


async def _bootstrap(
    scratch: Path,
    recipe: Path,
    suite: str,
    include: Sequence[str],
    ids: dict[str, str],
    progress: Progress,
) -> None:
    """Run mmdebstrap; its last hook leaves the root file system in ``scratch``.

    It takes the program ``reborn`` from there.
    """
    serial = _esp_serial(ids)
    env = {
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "EPOCH": str(EPOCH),
        "ROOT_UUID": ids["root"],
        "ESP_UUID": f"{serial[:4]}-{serial[4:]}",
        "ROOT_SIZE": str(ROOT_SIZE),
        "OUT": str(scratch),
        "RECIPE": str(recipe),
        "TMPDIR": str(scratch),
    }
    argv = [
        *_as_root(),
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=null", "--skip=output/dev,cleanup",
        f"--include={','.join((*PACKAGES, *include))}",
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",  # a tree that is not made to its end is thrown away
        '--dpkgopt=path-exclude=/usr/share/man/*',
        '--dpkgopt=path-exclude=/usr/share/doc/*',
        '--dpkgopt=path-include=/usr/share/doc/*/copyright',
        '--dpkgopt=path-exclude=/usr/share/locale/*',
        f'--essential-hook=sh "{recipe}/essential.sh" "$1"',
        f'--customize-hook=sh "{recipe}/customize.sh" "$1"',
        suite, "/dev/null", *_sources(suite, scratch),
    ]  # fmt: skip
    watch = _Watch(progress)
    try:
        await run(argv, timeout=BUILD_TIMEOUT, env=env, on_line=watch.on_line)
    except HostFailure as error:
        if error.code is not Code.TOOL_FAILED:
            raise
        raise HostFailure(
            Code.BUILD_FAILED,
            f"the system could not be built: {watch.last_error or error.message}",
            hint="Look at apt's sources and the names of packages and release; serai doctor",
            details=error.details,
        ) from error


def _as_root() -> list[str]:
    """Return the words that make an ordinary user root of a namespace of its own; none for root.

    mmdebstrap can do that itself, but then its root is not us, and may not enter our folders.
    """
    if os.geteuid() == 0:
        return []
    return [
        "unshare", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child",
        "--mount-proc", "--",
    ]  # fmt: skip


class _Watch:
    """Reads mmdebstrap's lines as progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps = 0
        self.last_error = ""

    def on_line(self, line: str) -> None:
        if line.startswith("E:"):
            self.last_error = line[2:].strip()
        match = re.match(r"(Get:\d+ \S+ \S+ \S+ (\S+)|(?:Unpacking|Setting up) (\S+))", line)
        if match is None:
            return
        if match[2]:
            self._progress("packages", 0, 0, f"downloading {match[2]}")
            return
        self._steps += 1
        total = max(EXPECTED_STEPS, self._steps)
        self._progress("system", self._steps, total, line.split(" (", 1)[0][:60])


def _sources(suite: str, scratch: Path) -> list[str]:
    """Return copies of the host's apt sources for its own release, made to name ``suite``."""
    own = _host_suite()
    folder = Path("/etc/apt/sources.list.d")
    candidates = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.sources")), *sorted(folder.glob("*.list"))]  # fmt: skip
    copies = []
    for index, path in enumerate(candidates):
        text = path.read_text() if path.is_file() else ""
        if not re.search(rf"^(Suites:|deb ).*\b{own}\b", text, re.MULTILINE):
            continue
        copy = scratch / f"{index}{path.suffix}"
        copy.write_text(re.sub(rf"\b{own}\b", suite, text) if suite != own else text)
        copies.append(str(copy))
    return copies


def _details(scratch: Path, suite: str) -> dict[str, str]:
    versions = dict(line.split(" ", 1) for line in (scratch / "packages").read_text().splitlines())
    shown = ("cloud-init", "qemu-guest-agent", "systemd", "openssh-server")
    kernels = [name for name in versions if re.match(r"linux-image-\d", name)]
    found = {name: versions[name] for name in (*shown, *kernels) if name in versions}
    return {"suite": suite, "packages": str(len(versions)), **found}
