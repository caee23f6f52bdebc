"""Forks of a real Debian: each has its new address whoever asks for addresses in it, or its old one in a bubble."""

import subprocess
import time
from pathlib import Path

from debian import ssh
from keeper import Daemon, wait_for

from serai import Guest

BY_NETWORKD = """rm -f /etc/systemd/network/10-cloud-init*; networkctl reload
networkctl reconfigure enp1s0; until ip -4 route | grep -q 'default.*dhcp'; do sleep 0.1; done"""
BY_DHCLIENT = """rm -f /etc/systemd/network/*; systemctl stop systemd-networkd.socket systemd-networkd
ip address flush dev enp1s0
dhclient -pf /run/dhclient.enp1s0.pid -lf /var/lib/dhcp/dhclient.enp1s0.leases enp1s0"""


def answers(namespace: str, address: str) -> bool:
    words = ["ip", "netns", "exec", namespace, "ping", "-c", "1", "-W", "1", "-n", address]
    return subprocess.run(words, capture_output=True).returncode == 0


def own_addresses(guest: Guest) -> list[str]:
    words = guest.run("ip -4 -o address show dev enp1s0").stdout.split()
    return [word.partition("/")[0] for word in words if "/" in word and "." in word]


def check_address(fork: Guest, source: Guest, namespace: str) -> None:
    """A fork is at its new address, and nowhere else, and its source where it was."""
    begun = time.monotonic()
    address, old = (each.info.ports[0].address for each in (fork, source))
    assert address != old
    wait_for("its new address", lambda: answers(namespace, address), limit=30)
    print(f"{fork.name}: {address} answers {time.monotonic() - begun:.2f} s after it was forked")
    wait_for("one address", lambda: own_addresses(fork) == [address], limit=30)
    # a DHCP client has its address before it has told the resolver whom to ask
    by_name = "ping -c 1 -W 2 gateway.lan.internal"
    wait_for("names at its new address", lambda: fork.run(by_name).ok, limit=30)
    assert own_addresses(source) == [old]
    assert answers(namespace, old)


def check_renewals(daemon: Daemon, namespace: str, one: Guest, key: Path) -> None:
    """Forks have new addresses by DHCP, or keep theirs in a bubble and are reached there by ssh."""
    kept = one.fork(name="kept", keep_identity=True)
    kept.run("echo in the bubble >/root/mark")
    assert ssh(daemon, key, "kept", "cat /root/mark") == (0, "in the bubble\n")
    kept.delete(force=True)
    for name, way in (("networkd", BY_NETWORKD), ("dhclient", BY_DHCLIENT)):
        source = one.fork(name=f"by-{name}")
        made = source.run(way, timeout=60)
        assert made.ok, made.stderr
        fork = source.fork(name=f"of-{name}")
        check_address(fork, source, namespace)
        fork.delete(force=True)
        source.delete(force=True)
