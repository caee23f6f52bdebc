"""What dnsmasq is told: nothing that a guest may choose is in it but its owner's words for it."""

from pathlib import PurePath

import pytest

from serai.model.network import NetworkMode, NetworkSpec, Port
from serai.plan.resolver import Lease, configuration, names, reservations

LAN = NetworkSpec(name="lan", subnet="10.1.0.0/24", subnet6="fd00:1::/64")


def text_of(spec: NetworkSpec, index: int = 7) -> list[str]:
    return configuration(
        spec, bridge="sb1", bridge_index=index, hosts=PurePath("/r/hosts"),
        names=PurePath("/r/names"), leases=PurePath("/r/leases/leases"),
    ).splitlines()  # fmt: skip


def lease(guest: str, number: int) -> Lease:
    port = Port(
        id=f"p{number}", name="net0", network="n", mac=f"02:00:00:00:00:0{number}", tap="st0",
        address=f"10.1.0.{number}", address6=f"fd00:1::{number}",
    )  # fmt: skip
    return Lease(port=port, guest=guest)


def test_reservations_and_names() -> None:
    leases = [lease("web1", 2), lease("web1", 3), lease("db", 4)]
    assert reservations(leases).splitlines() == [
        "02:00:00:00:00:02,10.1.0.2,[fd00:1::2],web1",
        "02:00:00:00:00:03,10.1.0.3,[fd00:1::3]",
        "02:00:00:00:00:04,10.1.0.4,[fd00:1::4],db",
    ]
    assert names(leases[2:], LAN).splitlines() == [
        "10.1.0.1 gateway.lan.internal gateway",
        "fd00:1::1 gateway.lan.internal gateway",
        "10.1.0.4 db.lan.internal db",
        "fd00:1::4 db.lan.internal db",
    ]


@pytest.mark.parametrize(
    ("mode", "dns", "there", "absent"),
    [
        (NetworkMode.NAT, (), {"enable-ra"}, {"no-resolv", "dhcp-option=option:router"}),
        (NetworkMode.NAT, ("192.0.2.1",), {"no-resolv", "server=192.0.2.1"}, set()),
        (
            NetworkMode.ISOLATED,
            ("192.0.2.1",),
            {"no-resolv", "dhcp-option=option:router", "ra-param=*,0,0"},
            {"server=192.0.2.1"},
        ),
    ],
)
def test_who_is_asked_of_outside(
    mode: NetworkMode, dns: tuple[str, ...], there: set[str], absent: set[str]
) -> None:
    lines = set(text_of(NetworkSpec(name="lan", mode=mode, subnet=LAN.subnet, subnet6=LAN.subnet6, dns=dns)))  # fmt: skip
    assert there <= lines and not absent & lines
    always = {"dhcp-range=10.1.0.0,static,255.255.255.0,12h", "interface=sb1", "dhcp-ignore-names",
              "bind-dynamic", "no-hosts", "local=/lan.internal/"}  # fmt: skip
    assert always <= lines


def test_another_bridge_is_another_configuration() -> None:
    assert text_of(LAN, 7) != text_of(LAN, 8)
    assert "enable-ra" not in text_of(NetworkSpec(name="lan", subnet=LAN.subnet))
