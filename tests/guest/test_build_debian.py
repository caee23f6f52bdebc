"""The debian image: a full system that boots from its own disk by BIOS and by UEFI.

Built once and kept in .work/cache, keyed by the recipe; the build takes one to two minutes.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import state_with_debian
from keeper import Daemon, wait_for
from tiny import copy_state

from serai import Guest, SeraiError

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
    services = "systemctl is-active ssh qemu-guest-agent systemd-networkd"
    wait_for("all is up", lambda: guest.run(services).stdout.split() == ["active"] * 3, limit=120.0)
    check_forks(debian, guest) if firmware == "bios" else check_fork(guest.fork(name="d2"), guest)
    guest.run("echo kept > /root/file; sync")
    guest.stop(timeout=60)
    assert guest.info.last_exit == "requested"
    assert "Power down" in guest.log(tail=2000)


WRITE = "i=0; while :; do i=$((i+1)); echo $i >>/srv/log; sleep 0.02; done"
WHOLE = "awk '$1 != NR { exit 1 }' /srv/log && wc -l </srv/log"
"""Fails unless the file has all lines up to its end."""


def lines(guest: Guest) -> int:
    done = guest.run(WHOLE)
    assert done.ok, "the file that is being written has a gap"
    return int(done.stdout)


def answers(guest: Guest) -> bool:
    try:
        return guest.run("true").ok
    except SeraiError:
        return False


def check_fork(fork: Guest, source: Guest) -> None:
    """A fork of a full system is up, and is somebody of its own."""
    assert fork.run("hostname; cat /etc/hostname").stdout.split() == [fork.name] * 2
    for fact in ("cat /etc/machine-id", "cat /sys/class/net/e*/address", "head -c 16 /dev/random"):
        own, theirs = (each.run(f"{fact} | base64").stdout for each in (fork, source))
        assert own != theirs, fact
    assert fork.info.mac in fork.run("cat /sys/class/net/e*/address").stdout
    assert abs(float(fork.run("date +%s").stdout) - time.time()) < 5
    assert fork.run("systemctl is-active ssh qemu-guest-agent").stdout == "active\n" * 2


def check_forks(debian: Daemon, guest: Guest) -> None:
    """Snapshots, forks, restores and a warm image of a full system that is at work."""
    assert guest.run(["systemd-run", "--unit=writer", "sh", "-c", WRITE]).ok
    warm = guest.snapshot("warm")
    wait_for("its agent is there again", lambda: answers(guest), limit=30.0)
    quiet = guest.snapshot("quiet", quiesce=True)
    guest.snapshot("cold", memory=False, quiesce=True).delete()
    before = lines(guest)
    for fork in (guest.fork(name="d2"), quiet.fork(name="d3")):
        check_fork(fork, guest)
        seen = lines(fork)
        fork.run("systemctl stop writer; sync; echo 3 >/proc/sys/vm/drop_caches")
        assert lines(fork) > seen > 0  # it wrote on, and its disk has it
        fork.delete(force=True)
    assert lines(guest) > before
    guest.restore(warm, force=True)
    assert lines(guest) < before
    assert abs(float(guest.run("date +%s").stdout) - time.time()) < 5
    guest.publish("warm-debian")
    made = debian.inn.launch("warm-debian", name="d4")
    check_fork(made, guest)
    lines(made)
    made.delete(force=True)
    for snapshot in guest.snapshots():
        snapshot.delete()
    debian.inn.delete_image("warm-debian")
