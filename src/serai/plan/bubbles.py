"""Between the host and its bubbles: the addresses that join them, and where forwards lead. Pure.

    client ─▶ host:8080 ── dnat ─▶ inner:8080 ═ su… ═ up0 ═ dnat ─▶ guest:80
    guest  ─▶ gateway ── NAT ─▶ inner ═ up0 ═ su… ═ outer ── NAT ─▶ outside

Guests in two bubbles may have the same addresses, so nothing of what is inside is ever seen on the
pair: what goes out has the bubble's own address there, and so has what comes in.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import msgspec

from serai.model.network import ForwardRecord, Port, Protocol

TRANSFERS6 = IPv6Network("fd8d:51c7:e09b::/48")
"""Unique local addresses (RFC 4193; the 40 bits were drawn) for what joins bubbles to their host."""
LENGTH6 = 126
LAST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The addresses of the pair that joins a bubble to its host, and the lengths of their subnets.

    ``subnet6`` follows from the IPv4 one, which no other bubble has: so it is unique, too.
    """

    outer: str
    inner: str
    length: int
    outer6: str
    inner6: str
    subnet6: str


def ends_of(transfer: str) -> Ends:
    """Return the ends of the pair with that transfer subnet (``InBubble.transfer``)."""
    subnet = IPv4Network(transfer)
    outer, inner = subnet.hosts()
    base = int(TRANSFERS6.network_address)
    subnet6 = IPv6Network((base + int(subnet.network_address), LENGTH6))
    return Ends(
        outer=str(outer),
        inner=str(inner),
        length=subnet.prefixlen,
        outer6=str(IPv6Address(base + int(outer))),
        inner6=str(IPv6Address(base + int(inner))),
        subnet6=str(subnet6),
    )


def renamed(ports: Iterable[Port], before: str, after: str) -> tuple[Port, ...]:
    """Return the ports of a guest that has another name: it is known by that in its bubble, too.

    But who is known there by the name of the guest whose identity it has kept stays known by that:
    the others in there ask for it.
    """
    return tuple(
        msgspec.structs.replace(port, bubble=msgspec.structs.replace(port.bubble, known_as=after))
        if port.bubble is not None and port.bubble.known_as == before
        else port
        for port in ports
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Where a forward leads in one place: what comes for ``at`` and ``at_port`` goes on from there.

    ``at`` "" means every address of the place. ``address`` is where IPv4 goes on to, ``address6``
    IPv6, "" nowhere.
    """

    id: str
    protocol: Protocol
    at: str
    at_port: int
    address: str
    address6: str
    port: int


def leads_on_host(forwards: Iterable[ForwardRecord], ports: Iterable[Port]) -> list[Lead]:
    """Return where forwards lead from the host: to a port there, or to the bubble that it is in.

    ``ports`` are all that there are; a forward to another one is left out.
    """
    by_id = {port.id: port for port in ports}
    known = [each for each in forwards if each.port in by_id]
    leads = []
    for forward in sorted(known, key=lambda each: each.id):
        port = by_id[forward.port]
        address, address6, to_port = port.address, port.address6, forward.guest_port
        if port.bubble is not None:
            ends, there = ends_of(port.bubble.transfer), _within(known, by_id, port.site)
            to_port = _transfer_ports(there)[forward.id]
            address, address6 = address and ends.inner, address6 and ends.inner6
        leads.append(
            _lead(forward, forward.host_address, forward.host_port, address, address6, to_port)
        )
    return leads


def leads_in_bubble(forwards: Iterable[ForwardRecord], ports: Iterable[Port]) -> list[Lead]:
    """Return where forwards go on to in a bubble, from its end of the pair; ``ports`` are in it."""
    by_id = {port.id: port for port in ports if port.bubble is not None}
    known = [each for each in forwards if each.port in by_id]
    at_port = _transfer_ports(known)
    leads = []
    for forward in sorted(known, key=lambda each: each.id):
        port = by_id[forward.port]
        assert port.bubble is not None
        ends, at = ends_of(port.bubble.transfer), at_port[forward.id]
        if port.address:
            leads.append(_lead(forward, ends.inner, at, port.address, "", forward.guest_port))
        if port.address6:
            leads.append(_lead(forward, ends.inner6, at, "", port.address6, forward.guest_port))
    return leads


def _lead(
    forward: ForwardRecord, at: str, at_port: int, address: str, address6: str, port: int
) -> Lead:
    return Lead(
        id=forward.id,
        protocol=forward.protocol,
        at=at,
        at_port=at_port,
        address=address,
        address6=address6,
        port=port,
    )


def _within(
    forwards: Iterable[ForwardRecord], ports: dict[str, Port], bubble: str
) -> Iterator[ForwardRecord]:
    return (each for each in forwards if ports[each.port].site == bubble)


def _transfer_ports(forwards: Iterable[ForwardRecord]) -> dict[str, int]:
    """Return the port on the pair for each forward into one bubble, by its id.

    It is the host's; only where two forwards have the same one, at different addresses of the host,
    those made later have others, from the last one down.
    """
    found: dict[str, int] = {}
    taken: set[tuple[Protocol, int]] = set()
    ordered = sorted(forwards, key=lambda each: (each.created_at, each.id))
    own = {(each.protocol, each.host_port) for each in ordered}
    for each in ordered:
        port = each.host_port
        if (each.protocol, port) in taken:
            port = next(
                number
                for number in range(LAST_PORT, 0, -1)
                if (each.protocol, number) not in taken | own
            )
        taken.add((each.protocol, port))
        found[each.id] = port
    return found
