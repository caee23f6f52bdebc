"""The commands of networks, ports, rules and forwards, and the SDK's, over an engine in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_stage import Stage, staged

import serai
import serai.aio
from serai.errors import Code, Invalid, SeraiError
from serai.model.actions import AddPort, ChangeGroup, CreateNetwork, LaunchGuest, SetPort
from serai.model.guest import GuestSpec
from serai.model.network import (
    Direction,
    GroupChange,
    NetworkMode,
    NetworkSpec,
    PortChange,
    PortLimits,
    PortSpec,
    Protocol,
    Rule,
)


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(2)
        yield made


@pytest.fixture
def web(stage: Stage) -> Stage:
    """The network web."""
    assert stage.serai("network", "create", "web", "--subnet", "10.20.0.0/24").code == 0
    stage.engine.actions.clear()
    return stage


def test_create_passes_its_options_on_and_says_what_it_made(stage: Stage) -> None:
    words = ["--mode", "isolated", "--subnet6", "fd12:3456:789a:1::/64", "--dns", "192.0.2.53"]
    done = stage.serai("network", "create", "web", *words, "--label", "a=b")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("web is there: 10.1.0.0/24 and fd12:3456:789a:1::/64 (isolated, ")
    spec = NetworkSpec(
        name="web",
        mode=NetworkMode.ISOLATED,
        subnet6="fd12:3456:789a:1::/64",
        dns=("192.0.2.53",),
        labels={"a": "b"},
    )
    assert stage.engine.actions == [CreateNetwork(spec=spec)]
    bridge = stage.serai("network", "create", "lan", "--mode", "bridge=br0")
    assert bridge.text.startswith("lan is there: bridge br0 (bridge, ")


def test_networks_are_listed_shown_changed_and_deleted(web: Stage) -> None:
    lines = web.serai("network", "list").text.splitlines()
    assert lines[1].split() == [
        "web",
        "nat",
        "10.20.0.0/24",
        "-",
        "0",
        "253",
        "-",
        *lines[1].split()[-2:],
    ]
    assert (
        "subnet:    10.20.0.0/24, the host is 10.20.0.1" in web.serai("network", "show", "web").text
    )
    assert web.serai("network", "set", "web", "--dns", "192.0.2.1").text == "web is changed\n"
    assert json.loads(web.serai("network", "show", "web", "--format", "json").out)["dns"] == [
        "192.0.2.1"
    ]
    assert (
        "as the host does"
        in (
            web.serai("network", "set", "web", "--dns", "host"),
            web.serai("network", "show", "web"),
        )[1].text
    )
    assert web.serai("network", "set", "web").code == 2
    assert web.serai("network", "delete", "web").text == "web is deleted\n"
    assert "there are no networks; to make one" in web.serai("network", "list").err


def test_a_launch_at_a_network(web: Stage) -> None:
    web.serai("rules", "create", "www", "--in", "tcp:80")
    at = "web,address=10.20.0.9,mac=02:00:00:00:00:09,group=www"
    done = web.serai("launch", "tiny", "w", "--network", at, "--network", "web")
    assert "w is running at 10.20.0.9, 10.20.0.2, its agent answers" in done.text
    first = PortSpec(network="web", address="10.20.0.9", mac="02:00:00:00:00:09", groups=("www",))
    spec, ports = GuestSpec(image="tiny", name="w"), (first, PortSpec(network="web"))
    assert web.engine.actions[-1] == LaunchGuest(spec=spec, ports=ports)
    assert "10.20.0.9" in web.serai("list").text
    assert "net0:    web, 10.20.0.9, 02:00:00:00:00:09" in web.serai("show", "w").text
    wrong = web.serai("launch", "tiny", "--network", "web,adress=10.20.0.9")
    assert wrong.code == 2 and "'adress=10.20.0.9' says nothing of a port" in wrong.err


def test_ports_come_change_and_go(web: Stage) -> None:
    assert "g0 has QEMU's own network" in web.serai("port", "list", "g0").err
    done = web.serai("port", "add", "g0", "web", "--rate-out", "10MiB")
    assert done.text.startswith("g0 has net0 at web: 10.20.0.2 (")
    web.serai("rules", "create", "www")
    web.serai(
        "port", "set", "g0", "net0", "--group", "www", "--rate-out", "none", "--burst-in", "5k"
    )
    limits = PortLimits(rate_out=10 << 20)
    port_id = web.engine.fabric.ports()[0].port.id
    assert web.engine.actions[0] == AddPort(guest="g0", spec=PortSpec(network="web", limits=limits))
    assert web.engine.actions[-1] == SetPort(
        guest="g0",
        port=port_id,
        change=PortChange(groups=("www",), limits=PortLimits(burst_in=5 << 10)),
    )
    assert "www" in web.serai("port", "list", "g0").text
    assert (
        web.serai("port", "set", "g0", "net0", "--group", "none").text == "net0 of g0 is changed\n"
    )
    assert web.serai("port", "set", "g0", "net0").code == 2
    assert web.serai("port", "remove", "g0", "net0").text == "g0 has net0 no more\n"


def test_rules_are_written_as_they_are_shown(stage: Stage) -> None:
    words = ["--in", "tcp:80", "--in", "any@group:www", "--out", "udp:53@10.0.0.0/8"]
    assert stage.serai("rules", "create", "www", *words).text == "www is there, with 3 rules\n"
    lines = stage.serai("rules", "show", "www").text.splitlines()[-3:]
    assert [line.split() for line in lines] == [
        ["in:", "tcp:80"],
        ["in:", "any@group:www"],
        ["out:", "udp:53@10.0.0.0/8"],
    ]
    assert stage.serai("rules", "remove", "www", "--in", "tcp:80").text == "www has 2 rules now\n"
    assert stage.serai("rules", "add", "www", "--in", "tcp:81").text == "www has 3 rules now\n"
    rule = Rule(direction=Direction.IN, protocol=Protocol.TCP, ports="81")
    assert stage.engine.actions[-1] == ChangeGroup(group="www", change=GroupChange(add=(rule,)))
    assert stage.serai("rules", "add", "www", "--in", "tpc:1").code == 2
    assert stage.serai("rules", "add", "www").code == 2
    assert stage.serai("rules", "list").text.splitlines()[1].split() == ["www", "3", "0"]
    assert stage.serai("rules", "delete", "www").text == "www is deleted\n"


def test_forwards_are_named_by_the_hosts_port(web: Stage) -> None:
    done = web.serai("forward", "add", "g0", "8080:80")
    assert done.text == "*:8080/tcp leads to g0, QEMU:80\n"
    web.serai("port", "add", "g1", "web")
    done = web.serai("forward", "add", "g1", "53", "--udp", "--address", "::1")
    assert done.text == "[::1]:53/udp leads to g1, 10.20.0.2:53\n"
    assert len(web.serai("forward", "list").text.splitlines()) == 3
    assert web.serai("forward", "remove", "53").code == 3
    done = web.serai("forward", "remove", "8080", "53/udp")
    assert done.text == "8080 leads nowhere now\n53/udp leads nowhere now\n"
    assert web.serai("forward", "add", "g0", "http").code == 2


def test_the_sdk_does_all_of_it(stage: Stage) -> None:
    with serai.connect() as inn:
        web = inn.create_network("web", subnet="10.20.0.0/24")
        assert inn.set_network("web", labels={"a": "b"}).labels == {"a": "b"}
        group = inn.create_group("www", inward=["tcp:80"])
        guest = inn.create("tiny", name="w", networks=["web,group=www"])
        assert guest.info.ports[0].address == "10.20.0.2"
        port = guest.add_port("web", rate_in="1MiB")
        assert guest.set_port(port.name, groups=["www"], rate_in=0).limits == PortLimits()
        assert [each.groups for each in guest.ports()] == [("www",), ("www",)]
        assert inn.change_group("www", remove=group.rules).rules == ()
        forward = inn.add_forward("w", 8080, 80)
        assert (forward.address, inn.forwards()) == ("10.20.0.2", [forward])
        inn.remove_forward(forward.id)
        guest.remove_port("net1")
        with pytest.raises(SeraiError) as raised:
            inn.delete_network(web.name)
        assert raised.value.code is Code.NETWORK_IN_USE
        with pytest.raises(Invalid):
            guest.add_port("")


async def test_the_async_sdk_does_all_of_it(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        await inn.create_network("web", subnet="10.20.0.0/24")
        assert [each.name for each in await inn.networks()] == ["web"]
        group = await inn.create_group("www", outward=["any"])
        guest = await inn.launch("tiny", name="w", networks=["web"])
        port = await guest.add_port("web,group=www", rate_in="1MiB")
        assert (await guest.set_port(port.name, groups=[])).groups == ()
        assert len(await guest.ports()) == 2
        assert (await inn.change_group("www", remove=group.rules)).rules == ()
        forward = await inn.add_forward("w", 8080, 80, protocol="udp")
        await inn.remove_forward(forward.id)
        await guest.remove_port("net1")
        await inn.delete_group("www")
        assert await inn.groups() == [] and await inn.forwards() == []
        assert (await inn.set_network("web", dns=["192.0.2.1"])).dns == ("192.0.2.1",)
