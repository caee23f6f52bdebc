"""The debian image as it comes: nobody has told it anything. It boots from its own disk, here by BIOS.

Built once and kept in .work/cache, keyed by the recipe; the build takes one to two minutes. That it boots
by UEFI, and does what it is told, is in ``test_first_boot``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import check_system, make_key, open_debian, ssh
from instances import descriptors_of
from keeper import Daemon

pytestmark = pytest.mark.timeout(600)

LISTENING = "0A"


@pytest.fixture
def debian(serai_home: Path) -> Iterator[Daemon]:
    """A daemon that has the image ``debian``."""
    with open_debian(serai_home) as keeper:
        yield keeper


def listening_ports(pid: int) -> list[str]:
    """Return the local addresses where a process listens by TCP."""
    sockets = set(descriptors_of(pid).values())
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets]


def test_it_boots_from_its_own_disk(debian: Daemon, tmp_path: Path) -> None:
    guest = debian.inn.launch("debian", name="d1", memory="512MiB", cpus=2, disk="3GiB")
    check_system(guest, "bios")
    assert guest.run("test -e /run/cloud-init/disabled").ok  # nobody told it anything

    # by ssh through QEMU's own network, into which nobody else can call
    key, stranger = make_key(tmp_path, "mine"), make_key(tmp_path, "other")
    guest.run("install -d -m 700 /root/.ssh")
    guest.push(f"{key}.pub", "/root/.ssh/authorized_keys")
    assert ssh(debian, key, "d1", "exit", "7")[0] == 7
    code, said = ssh(debian, stranger, "d1", "true")
    assert (code, "Permission denied" in said) == (255, True)
    assert listening_ports(guest.info.pid) == []
