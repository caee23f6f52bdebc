"""Debian packages as material for images: downloaded by apt, unpacked, never installed.

Where they come from is the host's own business: its apt sources are used as they are.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from serai.disk.work import Progress
from serai.errors import Code, HostFailure
from serai.host.process import run

APT_TIMEOUT = 300.0
UPDATE_TIMEOUT = 300.0


async def depends_on(package: str, prefix: str) -> str:
    """Return the first dependency of ``package`` whose name begins with ``prefix``.

    HostFailure (``build-failed``) when apt knows no such thing, with what to do about it.
    """
    done = await run(["apt-cache", "depends", package], timeout=60.0, ok=(0, 100))
    for line in done.stdout.decode(errors="replace").splitlines():
        word, _, name = line.strip().partition("Depends: ")
        if not word and name.startswith(prefix):
            return name.strip()
    raise HostFailure(
        Code.BUILD_FAILED,
        f"apt knows no package {package}",
        hint="Bring its lists up to date: apt-get update",
        details={"package": package},
    )


async def ensure_lists() -> None:
    """Bring apt's lists up to date if it has none and we may."""
    # madison tells only of what can be downloaded; policy would also tell of what is installed
    done = await run(["apt-cache", "madison", "busybox-static"], timeout=60.0, ok=(0, 100))
    if not done.stdout.strip() and os.geteuid() == 0:
        await run(["apt-get", "update", "-q"], timeout=UPDATE_TIMEOUT)


async def download(packages: Sequence[str], folder: Path, progress: Progress) -> list[Path]:
    """Download packages into ``folder`` and return the files, sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *packages]
    progress("packages", 0, len(packages), "downloading")
    try:
        await run(argv, timeout=APT_TIMEOUT, cwd=folder)
    except HostFailure as error:
        raise HostFailure(
            Code.BUILD_FAILED,
            f"packages could not be downloaded: {error.message}",
            hint="Look at apt's sources, then: apt-get update",
            details=error.details,
        ) from error
    found = sorted(folder.glob("*.deb"))
    progress("packages", len(found), len(packages), "downloaded")
    return found


async def unpack(files: Sequence[Path], folder: Path, progress: Progress) -> None:
    """Unpack packages over each other into ``folder``; nothing of theirs is run."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(files):
        progress("system", index, len(files), f"unpacking {file.name.partition('_')[0]}")
        await run(["dpkg-deb", "-x", str(file), str(folder)], timeout=120.0)


def versions(files: Sequence[Path]) -> dict[str, str]:
    """Return name and version of downloaded packages, as their file names tell."""
    parts = [file.name.split("_") for file in files]
    return {name: version.replace("%3a", ":") for name, version, *_ in parts}
