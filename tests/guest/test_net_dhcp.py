"""A guest asks and is told who it is and where the others are; dnsmasq outlives us and comes back.

Real clients: busybox' udhcpc, the kernel's own address configuration, dig, and DHCPv6 by hand.
"""

import os
import signal
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from land import (
    OUT4,
    Guest,
    Land,
    address_bytes,
    mac_bytes,
    open_land,
    open_socket,
    run_in,
    udp,
)

from serai.errors import HostFailure
from serai.host.namespaces import inside
from serai.host.supervise import wait_until
from serai.model.network import Direction, NetworkMode, Protocol, Rule
from serai.net.dnsmasq import Resolver
from serai.net.links import write_sysctl
from serai.plan.network import gateway_of, link_local_of
from serai.plan.resolver import Lease

UID = 31337
SCRIPT = '#!/bin/sh\n[ "$1" = bound ] && echo "$ip $subnet $router $dns $hostname $domain" >"$TOLD"\nexit 0\n'


@pytest.fixture
async def land() -> AsyncIterator[Land]:
    """A land whose folder another user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        async with open_land(Path(folder)) as land:
            yield land


def _resolver(land: Land, name: str) -> Resolver:
    record = land.networks[name]
    return Resolver(
        land.folder / "run" / name,
        bridge=land.bridge(name).name,
        spec=record.spec,
        uid=UID,
        namespace=land.host,
    )


def _leases(*guests: Guest) -> tuple[Lease, ...]:
    return tuple(Lease(port=guest.port, guest=guest.name) for guest in guests)


def _ask(guest: Guest, folder: Path) -> str:
    """Ask for a lease as a guest does; return what it was told."""
    script, told = folder / "script", folder / "told"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    told.unlink(missing_ok=True)
    words = ("udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "20", "-T", "1", "-s", str(script))
    run_in(guest.namespace, "env", f"TOLD={told}", *words)
    return told.read_text().strip()


def _dig(guest: Guest, *words: str) -> str:
    return run_in(guest.namespace, "dig", "+short", "+tries=1", "+time=3", *words).strip()


async def test_leases_and_names(land: Land) -> None:
    network = await land.network(
        "lan", subnet="10.20.0.0/24", subnet6="fd00:1:2:3::/64", dns=(OUT4,)
    )
    land.group("shut", Rule(direction=Direction.OUT, protocol=Protocol.UDP, ports="53"))
    web = await land.guest("web1", "lan", configured=False, groups=("shut",))
    fixed = {"address": "10.20.0.77", "address6": "fd00:1:2:3::77"}
    db = await land.guest("db", "lan", configured=False, **fixed)
    await land.apply()
    for guest in (web, db):
        await land.bring_up(guest)
    gateway = gateway_of(network.spec)
    resolver = _resolver(land, "lan")
    try:
        assert "started" in await resolver.ensure(_leases(web))
        await resolver.wait_ready()
        address = web.port.address
        told = f"255.255.255.0 {gateway} {gateway}"
        assert _ask(web, land.folder) == f"{address} {told} web1 lan.internal"
        # told of another while it runs
        assert "2 leases" in await resolver.ensure(_leases(web, db))
        assert await resolver.ensure(_leases(web, db)) == ""
        assert _ask(db, land.folder) == f"10.20.0.77 {told} db lan.internal"

        run_in(web.namespace, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        assert _dig(web, f"@{gateway}", "db") == "10.20.0.77"
        assert _dig(web, f"@{gateway}", "db.lan.internal", "AAAA") == "fd00:1:2:3::77"
        assert _dig(web, f"@{gateway}", "-x", "10.20.0.77") == "db.lan.internal."
        assert _dig(web, f"@{gateway}", "gateway") == gateway
        assert "NXDOMAIN" in run_in(web.namespace, "dig", f"@{gateway}", "nobody.lan.internal")
        assert _answer_one(land, web, gateway) == "www.example.org"  # others are asked outside

        await _takes_its_ipv6_addresses(web, "")
        await _takes_its_ipv6_addresses(db, "fd00:1:2:3::77")
        assert (await land.counters(web)).spoofed == 0
        assert (await land.counters(db)).spoofed == 0
    finally:
        await resolver.remove()
    assert list((land.folder / "run").iterdir()) == []


def _answer_one(land: Land, guest: Guest, gateway: str) -> str:
    """Ask for a name of the world outside; return what the resolver there is asked for."""
    question = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    question += b"\3www\7example\3org\0" + struct.pack("!2H", 1, 1)
    with udp(land.outside, OUT4, 53) as server, udp(guest.namespace, guest.port.address) as asker:
        asker.sendto(question, (gateway, 53))
        asked = server.recv(512)
    labels, at = [], 12
    while length := asked[at]:
        labels.append(asked[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)


async def _takes_its_ipv6_addresses(guest: Guest, fixed: str) -> None:
    """Let the kernel give itself an address as advertised; ask for the fixed one by DHCPv6."""
    space, mac = guest.namespace, guest.port.mac

    def restart() -> None:
        for name, value in (
            ("disable_ipv6", 1),
            ("accept_ra", 1),
            ("autoconf", 1),
            ("disable_ipv6", 0),
        ):
            write_sysctl(f"ipv6/conf/eth0/{name}", value)

    inside(space, restart)
    prefix = "fd00:1:2:3" + link_local_of(mac).removeprefix("fe80:").replace("::", ":")

    def has(what: str, *words: str) -> bool:
        return what in run_in(space, "ip", "-6", *words)

    await wait_until("an address", lambda: has(f"{prefix}/64", "addr"), timeout=10, every=0.02)
    await wait_until("a route", lambda: has("default via fe80::", "route"), timeout=10, every=0.02)
    if fixed:
        assert address_bytes(fixed) in _solicit(space, mac)


def _solicit(namespace: str, mac: str) -> bytes:
    """Solicit an address by DHCPv6 (RFC 8415); return the whole answer."""
    duid = struct.pack("!HHH", 1, 10, 3) + struct.pack("!H", 1) + mac_bytes(mac)
    wanted = struct.pack("!HHIII", 3, 12, 1, 0, 0)
    with open_socket(namespace, socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.bind(("::", 546))
        index = inside(namespace, lambda: socket.if_nametoindex("eth0"))
        client.sendto(b"\x01abc" + duid + wanted, ("ff02::1:2", 547, 0, index))
        answer = client.recv(1024)
    assert answer[:4] == b"\x02abc"
    return answer


async def test_it_outlives_us_and_comes_back(land: Land) -> None:
    await land.network("lan", mode=NetworkMode.ISOLATED)
    web = await land.guest("web1", "lan", configured=False)
    await land.apply()
    await land.bring_up(web)
    first = _resolver(land, "lan")
    with pytest.raises(HostFailure):
        await Resolver(
            land.folder / "no", bridge="sb0", spec=land.networks["lan"].spec, uid=UID, namespace=land.host
        ).ensure(())  # fmt: skip
    await first.ensure(_leases(web))
    await first.wait_ready()
    pid = first.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}" in status and "NoNewPrivs:\t1" in status
    assert int(status.split("CapBnd:\t")[1].split()[0], 16) == 1 << 10 | 1 << 12 | 1 << 13
    first.close()

    second = _resolver(land, "lan")
    try:
        assert await second.ensure(_leases(web)) == ""
        assert second.pid == pid
        # no way out is offered where there is none
        assert _ask(web, land.folder).split() == [web.port.address, "255.255.255.0", gateway_of(land.networks["lan"].spec), "web1", "lan.internal"]  # fmt: skip
        os.kill(pid, signal.SIGKILL)
        await second.wait_ended()
        assert "started" in await second.ensure(_leases(web))
        await second.wait_ready()
        assert second.pid != pid
        # a bridge that was made anew needs another
        last = second.pid
        await land.links.remove(land.bridge("lan").name)
        await land.links.ensure_bridge(land.bridge("lan"))
        assert "started" in await second.ensure(_leases(web))
        assert second.pid != last
    finally:
        await second.remove()
    assert not Path(f"/proc/{last}").exists()
