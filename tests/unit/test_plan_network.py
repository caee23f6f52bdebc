"""Networks and addresses: what is picked is free and inside, and nobody ever gets what another has."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, Conflict, Invalid, NotFound, SeraiError
from serai.model.network import (
    NetworkChange,
    NetworkMode,
    NetworkSpec,
    Port,
    PortCounters,
    PortLimits,
    PortSpec,
)
from serai.plan.network import (
    bridge_of,
    bubble_of,
    capacity,
    change_network,
    check_limits,
    check_mac,
    check_network,
    check_removal,
    counted,
    gateway6_of,
    gateway_of,
    link_local_of,
    mac_of,
    make_port,
    own_addresses6,
    owner_of,
    pick_subnet,
    pick_transfer,
    shaper_of,
    tap_of,
    uplink_of,
)

LAN = NetworkSpec(name="lan", subnet="10.1.0.0/28", subnet6="fd00:1:2:3::/64")


def port(
    spec: PortSpec, taken: list[Port], *, network: NetworkSpec = LAN, number: int | None = None
) -> Port:
    return make_port(
        spec,
        port_id=f"port-{len(taken) if number is None else number}",
        name="net0",
        network_id="n1",
        network=network,
        groups={"web": "g1", "db": "g2"},
        taken=taken,
    )


def code(error: pytest.ExceptionInfo[SeraiError]) -> Code:
    return error.value.code


# -- names -----------------------------------------------------------------------------------------


@given(st.uuids(), st.uuids())
def test_names_fit_and_follow_from_ids(one: object, other: object) -> None:
    for name_of in (bridge_of, tap_of, uplink_of, lambda each: shaper_of(tap_of(each))):
        assert len(name_of(str(one))) <= 15
        assert (name_of(str(one)) == name_of(str(other))) == (one == other)
    names = {
        bridge_of(str(one)),
        tap_of(str(one)),
        uplink_of(str(one)),
        shaper_of(tap_of(str(one))),
    }
    assert len(names) == 4
    mac = mac_of(str(one))
    assert check_mac(mac) == mac
    assert int(mac[:2], 16) & 3 == 2  # local, unicast
    assert owner_of(str(one)) in bubble_of(owner_of(str(one)), "x")


def test_a_mac_address_gives_itself_addresses() -> None:
    assert link_local_of("02:00:00:00:00:05") == "fe80::ff:fe00:5"
    given_port = port(
        PortSpec(network="lan", mac="02:00:00:00:00:05", address6="fd00:1:2:3::7"), []
    )
    assert own_addresses6(given_port, LAN) == (
        "fe80::ff:fe00:5", "fd00:1:2:3:0:ff:fe00:5", "fd00:1:2:3::7",
    )  # fmt: skip
    assert own_addresses6(given_port, NetworkSpec(name="x")) == ("fe80::ff:fe00:5", "fd00:1:2:3::7")


# -- networks --------------------------------------------------------------------------------------


@st.composite
def subnets(draw: st.DrawFn) -> IPv4Network:
    length = draw(st.integers(9, 30))
    number = draw(st.integers(0, (1 << (length - 8)) - 1))
    return IPv4Network(((10 << 24) | number << (32 - length), length))


@given(st.lists(subnets(), max_size=30))
def test_a_picked_subnet_is_free_and_the_same_each_time(taken: list[IPv4Network]) -> None:
    try:
        picked = pick_subnet(taken)
    except Conflict as error:
        assert error.code is Code.SUBNET_EXHAUSTED
        return
    assert picked.prefixlen == 24 and picked.subnet_of(IPv4Network("10.0.0.0/8"))
    assert not any(picked.overlaps(each) for each in taken)
    assert pick_subnet(list(reversed(taken))) == picked


def test_subnets_are_picked_until_none_is_left() -> None:
    found: list[NetworkSpec] = []
    for number in range(3):
        found.append(
            check_network(NetworkSpec(name=f"n{number}"), others=found, routes=["10.1.1.0/24"])
        )
    assert [each.subnet for each in found] == ["10.1.0.0/24", "10.1.2.0/24", "10.1.3.0/24"]
    half = [IPv4Network("10.128.0.0/9"), IPv4Network("10.0.128.0/17"), IPv4Network("10.1.0.0/16")]
    rest = [IPv4Network(f"10.{n}.0.0/16") for n in range(2, 128)]
    assert str(pick_subnet([*half, *rest])) == "10.0.0.0/24"  # last of all
    with pytest.raises(Conflict) as refused:
        pick_subnet([IPv4Network("10.0.0.0/8")])
    assert code(refused) is Code.SUBNET_EXHAUSTED
    assert pick_transfer([], []) == "100.64.0.0/30"
    assert pick_transfer(["100.64.0.0/30"], ["100.64.0.4/31", "0.0.0.0/0"]) == "100.64.0.8/30"


def test_a_network_is_completed() -> None:
    spec = check_network(NetworkSpec(name="lan", subnet6="FD00:1:2:3:0::/64", dns=("2001:DB8::1",)))
    assert (spec.subnet, spec.subnet6, spec.dns) == (
        "10.1.0.0/24",
        "fd00:1:2:3::/64",
        ("2001:db8::1",),
    )
    assert (gateway_of(spec), gateway6_of(spec)) == ("10.1.0.1", "fd00:1:2:3::1")
    assert capacity(spec) == 253
    bridge = check_network(NetworkSpec(name="lan", mode=NetworkMode.BRIDGE, bridge="br0"))
    assert (bridge.subnet, gateway_of(bridge), gateway6_of(bridge), capacity(bridge)) == (
        "",
        "",
        "",
        0,
    )


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ({"name": "no name"}, Code.NAME_INVALID),
        ({"name": "a" * 64}, Code.NAME_INVALID),
        ({"name": "../../etc"}, Code.NAME_INVALID),
        ({"subnet": "10.0.0.0"}, Code.SUBNET_INVALID),
        ({"subnet": "10.0.0.1/24"}, Code.SUBNET_INVALID),
        ({"subnet": "10.0.0.0/33"}, Code.SUBNET_INVALID),
        ({"subnet": "10.0.0.0/30"}, Code.SUBNET_INVALID),
        ({"subnet": "8.0.0.0/7"}, Code.SUBNET_INVALID),
        ({"subnet": "127.0.0.0/24"}, Code.SUBNET_INVALID),
        ({"subnet": "224.1.0.0/16"}, Code.SUBNET_INVALID),
        ({"subnet": "0.0.0.0/0"}, Code.SUBNET_INVALID),
        ({"subnet": "169.254.1.0/24"}, Code.SUBNET_INVALID),
        ({"subnet": "fd00::/64"}, Code.SUBNET_INVALID),
        ({"subnet": "x" * 1000}, Code.SUBNET_INVALID),
        ({"subnet6": "10.0.0.0/24"}, Code.SUBNET_INVALID),
        ({"subnet6": "fd00::/63"}, Code.SUBNET_INVALID),
        ({"subnet6": "fe80::/64"}, Code.SUBNET_INVALID),
        ({"subnet6": "::/64"}, Code.SUBNET_INVALID),
        ({"dns": ("one.one.one.one",)}, Code.VALUE_INVALID),
        ({"dns": ("224.0.0.1",)}, Code.VALUE_INVALID),
        ({"dns": ("fe80::1%eth0",)}, Code.VALUE_INVALID),
        ({"dns": ("192.0.2.1",) * 9}, Code.VALUE_INVALID),
        ({"bridge": "br0"}, Code.VALUE_INVALID),
        ({"mode": NetworkMode.BRIDGE}, Code.VALUE_INVALID),
        ({"mode": NetworkMode.BRIDGE, "bridge": "br0; reboot"}, Code.VALUE_INVALID),
        ({"mode": NetworkMode.BRIDGE, "bridge": "a-name-too-long-"}, Code.VALUE_INVALID),
        ({"mode": NetworkMode.BRIDGE, "bridge": "br0", "subnet": "10.0.0.0/24"}, Code.SUBNET_INVALID),
        ({"labels": {"": "x"}}, Code.VALUE_INVALID),
        ({"subnet": "10.9.0.0/16"}, Code.SUBNET_OVERLAP),
        ({"subnet": "192.0.2.0/25"}, Code.SUBNET_OVERLAP),
        ({"subnet6": "fd00:9::/64"}, Code.SUBNET_OVERLAP),
    ],
)  # fmt: skip
def test_networks_that_cannot_be(what: dict[str, object], wanted: Code) -> None:
    others = [NetworkSpec(name="old", subnet="10.9.8.0/24", subnet6="fd00:9::/64")]
    spec = NetworkSpec(**{"name": "lan", **what})  # type: ignore[arg-type]
    with pytest.raises(SeraiError) as refused:
        check_network(spec, others=others, routes=["192.0.2.0/24", "0.0.0.0/0", "::/0"])
    assert code(refused) is wanted
    assert refused.value.message


def test_changing_a_network_spares_addresses_in_use() -> None:
    assert change_network(LAN, NetworkChange(dns=("192.0.2.1",))).dns == ("192.0.2.1",)
    assert change_network(LAN, NetworkChange(subnet6=""), ports=0).subnet6 == ""
    plain = msgspec.structs.replace(LAN, subnet6="")
    assert change_network(plain, NetworkChange(subnet6="fd00::/64"), ports=3).subnet6 == "fd00::/64"
    for change in (NetworkChange(subnet6=""), NetworkChange(subnet6="fd00:7::/64")):
        with pytest.raises(Conflict) as refused:
            change_network(LAN, change, ports=1)
        assert code(refused) is Code.NETWORK_IN_USE
    with pytest.raises(Invalid):
        change_network(LAN, NetworkChange())
    check_removal("lan", [])
    with pytest.raises(Conflict) as refused:
        check_removal("lan", [f"web{n}" for n in range(9)])
    assert code(refused) is Code.NETWORK_IN_USE


# -- addresses -------------------------------------------------------------------------------------

WISHES = st.builds(
    PortSpec,
    network=st.just("lan"),
    address=st.one_of(st.just(""), st.integers(0, 17).map(lambda n: str(IPv4Address("10.0.255.255") + n))),
    address6=st.one_of(st.just(""), st.integers(0, 6).map(lambda n: str(IPv6Network(LAN.subnet6)[n]))),
    mac=st.one_of(st.just(""), st.integers(0, 3).map(lambda n: f"02:00:00:00:00:0{n}")),
)  # fmt: skip


@given(st.lists(WISHES, max_size=30))
def test_no_two_ports_are_alike_and_none_is_outside(wishes: list[PortSpec]) -> None:
    ports: list[Port] = []
    for number, wish in enumerate(wishes):
        try:
            ports.append(port(wish, ports, number=number))
        except Conflict as error:
            full = len(ports) == capacity(LAN)
            assert error.code is Code.ADDRESS_TAKEN or (
                error.code is Code.SUBNET_EXHAUSTED and full
            )
        except Invalid as error:
            assert error.code is Code.ADDRESS_OUTSIDE
    subnet, subnet6 = ip_network(LAN.subnet), IPv6Network(LAN.subnet6)
    own6 = [address for each in ports for address in own_addresses6(each, LAN)]
    for values in ([each.address for each in ports], [each.mac for each in ports],
                   [each.tap for each in ports], own6):  # fmt: skip
        assert len(values) == len(set(values))
    for each in ports:
        assert IPv4Address(each.address) in list(subnet.hosts())[1:]
        assert IPv6Address(each.address6) in subnet6
        assert each.address6 not in (str(subnet6[0]), gateway6_of(LAN))


def test_addresses_run_out_and_come_free_in_order() -> None:
    ports: list[Port] = []
    for _ in range(capacity(LAN)):
        ports.append(port(PortSpec(network="lan"), ports))
    assert [each.address for each in ports] == [f"10.1.0.{n}" for n in range(2, 15)]
    with pytest.raises(Conflict) as refused:
        port(PortSpec(network="lan"), ports)
    assert code(refused) is Code.SUBNET_EXHAUSTED
    gone = ports.pop(4)
    assert port(PortSpec(network="lan"), ports, number=99).address == gone.address


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        ({"address": "10.1.0.0"}, Code.ADDRESS_OUTSIDE),
        ({"address": "10.1.0.1"}, Code.ADDRESS_OUTSIDE),
        ({"address": "10.1.0.15"}, Code.ADDRESS_OUTSIDE),
        ({"address": "10.2.0.5"}, Code.ADDRESS_OUTSIDE),
        ({"address": "fd00:1:2:3::5"}, Code.VALUE_INVALID),
        ({"address": "10.1.0.5; drop"}, Code.VALUE_INVALID),
        ({"address": "0.0.0.0"}, Code.VALUE_INVALID),
        ({"address6": "fd00:1:2:3::1"}, Code.ADDRESS_OUTSIDE),
        ({"address6": "fd00:1:2:4::5"}, Code.ADDRESS_OUTSIDE),
        ({"address6": "10.1.0.5"}, Code.VALUE_INVALID),
        ({"mac": "01:00:00:00:00:01"}, Code.VALUE_INVALID),
        ({"mac": "00:00:00:00:00:00"}, Code.VALUE_INVALID),
        ({"mac": "02:00:00:00:00"}, Code.VALUE_INVALID),
        ({"mac": "02:00:00:00:00:01\n"}, Code.VALUE_INVALID),
        ({"address": "10.1.0.2"}, Code.ADDRESS_TAKEN),
        ({"address6": "fd00:1:2:3::77"}, Code.ADDRESS_TAKEN),
        ({"address6": "fd00:1:2:3:0:ff:fe00:5"}, Code.ADDRESS_TAKEN),
        ({"mac": "02-00-00-00-00-05"}, Code.ADDRESS_TAKEN),
        ({"groups": ("nobody",)}, Code.GROUP_NOT_FOUND),
        ({"limits": PortLimits(rate_in=-1)}, Code.VALUE_INVALID),
        ({"limits": PortLimits(rate_in=10)}, Code.VALUE_INVALID),
        ({"limits": PortLimits(burst_out=100000)}, Code.VALUE_INVALID),
    ],
)
def test_ports_that_cannot_be(wish: dict[str, object], wanted: Code) -> None:
    there = [port(PortSpec(network="lan", mac="02:00:00:00:00:05", address6="fd00:1:2:3::77"), [])]
    with pytest.raises((Invalid, Conflict, NotFound)) as refused:
        port(PortSpec(**{"network": "lan", **wish}), there)  # type: ignore[arg-type]
    assert code(refused) is wanted


def test_a_port_knows_its_groups_by_id_and_a_bridge_gives_no_address() -> None:
    made = port(PortSpec(network="lan", groups=("db", "web", "db")), [])
    assert made.groups == ("g2", "g1")
    bridge = NetworkSpec(name="wild", mode=NetworkMode.BRIDGE, bridge="br0")
    made = port(PortSpec(network="wild"), [], network=bridge)
    assert (made.address, made.address6) == ("", "")
    fixed = port(PortSpec(network="wild", address="192.0.2.7"), [], network=bridge)
    assert fixed.address == "192.0.2.7"
    assert check_limits(PortLimits(rate_in=10**9, burst_in=10**6)).rate_in == 10**9


# -- traffic ---------------------------------------------------------------------------------------

COUNTS = st.builds(PortCounters, bytes_in=st.integers(0, 99), spoofed=st.integers(0, 99))


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=20))
def test_what_was_counted_is_never_lost(steps: list[tuple[int, bool]]) -> None:
    """Whatever the kernel forgets in between, all that was seen to grow is in the sum."""
    total = seen = PortCounters()
    kernel = expected = 0
    for grown, is_forgotten in steps:
        if is_forgotten:
            kernel = 0
        kernel += grown
        before = seen.bytes_in
        now = PortCounters(bytes_in=kernel)
        total, seen = counted(total, seen, now), now
        expected += kernel - before if kernel >= before else kernel
    assert total.bytes_in == expected


@given(COUNTS, COUNTS, COUNTS)
def test_sums_only_grow(total: PortCounters, seen: PortCounters, now: PortCounters) -> None:
    after = counted(total, seen, now)
    assert after.bytes_in >= total.bytes_in and after.spoofed >= total.spoofed
