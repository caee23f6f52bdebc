"""The tiny image, built once by the daemon itself and kept for later runs in .work/cache."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from keeper import Daemon

from serai.testing.household import locked

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".work" / "cache"
BUILD_LIMIT = 600.0
MADE_FROM = (
    "disk/build_tiny.py",
    "disk/linux.py",
    "disk/cpio.py",
    "disk/boot.py",
    "disk/bare.py",
    "disk/recipes/bare.h",
    "disk/recipes/reborn.c",
    "disk/recipes/tiny/*",
    "store/*.py",
    "model/image.py",
)


def state_with_tiny() -> Path:
    """Return a state folder whose only content is the tiny image; not to be written to."""
    digest = hashlib.sha256()
    for pattern in MADE_FROM:
        for path in sorted((ROOT / "src" / "serai").glob(pattern)):
            digest.update(path.read_bytes())
    return built_once(f"tiny-{digest.hexdigest()[:16]}", _build)


def built_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` of the cache; of several processes that lack it one builds it."""
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{name.partition('-')[0]}.lock", BUILD_LIMIT):
        if not folder.exists():
            build(folder)
    return folder


def _build(folder: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="tiny-", dir=CACHE))
    daemon = Daemon(home)
    daemon.start()
    try:
        daemon.inn.build_image("tiny")
        daemon.stop()
        for path in CACHE.glob("tiny-????????????????"):
            shutil.rmtree(path)
        (home / "state").rename(folder)
    finally:
        daemon.kill_all()
        shutil.rmtree(home)


def copy_state(template: Path, home: Path) -> None:
    """Give ``home`` the images; their files are links, since nobody writes to them or to memory."""
    state = home / "state"
    state.mkdir(mode=0o700)
    for name in ("images", "memory"):
        shutil.copytree(template / name, state / name, copy_function=_link)
    for name in ("serai.db", "capabilities.json"):
        shutil.copy2(template / name, state / name)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)
