"""The debian image: a full system that boots from its own disk by BIOS and by UEFI.

Built once and kept in .work/cache, keyed by the recipe; the build takes one to two minutes.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Daemon
from tiny import CACHE, ROOT, copy_state

MADE_FROM = ("disk/build_debian.py", "disk/boot_disk.py", "disk/recipes/debian/*")

HOST_LISTS = Path("/var/lib/apt/lists")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def debian_state() -> Path:
    """A state folder that holds the debian image."""
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


@pytest.fixture
def debian(serai_home: Path, debian_state: Path) -> Iterator[Daemon]:
    """A daemon that has the image ``debian``."""
    copy_state(debian_state, serai_home)
    keeper = Daemon(serai_home, agent_timeout="300")
    keeper.start()
    try:
        yield keeper
        keeper.delete_all()
        keeper.stop()
        assert not (left := keeper.leftovers()), f"left behind: {left}"
    finally:
        keeper.kill_all()


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_it_boots_from_its_own_disk(debian: Daemon, firmware: str) -> None:
    guest = debian.inn.launch(
        "debian", name="d1", memory="512MiB", cpus=2, disk="3GiB", firmware=firmware
    )
    assert guest.run("test -d /sys/firmware/efi").ok == (firmware == "uefi")
    assert int(guest.run("df --output=size / | tail -1").stdout) > 2_600_000  # the root has grown
    assert "VERSION_CODENAME" in guest.run("cat /etc/os-release").stdout
    assert guest.run("ip -4 -o address show scope global").stdout
    assert len(guest.run("cat /etc/machine-id").stdout.strip()) == 32
    assert (
        guest.run("systemctl is-active ssh qemu-guest-agent systemd-networkd").stdout.count(
            "active\n"
        )
        == 3
    )
    guest.run("echo kept > /root/file; sync")
    guest.stop(timeout=60)
    assert guest.info.last_exit == "requested"
    assert "Power down" in guest.log(tail=2000)
