"""Files of Debian packages that tests need and nothing else: installed, or downloaded and unpacked."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from tiny import CACHE, built_once

MEMTEST_ISO = "/usr/lib/memtest86+/memtest86+x64.iso"


def from_package(package: str, *names: str) -> list[Path]:
    """Return files of a package, named by their absolute paths; the test is skipped without a mirror."""
    installed = [Path(name) for name in names]
    if all(path.exists() for path in installed):
        return installed
    folder = built_once(f"pkg.{package}-files", lambda folder: _unpack(package, folder))
    return [folder / name.lstrip("/") for name in names]


def memtest(name: str = "/boot/memtest86+x64.bin") -> Path:
    """Return a file of Debian's memtest86+: a kernel, or a bootable CD image."""
    return from_package("memtest86+", name)[0]


def _unpack(package: str, folder: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix="pkg-", dir=CACHE))
    new.chmod(0o755)
    got = subprocess.run(["apt-get", "download", package], cwd=new, capture_output=True)
    if got.returncode:
        shutil.rmtree(new)
        pytest.skip(f"{package} is not installed and can't be downloaded")
    (archive,) = new.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, new], check=True)
    archive.unlink()
    os.rename(new, folder)
