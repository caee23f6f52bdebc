"""Forks of a real Debian: each has its new address whoever asks for addresses in it, or its old one in a bubble.

One boot of the debian image for all of it; its network was set up by cloud-init for networkd.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import state_with_debian
from keeper import Daemon, wait_for
from namespaced import open_daemon, open_namespace

from serai import Guest

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="networks need root"),
    pytest.mark.timeout(1000),
]

BY_NETWORKD = """rm -f /etc/systemd/network/10-cloud-init*; networkctl reload
networkctl reconfigure enp1s0; until ip -4 route | grep -q 'default.*dhcp'; do sleep 0.1; done"""
BY_DHCLIENT = """rm -f /etc/systemd/network/*; systemctl stop systemd-networkd.socket systemd-networkd
ip address flush dev enp1s0
dhclient -pf /run/dhclient.enp1s0.pid -lf /var/lib/dhcp/dhclient.enp1s0.leases enp1s0"""


@pytest.fixture
def namespace() -> Iterator[str]:
    with open_namespace() as name:
        yield name


@pytest.fixture
def daemon(serai_home: Path, namespace: str) -> Iterator[Daemon]:
    with open_daemon(
        serai_home, state_with_debian(), namespace, agent_timeout="300", first_boot_timeout="600"
    ) as keeper:
        yield keeper


def answers(namespace: str, address: str) -> bool:
    words = ["ip", "netns", "exec", namespace, "ping", "-c", "1", "-W", "1", "-n", address]
    return subprocess.run(words, capture_output=True).returncode == 0


def own_addresses(guest: Guest) -> list[str]:
    words = guest.run("ip -4 -o address show dev enp1s0").stdout.split()
    return [word.partition("/")[0] for word in words if "/" in word and "." in word]


def check_fork(source: Guest, name: str, namespace: str) -> None:
    """Fork a guest; the fork is at its new address, and nowhere else, and its source where it was."""
    fork = source.fork(name=name)
    begun = time.monotonic()
    address = fork.info.ports[0].address
    wait_for("its new address", lambda: answers(namespace, address), limit=30)
    print(f"{name}: {address} answers {time.monotonic() - begun:.2f} s after it was forked")
    wait_for("one address", lambda: own_addresses(fork) == [address], limit=30)
    assert fork.run("ping -c 1 -W 2 gateway.web.internal").ok, "it finds names at its new address"
    assert own_addresses(source) == [source.info.ports[0].address]
    assert answers(namespace, source.info.ports[0].address)
    fork.delete(force=True)


def test_forks_of_debian_are_at_new_addresses_and_in_bubbles_at_old_ones(
    daemon: Daemon, namespace: str, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    daemon.inn.create_network("web", subnet="10.20.0.0/24")
    words = ["launch", "debian", "one", "--memory", "512MiB", "--network", "web"]
    words += ["--ssh-key", f"{key}.pub", "--wait-for", "ssh"]
    done = daemon.run(*words, timeout=600)
    assert done.returncode == 0, done.stderr
    one = daemon.inn.guest("one")
    check_fork(one, "static", namespace)

    kept = one.fork(name="kept", keep_identity=True)
    only = ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "IdentityAgent=none"]
    said = daemon.run("ssh", "-i", str(key), *only, "kept", "--", "hostname; cat /root/mark")
    assert said.stdout == b"one\n", said.stderr
    kept.run("echo in the bubble >/root/mark")
    said = daemon.run("ssh", "-i", str(key), *only, "kept", "--", "cat /root/mark")
    assert said.stdout == b"in the bubble\n", said.stderr
    kept.delete(force=True)

    for name, way in (("networkd", BY_NETWORKD), ("dhclient", BY_DHCLIENT)):
        source = one.fork(name=f"by-{name}")
        made = source.run(way, timeout=60)
        assert made.ok, made.stderr
        check_fork(source, f"of-{name}", namespace)
        source.delete(force=True)
