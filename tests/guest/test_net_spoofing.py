"""Whatever a guest sends in somebody else's name is dropped and counted; what is its own passes.

Raw frames from a namespace that takes the guest's part; see ``land``.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from land import (
    BROADCAST,
    Guest,
    Land,
    arp,
    frame,
    hear,
    icmp6,
    ip4,
    ip6,
    mac_bytes,
    neighbour,
    open_land,
    raw_socket,
    udp_packet,
)

from serai.model.network import Direction, NetworkMode, Rule
from serai.plan.network import gateway6_of, gateway_of, link_local_of

V4, V6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
NONE = "0.0.0.0"
ALL_NODES = "33:33:00:00:00:01"


@pytest.fixture
async def land(tmp_path: Path) -> AsyncIterator[Land]:
    async with open_land(tmp_path) as land:
        yield land


def _spoofed(
    mac: str, own: str, own6: str, other_mac: str, other: str, gateway: str, gateway6: str
) -> Mapping[str, bytes]:
    """Return frames that must not pass; ``other`` is the neighbour whose part they take."""
    local, other_local = link_local_of(mac), link_local_of(other_mac)
    dhcp = udp_packet(67, 68)
    advert = icmp6(134, bytes(12))
    fragment = struct.pack("!BBHI", 58, 0, 1, 7)
    return {
        "MAC": frame(other_mac, BROADCAST, V4, ip4(own, other, 17, udp_packet(1, 2))),
        "MAC of an ARP frame": frame(other_mac, BROADCAST, ARP, arp(1, other_mac, other, gateway)),
        "sender's MAC inside ARP": frame(mac, BROADCAST, ARP, arp(2, other_mac, own, gateway)),
        "sender's address inside ARP": frame(mac, BROADCAST, ARP, arp(2, mac, gateway, other)),
        "gratuitous ARP": frame(mac, BROADCAST, ARP, arp(1, mac, other, other)),
        "reverse ARP": frame(mac, BROADCAST, ARP, arp(3, mac, own, own)),
        "announcement of another": frame(mac, BROADCAST, RARP, arp(3, other_mac, NONE, NONE)),
        "announcement with an address": frame(mac, BROADCAST, RARP, arp(3, mac, own, NONE)),
        "answer by reverse ARP": frame(mac, BROADCAST, RARP, arp(4, mac, NONE, NONE)),
        "IPv4": frame(mac, other_mac, V4, ip4(other, gateway, 17, udp_packet(1, 2))),
        "IPv4 from nowhere": frame(mac, other_mac, V4, ip4("0.0.0.0", other, 17, udp_packet(1, 2))),
        "IPv4 from outside": frame(mac, other_mac, V4, ip4("192.0.2.9", other, 6, bytes(20))),
        "DHCP server": frame(mac, BROADCAST, V4, ip4(own, "255.255.255.255", 17, dhcp)),
        "IPv6": frame(mac, other_mac, V6, ip6("fd00:1:2:3::99", own6, 17, udp_packet(1, 2))),
        "IPv6 of the gateway": frame(mac, other_mac, V6, ip6(gateway6, own6, 17, udp_packet(1, 2))),
        "link-local": frame(mac, ALL_NODES, V6, ip6(other_local, "ff02::1", 17, udp_packet(1, 2))),
        "DHCPv6 server": frame(mac, ALL_NODES, V6, ip6(local, "ff02::1", 17, udp_packet(547, 546))),
        "router advertisement": frame(mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, advert)),
        "router advertisement behind options": frame(
            mac, ALL_NODES, V6, ip6(local, "ff02::1", 0, bytes([58, 0, 1, 4, 0, 0, 0, 0]) + advert)
        ),
        "router advertisement in pieces": frame(
            mac, ALL_NODES, V6, ip6(local, "ff02::1", 44, fragment + advert)
        ),
        "neighbour discovery that hides in pieces": frame(
            mac, ALL_NODES, V6, ip6(local, "ff02::1", 44, struct.pack("!BBHI", 58, 0, 8, 7) + advert)
        ),
        "redirect": frame(mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, icmp6(137, bytes(36)))),
        "advert of another": frame(mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(136, gateway6))),
        "advert with a MAC": frame(
            mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(136, own6, 2, other_mac))
        ),
        "solicitation with a MAC": frame(
            mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(135, gateway6, 1, other_mac))
        ),
        "claim of another's address": frame(
            mac, ALL_NODES, V6, ip6("::", "ff02::1", 58, neighbour(135, gateway6))
        ),
        "VLAN": frame(mac, BROADCAST, 0x8100, struct.pack("!HH", 5, V4) + ip4(other, own, 17, udp_packet(1, 2))),
        "spanning tree": mac_bytes("01:80:c2:00:00:00") + mac_bytes(mac) + b"\0\x26\x42\x42\x03" + bytes(40),
        "something else": frame(mac, BROADCAST, 0x88CC, bytes(46)),
    }  # fmt: skip


def _own(mac: str, own: str, own6: str, other_mac: str, other: str, gateway6: str) -> list[bytes]:
    local = link_local_of(mac)
    bodies = [
        (other_mac, V4, ip4(own, other, 17, udp_packet(1, 2))),
        (other_mac, V4, ip4(own, other, 132, bytes(20))),
        (BROADCAST, V4, ip4("0.0.0.0", "255.255.255.255", 17, udp_packet(68, 67))),
        (BROADCAST, ARP, arp(1, mac, own, other)),
        (BROADCAST, ARP, arp(1, mac, NONE, own)),
        (BROADCAST, RARP, arp(3, mac, NONE, NONE)),
        (other_mac, V6, ip6(own6, "fd00:1:2:3::99", 17, udp_packet(1, 2))),
        (ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(135, gateway6, 1, mac))),
        (ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(136, own6, 2, mac))),
        (ALL_NODES, V6, ip6("::", "ff02::1", 58, neighbour(135, own6))),
        (ALL_NODES, V6, ip6("::", "ff02::16", 0, bytes([58, 0, 5, 2, 0, 0, 1, 0]) + icmp6(143, bytes(4)))),
        (ALL_NODES, V6, ip6(local, "ff02::1:2", 17, udp_packet(546, 547))),
    ]  # fmt: skip
    return [frame(mac, target, kind, body) for target, kind, body in bodies]


@pytest.mark.parametrize("grouped", [False, True], ids=["free", "in a group"])
async def test_nobody_sends_in_another_name(land: Land, grouped: bool) -> None:
    """A group that lets everything out changes nothing about who may be said to have sent it."""
    network = await land.network("lan", subnet6="fd00:1:2:3::/64")
    land.group("all", Rule(direction=Direction.IN))
    groups = ("all",) if grouped else ()
    thief = await land.guest("thief", "lan", groups=groups)
    victim = await land.guest("victim", "lan", groups=groups)
    await land.apply()
    port, other = thief.port, victim.port
    gateway, gateway6 = gateway_of(network.spec), gateway6_of(network.spec)
    frames = _spoofed(
        port.mac, port.address, port.address6, other.mac, other.address, gateway, gateway6
    )
    own = _own(port.mac, port.address, port.address6, other.mac, other.address, gateway6)
    with raw_socket(thief.namespace) as wire, raw_socket(victim.namespace) as ear:
        before = await land.counters(thief)
        for data in frames.values():
            wire.send(data)
        after = await land.counters(thief)
        if after.spoofed != before.spoofed + len(frames):
            pytest.fail(f"passed: {await _passing(land, thief, frames)}")
        assert not hear(ear, list(frames.values()))
        for data in own:
            wire.send(data)
        heard = hear(ear, own)
    last = await land.counters(thief)
    assert last.spoofed == after.spoofed
    assert last.packets_out - after.packets_out >= len(own)
    assert [data.hex() for data in own if data not in heard] == []


async def _passing(land: Land, thief: Guest, frames: Mapping[str, bytes]) -> list[str]:
    """Find out which frames are not dropped, one by one."""
    passed = []
    with raw_socket(thief.namespace) as wire:
        for what, data in frames.items():
            before = (await land.counters(thief)).spoofed
            wire.send(data)
            if (await land.counters(thief)).spoofed != before + 1:
                passed.append(what)
    return passed


async def test_a_guest_that_may_send_nothing_keeps_its_addresses(land: Land) -> None:
    """Groups never take away what it needs to have an address and to find its neighbours."""
    network = await land.network("lan", subnet6="fd00:1:2:3::/64")
    land.group("mute", Rule(direction=Direction.OUT, remote="192.0.2.250"))
    mute = await land.guest("mute", "lan", groups=("mute",))
    await land.apply()
    mac, own, own6 = mute.port.mac, mute.port.address, mute.port.address6
    gateway, local = gateway_of(network.spec), link_local_of(mac)
    needed = [
        frame(mac, BROADCAST, V4, ip4(own, gateway, 17, udp_packet(68, 67))),
        frame(mac, ALL_NODES, V6, ip6(local, "ff02::1:2", 17, udp_packet(546, 547))),
        frame(mac, ALL_NODES, V6, ip6(local, "ff02::1", 58, neighbour(135, own6, 1, mac))),
        frame(mac, ALL_NODES, V6, ip6(own6, "ff02::1", 58, neighbour(136, own6, 2, mac))),
        frame(mac, ALL_NODES, V6, ip6(local, "ff02::2", 58, icmp6(133, bytes(4)))),
    ]
    refused = frame(mac, BROADCAST, V4, ip4(own, gateway, 17, udp_packet(1, 2)))
    with raw_socket(mute.namespace) as wire:
        before = await land.counters(mute)
        for data in [*needed, refused]:
            wire.send(data)
        after = await land.counters(mute)
    assert after.refused_out == before.refused_out + 1
    assert after.packets_out >= before.packets_out + len(needed)
    assert after.spoofed == before.spoofed


async def test_a_port_on_a_foreign_bridge_keeps_its_mac_and_serves_nobody(land: Land) -> None:
    """Addresses there are given by somebody else, so any may be sent; a server's part may not."""
    await land.links.ensure_bridge(land.foreign_bridge("br0"))
    await land.network("wild", mode=NetworkMode.BRIDGE, bridge="br0")
    thief = await land.guest("thief", "wild", configured=False)
    victim = await land.guest("victim", "wild", configured=False)
    await land.apply()
    for guest in (thief, victim):
        await land.bring_up(guest)
    mac, other = thief.port.mac, victim.port.mac
    bad = [
        frame(other, BROADCAST, V4, ip4("10.9.9.9", "10.9.9.8", 17, udp_packet(1, 2))),
        frame(mac, BROADCAST, ARP, arp(2, other, "10.9.9.9", "10.9.9.8")),
        frame(mac, BROADCAST, V4, ip4("10.9.9.9", "255.255.255.255", 17, udp_packet(67, 68))),
        frame(mac, ALL_NODES, V6, ip6(link_local_of(mac), "ff02::1", 58, icmp6(134, bytes(12)))),
    ]
    good = [
        frame(mac, BROADCAST, V4, ip4("10.9.9.9", "10.9.9.8", 17, udp_packet(1, 2))),
        frame(mac, BROADCAST, ARP, arp(2, mac, "10.9.9.9", "10.9.9.8")),
        frame(mac, ALL_NODES, V6, ip6("fd77::1", "ff02::1", 17, udp_packet(1, 2))),
    ]
    with raw_socket(thief.namespace) as wire, raw_socket(victim.namespace) as ear:
        before = (await land.counters(thief)).spoofed
        for data in bad + good:
            wire.send(data)
        assert hear(ear, bad + good) == set(good)
        assert (await land.counters(thief)).spoofed == before + len(bad)
