"""The debian image: a full system that boots from its own disk by BIOS and by UEFI.

Built once and kept in .work/cache, keyed by the recipe; the build takes one to two minutes.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import check_fork, state_with_debian
from keeper import Daemon, wait_for
from tiny import copy_state

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def debian(serai_home: Path) -> Iterator[Daemon]:
    """A daemon that has the image ``debian``."""
    copy_state(state_with_debian(), serai_home)
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
    services = "systemctl is-active ssh qemu-guest-agent systemd-networkd reborn"
    wait_for("all is up", lambda: guest.run(services).stdout.split() == ["active"] * 4, limit=120.0)
    assert guest.run("ls -l /proc/$(pidof reborn)/fd | grep -q /dev/vport").ok, "it waits"
    assert guest.run("test -e /run/cloud-init/disabled").ok  # nobody told it anything
    fork = guest.fork(name="d2")
    check_fork(fork, guest)
    fork.delete(force=True)
    guest.run("echo kept > /root/file; sync")
    guest.stop(timeout=60)
    assert guest.info.last_exit == "requested"
    assert "Power down" in guest.log(tail=2000)
