"""Networks with real guests: they talk, are kept apart, find each other, and keep their addresses.

The daemon and all that it makes are in a network namespace that the test makes, so that the network of
the machine that runs the tests is never touched.
"""

import concurrent.futures
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Daemon, wait_for
from namespaced import in_namespace, left_of_networks, open_daemon, open_namespace, resolvers
from nursery import Nursery
from warm import WARM, WARM_PORT, copy_warm, state_with_warm

from serai import Guest, SeraiError
from serai.engine.site import SHORT_LIFE
from serai.errors import Code
from serai.host.namespaces import inside
from serai.model.network import PortCounters

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks need root")

GREET = "(while :; do echo hello from {name} | nc -l -p {port}; done) >/dev/null 2>&1 &"


@pytest.fixture
def namespace() -> Iterator[str]:
    with open_namespace() as name:
        yield name


@pytest.fixture
def daemon(serai_home: Path, namespace: str, nursery: Nursery) -> Iterator[Daemon]:
    copy_warm(state_with_warm(), serai_home)
    with open_daemon(serai_home, namespace, nursery) as keeper:
        yield keeper


def pings(guest: Guest, target: str) -> bool:
    return guest.run(f"ping -c 1 -W 2 {target}").ok


def fetches(guest: Guest, address: str, port: int) -> str:
    return guest.run(f"nc -w 2 {address} {port} </dev/null").stdout.strip()


def heard(namespace: str, port: int) -> bytes:
    """Return what somebody says who connects to a port of the host."""

    def dial() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connected:
            return connected.recv(100)

    return inside(namespace, dial)


def launch_all(daemon: Daemon, **networks: tuple[str, ...]) -> list[Guest]:
    """Launch guests in these networks; they have booted elsewhere, in another one.

    A guest that boots with a port is in the tests of what happens to its network or its host.
    """

    def launch(name: str) -> Guest:
        image = WARM_PORT if networks[name] else WARM
        return daemon.inn.launch(image, name=name, networks=networks[name])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(launch, networks))


def refused(call: object, *arguments: object, **more: object) -> str:
    with pytest.raises(SeraiError) as raised:
        call(*arguments, **more)  # type: ignore[operator]
    assert raised.value.hint or raised.value.code is Code.VALUE_INVALID
    return raised.value.code


def counters(guest: Guest, port: str = "net0") -> PortCounters:
    return next(each.counters for each in guest.ports() if each.name == port)


def test_guests_on_two_networks(daemon: Daemon, namespace: str) -> None:
    inn = daemon.inn
    inn.create_network("web", subnet="10.20.0.0/24", subnet6="fd12:3456:789a:1::/64")
    inn.create_network("db", subnet="10.30.0.0/24")
    inn.create_group("www", inward=["tcp:80"])
    one, two, three = launch_all(
        daemon,
        one=("web,address=10.20.0.50",),
        two=("web", "db"),
        three=("db,group=www",),
    )
    assert one.info.ports[0].address == "10.20.0.50"
    assert two.info.ports[0].address == "10.20.0.2"
    wait_for("IPv6 by its name", lambda: pings(one, "two"))
    wait_for("their names in each network", lambda: pings(three, "two"))
    wait_for("names of the other network", lambda: pings(two, "one"))
    assert not pings(one, three.info.ports[0].address), "networks are kept apart"

    _rules_hold_at_once(daemon, two, three)
    _what_is_spoofed_is_dropped(one, two)
    _a_port_comes_and_goes(one, three)
    _a_forward_leads_in(daemon, namespace, two)
    _a_fork_is_somebody_new(daemon, namespace, one, two, three)


def _rules_hold_at_once(daemon: Daemon, two: Guest, three: Guest) -> None:
    address = three.info.ports[0].address
    for port in (80, 81):
        three.run(GREET.format(port=port, name="three"))
    assert fetches(two, address, 80) == "hello from three"
    before = counters(three).refused_in
    assert fetches(two, address, 81) == "" and not pings(two, address)
    assert counters(three).refused_in > before
    assert daemon.run("rules", "add", "www", "--in", "tcp:81").returncode == 0
    assert fetches(two, address, 81) == "hello from three"
    three.set_port("net0", groups=[])
    assert pings(two, "three")


def _what_is_spoofed_is_dropped(one: Guest, two: Guest) -> None:
    own = two.info.ports[0]
    assert counters(two).spoofed == 0
    two.run("ip address add 10.20.0.99/32 dev eth0")
    assert not two.run("ping -c 2 -W 1 -I 10.20.0.99 10.20.0.50").ok, "another's address"
    seen = counters(two).spoofed
    assert seen > 0
    two.run("ip address del 10.20.0.99/32 dev eth0; ip link set eth0 address 02:00:00:00:00:99")
    assert not pings(two, "10.20.0.50"), "another's MAC address"
    assert counters(two).spoofed > seen
    two.run(f"ip link set eth0 address {own.mac}")
    assert pings(two, "10.20.0.50")
    assert counters(one).spoofed == 0


def _a_port_comes_and_goes(one: Guest, three: Guest) -> None:
    added = one.add_port("db", rate_out="1MiB")
    assert one.refresh().info.ports[1].address == added.address
    wait_for("a lease", lambda: added.address in one.run("ip address").stdout)
    wait_for("names of both networks", lambda: pings(one, "three") and pings(one, "two"))
    one.remove_port(added.name)
    assert "eth1" not in one.run("ip link").stdout
    assert [each.name for each in one.ports()] == ["net0"]
    wait_for("names of the network that is left", lambda: pings(one, "two"))
    assert not pings(one, "three")


def _a_forward_leads_in(daemon: Daemon, namespace: str, two: Guest) -> None:
    two.run(GREET.format(port=80, name="two"))
    assert daemon.run("forward", "add", "two", "8080:80").returncode == 0
    assert daemon.inn.forwards()[0].address == two.info.ports[0].address

    assert heard(namespace, 8080) == b"hello from two\n"
    assert refused(daemon.inn.add_forward, "one", 8080) == Code.FORWARD_EXISTS
    assert daemon.run("forward", "remove", "8080").returncode == 0


def _a_fork_is_somebody_new(
    daemon: Daemon, namespace: str, one: Guest, two: Guest, three: Guest
) -> None:
    fork = two.fork(name="four")
    before, after = two.refresh().info.ports, fork.info.ports
    assert [each.network for each in after] == ["web", "db"]
    for old, new in zip(before, after, strict=True):
        assert (
            old.address != new.address and old.mac != new.mac and old.address6 != new.address6
        ) or not old.address6
    assert pings(one, after[0].address), "it has its new address at once"
    begun = time.monotonic()
    wait_for("its IPv6", lambda: pings(one, after[0].address6), limit=10)
    print(f"its IPv6 address answers {time.monotonic() - begun:.2f} s later")
    dad = "cat /proc/sys/net/ipv6/conf/eth[01]/accept_dad"
    wait_for("what it asks for is looked for again", lambda: fork.run(dad).stdout == "1\n1\n")
    wait_for("its name", lambda: pings(three, "four"))
    assert pings(two, after[1].address) and pings(fork, "10.20.0.50")
    assert fork.run("hostname").stdout == "four\n"
    assert pings(one, two.info.ports[0].address), "its source is as before"
    fork.publish("warm")
    other = daemon.inn.launch("warm", name="other", networks=["db"])
    assert [(each.name, each.network) for each in other.info.ports] == [("net0", "db")]
    wait_for("who was asked to be elsewhere is there", lambda: pings(other, "three"))
    assert not pings(other, "10.20.0.50") and not pings(other, "one")
    assert "eth1" not in other.run("ip link").stdout
    other.delete(force=True)
    daemon.inn.delete_image("warm")
    known = ["ip", "neigh", "show", after[0].address]
    in_namespace(namespace, "ping", "-c", "1", after[0].address)
    assert after[0].mac in in_namespace(namespace, *known)
    daemon.run("delete", "--force", "four")
    assert in_namespace(namespace, *known) == "", "the next one with it is looked for"
    again = two.fork(name="five").info.ports[0].address
    assert again == after[0].address, "it is free again"
    wait_for("the next one has it", lambda: pings(one, again))


def test_addresses_stay_through_everything(daemon: Daemon, namespace: str) -> None:
    inn = daemon.inn
    inn.create_network("web")
    one, two, alone = launch_all(daemon, one=("web",), two=("web",), alone=())
    before = one.info.ports
    alone.run(GREET.format(port=80, name="alone"))
    wait_for("it has an address", lambda: "10.0.2." in alone.run("ip -4 address").stdout)
    inn.add_forward("alone", 8081, 80)
    assert heard(namespace, 8081) == b"hello from alone\n", "by QEMU's own network"
    alone.snapshot()
    assert heard(namespace, 8081) == b"hello from alone\n", "its new QEMU forwards too"
    wait_for("their names", lambda: pings(one, "two"))
    passed = counters(one)

    daemon.kill()
    daemon.start()
    one, two = (daemon.inn.guest(name) for name in ("one", "two"))
    assert one.info.ports == before and pings(one, "two")
    assert counters(one).bytes_out > passed.bytes_out

    for pid in resolvers(namespace):  # somebody meddles
        os.kill(pid, signal.SIGKILL)
    in_namespace(namespace, "nft", "flush", "ruleset")
    in_namespace(namespace, "ip", "link", "set", daemon.inn.network("web").interface, "down")
    in_namespace(namespace, "ip", "link", "delete", two.ports()[0].interface)
    wait_for("all is put back", lambda: pings(one, "two"), limit=60)
    assert two.run("cat /sys/class/net/eth*/address").stdout.strip() == two.info.ports[0].mac

    daemon.stop()  # the host goes down
    passed = _lose_everything(daemon, namespace, one)
    daemon.start()
    assert left_of_networks(namespace) != []
    for name in ("one", "two"):
        daemon.inn.guest(name).start()
    one, two = (_reach(daemon, name) for name in ("one", "two"))
    assert one.info.ports == before and two.info.ports[0].address != before[0].address
    wait_for("their leases", lambda: pings(one, "two"))
    assert counters(one).bytes_out > passed.bytes_out


def _reach(daemon: Daemon, name: str) -> Guest:
    guest = daemon.inn.guest(name)
    wait_for(f"the agent of {name}", lambda: guest.refresh().info.agent == "answering", limit=60)
    return guest


def _lose_everything(daemon: Daemon, namespace: str, guest: Guest) -> PortCounters:
    """Leave nothing of guests and networks, as a host that goes down does."""
    passed = PortCounters()
    for pid in (*daemon.qemu_pids().values(), *resolvers(namespace)):
        os.kill(pid, signal.SIGKILL)
        wait_for("its end", lambda pid=pid: not Path(f"/proc/{pid}/stat").exists())  # type: ignore[misc]
    for line in in_namespace(namespace, "ip", "-br", "link").splitlines():
        name = line.split()[0]
        if name != "lo":
            subprocess.run(["ip", "netns", "exec", namespace, "ip", "link", "delete", name])
    in_namespace(namespace, "nft", "flush", "ruleset")
    assert left_of_networks(namespace) == []
    return passed


def test_what_can_not_be_is_refused(daemon: Daemon) -> None:
    inn = daemon.inn
    began = time.monotonic()
    inn.create_network("web", subnet="10.20.0.0/29")
    guest = inn.create("tiny", name="one", networks=["web"])
    assert guest.info.ports[0].address == "10.20.0.2", "known before it is up"
    wrong = {
        Code.SUBNET_OVERLAP: lambda: inn.create_network("x", subnet="10.20.0.0/16"),
        Code.SUBNET_INVALID: lambda: inn.create_network("x", subnet="10.20.0.1/16"),
        Code.NETWORK_EXISTS: lambda: inn.create_network("web"),
        Code.BRIDGE_MISSING: lambda: inn.create_network("x", mode="bridge=br77"),
        Code.NAME_INVALID: lambda: inn.create_network("../x y"),
        Code.NETWORK_IN_USE: lambda: inn.delete_network("web"),
        Code.NETWORK_NOT_FOUND: lambda: guest.add_port("nowhere"),
        Code.ADDRESS_OUTSIDE: lambda: guest.add_port("web,address=10.99.0.1"),
        Code.ADDRESS_TAKEN: lambda: guest.add_port("web,address=10.20.0.2"),
        Code.GROUP_NOT_FOUND: lambda: guest.add_port("web,group=nobody"),
        Code.PORT_NOT_FOUND: lambda: guest.remove_port("net7"),
        Code.RULE_INVALID: lambda: inn.create_group("x", inward=["tcp:99999"]),
        Code.FORWARD_NOT_FOUND: lambda: inn.remove_forward("8080"),
    }
    for code, call in wrong.items():
        assert refused(call) == code
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda _: _try(guest), range(12)))
    assert sorted(many)[:4] == ["10.20.0.3", "10.20.0.4", "10.20.0.5", "10.20.0.6"]
    assert many.count(Code.SUBNET_EXHAUSTED) == 8
    assert len({each.name for each in guest.ports()}) == 5
    assert time.monotonic() > began


def _try(guest: Guest) -> str:
    try:
        return guest.add_port("web").address
    except SeraiError as error:
        return error.code


def test_what_answers_dhcp_and_names_is_back_at_once(daemon: Daemon, namespace: str) -> None:
    daemon.inn.create_network("web")
    guest = daemon.inn.launch("tiny", name="one", memory="128MiB", networks=["web"])
    took = [_come_back(guest, namespace) for _ in range(2)]
    daemon.kill()
    daemon.start()  # it is no child of this one
    took.append(_come_back(daemon.inn.guest("one"), namespace))
    print(f"back after {', '.join(f'{each * 1000:.0f} ms' for each in took)}")
    by_event = daemon.log.read_text().count("since it had ended")
    assert by_event >= 2, (
        "the reconciler, which comes every 10 s, may have been there by chance once"
    )
    assert sorted(took)[1] < 5
    assert guest.run("udhcpc -i eth0 -n -q").ok


def _come_back(guest: Guest, namespace: str) -> float:
    """Kill what answers for the network; return after how many seconds it answers the guest again."""
    wait_for("names", lambda: guest.run("nslookup gateway").ok)
    [pid] = resolvers(namespace)
    wait_for("it has run for some time", lambda: _age(pid) > SHORT_LIFE + 1)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for("another", lambda: resolvers(namespace) not in ([], [pid]))
    wait_for("names again", lambda: guest.run("nslookup gateway").ok)
    return time.monotonic() - killed


def _age(pid: int) -> float:
    """Return for how many seconds a process has run."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
