"""Rulesets: a difference makes the one of the other in an order that the kernel takes, and is small."""

import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import Code, Conflict, Invalid, NotFound, SeraiError
from serai.model.network import (
    Direction,
    ForwardRecord,
    ForwardSpec,
    GroupRecord,
    GroupSpec,
    NetworkMode,
    NetworkRecord,
    NetworkSpec,
    Port,
    Protocol,
    Rule,
)
from serai.plan.bubbles import leads_on_host
from serai.plan.firewall import build_ruleset
from serai.plan.network import bridge_of, mac_of, tap_of
from serai.plan.nftables import FAMILIES, Json, Ruleset, anew, difference, removal
from serai.plan.rules import check_forward, check_group, check_rule, read_ports, shown_rules

IN, OUT = Direction.IN, Direction.OUT


def some_id(kind: str, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{kind}{number}"))


NETWORKS = [
    NetworkRecord(
        id=some_id("net", number), version=1, created_at=0.0,
        spec=NetworkSpec(name=f"n{number}", mode=mode, subnet=subnet, subnet6=subnet6, bridge=bridge),
    )
    for number, (mode, subnet, subnet6, bridge) in enumerate([
        (NetworkMode.NAT, "10.1.0.0/24", "fd00:1::/64", ""),
        (NetworkMode.ISOLATED, "10.2.0.0/24", "", ""),
        (NetworkMode.ROUTED, "10.3.0.0/24", "", ""),
        (NetworkMode.BRIDGE, "", "", "br0"),
    ])
]  # fmt: skip


def port(number: int, network: int, groups: tuple[int, ...] = ()) -> Port:
    port_id = some_id("port", number)
    return Port(
        id=port_id, name="net0", network=NETWORKS[network].id, mac=mac_of(port_id), tap=tap_of(port_id),
        address=f"10.{network + 1}.0.{number + 2}" if network < 3 else "",
        address6=f"fd00:1::{number + 2:x}" if network == 0 else "",
        groups=tuple(some_id("group", each) for each in groups),
    )  # fmt: skip


RULES = st.builds(
    Rule,
    direction=st.sampled_from(Direction),
    protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]),
    ports=st.sampled_from(["", "80", "8000-8100"]),
    remote=st.sampled_from(
        ["", "192.0.2.7", "10.0.0.0/8", "::/0", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1",
         *(f"group:{some_id('group', number)}" for number in range(3))]
    ),
)  # fmt: skip


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    groups = [
        GroupRecord(
            id=some_id("group", number), version=1, created_at=0.0,
            spec=GroupSpec(name=f"g{number}", rules=tuple(draw(st.lists(RULES, max_size=3)))),
        )
        for number in sorted(draw(st.sets(st.integers(0, 2))))
    ]  # fmt: skip
    numbers = sorted(draw(st.sets(st.integers(0, 5))))
    ports = [
        port(number, draw(st.integers(0, 3)), tuple(sorted(draw(st.sets(st.integers(0, 2))))))
        for number in numbers
    ]
    forwards = [
        ForwardRecord(
            id=some_id("forward", number), guest_id="g", port=some_id("port", number),
            protocol=draw(st.sampled_from([Protocol.TCP, Protocol.UDP])), guest_port=80, created_at=0.0,
            host_address=draw(st.sampled_from(["", "192.0.2.1", "2001:db8::1"])), host_port=8000 + number,
        )
        for number in sorted(draw(st.sets(st.integers(0, 5), max_size=3)))
    ]  # fmt: skip
    networks = [NETWORKS[each] for each in sorted(draw(st.sets(st.integers(0, 3))))]
    bubbles = draw(st.sets(st.sampled_from([("b0", "100.64.0.0/30"), ("b1", "100.64.0.4/30")])))
    return build_ruleset(
        "0123abcd", networks=networks, ports=ports, groups=groups,
        leads=leads_on_host(forwards, ports), bubbles=dict(bubbles)
    )  # fmt: skip


class Kernel:
    """What nftables does with our commands, and what it refuses; one transaction a call."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, str], dict[str, Any]] = {}
        self.chains: dict[tuple[str, str], list[Json]] = {}
        self.tables: set[str] = set()
        self._verbs = {
            "add table": self.add_table, "delete table": self.delete_table,
            "add set": self.add_set, "delete set": self.delete_set,
            "add map": self.add_set, "delete map": self.delete_set,
            "add chain": self.add_chain, "flush chain": self.flush_chain,
            "delete chain": self.delete_chain, "add rule": self.add_rule,
            "add element": self.add_element, "delete element": self.delete_element,
        }  # fmt: skip

    def do(self, commands: list[Json]) -> None:
        for command in commands:
            for verb, what in command.items():
                for kind, body in what.items():  # type: ignore[attr-defined]
                    self._verbs[f"{verb} {kind}"](body)
        for name, elements in self.sets.items():
            for element in elements.values():
                self._check_targets(name[0], element)

    def add_table(self, body: dict[str, Any]) -> None:
        self.tables.add(body["family"])

    def delete_table(self, body: dict[str, Any]) -> None:
        self.tables.remove(body["family"])
        for things in (self.sets, self.chains):
            for name in [name for name in things if name[0] == body["family"]]:
                del things[name]

    def _name(self, body: dict[str, Any]) -> tuple[str, str]:
        assert body["family"] in self.tables
        return body["family"], body["name"]

    def add_set(self, body: dict[str, Any]) -> None:
        self.sets.setdefault(self._name(body), {})

    def delete_set(self, body: dict[str, Any]) -> None:
        name = self._name(body)
        family_rules = [
            rule
            for (family, _), rules in self.chains.items()
            if family == name[0]
            for rule in rules
        ]
        used = msgspec.json.encode(family_rules).decode()
        assert f'"@{name[1]}"' not in used, f"{name} is still used"
        del self.sets[name]

    def add_chain(self, body: dict[str, Any]) -> None:
        self.chains.setdefault(self._name(body), [])

    def flush_chain(self, body: dict[str, Any]) -> None:
        self.chains[self._name(body)].clear()

    def delete_chain(self, body: dict[str, Any]) -> None:
        family, chain = self._name(body)
        everything = [
            (name, thing)
            for things in (self.sets, self.chains)
            for name, thing in things.items()
            if name[0] == family
        ]
        assert f'"target":"{chain}"' not in msgspec.json.encode([t for _, t in everything]).decode()
        assert not self.chains[family, chain]
        del self.chains[family, chain]

    def add_element(self, body: dict[str, Any]) -> None:
        there = self.sets[self._name(body)]
        for element in body["elem"]:
            key = self._key(element)
            assert key not in there, f"{key} is there already"
            self._check_targets(body["family"], element)
            there[key] = element

    def delete_element(self, body: dict[str, Any]) -> None:
        for element in body["elem"]:
            del self.sets[self._name(body)][self._key(element)]

    def add_rule(self, body: dict[str, Any]) -> None:
        family = body["family"]
        self._check_targets(family, body["expr"])
        for used in _texts(body["expr"]):
            assert not used.startswith("@") or (family, used[1:]) in self.sets, f"no set {used}"
        self.chains[family, body["chain"]].append(body["expr"])

    def _check_targets(self, family: str, thing: object) -> None:
        for target in _targets(thing):
            assert (family, target) in self.chains, f"no chain {target}"

    @staticmethod
    def _key(element: Any) -> str:
        key = element[0] if isinstance(element, list) else element
        return msgspec.json.encode(key).decode()


def _walk(thing: object) -> list[object]:
    inner = list(thing.values()) if isinstance(thing, dict) else thing
    if not isinstance(inner, list | tuple):
        return [thing]
    return [thing, *(each for part in inner for each in _walk(part))]


def _texts(thing: object) -> list[str]:
    return [each for each in _walk(thing) if isinstance(each, str)]


def _targets(thing: object) -> list[str]:
    return [
        str(each["target"]) for each in _walk(thing) if isinstance(each, dict) and "target" in each
    ]


def _state(kernel: Kernel) -> tuple[object, object]:
    return (
        {name: set(elements) for name, elements in kernel.sets.items()},
        {
            name: [msgspec.json.encode(rule) for rule in rules]
            for name, rules in kernel.chains.items()
        },
    )


@settings(max_examples=25, deadline=None)
@given(rulesets(), rulesets())
def test_a_difference_makes_the_one_of_the_other(before: Ruleset, after: Ruleset) -> None:
    stepwise, at_once = Kernel(), Kernel()
    stepwise.do(difference(None, before))
    stepwise.do(difference(before, after))
    at_once.do(anew(after))
    assert _state(stepwise) == _state(at_once)
    assert difference(after, after) == []
    stepwise.do(anew(before))
    at_once.do(difference(after, before))
    assert _state(stepwise) == _state(at_once)
    stepwise.do(removal(before.table))
    assert not stepwise.tables and not stepwise.sets and not stepwise.chains


def test_a_rule_and_a_port_are_a_handful_of_commands() -> None:
    group = GroupRecord(
        id=some_id("group", 0), version=1, created_at=0.0, spec=GroupSpec(name="web")
    )
    ports = [port(number, 0, (0,)) for number in range(200)]
    rules = (Rule(direction=IN, protocol=Protocol.TCP, ports="80"), Rule(direction=OUT))
    other = msgspec.structs.replace(group, spec=GroupSpec(name="web", rules=rules))

    def ruleset(count: int, of: GroupRecord) -> Ruleset:
        return build_ruleset("a", networks=NETWORKS, ports=ports[:count], groups=[of])

    whole = ruleset(200, group)
    assert len(difference(whole, ruleset(200, other))) <= 4
    one_less = difference(whole, ruleset(199, group))
    assert len(one_less) < 25
    touched = {
        body["name"] for each in one_less for what in each.values() for body in what.values()
    }  # type: ignore[attr-defined]
    assert f"neighbour_{ports[-1].tap}" in touched


def test_what_a_ruleset_says_of_networks() -> None:
    made = build_ruleset("a", networks=NETWORKS, ports=[port(n, n) for n in range(4)])
    names = [bridge_of(each.id) for each in NETWORKS]

    def keys(family: str, name: str) -> set[tuple[str, ...]]:
        return set(made.sets[family, name].elements)

    assert keys("inet", "bridges") == {(each,) for each in names[:3]}
    assert keys("inet", "isolated") == {(names[1],)}
    assert keys("inet", "guarded") == {(names[0],)}
    assert keys("inet", "natted4") == {("10.1.0.0/24",)}
    assert keys("bridge", "strangers") == {(port(3, 3).tap,)}
    assert len(keys("bridge", "own4")) == 3
    unknown = build_ruleset("a", networks=NETWORKS[:1], ports=[port(1, 1)])
    assert not unknown.sets["bridge", "taps"].elements
    assert {family for family, _ in made.sets} == set(FAMILIES)
    assert made.shape == unknown.shape


# -- rules, groups, forwards ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        {"ports": "80"},
        {"protocol": Protocol.ICMP, "ports": "80"},
        *({"protocol": Protocol.TCP, "ports": ports} for ports in
          ("http", "0", "65536", "90-80", "80-", "-80", "80,443", "8 0", "٨٠", "1" * 99, "80;drop")),
        *({"remote": remote} for remote in
          ("nowhere", "10.0.0.1/8", "10.0.0.0/33", "@members4", "fe80::1%eth0", "x" * 999)),
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_cannot_be(what: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        check_rule(Rule(direction=IN, **what))
    assert refused.value.code is Code.RULE_INVALID
    assert len(refused.value.message) < 300


def test_rules_in_normal_form() -> None:
    rule = Rule(direction=IN, protocol=Protocol.TCP, ports="080-80", remote="2001:DB8::1/128")
    assert check_rule(rule) == Rule(
        direction=IN, protocol=Protocol.TCP, ports="80", remote="2001:db8::1"
    )
    assert check_rule(Rule(direction=OUT, remote="10.0.0.0/8")).remote == "10.0.0.0/8"
    assert read_ports("8000-8100") == (8000, 8100)


def test_groups_name_each_other_by_id() -> None:
    rules = (Rule(direction=IN, remote="group:web"), Rule(direction=IN, remote="group:web"), Rule(direction=OUT))  # fmt: skip
    stored = check_group(GroupSpec(name="db", rules=rules), {"db": "1-2", "web": "3-4"})
    assert [rule.remote for rule in stored.rules] == ["group:3-4", ""]
    assert shown_rules(stored.rules, {"3-4": "web"}) == rules[1:]
    with pytest.raises(NotFound) as refused:
        check_group(GroupSpec(name="db", rules=rules), {"db": "1-2"})
    assert refused.value.code is Code.GROUP_NOT_FOUND
    for spec in (
        GroupSpec(name="No"),
        GroupSpec(name="db", note="a\nb"),
        GroupSpec(name="db", rules=tuple(Rule(direction=IN, protocol=Protocol.TCP, ports=str(n)) for n in range(1, 202))),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            check_group(spec, {"db": "1"})


def test_forwards() -> None:
    def forward(**what: Any) -> ForwardSpec:
        return ForwardSpec(**{"guest": "web1", "host_port": 8080, **what})

    there = ForwardRecord(
        id="f1", guest_id="g", port="p", protocol=Protocol.TCP, host_address="192.0.2.1",
        host_port=8080, guest_port=80, created_at=0.0,
    )  # fmt: skip
    assert check_forward(forward(), []).guest_port == 8080
    assert check_forward(forward(host_address="0.0.0.0"), []).host_address == ""
    assert check_forward(forward(protocol=Protocol.UDP, guest_port=53), [there]).guest_port == 53
    assert check_forward(forward(host_address="192.0.2.2"), [there]).host_address == "192.0.2.2"
    for what, wanted in (
        ({}, Code.FORWARD_EXISTS),
        ({"host_address": "192.0.2.1"}, Code.FORWARD_EXISTS),
        ({"host_port": 0}, Code.VALUE_INVALID),
        ({"host_port": 65536}, Code.VALUE_INVALID),
        ({"guest_port": -1}, Code.VALUE_INVALID),
        ({"protocol": Protocol.ICMP}, Code.VALUE_INVALID),
        ({"host_address": "localhost"}, Code.VALUE_INVALID),
        ({"host_address": "224.0.0.1"}, Code.VALUE_INVALID),
    ):
        with pytest.raises((Invalid, Conflict)) as refused:
            check_forward(forward(**what), [there])
        error: SeraiError = refused.value
        assert error.code is wanted, what
