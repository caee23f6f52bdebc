"""The debian image, built once by the daemon itself and kept in .work/cache, keyed by the recipe."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from keeper import Daemon
from tiny import CACHE, ROOT

MADE_FROM = ("disk/build_debian.py", "disk/boot_disk.py", "disk/recipes/debian/*")
HOST_LISTS = Path("/var/lib/apt/lists")


def state_with_debian() -> Path:
    """Return a state folder that holds the debian image; building it takes one to two minutes."""
    digest = hashlib.sha256()
    for pattern in MADE_FROM:
        for path in sorted((ROOT / "src" / "serai").glob(pattern)):
            digest.update(path.read_bytes())
    folder = CACHE / f"debian-{digest.hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _build(folder)
    return folder


def _build(folder: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="deb-", dir=CACHE))
    daemon = Daemon(home)
    daemon.start()
    try:
        before = {path.name for path in HOST_LISTS.iterdir()}
        daemon.inn.build_image("debian")
        left = {path.name for path in HOST_LISTS.iterdir()}
        assert before <= left, "the build has emptied the host's own package lists"
        daemon.stop()
        for path in CACHE.glob("debian-????????????????"):
            shutil.rmtree(path)
        (home / "state").rename(folder)
    finally:
        daemon.kill_all()
        shutil.rmtree(home)
