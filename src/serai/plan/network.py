"""Networks and addresses: what can be, what is picked, what everything is called. Pure.

    spec ──check_network──▶ complete spec ──gateway, capacity──▶ what the hands put up
    port spec ──make_port──▶ port with MAC, tap and addresses that nobody else has

Addresses are picked in order, so the same question has the same answer; the caller holds whatever
keeps two from asking at once. Names of interfaces come from ids, so that daemons side by side never
meet; what a person wants to read is in the interface's alias.
"""

import hashlib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec

from serai.errors import Code, Conflict, Invalid, NotFound
from serai.model.network import (
    NetworkChange,
    NetworkMode,
    NetworkSpec,
    Port,
    PortCounters,
    PortLimits,
    PortSpec,
)
from serai.units import check_guest_name, check_labels, shorten

PICKED_FROM = IPv4Network("10.0.0.0/8")
PICKED_PREFIX = 24
TRANSFERS = IPv4Network("100.64.0.0/10")
LARGEST, SMALLEST = 8, 29
PREFIX6 = 64
DNS_LIMIT = 8
RATE_LIMIT = 1 << 40
LEAST_RATE = 1000
ASKED_AGAIN = 4096
"""Answers that are kept: the whole ruleset is made anew for each change of it."""
TAP = "st"
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)

Subnet = IPv4Network | IPv6Network

# -- what things are called -------------------------------------------------------------------------


def owner_of(home: str) -> str:
    """Return the sign of the daemon whose state is at ``home``: 8 hex digits.

    It is in the names of its tables and in the alias of all its interfaces.
    """
    return hashlib.sha256(home.encode()).hexdigest()[:8]


def _short(some_id: str) -> str:
    """Return 12 hex digits that follow from an id: 48 bits, so that two on a host never meet."""
    return hashlib.sha256(some_id.encode()).hexdigest()[:12]


def bridge_of(network_id: str) -> str:
    """Return the name of a network's bridge: 14 characters of the 15 that the kernel takes."""
    return f"sb{_short(network_id)}"


def tap_of(port_id: str) -> str:
    """Return the name of a port's tap."""
    return f"{TAP}{_short(port_id)}"


def shaper_of(tap: str) -> str:
    """Return the name of the interface (ifb) through which a limited tap's guest sends."""
    return f"si{tap.removeprefix(TAP)}"


def uplink_of(bubble_id: str) -> str:
    """Return the name, on the host's side, of the pair that leads into a bubble."""
    return f"su{_short(bubble_id)}"


def bubbles_of(owner: str) -> str:
    """Return how the names of a daemon's bubbles begin."""
    return f"serai-{owner}-"


def bubble_of(owner: str, bubble_id: str) -> str:
    """Return the name of a bubble's network namespace."""
    return bubbles_of(owner) + _short(bubble_id)


def pick_transfer(taken: Collection[str], routes: Iterable[str] = ()) -> str:
    """Return the first free /30 of 100.64.0.0/10 (RFC 6598) to join a bubble to its host.

    ``taken`` are those of other bubbles. Raises Conflict (``subnet-exhausted``).
    """
    busy = [ipaddress.ip_network(route, strict=False) for route in routes]
    routed = [each for each in busy if each.version == 4 and each.prefixlen]
    for subnet in TRANSFERS.subnets(new_prefix=30):
        if str(subnet) not in taken and not any(subnet.overlaps(each) for each in routed):
            return str(subnet)
    raise Conflict(Code.SUBNET_EXHAUSTED, f"all of {TRANSFERS} is taken")


def spec_in_bubble(spec: NetworkSpec) -> NetworkSpec:
    """Return what a network is in a bubble: nobody outside knows a way back to its addresses there."""
    if spec.mode is NetworkMode.ROUTED:
        return msgspec.structs.replace(spec, mode=NetworkMode.NAT)
    return spec


def mac_of(port_id: str) -> str:
    """Return a port's MAC address: locally administered, unicast, from its id."""
    digits = hashlib.sha256(f"mac {port_id}".encode()).hexdigest()[:10]
    return "02:" + ":".join(digits[at : at + 2] for at in range(0, 10, 2))


def link_local_of(mac: str) -> str:
    """Return the link-local IPv6 address of a MAC address (EUI-64, RFC 4291)."""
    return eui64(IPv6Network("fe80::/64"), mac)


def eui64(subnet: IPv6Network, mac: str) -> str:
    """Return the address in a /64 that a MAC address gives itself (RFC 4862)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    half = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(subnet[int.from_bytes(half, "big")])


# -- networks --------------------------------------------------------------------------------------


def check_network(
    spec: NetworkSpec, *, others: Iterable[NetworkSpec] = (), routes: Iterable[str] = ()
) -> NetworkSpec:
    """Return ``spec`` complete and in normal form: with a subnet, unless it is a ``bridge``.

    ``others`` are all networks that there are, ``routes`` the prefixes that this host routes
    already. Raises Invalid for what can't be, Conflict: ``subnet-overlap``, ``subnet-exhausted``.
    """
    check_guest_name(spec.name)
    check_labels(spec.labels)
    dns = check_dns(spec.dns)
    if spec.mode is NetworkMode.BRIDGE:
        _check_bridge(spec)
        return msgspec.structs.replace(spec, dns=dns)
    if spec.bridge:
        raise Invalid(Code.VALUE_INVALID, f"a network of mode {spec.mode} has a bridge of its own")
    taken = _taken(others, routes)
    subnet = check_subnet(spec.subnet) if spec.subnet else pick_subnet(taken)
    subnet6 = check_subnet6(spec.subnet6) if spec.subnet6 else None
    for each in (subnet, subnet6):
        if each is not None:
            check_overlap(each, taken)
    return msgspec.structs.replace(
        spec, dns=dns, subnet=str(subnet), subnet6=str(subnet6) if subnet6 else ""
    )


def change_network(
    spec: NetworkSpec,
    change: NetworkChange,
    *,
    others: Iterable[NetworkSpec] = (),
    routes: Iterable[str] = (),
    ports: int = 0,
) -> NetworkSpec:
    """Return ``spec`` with ``change`` applied and checked; ``ports`` is how many are attached.

    ``others`` and ``routes`` are without this network. Raises as ``check_network`` does, and
    Conflict (``network-in-use``) where the addresses of ports would change.
    """
    named = {
        field: value
        for field in change.__struct_fields__
        if (value := getattr(change, field)) is not msgspec.UNSET
    }
    if not named:
        raise Invalid(Code.VALUE_INVALID, "nothing to change", hint="Name dns, subnet6 or labels.")
    after = check_network(msgspec.structs.replace(spec, **named), others=others, routes=routes)
    if ports and spec.subnet6 not in ("", after.subnet6):
        raise Conflict(
            Code.NETWORK_IN_USE,
            f"{ports} ports of {spec.name} have addresses of {spec.subnet6}",
            hint="Remove the ports first; the IPv6 subnet of a network in use can only be added.",
        )
    return after


def check_dns(dns: Collection[str]) -> tuple[str, ...]:
    """Return resolvers in normal form; Invalid (``value-invalid``) unless all are addresses."""
    if len(dns) > DNS_LIMIT:
        raise Invalid(Code.VALUE_INVALID, f"a network asks at most {DNS_LIMIT} resolvers")
    return tuple(str(_read_address(each, "a resolver")) for each in dns)


def _read_address(text: str, what: str) -> IPv4Address | IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is no address of {what}") from error
    if address.is_multicast or address.is_unspecified or getattr(address, "scope_id", None):
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} can't be the address of {what}")
    return address


def _check_bridge(spec: NetworkSpec) -> None:
    if not INTERFACE.fullmatch(spec.bridge):
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(spec.bridge)} is no name of a bridge",
            hint="Name an existing bridge of this host: bridge=br0.",
        )
    if spec.subnet or spec.subnet6:
        raise Invalid(
            Code.SUBNET_INVALID,
            f"a network on {spec.bridge} has the addresses of whoever looks after it",
            hint="Leave out the subnet, or choose another mode.",
        )


def check_subnet(text: str) -> IPv4Network:
    """Return an IPv4 subnet that guests can be in; Invalid (``subnet-invalid``)."""
    subnet = _read_subnet(text, 4)
    assert isinstance(subnet, IPv4Network)
    if not LARGEST <= subnet.prefixlen <= SMALLEST:
        size = "large" if subnet.prefixlen < LARGEST else "small"
        raise Invalid(
            Code.SUBNET_INVALID,
            f"{subnet} is too {size}",
            hint=f"Use /{LARGEST} to /{SMALLEST}; a /24 has room for 253 guests.",
        )
    return subnet


def check_subnet6(text: str) -> IPv6Network:
    """Return an IPv6 subnet that guests can be in; Invalid (``subnet-invalid``)."""
    subnet = _read_subnet(text, 6)
    assert isinstance(subnet, IPv6Network)
    if subnet.prefixlen != PREFIX6:
        raise Invalid(
            Code.SUBNET_INVALID,
            f"{subnet} is not a /{PREFIX6}",
            hint="Guests find their IPv6 address in a /64 (RFC 4862), like fd12:3456:789a:1::/64.",
        )
    return subnet


def _read_subnet(text: str, version: int) -> Subnet:
    hint = "Write an address and a length, like 10.20.30.0/24 or fd12:3456:789a:1::/64."
    try:
        subnet = ipaddress.ip_network(text.replace("%", " "))  # no zone
    except ValueError as error:
        what = f"{shorten(text)} is no subnet: {str(error)[:120]}"
        raise Invalid(Code.SUBNET_INVALID, what, hint=hint) from error
    if subnet.version != version or "/" not in text:
        raise Invalid(Code.SUBNET_INVALID, f"{shorten(text)} is no IPv{version} subnet", hint=hint)
    if _is_special(subnet):
        raise Invalid(Code.SUBNET_INVALID, f"{subnet} has a meaning of its own", hint=hint)
    return subnet


def _is_special(subnet: Subnet) -> bool:
    special = (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/8",
        "fe80::/10",
        "ff00::/8",
    )
    return any(
        subnet.overlaps(each)
        for each in map(ipaddress.ip_network, special)
        if each.version == subnet.version
    )  # fmt: skip


def _taken(others: Iterable[NetworkSpec], routes: Iterable[str]) -> dict[Subnet, str]:
    """Return what has addresses already, and the words for it; default routes take nothing."""
    taken: dict[Subnet, str] = {}
    for route in routes:
        subnet = ipaddress.ip_network(route, strict=False)
        if subnet.prefixlen:
            taken[subnet] = "a route of this host"
    for other in others:
        for text in (other.subnet, other.subnet6):
            if text:
                taken[ipaddress.ip_network(text)] = f"the network {other.name}"
    return taken


def check_overlap(subnet: Subnet, taken: Mapping[Subnet, str]) -> None:
    """Raise Conflict (``subnet-overlap``) when something has addresses of ``subnet`` already."""
    for other, owner in taken.items():
        if other.version == subnet.version and other.overlaps(subnet):
            raise Conflict(
                Code.SUBNET_OVERLAP,
                f"{subnet} overlaps with {other}, {owner}",
                hint="Leave the subnet out, and a free one is picked.",
            )


def pick_subnet(taken: Collection[Subnet]) -> IPv4Network:
    """Return the first free /24 of 10.0.0.0/8; Conflict (``subnet-exhausted``) without one.

    10.0.0.0/24 to 10.0.255.0/24 come last: they are what other software picks first.
    """
    busy = [each for each in taken if isinstance(each, IPv4Network) and each.overlaps(PICKED_FROM)]
    spans = sorted(
        (int(each.network_address) >> 8, int(each.broadcast_address) >> 8) for each in busy
    )
    base = int(PICKED_FROM.network_address) >> 8
    for first, last in ((base + 256, base + 65535), (base, base + 255)):
        free = _first_gap(spans, first, last)
        if free is not None:
            return IPv4Network((free << 8, PICKED_PREFIX))
    raise Conflict(
        Code.SUBNET_EXHAUSTED,
        f"no /{PICKED_PREFIX} of {PICKED_FROM} is free",
        hint="Name a subnet, for example of 172.16.0.0/12.",
    )


def _first_gap(spans: list[tuple[int, int]], first: int, last: int) -> int | None:
    at = first
    for begin, end in spans:
        if begin > at:
            break
        at = max(at, end + 1)
    return at if at <= last else None


def check_removal(name: str, users: Collection[str]) -> None:
    """Raise Conflict (``network-in-use``) while guests (their names) have ports on a network."""
    if users:
        some = ", ".join(sorted(users)[:5])
        raise Conflict(
            Code.NETWORK_IN_USE,
            f"{name} is used by {some}{' and others' if len(users) > 5 else ''}",
            hint="Remove their ports first: serai port remove GUEST PORT",
            details={"users": str(len(users))},
        )


# -- addresses -------------------------------------------------------------------------------------


def gateway_of(spec: NetworkSpec) -> str:
    """Return the host's own address in the network, the first; "" where it has none."""
    return str(IPv4Network(spec.subnet)[1]) if spec.subnet else ""


def gateway6_of(spec: NetworkSpec) -> str:
    """Return the host's own IPv6 address in the network, ``…::1``; "" where it has none."""
    return str(IPv6Network(spec.subnet6)[1]) if spec.subnet6 else ""


def capacity(spec: NetworkSpec) -> int:
    """Return how many guests have room, by IPv4; 0 for a ``bridge``."""
    return IPv4Network(spec.subnet).num_addresses - 3 if spec.subnet else 0


def make_port(
    spec: PortSpec,
    *,
    port_id: str,
    name: str,
    network_id: str,
    network: NetworkSpec,
    groups: Mapping[str, str],
    taken: Collection[Port],
) -> Port:
    """Return the port for ``spec``: its MAC, tap and addresses are complete and nobody else's.

    ``taken`` are all ports of the network, ``groups`` the ids of all groups by name. Raises
    Conflict: ``address-taken``, ``subnet-exhausted``; Invalid: ``address-outside``,
    ``value-invalid``; NotFound: ``group-not-found``.
    """
    mac = check_mac(spec.mac) if spec.mac else mac_of(port_id)
    if any(mac == port.mac for port in taken):
        raise address_taken(mac, network)
    return Port(
        id=port_id,
        name=name,
        network=network_id,
        mac=mac,
        tap=tap_of(port_id),
        address=_pick_address(spec.address, network, {port.address for port in taken}),
        address6=_pick_address6(spec.address6, mac, network, taken),
        groups=group_ids(spec.groups, groups),
        limits=check_limits(spec.limits),
    )


def group_ids(names: Iterable[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ids of groups, each once; NotFound (``group-not-found``)."""
    for name in names:
        if name not in groups:
            raise NotFound(
                Code.GROUP_NOT_FOUND,
                f"there is no security group {shorten(name)}",
                hint="See: serai rules list",
            )
    return tuple(dict.fromkeys(groups[name] for name in names))


def check_mac(text: str) -> str:
    """Return a MAC address of a guest in normal form; Invalid (``value-invalid``)."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(text)} can't be a guest's MAC address",
            hint="Write six pairs of hex digits, the first one even: 02:00:00:12:34:56.",
        )
    return mac


def check_limits(limits: PortLimits) -> PortLimits:
    """Return ``limits`` if they can be held; Invalid (``value-invalid``)."""
    for field in limits.__struct_fields__:
        if not 0 <= getattr(limits, field) <= RATE_LIMIT:
            raise Invalid(Code.VALUE_INVALID, f"{field} is not between 0 and {RATE_LIMIT} bytes")
    for rate, burst in (
        (limits.rate_in, limits.burst_in),
        (limits.rate_out, limits.burst_out),
    ):
        if 0 < rate < LEAST_RATE:
            raise Invalid(Code.VALUE_INVALID, f"a rate is at least {LEAST_RATE} bytes a second")
        if burst and not rate:
            raise Invalid(Code.VALUE_INVALID, "a burst needs a rate", hint="Name the rate too.")
    return limits


def _pick_address(text: str, network: NetworkSpec, taken: Collection[str]) -> str:
    if not network.subnet:
        return str(_read_own(text, 4)) if text else ""
    subnet = IPv4Network(network.subnet)
    if not text:
        return _next_free(subnet, network, taken)
    address = _read_own(text, 4)
    not_for_guests = (subnet[0], subnet[1], subnet[-1])
    if address not in subnet or address in not_for_guests:
        raise _outside(address, network, f"{subnet[2]} to {subnet[-2]}")
    if str(address) in taken:
        raise address_taken(str(address), network)
    return str(address)


def _next_free(subnet: IPv4Network, network: NetworkSpec, taken: Collection[str]) -> str:
    first = int(subnet[2])
    for number in range(first, int(subnet[-1])):
        address = str(IPv4Address(number))
        if address not in taken:
            return address
    raise Conflict(
        Code.SUBNET_EXHAUSTED,
        f"all {capacity(network)} addresses of {network.name} are taken",
        hint="Remove ports, or make a network with a larger subnet.",
    )


def _pick_address6(text: str, mac: str, network: NetworkSpec, taken: Collection[Port]) -> str:
    """Return the fixed address, or the one that the guest's MAC gives it without any server."""
    if not network.subnet6:
        if text and network.mode is not NetworkMode.BRIDGE:
            raise Invalid(Code.ADDRESS_OUTSIDE, f"the network {network.name} has no IPv6")
        return str(_read_own(text, 6)) if text else ""
    subnet = IPv6Network(network.subnet6)
    address = _read_own(text, 6) if text else IPv6Address(eui64(subnet, mac))
    if address not in subnet or address in (subnet[0], subnet[1]):
        raise _outside(address, network, f"{subnet[2]} to {subnet[-1]}")
    if any(str(address) in own_addresses6(port, network) for port in taken):
        raise address_taken(str(address), network)
    return str(address)


def own_addresses6(port: Port, network: NetworkSpec) -> tuple[str, ...]:
    """Return every IPv6 address that is a port's own: link-local, given, and of its MAC's making."""
    return _own_addresses6(port.mac, port.address6, network.subnet6)


@lru_cache(ASKED_AGAIN)
def _own_addresses6(mac: str, address6: str, subnet6: str) -> tuple[str, ...]:
    own = [link_local_of(mac)]
    if subnet6:
        own.append(eui64(IPv6Network(subnet6), mac))
    if address6 and address6 not in own:
        own.append(address6)
    return tuple(own)


def _read_own(text: str, version: int) -> IPv4Address | IPv6Address:
    address = _read_address(text, "a guest")
    if address.version != version:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is no IPv{version} address")
    return address


def _outside(address: IPv4Address | IPv6Address, network: NetworkSpec, can_be: str) -> Invalid:
    return Invalid(
        Code.ADDRESS_OUTSIDE,
        f"{address} is no address for a guest of {network.name}",
        hint=f"Use one of {can_be}, or leave it out.",
    )


def address_taken(address: str, network: NetworkSpec) -> Conflict:
    """Return the error for an address that another port of the network has."""
    return Conflict(
        Code.ADDRESS_TAKEN,
        f"{address} is taken in {network.name}",
        hint="Leave it out, and a free one is picked.",
    )


# -- traffic ---------------------------------------------------------------------------------------


def counted(total: PortCounters, seen: PortCounters, now: PortCounters) -> PortCounters:
    """Return ``total`` with what has passed since ``seen``, when the kernel's counters say ``now``.

    Counters that went back began anew in between: then all of ``now`` is new.
    """
    names = PortCounters.__struct_fields__
    is_anew = any(getattr(now, name) < getattr(seen, name) for name in names)
    since = PortCounters() if is_anew else seen
    return PortCounters(
        **{name: getattr(total, name) + getattr(now, name) - getattr(since, name) for name in names}
    )
