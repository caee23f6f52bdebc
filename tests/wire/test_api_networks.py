"""The routes of networks, ports, groups and forwards; answers are checked against the document."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_peer import Inn, served

from serai.model.actions import (
    AddForward,
    AddPort,
    ChangeGroup,
    CreateNetwork,
    LaunchGuest,
    SetNetwork,
    SetPort,
)
from serai.model.guest import GuestSpec
from serai.model.network import (
    Direction,
    ForwardSpec,
    GroupChange,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortLimits,
    PortSpec,
    Protocol,
    Rule,
)

PORTS = "/v1/guests/g1/ports"


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each


async def make(inn: Inn, *names: str) -> None:
    for name in names:
        assert (await inn.ask("POST", "/v1/networks", {"name": name})).status_code == 202


async def test_networks_are_made_shown_changed_and_deleted(inn: Inn) -> None:
    body = {"name": "web", "subnet": "10.20.0.0/24", "mode": "isolated", "dns": ["192.0.2.53"]}
    job = (await inn.ask("POST", "/v1/networks?wait=5", body)).json()
    shown = await inn.ask("GET", f"/v1/networks/{job['results'][0]}")
    assert (shown.json()["gateway"], shown.headers["etag"]) == ("10.20.0.1", '"1"')
    await inn.ask("PATCH", "/v1/networks/web", {"dns": []})
    assert inn.engine.actions == [
        CreateNetwork(
            spec=NetworkSpec(
                name="web", subnet="10.20.0.0/24", mode="isolated", dns=("192.0.2.53",)
            )
        ),
        SetNetwork(network="web", change=NetworkChange(dns=())),
    ]
    await make(inn, "db")
    names = [each["name"] for each in (await inn.ask("GET", "/v1/networks")).json()["items"]]
    assert names == ["db", "web"]
    await inn.ask("DELETE", "/v1/networks/db")
    assert await inn.refused("GET", "/v1/networks/db") == "404 network-not-found"


async def test_what_can_not_be_is_refused(inn: Inn) -> None:
    await make(inn, "web")
    wrong = {
        "409 network-exists": {"name": "web"},
        "400 name-invalid": {"name": "a/b"},
        "400 subnet-invalid": {"name": "x", "subnet": "10.0.0.1/24"},
        "409 subnet-overlap": {"name": "x", "subnet": "10.0.0.0/8"},
        "400 body-invalid": {"name": "x", "mode": "nat64"},
    }
    for code, body in wrong.items():
        assert await inn.refused("POST", "/v1/networks", body) == code
    assert await inn.refused("POST", PORTS, {"network": "nowhere"}) == "404 network-not-found"
    port = {"network": "web", "address": "10.99.0.1"}
    assert await inn.refused("POST", PORTS, port) == "400 address-outside"
    assert await inn.refused("GET", f"{PORTS}/net9") == "404 port-not-found"
    assert await inn.refused("DELETE", "/v1/forwards/x") == "404 forward-not-found"
    rule = {"direction": "in", "protocol": "tcp", "ports": "9-1"}
    assert (
        await inn.refused("POST", "/v1/groups", {"name": "x", "rules": [rule]})
        == "400 rule-invalid"
    )


async def test_a_launch_has_its_ports(inn: Inn) -> None:
    await make(inn, "web")
    await inn.ask(
        "POST", "/v1/guests", {"image": "tiny", "name": "w", "ports": [{"network": "web"}]}
    )
    spec, ports = GuestSpec(image="tiny", name="w"), (PortSpec(network="web"),)
    assert inn.engine.actions[-1] == LaunchGuest(spec=spec, ports=ports)
    [port] = (await inn.ask("GET", "/v1/guests/w")).json()["ports"]
    assert (port["network"], port["address"]) == ("web", "10.1.0.2")
    assert await inn.refused("DELETE", "/v1/networks/web") == "409 network-in-use"


async def test_ports_come_change_and_go(inn: Inn) -> None:
    await make(inn, "web")
    await inn.ask("POST", "/v1/groups", {"name": "www"})
    added = (await inn.ask("POST", f"{PORTS}?wait=5", {"network": "web"})).json()["results"][0]
    limits = {"rate_out": 1000, "burst_in": 0}
    await inn.ask("PATCH", f"{PORTS}/net0", {"groups": ["www"], "limits": limits})
    shown = (await inn.ask("GET", f"{PORTS}/{added}")).json()
    assert (shown["groups"], shown["limits"]["rate_out"], shown["guest"]) == (["www"], 1000, "g1")
    assert inn.engine.actions[2:] == [
        AddPort(guest="g1", spec=PortSpec(network="web")),
        SetPort(
            guest="g1",
            port="net0",
            change=PortChange(groups=("www",), limits=PortLimits(rate_out=1000)),
        ),
    ]
    await inn.ask("DELETE", f"{PORTS}/net0")
    assert (await inn.ask("GET", PORTS)).json() == {"items": [], "next": ""}


async def test_groups_change_in_one_step(inn: Inn) -> None:
    await inn.ask("POST", "/v1/groups", {"name": "www", "note": "täg"})
    rule = {"direction": "in", "protocol": "tcp", "ports": "80", "remote": "group:www"}
    await inn.ask("PATCH", "/v1/groups/www", {"add": [rule]}, headers={"If-Match": '"1"'})
    added = Rule(direction=Direction.IN, protocol=Protocol.TCP, ports="80", remote="group:www")
    assert inn.engine.actions[-1] == ChangeGroup(
        group="www", change=GroupChange(add=(added,)), version=1
    )
    assert len((await inn.ask("GET", "/v1/groups/www")).json()["rules"]) == 1
    assert len((await inn.ask("GET", "/v1/groups")).json()["items"]) == 1
    await inn.ask("DELETE", "/v1/groups/www")
    assert await inn.refused("GET", "/v1/groups/www") == "404 group-not-found"


async def test_forwards_lead_to_one_guest(inn: Inn) -> None:
    body = {"guest": "g1", "host_port": 8080, "guest_port": 80, "protocol": "udp"}
    job = (await inn.ask("POST", "/v1/forwards?wait=5", body)).json()
    spec = ForwardSpec(guest="g1", host_port=8080, guest_port=80, protocol=Protocol.UDP)
    assert inn.engine.actions == [AddForward(spec=spec)]
    assert await inn.refused("POST", "/v1/forwards", body) == "409 forward-exists"
    [shown] = (await inn.ask("GET", "/v1/forwards")).json()["items"]
    assert (shown["id"], shown["guest"], shown["port"]) == (job["results"][0], "g1", "")
    await inn.ask("DELETE", f"/v1/forwards/{shown['id']}")
    assert (await inn.ask("GET", "/v1/forwards")).json()["items"] == []
