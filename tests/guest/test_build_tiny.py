"""The tiny image: small, the same twice, up in seconds, on the network, obedient."""

import re
import time
from pathlib import Path

import pytest
from keeper import Daemon
from test_life import wait_for

from serai import Guest
from serai.disk.build_tiny import SIZE_LIMIT, build_tiny
from serai.disk.work import no_progress


def test_it_is_small(daemon: Daemon) -> None:
    assert daemon.inn.image("tiny").size < SIZE_LIMIT


def test_its_agent_answers_soon(daemon: Daemon) -> None:
    """3 s on a machine that does nothing else; here others test at the same time."""
    began = time.monotonic()
    guest = daemon.inn.launch("tiny", name="web1", memory="128MiB")
    assert time.monotonic() - began < 12
    protocol = guest.run("cat /sys/kernel/boot_params/version").stdout.strip()
    assert protocol == "0x020c", "its kernel had to unpack itself"  # that is what PVH says


def test_it_has_an_address_and_a_way_out(guest: Guest) -> None:
    def has_a_way_out() -> bool:
        return "default via 10.0.2.2" in guest.run("ip route").stdout

    wait_for("DHCP gave an address and a way out", has_a_way_out)
    # a fork that was frozen while it asked has asked under two names, and got the second address
    assert re.search(r"inet 10\.0\.2\.1[56]/24", guest.run("ip -4 address show eth0").stdout)
    assert guest.run("cat /etc/resolv.conf").stdout == "nameserver 10.0.2.3\n"


def test_it_starts_with_the_least_memory_that_it_names(daemon: Daemon) -> None:
    least = daemon.inn.image("tiny").min_memory
    guest = daemon.inn.launch("tiny", name="small", memory=least)
    assert guest.run("echo up").ok


def test_its_tools_are_there(guest: Guest) -> None:
    for tool in ("sh", "tar", "base64", "awk", "find", "ip", "udhcpc", "mke2fs", "vi"):
        assert guest.run(f"command -v {tool}").ok, tool
    assert guest.run("echo cGFja2Vk | base64 -d").stdout == "packed"
    assert guest.run("reseed").code == 1
    assert guest.run("reseed seed").ok


@pytest.mark.timeout(240)
async def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("plain", "odd ü'% x:y"):
        scratch = tmp_path / name
        scratch.mkdir()
        built = await build_tiny(scratch, no_progress)
        assert built.kernel is not None
        assert built.initrd is not None
        assert built.unpacked is not None
        files = (built.kernel, built.initrd, built.unpacked)
        found.append(tuple(path.read_bytes() for path in files))
    assert found[0] == found[1]
