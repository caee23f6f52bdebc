"""Into bubbles and out of them: forwards and IPv6, with namespaces in the guests' place.

Two bubbles hold a copy of the same guest, so that whatever reaches the wrong one is seen.
"""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from land import HOST4, HOST6, OUT4, OUT6, Guest, Land, dial, listen, meet, open_land, udp

from serai.model.network import InBubble, Protocol
from serai.net.bubbles import Bubble, ensure_bubble, remove_bubble
from serai.net.links import open_links
from serai.plan.bubbles import ends_of
from serai.plan.network import pick_transfer


@pytest.fixture
async def land(tmp_path: Path) -> AsyncIterator[Land]:
    async with open_land(tmp_path) as land:
        yield land


async def blow(land: Land, original: Guest, number: int) -> Guest:
    """Make a bubble with a copy of a guest, whose network is ``lan``."""
    routes = await land.links.routes()
    transfer = pick_transfer(list(land.bubbles.values()), routes)
    bubble = Bubble(
        id=str(uuid.uuid4()), label=f"b{number}", transfer=transfer,
        has_ipv6=True, reach_localhost=True,
    )  # fmt: skip
    land.stack.push_async_callback(remove_bubble, land.links, bubble)
    assert await ensure_bubble(land.links, bubble)
    assert not await ensure_bubble(land.links, bubble)
    land.bubbles[bubble.id] = transfer
    there = InBubble(id=bubble.id, transfer=transfer, known_as="web")
    port = msgspec.structs.replace(original.port, id=str(uuid.uuid4()), bubble=there)
    namespace = bubble.namespace(land.owner)
    inner = land.within(namespace, f"b{number}")
    async with open_links(land.owner, namespace=namespace) as inner.links:
        await inner.links.ensure_bridge(land.bridge("lan"))
        guest = await inner.guest("web", "lan", as_port=port)
        land.bubbled.append(port)
        land.forward(8080 + number, guest, 80)
        land.forward(5353 + number, guest, 53, protocol=Protocol.UDP)
        land.forward(9000, guest, 443, host_address=HOST4 if number else "127.0.0.1")
        await inner.apply()
    return guest


async def test_forwards_lead_into_bubbles_and_ipv6_out_of_them(land: Land) -> None:
    await land.network("lan", subnet6="fd12:3456:789a:1::/64")
    original = await land.guest("web", "lan")
    beside = await land.guest("db", "lan")
    copies = [await blow(land, original, number) for number in range(2)]
    await land.apply()
    address, address6 = original.port.address, original.port.address6

    for number, guest in enumerate(copies):
        for space, outer, seen in (
            (land.outside, HOST4, OUT4),
            (land.outside, HOST6, OUT6),
            (land.host, "127.0.0.1", ""),
            (land.host, HOST4, ""),
            (land.host, HOST6, ""),
        ):
            own = address6 if ":" in outer else address
            with listen(guest.namespace, own, 80) as server:
                caller, said = meet(server, dial(space, outer, 8080 + number))
            ends = ends_of(guest.port.bubble.transfer)  # type: ignore[union-attr]
            assert said == b"pong"
            assert caller == (seen or (ends.outer6 if ":" in outer else ends.outer))
        for outer, own in ((HOST4, address), (HOST6, address6)):
            with (
                udp(guest.namespace, own, 53) as server,
                udp(land.outside, OUT6 if ":" in outer else OUT4) as client,
            ):
                client.sendto(b"ask", (outer, 5353 + number))
                asked, asker = server.recvfrom(16)
                server.sendto(b"told", asker)
                assert (asked, client.recv(16)) == (b"ask", b"told")
        with listen(land.outside, OUT6, 80) as server:
            assert meet(server, dial(guest.namespace, OUT6, 80)) == (HOST6, b"pong")

    _one_number_at_two_addresses(land, copies, address)
    _nobody_comes_in_by_another_way(land, copies[0], beside)


def _one_number_at_two_addresses(land: Land, guests: list[Guest], address: str) -> None:
    """The same port of the host leads to another guest by another address of the host."""
    for guest, outer in zip(guests, ("127.0.0.1", HOST4), strict=True):
        with listen(guest.namespace, address, 443) as server:
            assert meet(server, dial(land.host, outer, 9000))[1] == b"pong"


def _nobody_comes_in_by_another_way(land: Land, guest: Guest, beside: Guest) -> None:
    address, address6 = guest.port.address, guest.port.address6
    ends = ends_of(guest.port.bubble.transfer)  # type: ignore[union-attr]
    with listen(guest.namespace, address, 80), listen(guest.namespace, address6, 80):
        for outer in (HOST4, HOST6):  # a network of the host, and another bubble, not by a forward
            with pytest.raises(OSError):
                dial_soon(beside.namespace, outer, 8080)
            with pytest.raises(OSError):
                dial_soon(guest.namespace, outer, 8081)
        for inner in (ends.inner, ends.inner6):
            with pytest.raises(OSError):
                dial_soon(beside.namespace, inner, 8080)
    with (
        udp(guest.namespace, address, 53) as server,
        udp(beside.namespace, beside.port.address) as one_of_the_host,
        udp(land.outside, OUT4) as stranger,
    ):
        one_of_the_host.sendto(b"not even one way", (HOST4, 5353))
        stranger.sendto(b"heard", (HOST4, 5353))
        assert server.recv(100) == b"heard"


def dial_soon(namespace: str, address: str, port: int) -> None:
    """Connect within a short time, or raise OSError."""
    dial(namespace, address, port, patience=0.5).close()
