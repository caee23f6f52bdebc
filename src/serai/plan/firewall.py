"""What may pass at each port: networks, ports, groups and forwards as a ruleset. Pure.

    bridge  prerouting ─▶ from_guest ─▶ own address? ─▶ admit_out ─▶ its groups ─▶ sent
                              └─▶ spoof (dropped, counted)     └─▶ refuse_out (dropped, counted)
            postrouting ─▶ to_guest ─▶ its groups ─▶ received
    inet    what the host routes: kept apart by mode, NAT, forwards; counted by address

All of a port is in elements of sets and in one small chain, all of a group in one chain for each
direction, so that a change touches little. The kernel's connection tracking does not see what passes
between two ports of a bridge everywhere (docs/design/0041), so the answers to what may pass are
known by sets that the rules fill themselves. A rule that goes therefore cuts what it let pass.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from ipaddress import IPv6Address

from serai.model.network import (
    Direction,
    GroupRecord,
    NetworkMode,
    NetworkRecord,
    Port,
    Rule,
)
from serai.plan.bubbles import Lead, ends_of
from serai.plan.network import ASKED_AGAIN, bridge_of, own_addresses6, uplink_of
from serai.plan.nftables import (
    ACCEPT,
    DROP,
    IIF,
    L4,
    OIF,
    RETURN,
    Chain,
    Hook,
    Json,
    Key,
    Kind,
    Line,
    Name,
    Ruleset,
    Set,
    concat,
    goto,
    jump,
    lead,
    line,
    match,
    none_of,
    one_of,
    payload,
    raw,
    remember,
)
from serai.plan.rules import GROUP, members_of, words_of

FLOWS = 262144
"""How many connections are remembered, as many as the kernel's own tracking on a large host."""
NEW, UDP, TCP = 120, 180, 3 * 3600
"""How long, in seconds: unanswered or ended, answered, answered over TCP (keepalives take 2 h)."""

ND = ["nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"]
MLD = ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"]
ERRORS4 = ["destination-unreachable", "time-exceeded", "parameter-problem"]
ERRORS6 = ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"]

NOBODY = "0.0.0.0"  # noqa: S104 - the sender of who has no address yet (RFC 2131, RFC 5227)
SPORT, DPORT = payload("th", "sport"), payload("th", "dport")
ETHER_TYPE = payload("ether", "type")
RARP = 0x8035
"""What QEMU sends in a guest's name so that switches learn where it is now (RFC 903, ``announce-self``)."""
ICMP6 = payload("icmpv6", "type")


def table_of(owner: str) -> str:
    """Return the name of a daemon's tables."""
    return f"serai_{owner}"


# -- what is always the same -----------------------------------------------------------------------

COUNTING = Kind(type=("ifname",), counts=True)
FLOW4 = Kind(
    type=("ipv4_addr", "ipv4_addr", "inet_proto", "inet_service", "inet_service"), size=FLOWS
)
FLOW6 = Kind(
    type=("ipv6_addr", "ipv6_addr", "inet_proto", "inet_service", "inet_service"), size=FLOWS
)
PAIR4 = Kind(type=("ipv4_addr", "ipv4_addr", "inet_proto"), size=FLOWS)
PAIR6 = Kind(type=("ipv6_addr", "ipv6_addr", "inet_proto"), size=FLOWS)

BRIDGE_SETS: Mapping[str, Kind] = {
    "taps": Kind(type=("ifname",)),
    "strangers": Kind(type=("ifname",)),
    "macs": Kind(type=("ifname", "ether_addr")),
    "arps": Kind(type=("ifname", "ether_addr", "ipv4_addr")),
    "own4": Kind(type=("ifname", "ipv4_addr")),
    "own6": Kind(type=("ifname", "ipv6_addr")),
    "neighbours": Kind(type=("ifname",), leads=True),
    "groups_out": Kind(type=("ifname",), leads=True),
    "groups_in": Kind(type=("ifname",), leads=True),
    "sent": COUNTING,
    "received": COUNTING,
    "spoofed": COUNTING,
    "refused_out": COUNTING,
    "refused_in": COUNTING,
    **{f"flows4_{way}": FLOW4 for way in Direction},
    **{f"flows6_{way}": FLOW6 for way in Direction},
    **{f"pairs4_{way}": PAIR4 for way in Direction},
    **{f"pairs6_{way}": PAIR6 for way in Direction},
}
"""``strangers`` are ports whose addresses somebody else gives: only their MAC address is held."""

INET_SETS: Mapping[str, Kind] = {
    "bridges": Kind(type=("ifname",)),
    "within": Kind(type=("ifname", "ifname")),
    "isolated": Kind(type=("ifname",)),
    "guarded": Kind(type=("ifname",)),
    "uplinks": Kind(type=("ifname",)),
    "natted4": Kind(type=("ipv4_addr",), intervals=True),
    "natted6": Kind(type=("ipv6_addr",), intervals=True),
    "out4": Kind(type=("ipv4_addr",), counts=True),
    "out6": Kind(type=("ipv6_addr",), counts=True),
    "in4": Kind(type=("ipv4_addr",), counts=True),
    "in6": Kind(type=("ipv6_addr",), counts=True),
}


def _ethernet(ip4: str, ip6: str) -> Json:
    """Go on by what a frame carries; what is neither goes on with the next line."""
    return {"vmap": {"key": ETHER_TYPE, "data": {"set": [["ip", goto(ip4)], ["ip6", goto(ip6)]]}}}


def _dhcp(client: int, server: int) -> list[Json]:
    return [match(payload("udp", "sport"), client), match(payload("udp", "dport"), server)]


def _from_guest() -> dict[str, list[Line]]:
    """Return the chains that let a guest send only what is its own."""
    is_stranger = match(IIF, "@strangers")
    arp_is_own = concat(IIF, payload("arp", "saddr ether"), payload("arp", "saddr ip"))
    spoof = goto("spoof")
    return {
        "prerouting": [line(match(IIF, "@taps"), goto("from_guest"))],
        "from_guest": [
            line(match(concat(IIF, payload("ether", "saddr")), "@macs", "!="), spoof),
            line(_ethernet("from_guest4", "from_guest6")),
            line(match(ETHER_TYPE, "arp"), goto("from_guest_arp")),
            line(match(ETHER_TYPE, RARP), lead(IIF, "neighbours")),
            line(spoof),
        ],
        "from_guest_arp": [
            line(none_of(payload("arp", "operation"), ["request", "reply"]), spoof),
            line(match(arp_is_own, "@arps"), goto("sent")),
            line(
                is_stranger,
                match(concat(IIF, payload("arp", "saddr ether")), "@macs"),
                goto("sent"),
            ),
            line(spoof),
        ],
        "from_guest4": [
            line(match(payload("udp", "sport"), 67), spoof),
            line(match(payload("ip", "saddr"), NOBODY), *_dhcp(68, 67), goto("sent")),
            line(match(concat(IIF, payload("ip", "saddr")), "@own4"), goto("admit_out")),
            line(is_stranger, goto("admit_out")),
            line(spoof),
        ],
        "from_guest6": [
            line(one_of(ICMP6, ["nd-router-advert", "nd-redirect"]), spoof),
            line(match(payload("udp", "sport"), 547), spoof),
            # neighbour discovery is never in fragments (RFC 6980), and could hide in them
            line(_is_prefix6("saddr", "fe80::", 10), _is_fragment6(), spoof),
            line(one_of(ICMP6, ND[1:]), lead(IIF, "neighbours")),
            line(
                match(payload("ip6", "saddr"), "::"), one_of(ICMP6, [*ND[:2], *MLD]), goto("sent")
            ),
            line(match(concat(IIF, payload("ip6", "saddr")), "@own6"), goto("admit_out")),
            line(is_stranger, goto("admit_out")),
            line(spoof),
        ],
        "spoof": [line(match(IIF, "@spoofed"), DROP), line(DROP)],
    }


def _is_prefix6(name: str, address: str, length: int) -> Json:
    return match(payload("ip6", name), {"prefix": {"addr": address, "len": length}})


def _is_fragment6() -> Json:
    return match({"exthdr": {"name": "frag"}}, True)


def _admission() -> dict[str, list[Line]]:
    """Return the chains that ask a port's groups, past what keeps a port alive."""
    return {
        "admit_out": [
            line(*_dhcp(68, 67), goto("sent")),
            line(*_dhcp(546, 547), goto("sent")),
            line(one_of(ICMP6, [*ND, *MLD]), goto("sent")),
            line(lead(IIF, "groups_out")),
            line(goto("sent")),
        ],
        "sent": [line(match(IIF, "@sent"), ACCEPT), line(ACCEPT)],
        "refuse_out": [line(match(IIF, "@refused_out"), DROP), line(DROP)],
        "postrouting": [line(match(OIF, "@taps"), goto("to_guest"))],
        "to_guest": [
            line(_ethernet("admit_in", "admit_in")),
            line(goto("received")),
        ],
        "admit_in": [
            line(*_dhcp(67, 68), goto("received")),
            line(*_dhcp(547, 546), goto("received")),
            line(one_of(ICMP6, [*ND, "nd-router-advert", "nd-redirect", *MLD]), goto("received")),
            line(lead(OIF, "groups_in")),
            line(goto("received")),
        ],
        "received": [line(match(OIF, "@received"), ACCEPT), line(ACCEPT)],
        "refuse_in": [line(match(OIF, "@refused_in"), DROP), line(DROP)],
    }


def _flow(ip: str, *, turned: bool = False) -> Json:
    near, far, sport, dport = payload(ip, "saddr"), payload(ip, "daddr"), SPORT, DPORT
    return concat(far, near, L4, dport, sport) if turned else concat(near, far, L4, sport, dport)


def _pair(ip: str, *, turned: bool = False) -> Json:
    near, far = payload(ip, "saddr"), payload(ip, "daddr")
    return concat(far, near, L4) if turned else concat(near, far, L4)


def _answers(way: Direction) -> dict[str, list[Line]]:
    """Return the chains that open a connection for ``way`` and let its answers pass the other way."""
    other = Direction.OUT if way is Direction.IN else Direction.IN
    done = goto("received" if way is Direction.IN else "sent")
    return {
        f"answers_{way}": [
            line({"vmap": {"key": ETHER_TYPE, "data": {"set": [
                ["ip", jump(f"answers4_{way}")], ["ip6", jump(f"answers6_{way}")]]}}}),
        ],
        f"answers4_{way}": [
            # a later piece is nothing without the first, which is asked about
            line(match({"&": [payload("ip", "frag-off"), 0x1FFF]}, 0, "!="), done),
            line(one_of(payload("icmp", "type"), ERRORS4), done),
            *_known("ip", "4", other, "icmp", "echo-reply", done),
        ],
        f"answers6_{way}": [
            line(match({"exthdr": {"name": "frag", "field": "frag-off"}}, 0, "!="), done),
            line(one_of(ICMP6, ERRORS6), done),
            *_known("ip6", "6", other, "icmpv6", "echo-reply", done),
        ],
        f"open_{way}": [
            line(_ethernet(f"open4_{way}", f"open6_{way}")),
            line(done),
        ],
        **{
            f"open{version}_{way}": [
                line(
                    one_of(L4, ["tcp", "udp"]),
                    remember("add", f"flows{version}_{way}", _flow(ip), NEW),
                    done,
                ),
                # where no more can be remembered, nothing new passes
                line(one_of(L4, ["tcp", "udp"]), RETURN),
                line(remember("add", f"pairs{version}_{way}", _pair(ip), NEW), done),
            ]
            for version, ip in (("4", "ip"), ("6", "ip6"))
        },
    }  # fmt: skip


def _known(
    ip: str, version: str, other: Direction, icmp: str, reply: str, done: Json
) -> Iterator[Line]:
    flows, pairs = f"flows{version}_{other}", f"pairs{version}_{other}"
    key, pair = _flow(ip, turned=True), _pair(ip, turned=True)
    is_tcp_or_udp = one_of(L4, ["tcp", "udp"])
    yield line(is_tcp_or_udp, match(key, f"@{flows}", "!="), RETURN)
    yield line(_ends(), remember("update", flows, key, NEW), done)
    yield line(match(L4, "tcp"), remember("update", flows, key, TCP), done)
    yield line(match(L4, "udp"), remember("update", flows, key, UDP), done)
    yield line(match(pair, f"@{pairs}", "!="), RETURN)
    yield line(match(payload(icmp, "type"), reply), remember("update", pairs, pair, NEW), done)
    yield line(none_of(L4, ["icmp", "ipv6-icmp"]), remember("update", pairs, pair, UDP), done)


def _ends() -> Json:
    flags = {"&": [payload("tcp", "flags"), {"|": ["fin", "rst"]}]}
    return match(flags, 0, "!=")


def _routing() -> dict[str, list[Line]]:
    """Return the chains for what the host routes, and for what reaches the host itself."""
    is_answer = match({"ct": {"key": "state"}}, ["established", "related"], "in")
    was_forwarded = match({"ct": {"key": "status"}}, "dnat", "in")
    is_for_host = match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    is_from_host = match({"fib": {"result": "type", "flags": ["saddr"]}}, "local")
    local4 = {"prefix": {"addr": "127.0.0.0", "len": 8}}
    to_ours, from_others = match(OIF, "@bridges"), match(IIF, "@bridges", "!=")
    to_others = match(OIF, "@bridges", "!=")
    names = (
        [match(payload("udp", "dport"), {"set": [53, 67, 547]})],
        [match(payload("tcp", "dport"), 53)],
    )
    return {
        # the host's own loopback is open to forwards, and to nobody else
        "early": [
            line(match(IIF, each), match(payload("ip", "daddr"), local4), DROP)
            for each in ("@bridges", "@uplinks")
        ],
        "input": [
            line(match(IIF, "@isolated", "!="), ACCEPT),
            line(is_answer, ACCEPT),
            *(line(*words, ACCEPT) for words in names),
            line(one_of(L4, ["icmp", "ipv6-icmp"]), ACCEPT),
            line(DROP),
        ],
        "forward": [
            # seen here only where bridges ask these tables too, or a guest reaches a neighbour by
            # the host's address
            line(match(concat(IIF, OIF), "@within"), ACCEPT),
            # out of a bubble, and back what was asked for, or by a forward from outside; nothing
            # passes between it and a network here or another bubble, not even by a forward
            line(match(IIF, "@uplinks"), match(OIF, "@uplinks"), DROP),
            line(match(IIF, "@uplinks"), to_ours, DROP),
            line(match(OIF, "@uplinks"), is_answer, ACCEPT),
            line(match(OIF, "@uplinks"), was_forwarded, from_others, ACCEPT),
            line(match(OIF, "@uplinks"), DROP),
            line(from_others, to_others, ACCEPT),
            line(match(IIF, "@isolated"), is_answer, goto("passed")),
            line(match(OIF, "@isolated"), was_forwarded, goto("passed")),
            line(match(IIF, "@isolated"), DROP),
            line(match(OIF, "@isolated"), DROP),
            line(is_answer, goto("passed")),
            line(was_forwarded, goto("passed")),
            line(match(OIF, "@guarded"), from_others, DROP),
            line(goto("passed")),
        ],
        "passed": [
            line(match(payload("ip", "saddr"), "@out4")),
            line(match(payload("ip", "daddr"), "@in4")),
            line(match(payload("ip6", "saddr"), "@out6")),
            line(match(payload("ip6", "daddr"), "@in6")),
            line(ACCEPT),
        ],
        "arriving": [line(is_for_host, jump("forwards"))],
        "leaving_host": [line(is_for_host, jump("forwards"))],
        "leaving": [
            line(match(payload("ip", "saddr"), "@natted4"), to_others, {"masquerade": None}),
            line(match(payload("ip6", "saddr"), "@natted6"), to_others, {"masquerade": None}),
            line(match(payload("ip", "saddr"), local4), to_ours, {"masquerade": None}),
            # an address of the host's may be somebody else's in a bubble
            line(match(OIF, "@uplinks"), is_from_host, {"masquerade": None}),
            line(match(concat(IIF, OIF), "@within"), was_forwarded, {"masquerade": None}),
        ],
    }


HOOKS: Mapping[Name, Hook] = {
    ("bridge", "prerouting"): Hook(type="filter", hook="prerouting", priority=-300),
    ("bridge", "postrouting"): Hook(type="filter", hook="postrouting", priority=0),
    ("inet", "early"): Hook(type="filter", hook="prerouting", priority=-300),
    ("inet", "input"): Hook(type="filter", hook="input", priority=0),
    ("inet", "forward"): Hook(type="filter", hook="forward", priority=0),
    ("inet", "arriving"): Hook(type="nat", hook="prerouting", priority=-100),
    ("inet", "leaving_host"): Hook(type="nat", hook="output", priority=-100),
    ("inet", "leaving"): Hook(type="nat", hook="postrouting", priority=100),
}


@cache
def _fixed_chains() -> dict[Name, Chain]:
    found: dict[Name, list[Line]] = {}
    for part in (_from_guest(), _admission(), _answers(Direction.IN), _answers(Direction.OUT)):
        found |= {("bridge", name): lines for name, lines in part.items()}
    found |= {("inet", name): lines for name, lines in _routing().items()}
    return {name: Chain(lines=tuple(lines), hook=HOOKS.get(name)) for name, lines in found.items()}


# -- what follows from the records -----------------------------------------------------------------


NO_BUBBLES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The records, looked at once."""

    networks: Mapping[str, NetworkRecord]
    ports: tuple[Port, ...]
    groups: Mapping[str, GroupRecord]

    def groups_of(self, port: Port) -> tuple[str, ...]:
        return tuple(sorted(group for group in port.groups if group in self.groups))


def build_ruleset(
    owner: str,
    *,
    networks: Iterable[NetworkRecord],
    ports: Iterable[Port],
    groups: Iterable[GroupRecord] = (),
    leads: Iterable[Lead] = (),
    bubbles: Mapping[str, str] = NO_BUBBLES,
) -> Ruleset:
    """Return the whole ruleset. ``bubbles`` are the transfer subnets by id, let out by NAT.

    ``leads`` are the forwards as they are here (``plan.bubbles``).

    Only ports that are up need be in it, but all of them may: a rule for a tap that is not there
    costs nothing. Ports of networks that are not among ``networks`` are left out.
    """
    by_id = {each.id: each for each in networks}
    known = _Known(
        networks=by_id,
        ports=tuple(port for port in ports if port.network in by_id),
        groups={each.id: each for each in groups},
    )
    sets = {("bridge", name): Set(kind=kind) for name, kind in BRIDGE_SETS.items()}
    sets |= {("inet", name): Set(kind=kind) for name, kind in INET_SETS.items()}
    elements: dict[Name, dict[Key, str]] = {name: {} for name in sets}
    for port in known.ports:
        _add_port(elements, port, known)
    _add_networks(elements, known)
    _add_bubbles(elements, bubbles)
    sets = {name: Set(kind=each.kind, elements=elements[name]) for name, each in sets.items()}
    sets |= _member_sets(known)
    chains = _fixed_chains() | _port_chains(known) | _group_chains(known)
    chains["inet", "forwards"] = Chain(lines=tuple(_lead_lines(leads)))
    return Ruleset(table=table_of(owner), sets=sets, chains=chains)


def _add_port(elements: dict[Name, dict[Key, str]], port: Port, known: _Known) -> None:
    tap, mac, network = port.tap, port.mac, known.networks[port.network].spec
    for name in ("taps", "sent", "received", "spoofed", "refused_out", "refused_in"):
        elements["bridge", name][tap,] = ""
    elements["bridge", "macs"][tap, mac] = ""
    elements["bridge", "neighbours"][tap,] = f"jump {_neighbour_chain(port)}"
    if network.mode is NetworkMode.BRIDGE and not port.address:
        elements["bridge", "strangers"][tap,] = ""
    elif port.address:
        elements["bridge", "own4"][tap, port.address] = ""
        elements["bridge", "arps"][tap, mac, port.address] = ""
        elements["bridge", "arps"][tap, mac, NOBODY] = ""
    for address in own_addresses6(port, network):
        elements["bridge", "own6"][tap, address] = ""
    combination = known.groups_of(port)
    if combination:
        for way in Direction:
            elements["bridge", f"groups_{way}"][tap,] = f"goto {_combined(combination, way)}"
    if network.mode is not NetworkMode.BRIDGE:
        _add_counted(elements, port, network.subnet6)


def _add_counted(elements: dict[Name, dict[Key, str]], port: Port, subnet6: str) -> None:
    if port.address:
        for name in ("out4", "in4"):
            elements["inet", name][port.address,] = ""
    if subnet6 and port.address6:
        for name in ("out6", "in6"):
            elements["inet", name][port.address6,] = ""


def _add_networks(elements: dict[Name, dict[Key, str]], known: _Known) -> None:
    for network in known.networks.values():
        spec = network.spec
        if spec.mode is NetworkMode.BRIDGE:
            continue
        bridge = bridge_of(network.id)
        elements["inet", "bridges"][bridge,] = ""
        elements["inet", "within"][bridge, bridge] = ""
        if spec.mode is NetworkMode.ISOLATED:
            elements["inet", "isolated"][bridge,] = ""
        if spec.mode is NetworkMode.NAT:
            elements["inet", "guarded"][bridge,] = ""
            elements["inet", "natted4"][spec.subnet,] = ""
            if spec.subnet6:
                elements["inet", "natted6"][spec.subnet6,] = ""


def _add_bubbles(elements: dict[Name, dict[Key, str]], bubbles: Mapping[str, str]) -> None:
    for bubble_id, transfer in bubbles.items():
        elements["inet", "uplinks"][uplink_of(bubble_id),] = ""
        elements["inet", "natted4"][transfer,] = ""
        elements["inet", "natted6"][ends_of(transfer).subnet6,] = ""


def _neighbour_chain(port: Port) -> str:
    return f"neighbour_{port.tap}"


def _port_chains(known: _Known) -> dict[Name, Chain]:
    """Return, for each port, what it may say of itself in neighbour discovery (RFC 4861) and by RARP."""
    return {
        ("bridge", _neighbour_chain(port)): _neighbour_lines(
            port.mac,
            own_addresses6(port, known.networks[port.network].spec),
            known.networks[port.network].spec.mode is NetworkMode.BRIDGE and not port.address6,
        )
        for port in known.ports
    }


@lru_cache(ASKED_AGAIN)
def _neighbour_lines(mac: str, own: tuple[str, ...], is_stranger: bool) -> Chain:
    """A solicitation's or advertisement's target is at bit 64, its first option at bit 192.

    An announcement by RARP asks (3) for the address of who sends it, and names none.
    """
    number = int(mac.replace(":", ""), 16)
    target, option, address = raw(64, 128), raw(192, 16), raw(208, 48)
    addresses = [int(IPv6Address(each)) for each in own]
    solicit, advert = match(ICMP6, ND[1]), match(ICMP6, ND[2])
    spoof = goto("spoof")
    targets = [
        line(advert, *_not_among(target, addresses), spoof),
        line(match(payload("ip6", "saddr"), "::"), solicit, *_not_among(target, addresses), spoof),
    ]
    announcement = [
        match(ETHER_TYPE, RARP),
        match(raw(48, 16, "nh"), 3),
        match(raw(64, 48, "nh"), number),
        match(raw(112, 32, "nh"), 0),
        match(raw(192, 32, "nh"), 0),
    ]
    options = [
        line(solicit, match(option, 0x0101), match(address, number, "!="), spoof),
        line(advert, match(option, 0x0201), match(address, number, "!="), spoof),
    ]
    own_words = [*options, line(*announcement, goto("sent"))]
    return Chain(lines=tuple(own_words if is_stranger else targets + own_words))


def _not_among(left: Json, numbers: list[int]) -> list[Json]:
    """Compare one by one: numbers as wide as an address are no elements of an anonymous set."""
    return [match(left, hex(number), "!=") for number in numbers]


def _combined(groups: tuple[str, ...], way: Direction) -> str:
    sign = hashlib.sha256(" ".join(groups).encode()).hexdigest()[:16]
    return f"groups_{way}_{sign}"


def _group_chain(group_id: str, way: Direction) -> str:
    return f"group_{way}_{group_id.replace('-', '')}"


def _group_chains(known: _Known) -> dict[Name, Chain]:
    """Return the chains of groups, and of the combinations of groups that ports are in."""
    chains: dict[Name, Chain] = {}
    for group in known.groups.values():
        for way in Direction:
            lines = _group_lines(group.spec.rules, way)
            chains["bridge", _group_chain(group.id, way)] = Chain(lines=lines)
    for combination in {known.groups_of(port) for port in known.ports} - {()}:
        for way in Direction:
            chains["bridge", _combined(combination, way)] = _combination(combination, way)
    return chains


@lru_cache(ASKED_AGAIN)
def _combination(groups: tuple[str, ...], way: Direction) -> Chain:
    through = [f"answers_{way}", *(_group_chain(group, way) for group in groups)]
    return Chain(lines=(*(line(jump(name)) for name in through), line(goto(f"refuse_{way}"))))


@lru_cache(ASKED_AGAIN)
def _group_lines(rules: tuple[Rule, ...], way: Direction) -> tuple[Line, ...]:
    """Return the lines of one direction. No rule for what goes out: everything may."""
    mine = [rule for rule in rules if rule.direction is way]
    opens = goto(f"open_{way}")
    if not mine and way is Direction.OUT:
        return (line(opens),)
    remote_field = "saddr" if way is Direction.IN else "daddr"
    return tuple(
        line(*words, opens) for rule in mine for words in words_of(rule, remote_field=remote_field)
    )


def _member_sets(known: _Known) -> dict[Name, Set]:
    """Return the addresses of ports in each group that a rule names as the other side."""
    named = {
        rule.remote.removeprefix(GROUP)
        for group in known.groups.values()
        for rule in group.spec.rules
        if rule.remote.startswith(GROUP)
    }
    found: dict[Name, dict[Key, str]] = {
        ("bridge", members_of(group, version)): {} for group in named for version in (4, 6)
    }
    for port in known.ports:
        for group in named.intersection(port.groups):
            if port.address:
                found["bridge", members_of(group, 4)][port.address,] = ""
            for address in own_addresses6(port, known.networks[port.network].spec):
                found["bridge", members_of(group, 6)][address,] = ""
    types = {4: "ipv4_addr", 6: "ipv6_addr"}
    return {
        name: Set(kind=Kind(type=(types[int(name[1][7])],)), elements=elements)
        for name, elements in found.items()
    }


def _lead_lines(leads: Iterable[Lead]) -> Iterator[Line]:
    for way in leads:
        for family, address in (("ip", way.address), ("ip6", way.address6)):
            is_other = way.at and (":" in way.at) != (family == "ip6")
            if not address or is_other:
                continue
            words = [match({"meta": {"key": "nfproto"}}, "ipv4" if family == "ip" else "ipv6")]
            if way.at:
                words = [match(payload(family, "daddr"), way.at)]
            yield line(
                *words,
                match(payload(str(way.protocol), "dport"), way.at_port),
                {"dnat": {"family": family, "addr": address, "port": way.port}},
            )
