"""Forks that keep their addresses, each group in a bubble: they see each other and nobody else.

The daemon is in a network namespace that the test makes, joined by a wire to another one, the world
outside. Bubbles are namespaces that the daemon makes.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Daemon, wait_for
from namespaced import bubbles, in_namespace, open_daemon, open_namespace, resolvers
from nursery import Nursery
from warm import WARM_PORT, copy_warm, state_with_warm

from serai import Guest, SeraiError
from serai.errors import Code
from serai.host.namespaces import inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks need root")

GREET = "(while :; do echo hello from {name} | nc -l -p {port}; done) >/dev/null 2>&1 &"
HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"
HOST6, OUTSIDE6 = "2001:db8::1", "2001:db8::2"
TELL = """(while :; do { read a; read a; read r; } </proc/timer_list
echo $r >>/tmp/told; echo $r; usleep 1000; done | nc two 9000) >/dev/null 2>&1 &"""
"""It says the time in nanoseconds: a fork never says again what its source has said meanwhile."""
HEAR = "(sleep 100000 | nc -l -p 9000 >>/tmp/heard) >/dev/null 2>&1 &"


@pytest.fixture
def namespace() -> Iterator[str]:
    with open_namespace() as name:
        yield name


@pytest.fixture
def outside(namespace: str) -> Iterator[str]:
    """The world outside of the host; it knows no way to any network of ours."""
    with open_namespace("-out") as name:
        peer = ["type", "veth", "peer", "name", "wire", "netns", name]
        in_namespace(namespace, "ip", "link", "add", "wire", *peer)
        for space, address, address6 in ((namespace, HOST, HOST6), (name, OUTSIDE, OUTSIDE6)):
            in_namespace(space, "ip", "address", "add", f"{address}/24", "dev", "wire")
            in_namespace(space, "ip", "address", "add", f"{address6}/64", "dev", "wire", "nodad")
            in_namespace(space, "ip", "link", "set", "wire", "up")
        yield name


@pytest.fixture
def daemon(serai_home: Path, namespace: str, outside: str, nursery: Nursery) -> Iterator[Daemon]:
    copy_warm(state_with_warm(), serai_home)
    with open_daemon(serai_home, namespace, nursery) as keeper:
        yield keeper


def pings(guest: Guest, target: str) -> bool:
    return guest.run(f"ping -c 1 -W 2 {target}").ok


def reached(guest: Guest, *targets: str) -> list[str]:
    """Return which of them answer, all being asked at once."""
    words = "for each; do (ping -c 1 -W 2 $each >/dev/null && echo $each) & done; wait"
    return guest.run(["sh", "-c", words, "sh", *targets]).stdout.split()


def fetches(guest: Guest, address: str, port: int) -> str:
    return guest.run(f"nc -w 2 {address} {port} </dev/null").stdout.strip()


def answer(guest: Guest, address: str, port: int) -> str:
    """Return what is said there; between two answers nobody listens for a moment."""
    said = [""]

    def is_said() -> bool:
        said[0] = fetches(guest, address, port)
        return bool(said[0])

    wait_for("an answer", is_said, limit=20)
    return said[0]


def greet(guest: Guest, port: int) -> None:
    guest.run(GREET.format(port=port, name=guest.name))


def caller_of(guest: Guest, outside: str, own: str = OUTSIDE) -> str:
    """Let the guest call a server outside; return the address that the server saw."""
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    server = inside(outside, lambda: socket.create_server((own, 0), family=family))
    seen: list[str] = []

    def serve() -> None:
        server.settimeout(20)
        there, address = server.accept()
        with there:
            there.sendall(b"welcome\n")
            seen.append(address[0])

    with server:
        serving = threading.Thread(target=serve)
        serving.start()
        said = fetches(guest, own, server.getsockname()[1])
        serving.join()
    return seen[0] if said == "welcome" else said


def said_at(namespace: str, address: str, port: int) -> str:
    """Return what is said to who connects from a namespace; between two answers nobody listens."""
    said = [b""]

    def is_said() -> bool:
        with (
            contextlib.suppress(OSError),
            inside(namespace, lambda: socket.create_connection((address, port), 2)) as there,
        ):
            said[0] = there.recv(100)
        return bool(said[0])

    wait_for("an answer", is_said, limit=20)
    return said[0].decode().strip()


def is_refused(namespace: str, address: str, port: int) -> bool:
    """Send something by UDP; tell whether the answer is that nobody listens there."""
    with inside(namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asker:
        asker.settimeout(5)
        asker.connect((address, port))
        asker.send(b"anybody there?")
        try:
            asker.recv(100)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            pass
        return False


def lines_in(guest: Guest, path: str) -> list[str]:
    """Return the whole lines of a file."""
    return guest.run(f"cat {path}").stdout.split("\n")[:-1]


def pings_heard(guest: Guest) -> int:
    """Return how many pings have reached it; of other frames there are always some."""
    return counted(guest, "Icmp", "InEchos")


def counted(guest: Guest, protocol: str, name: str) -> int:
    """Return what the guest's kernel has counted."""
    names, values = guest.run(f"grep ^{protocol}: /proc/net/snmp").stdout.splitlines()
    return int(values.split()[names.split().index(name)])


def pair(daemon: Daemon) -> tuple[Guest, Guest]:
    one, two = (
        daemon.inn.launch(WARM_PORT, name=name, networks=["web"]) for name in ("one", "two")
    )
    wait_for("their leases", lambda: pings(one, "two") and pings(two, "one"))
    return one, two


def test_two_bubbles_of_the_same_pair(daemon: Daemon, namespace: str, outside: str) -> None:
    inn = daemon.inn
    inn.create_network("web", subnet="10.20.0.0/24", subnet6="fd12:3456:789a:1::/64")
    inn.create_network("open", subnet="10.30.0.0/24", mode="routed")
    one, two = pair(daemon)
    third = inn.launch(WARM_PORT, name="three", networks=["open"])
    greet(two, 80)
    inn.add_forward("two", 8080, 80)
    words = ["fork", "one", "twin", "--with", "two", "--keep-identity", "--count", "2"]
    said = daemon.run(*words)
    assert said.returncode == 0, said.stderr
    first, second = (
        (inn.guest(f"twin-{number}-one"), inn.guest(f"twin-{number}-two")) for number in (1, 2)
    )
    assert len(bubbles(daemon.home)) == 2
    assert inn.network("web").bubbles == 2 and inn.network("web").ports == 2

    for mine in (first, second):
        greet(mine[1], 81)
        for old, new in zip((one, two), mine, strict=True):
            assert new.info.ports[0].address == old.info.ports[0].address
            assert new.info.ports[0].mac == old.info.ports[0].mac
            assert new.info.ports[0].known_as == old.name
            assert new.run("hostname").stdout == old.run("hostname").stdout
    _each_pair_is_by_itself((one, two), first, second)
    _nobody_gets_out_of_his_bubble(third, first, outside)
    _addresses_are_asked_for_anew(first)
    _forwards_lead_in(daemon, first, second, (namespace, outside))
    _names_in_a_bubble(daemon, first)
    _a_port_of_another_network(inn, first)
    _all_is_there_after_the_daemon_and_the_host(daemon, outside)

    assert daemon.run("delete", "--force", "twin-1-one").returncode == 0
    assert len(bubbles(daemon.home)) == 2
    assert daemon.run("delete", "--force", "twin-1-two").returncode == 0
    assert len(bubbles(daemon.home)) == 1, "a bubble goes with its last guest"
    assert pings(inn.guest("twin-2-one"), "two")


def _each_pair_is_by_itself(
    originals: tuple[Guest, Guest], first: tuple[Guest, Guest], second: tuple[Guest, Guest]
) -> None:
    address = originals[1].info.ports[0].address
    before = pings_heard(originals[1]), pings_heard(originals[0])
    for mine in (first, second):
        for target in ("two", address):
            assert answer(mine[0], target, 81) == f"hello from {mine[1].name}"
        assert pings(mine[1], "one")
    assert (pings_heard(originals[1]), pings_heard(originals[0])) == before, (
        "they heard nothing of it"
    )
    assert fetches(originals[0], address, 81) == ""
    assert answer(originals[0], address, 80) == "hello from two"
    heard = pings_heard(second[1])
    assert answer(first[0], address, 81) == f"hello from {first[1].name}"
    own = pings_heard(first[1])
    assert pings(first[0], address) and pings_heard(first[1]) == own + 1
    assert pings_heard(second[1]) == heard, "the other bubble heard nothing of it"


def _nobody_gets_out_of_his_bubble(third: Guest, first: tuple[Guest, Guest], outside: str) -> None:
    assert caller_of(first[0], outside) == HOST, "out through NAT"
    transfers = ("100.64.0.2", "100.64.0.6")
    beyond = (OUTSIDE, third.info.ports[0].address, transfers[1])
    assert reached(first[0], *beyond) == [OUTSIDE], "into a network of the host, another bubble"
    assert fetches(first[0], HOST, 8080) == "", "to an original by a forward"
    assert reached(third, HOST, *transfers) == [HOST], "into a bubble"


def _addresses_are_asked_for_anew(mine: tuple[Guest, Guest]) -> None:
    address = mine[0].info.ports[0].address
    told = mine[0].run("udhcpc -i eth0 -n -q 2>&1")
    assert told.ok and address in told.stdout


def _forwards_lead_in(
    daemon: Daemon,
    first: tuple[Guest, Guest],
    second: tuple[Guest, Guest],
    spaces: tuple[str, str],
) -> None:
    inn, (host, outside) = daemon.inn, spaces
    for number, (_, two) in enumerate((first, second)):
        inn.add_forward(two.name, 9090 + number, 81)
    udp = inn.add_forward(first[1].name, 5353, 53, protocol="udp")
    for space, address in (
        (outside, HOST), (outside, HOST6), (host, "127.0.0.1"), (host, HOST),
    ):  # fmt: skip
        for number, (_, two) in enumerate((first, second)):
            assert said_at(space, address, 9090 + number) == f"hello from {two.name}"
    before = counted(first[1], "Udp", "NoPorts")
    assert is_refused(outside, HOST, 5353), "what the guest answers is led back"
    assert counted(first[1], "Udp", "NoPorts") == before + 1
    assert fetches(second[0], HOST, 9090) == "", "from one bubble into another by a forward"
    assert caller_of(first[0], outside, OUTSIDE6) == HOST6, "out by IPv6, through NAT"
    inn.remove_forward(udp.id)
    assert is_refused(outside, HOST, 5353), "by the host"
    assert counted(first[1], "Udp", "NoPorts") == before + 1


def _names_in_a_bubble(daemon: Daemon, mine: tuple[Guest, Guest]) -> None:
    """Who has kept its identity is still found by that; who has not, by the name that it has now."""
    other = mine[1].fork(name="third")
    assert other.info.ports[0].known_as == "third"
    wait_for("its name", lambda: pings(mine[0], "third"))
    for before, after in ((other.name, "fourth"), (mine[1].name, "twin-x")):
        assert daemon.run("rename", before, after).returncode == 0
    assert pings(mine[0], "fourth") and not pings(mine[0], "third")
    assert pings(mine[0], "two") and not pings(mine[0], "twin-x")
    assert b"known as two" in daemon.run("show", "twin-x").stdout
    assert daemon.run("rename", "two", "original").returncode == 0
    taken = daemon.run("rename", "fourth", "two")
    assert taken.returncode != 0 and b"same bubble" in taken.stderr
    for before, after in (("original", "two"), ("twin-x", mine[1].name)):
        assert daemon.run("rename", before, after).returncode == 0
    daemon.inn.guest("fourth").delete(force=True)


def _a_port_of_another_network(inn: object, mine: tuple[Guest, Guest]) -> None:
    added = mine[0].add_port("open")
    assert added.bubble == mine[0].info.ports[0].bubble
    wait_for("a lease", lambda: added.address in mine[0].run("ip address").stdout)
    other = mine[1].add_port("open")
    wait_for("the way there", lambda: pings(mine[0], other.address))
    for guest in mine:
        guest.remove_port("net1")
    assert pings(mine[0], mine[1].info.ports[0].address)
    assert inn.network("open").bubbles == 0, "its copy in there is gone"  # type: ignore[attr-defined]


def _all_is_there_after_the_daemon_and_the_host(daemon: Daemon, outside: str) -> None:
    daemon.kill()
    daemon.start()
    inn = daemon.inn
    mine = inn.guest("twin-1-one"), inn.guest("twin-1-two")
    address = mine[1].info.ports[0].address
    assert answer(mine[0], address, 81) == "hello from twin-1-two"
    assert caller_of(inn.guest("twin-2-one"), outside) == HOST
    assert said_at(outside, HOST6, 9091) == "hello from twin-2-two"

    daemon.kill()
    kept = {guest.id for guest in mine}
    spaces = bubbles(daemon.home)
    for guest_id, pid in daemon.qemu_pids().items():
        if guest_id in kept:
            os.kill(pid, signal.SIGKILL)
    for space in spaces:  # as after the host went down
        for pid in resolvers(space):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", space], check=True)
    daemon.start()
    inn = daemon.inn
    for guest in mine:
        inn.guest(guest.name).start()
    mine = inn.guest("twin-1-one"), inn.guest("twin-1-two")
    for guest in mine:
        wait_for("its agent", lambda guest=guest: guest.refresh().info.agent == "answering")  # type: ignore[misc]
    wait_for("the pair", lambda: pings(mine[0], "two") and pings(mine[1], "one"))
    assert caller_of(mine[0], outside) == HOST
    wait_for("its IPv6", lambda: pings(mine[0], OUTSIDE6))
    assert caller_of(mine[0], outside, OUTSIDE6) == HOST6
    greet(mine[1], 81)
    assert said_at(outside, HOST, 9090) == "hello from twin-1-two"
    other = inn.guest("twin-2-one")
    wait_for("the other bubble", lambda: pings(other, "two"))


def test_a_group_is_of_one_moment(daemon: Daemon) -> None:
    daemon.inn.create_network("web")
    one, two = pair(daemon)
    two.run(HEAR)
    wait_for("an ear", lambda: two.run("netstat -ltn | grep :9000").ok)
    one.run(TELL)
    wait_for("some words", lambda: two.run("test -s /tmp/heard").ok)
    one.fork(name="alone").delete(force=True)  # from now on it is held sooner than the other
    for number in range(2):
        forks = one.fork(1, name=f"copy{number}", keep_identity=True, together=["two"])
        names = [each.name for each in forks]
        assert names == [f"copy{number}-one", f"copy{number}-two"]
        before = len(lines_in(forks[1], "/tmp/heard"))
        wait_for("more words", lambda: len(lines_in(forks[1], "/tmp/heard")) > before)  # noqa: B023
        heard, told = lines_in(forks[1], "/tmp/heard"), lines_in(forks[0], "/tmp/told")
        assert set(heard) <= set(told), "it heard what was not told yet"
        for each in forks:
            each.delete(force=True)
    assert set(lines_in(two, "/tmp/heard")) <= set(lines_in(one, "/tmp/told"))
    for wrong in (
        {"keep_identity": False, "together": ["two"]},
        {"keep_identity": True, "together": ["one"]},
    ):
        with pytest.raises(SeraiError) as raised:
            one.fork(1, name="x", **wrong)  # type: ignore[arg-type]
        assert raised.value.code is Code.VALUE_INVALID and raised.value.hint
    assert [each.name for each in daemon.inn.guests()] == ["one", "two"]
