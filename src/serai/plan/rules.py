"""Security groups and forwards: what can be asked for, and which packets a rule means. Pure."""

import ipaddress
from collections.abc import Iterable, Mapping

import msgspec

from serai.errors import Code, Conflict, Invalid, NotFound
from serai.model.network import ForwardRecord, ForwardSpec, GroupSpec, Protocol, Rule
from serai.plan.nftables import L4, Json, match, one_of, payload
from serai.units import check_guest_name, shorten

GROUP = "group:"
RULES_LIMIT = 200
NOTE_LIMIT = 256
LAST_PORT = 65535


def check_rule(rule: Rule) -> Rule:
    """Return ``rule`` in normal form; Invalid (``rule-invalid``). Groups are not looked up."""
    if rule.ports and rule.protocol not in (Protocol.TCP, Protocol.UDP):
        raise Invalid(
            Code.RULE_INVALID,
            f"{rule.protocol} has no ports",
            hint="Name ports with tcp or udp only.",
        )
    ports = "-".join(map(str, dict.fromkeys(read_ports(rule.ports)))) if rule.ports else ""
    return msgspec.structs.replace(rule, ports=ports, remote=_check_remote(rule.remote))


def read_ports(text: str) -> tuple[int, int]:
    """Read ``80`` or ``8000-8100`` as first and last; Invalid (``rule-invalid``)."""
    first, dash, last = text.partition("-")
    numbers = (first, last if dash else first)
    if all(each.isascii() and each.isdigit() and len(each) <= 5 for each in numbers):
        low, high = int(numbers[0]), int(numbers[1])
        if 1 <= low <= high <= LAST_PORT:
            return low, high
    raise Invalid(
        Code.RULE_INVALID,
        f"{shorten(text)} are no ports",
        hint=f"Write a number from 1 to {LAST_PORT}, or two with '-': 8000-8100.",
    )


def _check_remote(remote: str) -> str:
    if not remote or remote.startswith(GROUP):
        return remote
    try:
        prefix = ipaddress.ip_network(remote.replace("%", " "))  # no zone: rules are for all links
    except ValueError as error:
        raise Invalid(
            Code.RULE_INVALID,
            f"{shorten(remote)} is no address, prefix or group: {str(error)[:120]}",
            hint="Write 192.0.2.7, 192.0.2.0/24, 2001:db8::/32 or group:NAME.",
        ) from error
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def check_group(spec: GroupSpec, groups: Mapping[str, str]) -> GroupSpec:
    """Return ``spec`` as it is stored: rules checked, each once, ``group:NAME`` as ``group:ID``.

    ``groups`` are the ids of all groups by name, its own included. Raises Invalid
    (``rule-invalid``), NotFound (``group-not-found``).
    """
    check_guest_name(spec.name)
    if len(spec.rules) > RULES_LIMIT:
        raise Invalid(Code.RULE_INVALID, f"a group has at most {RULES_LIMIT} rules")
    if len(spec.note) > NOTE_LIMIT or not (spec.note.isprintable() or not spec.note):
        raise Invalid(Code.VALUE_INVALID, f"a note is at most {NOTE_LIMIT} printable characters")
    rules = [_with_id(check_rule(rule), groups) for rule in spec.rules]
    return msgspec.structs.replace(spec, rules=tuple(dict.fromkeys(rules)))


def _with_id(rule: Rule, groups: Mapping[str, str]) -> Rule:
    if not rule.remote.startswith(GROUP):
        return rule
    name = rule.remote.removeprefix(GROUP)
    if name not in groups:
        raise NotFound(
            Code.GROUP_NOT_FOUND,
            f"there is no security group {shorten(name)}",
            hint="See: serai rules list",
        )
    return msgspec.structs.replace(rule, remote=GROUP + groups[name])


def shown_rules(rules: Iterable[Rule], names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return stored rules as they are shown: ``group:ID`` as ``group:NAME``; ``names`` by id."""
    return tuple(
        msgspec.structs.replace(rule, remote=GROUP + names.get(rule.remote[len(GROUP) :], "?"))
        if rule.remote.startswith(GROUP)
        else rule
        for rule in rules
    )


def check_forward(spec: ForwardSpec, others: Iterable[ForwardRecord]) -> ForwardSpec:
    """Return ``spec`` complete; Invalid (``value-invalid``), Conflict (``forward-exists``)."""
    if spec.protocol not in (Protocol.TCP, Protocol.UDP):
        raise Invalid(Code.VALUE_INVALID, f"{spec.protocol} can't be forwarded; tcp and udp can")
    guest_port = spec.guest_port or spec.host_port
    for port in (spec.host_port, guest_port):
        if not 1 <= port <= LAST_PORT:
            raise Invalid(Code.VALUE_INVALID, f"{port} is no port: 1 to {LAST_PORT} are")
    address = _check_host_address(spec.host_address)
    for other in others:
        if (
            (other.protocol, other.host_port) == (spec.protocol, spec.host_port)
            and (not address or other.host_address in ("", address))
        ):  # fmt: skip
            raise Conflict(
                Code.FORWARD_EXISTS,
                f"{spec.protocol} port {spec.host_port} of this host leads somewhere already",
                hint="Choose another, or remove that one: serai forward list",
                details={"forward": other.id},
            )
    return msgspec.structs.replace(spec, host_address=address, guest_port=guest_port)


def _check_host_address(text: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is no address") from error
    if address.is_multicast or "%" in text:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} can't be an address of this host")
    return "" if address.is_unspecified else str(address)


# -- the packets that a rule means -----------------------------------------------------------------


def words_of(rule: Rule, *, remote_field: str) -> list[list[Json]]:
    """Return the matches of a stored rule: one list, or one for each IP version where they differ.

    ``remote_field`` is where the other side's address stands: ``saddr`` for what comes in.
    """
    protocol = _protocol_words(rule)
    remotes = _remote_words(rule.remote, remote_field)
    return [[*remote, *protocol] for remote in remotes]


def _protocol_words(rule: Rule) -> list[Json]:
    if rule.protocol is Protocol.ANY:
        return []
    if rule.protocol is Protocol.ICMP:
        return [one_of(L4, ["icmp", "ipv6-icmp"])]
    if not rule.ports:
        return [match(L4, str(rule.protocol))]
    low, high = read_ports(rule.ports)
    ports: object = low if low == high else {"range": [low, high]}
    return [match(payload(str(rule.protocol), "dport"), ports)]


def _remote_words(remote: str, field: str) -> list[list[Json]]:
    if not remote:
        return [[]]
    if remote.startswith(GROUP):
        group = remote.removeprefix(GROUP)
        return [
            [match(payload("ip", field), f"@{members_of(group, 4)}")],
            [match(payload("ip6", field), f"@{members_of(group, 6)}")],
        ]
    prefix = ipaddress.ip_network(remote)
    family = "ip" if prefix.version == 4 else "ip6"
    if not prefix.prefixlen:
        return [[match(payload("ether", "type"), family)]]
    if prefix.prefixlen == prefix.max_prefixlen:
        return [[match(payload(family, field), str(prefix.network_address))]]
    value = {"prefix": {"addr": str(prefix.network_address), "len": prefix.prefixlen}}
    return [[match(payload(family, field), value)]]


def members_of(group_id: str, version: int) -> str:
    """Return the name of the set that has the addresses of a group's ports."""
    return f"members{version}_{group_id.replace('-', '')}"
