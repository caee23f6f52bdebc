"""Limits hold, bubbles don't collide, taps open, much stays fast, and nothing is left behind."""

import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest
from land import HOST4, OUT4, Land, dial, listen, meet, open_land, run_in, udp

from serai.errors import Code, Conflict, HostFailure
from serai.host.namespaces import has_namespace, inside
from serai.host.supervise import wait_until
from serai.host.tap import make_tap, open_tap
from serai.model.network import Direction, PortLimits, Protocol, Rule
from serai.net.bubbles import Bubble, ensure_bubble, list_bubbles, remove_bubble
from serai.net.forwarding import ensure_forwarding
from serai.net.links import SYSCTL, Bridge, Tap, open_links, write_sysctl
from serai.net.shaping import ensure_limits
from serai.plan.network import bridge_of, gateway_of, pick_transfer, shaper_of, tap_of

RATE = 3_000_000
SETTLING, MEASURED = 0.2, 0.5
PACKET, HEADERS, PACKETS_AT_ONCE = 1514, 42, 40


@pytest.fixture
async def land(tmp_path: Path) -> AsyncIterator[Land]:
    async with open_land(tmp_path) as land:
        yield land


def _rate(sender: str, receiver: str, address: str) -> float:
    """Send more than may pass; return bytes a second on the wire, once the burst is over."""
    with udp(receiver, address, 9000) as server, udp(sender, "0.0.0.0") as client:
        over = threading.Event()
        pushing = threading.Thread(target=_push, args=(client, address, over))
        pushing.start()
        try:
            return _measure(server)
        finally:
            over.set()
            pushing.join()


def _push(client: socket.socket, address: str, over: threading.Event) -> None:
    packet = bytes(PACKET - HEADERS)
    while not over.wait(0.002):
        for _ in range(PACKETS_AT_ONCE):
            client.sendto(packet, (address, 9000))


def _measure(server: socket.socket) -> float:
    begun = time.monotonic()
    while (first := time.monotonic()) - begun < SETTLING:
        server.recv(65536)
    total = 0
    while (now := time.monotonic()) - first < MEASURED:
        total += len(server.recv(65536)) + HEADERS
    return total / (now - first)


async def test_rates_hold_both_ways_and_change_live(land: Land) -> None:
    await land.network("lan")
    web = await land.guest("web", "lan")
    await land.apply()
    tap, space, address = web.port.tap, web.namespace, web.port.address
    gateway = gateway_of(land.networks["lan"].spec)

    await ensure_limits(land.links, tap, PortLimits(rate_in=RATE, rate_out=RATE // 2))
    await ensure_limits(land.links, tap, PortLimits(rate_in=RATE, rate_out=RATE // 2))
    assert _rate(land.host, space, address) == pytest.approx(RATE, rel=0.1)
    assert _rate(space, land.host, gateway) == pytest.approx(RATE // 2, rel=0.1)
    await ensure_limits(land.links, tap, PortLimits(rate_in=2 * RATE, rate_out=2 * RATE))
    assert _rate(land.host, space, address) == pytest.approx(2 * RATE, rel=0.1)
    assert _rate(space, land.host, gateway) == pytest.approx(2 * RATE, rel=0.1)
    assert shaper_of(tap) in {link.name for link in await land.links.list_ours()}

    await ensure_limits(land.links, tap, PortLimits())
    await ensure_limits(land.links, tap, PortLimits())
    # what passes now depends on who else has the processors: as soon as it is more than before, it is well
    assert any(_rate(space, land.host, gateway) > 3 * RATE for _ in range(5))
    assert shaper_of(tap) not in {link.name for link in await land.links.list_ours()}
    await ensure_limits(land.links, tap, PortLimits(rate_out=RATE))
    await land.links.remove(tap)
    assert {link.kind for link in await land.links.list_ours()} == {"bridge"}
    with pytest.raises(HostFailure):
        await ensure_limits(land.links, tap, PortLimits(rate_out=RATE))


async def test_bubbles_hold_the_same_addresses_and_reach_out(land: Land) -> None:
    """Two groups of guests, each with the same addresses, each by itself, all with a way out."""
    await land.network("lan")
    original = await land.guest("web", "lan")
    peer = await land.guest("db", "lan")
    bubbles: list[Bubble] = []
    for number in range(2):
        transfer = pick_transfer([each.transfer for each in bubbles], await land.links.routes())
        bubbles.append(Bubble(id=str(uuid.uuid4()), label=f"group{number}", transfer=transfer))
        assert await ensure_bubble(land.links, bubbles[-1])
        assert not await ensure_bubble(land.links, bubbles[-1])
    land.bubbles = {each.id: each.transfer for each in bubbles}
    await land.apply()
    assert len(await list_bubbles(land.links)) == 2
    address, far = original.port.address, peer.port.address
    spaces = []
    for number, bubble in enumerate(bubbles):
        namespace = bubble.namespace(land.owner)
        inner = land.within(namespace, f"b{number}")
        async with open_links(land.owner, namespace=namespace) as inner.links:
            await inner.links.ensure_bridge(land.bridge("lan"))
            web = await inner.guest("web", "lan", as_port=original.port)
            db = await inner.guest("db", "lan", as_port=peer.port)
            await inner.apply()
        spaces.append((web.namespace, db.namespace))
    spaces.append((original.namespace, peer.namespace))
    for one, two in spaces:
        with listen(two, far, 80) as server:
            assert meet(server, dial(one, far, 80)) == (address, b"pong")
        with listen(land.outside, OUT4, 80) as server:
            assert meet(server, dial(one, OUT4, 80)) == (HOST4, b"pong")
    for bubble in bubbles:
        await remove_bubble(land.links, bubble)
        await remove_bubble(land.links, bubble)
        assert not has_namespace(bubble.namespace(land.owner))
    assert await list_bubbles(land.links) == []
    await wait_until(
        "uplinks to be gone",
        lambda: "su" not in {name[:2] for name in _interfaces(land.host)},
        timeout=5, every=0.02,
    )  # fmt: skip


def _interfaces(namespace: str) -> list[str]:
    return inside(namespace, lambda: [name for _, name in socket.if_nameindex()])


async def test_two_hundred_ports_and_one_rule(land: Land) -> None:
    """A change touches what it changes; how long it takes is printed, and bound loosely."""
    await land.network("lan", subnet="10.8.0.0/22")
    web = Rule(direction=Direction.IN, protocol=Protocol.TCP, ports="80")
    land.group("g0", web, Rule(direction=Direction.OUT))
    rules = (web, Rule(direction=Direction.IN, remote="group:g0"))
    for number in range(1, 40):
        land.group(f"g{number}", *rules)
    for number in range(200):
        land.record(f"p{number}", "lan", groups=(f"g{number % 40}",))
    begun = time.perf_counter()
    assert await land.apply() > 800
    whole = time.perf_counter() - begun
    took = []
    for number in range(12):
        more = Rule(direction=Direction.IN, protocol=Protocol.UDP, ports=str(1000 + number))
        land.group("g7", *rules, more)
        begun = time.perf_counter()
        assert await land.apply() <= 5
        took.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    assert await land.firewall.mend() == ""
    compared = time.perf_counter() - begun
    middle = median(took)
    print(f"{whole * 1000:.0f} ms whole, {middle * 1000:.1f} ms a rule, {compared * 1000:.0f} ms compared")  # fmt: skip
    assert middle < 0.2


async def test_links_are_as_wished_and_gone_without_trace(land: Land) -> None:
    links = land.links
    before = _interfaces(land.host)
    bridge = Bridge(name=bridge_of("n1"), label="lan ü", addresses=("10.5.0.1/24", "fd00:5::1/64"))
    tap = Tap(name=tap_of("p1"), label="web1 net0", bridge=bridge.name, uid=1234)
    with pytest.raises(Conflict) as refused:
        await links.ensure_tap(tap)
    assert refused.value.code is Code.BRIDGE_MISSING
    for wish, ensure in ((bridge, links.ensure_bridge), (tap, links.ensure_tap)):
        assert await ensure(wish)  # type: ignore[operator]
        assert not await ensure(wish)  # type: ignore[operator]
    there = {link.name: link for link in await links.list_ours()}
    assert (there[tap.name].bridge, there[tap.name].label) == (bridge.name, "web1 net0")
    assert (there[bridge.name].kind, there[bridge.name].label) == ("bridge", "lan ü")
    assert all(link.is_up for link in there.values())
    assert await links.has_bridge(bridge.name)
    assert not await links.has_bridge(tap.name)
    assert await links.routes() == ["192.0.2.0/24", "2001:db8::/64"]

    # whatever somebody did to them is put right
    for words in (
        f"link set {tap.name} nomaster", f"link set {tap.name} down", f"link set {bridge.name} down",
        f"addr del 10.5.0.1/24 dev {bridge.name}", f"addr add 10.6.0.1/24 dev {bridge.name}",
        f"link set {tap.name} type bridge_slave isolated on",
    ):  # fmt: skip
        run_in(land.host, "ip", *words.split())
        changed = [await links.ensure_bridge(bridge), await links.ensure_tap(tap)]
        assert any(changed), words
        assert not any([await links.ensure_bridge(bridge), await links.ensure_tap(tap)])
    shown = run_in(land.host, "ip", "addr", "show", bridge.name)
    assert "10.5.0.1/24" in shown and "10.6" not in shown and "fd00:5::1/64" in shown

    # a tap is opened once, and only if it is there
    fd = open_tap(tap.name, namespace=land.host)
    with pytest.raises(HostFailure):
        open_tap(tap.name, namespace=land.host)
    os.close(fd)
    with pytest.raises(HostFailure):
        open_tap(tap_of("p2"), namespace=land.host)
    assert tap_of("p2") not in _interfaces(land.host)

    # somebody else's stays, also with a name like ours
    make_tap(tap_of("p3"), uid=None, namespace=land.host)
    await links.remove(tap_of("p3"))
    assert tap_of("p3") in _interfaces(land.host)
    run_in(land.host, "ip", "link", "del", tap_of("p3"))
    for name in (tap.name, bridge.name, bridge.name):
        await links.remove(name)
    assert _interfaces(land.host) == before


async def test_routing_is_switched_on_and_put_back(land: Land) -> None:
    memory = land.folder / "forwarding.json"

    def read(name: str) -> str:
        return inside(land.host, lambda: (SYSCTL / name).read_text().strip())

    def write(name: str, value: int) -> None:
        inside(land.host, lambda: write_sysctl(name, value))

    def all_three() -> tuple[str, ...]:
        names = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth9/accept_ra")
        return tuple(read(name) for name in names)

    async def ensure(v4: bool, v6: bool) -> list[str]:
        return await ensure_forwarding(memory, v4=v4, v6=v6, namespace=land.host)

    write("ipv4/ip_forward", 0)
    write("ipv6/conf/all/forwarding", 0)
    write("ipv6/conf/eth9/accept_ra", 1)
    assert await ensure(True, False) == ["ipv4/ip_forward"]
    assert all_three() == ("1", "0", "1")
    assert await ensure(True, True)
    assert await ensure(True, True) == []
    assert all_three() == ("1", "1", "2")  # the host still hears its router
    await ensure(False, True)
    assert all_three() == ("0", "1", "2")
    write("ipv6/conf/eth9/accept_ra", 0)  # somebody's own wish since
    await ensure(False, False)
    assert all_three() == ("0", "0", "0")
    assert not memory.exists()
