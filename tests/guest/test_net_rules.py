"""What passes between guests, the host and the world outside: modes, NAT, forwards, groups, counters.

Guests are namespaces; see ``land``. What must not pass is waited for in the counters of drops, never by
waiting for nothing to come.
"""

import errno
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from land import (
    HOST4,
    HOST6,
    OUT4,
    OUT6,
    Guest,
    Land,
    dial,
    listen,
    meet,
    open_land,
    open_socket,
    run_in,
    udp,
)

from serai.host.namespaces import inside
from serai.host.supervise import wait_until
from serai.model.network import Direction, NetworkMode, Protocol, Rule
from serai.net.firewall import Firewall
from serai.net.links import write_sysctl
from serai.plan.network import gateway_of

IN, OUT = Direction.IN, Direction.OUT
SUBNET6 = "fd00:1:2:3::/64"


@pytest.fixture
async def land(tmp_path: Path) -> AsyncIterator[Land]:
    async with open_land(tmp_path) as land:
        yield land


async def _is_refused(land: Land, target: Guest, source: str, address: str, port: int) -> bool:
    """Knock by TCP; true when the target's port counts that it refused."""
    before = (await land.counters(target)).refused_in
    with open_socket(source, socket.AF_INET, socket.SOCK_STREAM) as knocker:
        knocker.setblocking(False)
        assert knocker.connect_ex((address, port)) == errno.EINPROGRESS
        await land.wait_counted(target, lambda now: now.refused_in > before)
        return knocker.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("asked", [0, 1], ids=["routed only", "bridges ask inet tables too"])
async def test_out_by_nat_and_in_by_forwards(land: Land, asked: int) -> None:
    """On hosts with br_netfilter (where Docker is, say) bridged packets pass the inet tables too."""
    for each in ("iptables", "ip6tables"):
        inside(land.host, lambda each=each: write_sysctl(f"bridge/bridge-nf-call-{each}", asked))  # type: ignore[misc]
    await land.network("lan", subnet6=SUBNET6)
    web = await land.guest("web", "lan")
    peer = await land.guest("peer", "lan")
    land.forward(8080, web, 80)
    land.forward(5353, web, 53, protocol=Protocol.UDP)
    land.forward(8081, web, 81, host_address=HOST4)
    await land.apply()
    mine, mine6 = web.port.address, web.port.address6

    # out: the world sees the host's address
    for outside, seen in ((OUT4, HOST4), (OUT6, HOST6)):
        with listen(land.outside, outside, 7000) as server:
            client = dial(web.namespace, outside, 7000)
            assert meet(server, client) == (seen, b"pong")

    # in: from outside, from the host itself by any of its addresses, from a neighbour
    for inner, outer, gate in ((mine, OUT4, HOST4), (mine6, OUT6, HOST6)):
        with listen(web.namespace, inner, 80) as server:
            assert meet(server, dial(land.outside, gate, 8080)) == (outer, b"pong")
            assert meet(server, dial(land.host, gate, 8080))[1] == b"pong"
            if inner == mine:
                assert meet(server, dial(land.host, "127.0.0.1", 8080))[1] == b"pong"
            assert meet(server, dial(peer.namespace, gate, 8080))[1] == b"pong"
            if not asked:  # else a bridge would have to send it back where it came from
                assert meet(server, dial(web.namespace, gate, 8080))[1] == b"pong"
        with udp(web.namespace, inner, 53) as server, udp(land.outside, outer) as client:
            client.sendto(b"who", (gate, 5353))
            said, asker = server.recvfrom(16)
            assert (said, asker[0]) == (b"who", outer)
            server.sendto(b"me", asker)
            assert client.recvfrom(16)[1][:2] == (gate, 5353)
    with listen(web.namespace, mine, 81) as server:
        assert meet(server, dial(land.outside, HOST4, 8081)) == (OUT4, b"pong")
        with pytest.raises(ConnectionRefusedError):
            dial(land.host, "127.0.0.1", 8081)

    # what nobody forwarded does not get in, though somebody outside knows the way
    run_in(land.outside, "ip", "route", "add", mine, "via", HOST4)
    with listen(web.namespace, mine, 82), open_socket(land.outside, socket.AF_INET, socket.SOCK_STREAM) as knocker:  # fmt: skip
        knocker.settimeout(0.2)
        with pytest.raises(TimeoutError):
            knocker.connect((mine, 82))

    counted = await land.counters(web)
    assert 0 < counted.local_bytes_in < counted.bytes_in
    assert 0 < counted.local_bytes_out < counted.bytes_out
    assert (counted.spoofed, counted.refused_in, counted.refused_out) == (0, 0, 0)


async def test_networks_are_apart_as_their_modes_say(land: Land) -> None:
    await land.network("lan")
    await land.network("open", mode=NetworkMode.ROUTED)
    shut = await land.network("shut", mode=NetworkMode.ISOLATED)
    guests = {name: await land.guest(name, name) for name in ("lan", "open", "shut")}
    friend = await land.guest("friend", "shut")
    await land.apply()
    run_in(land.outside, "ip", "route", "add", guests["open"].port.address, "via", HOST4)
    address = {name: guest.port.address for name, guest in guests.items()}
    space = {name: guest.namespace for name, guest in guests.items()}

    with listen(space["open"], address["open"], 80) as server:
        assert meet(server, dial(space["lan"], address["open"], 80))[0] == address["lan"]
        assert meet(server, dial(land.outside, address["open"], 80))[0] == OUT4
    with listen(land.outside, OUT4, 80) as server:
        assert meet(server, dial(space["open"], OUT4, 80))[0] == address["open"]
        with pytest.raises(TimeoutError):
            _dial_briefly(space["shut"], OUT4, 80)
    with listen(space["shut"], address["shut"], 80) as server:
        assert meet(server, dial(friend.namespace, address["shut"], 80))[1] == b"pong"
        assert meet(server, dial(land.host, address["shut"], 80))[1] == b"pong"
        with pytest.raises(TimeoutError):
            _dial_briefly(space["lan"], address["shut"], 80)
    gateway = gateway_of(shut.spec)
    with listen(land.host, gateway, 22), listen(land.host, gateway, 53) as server:
        assert meet(server, dial(space["shut"], gateway, 53))[1] == b"pong"
        with pytest.raises(TimeoutError):
            _dial_briefly(space["shut"], gateway, 22)
    assert "1 received" in run_in(space["shut"], "ping", "-c1", "-W2", gateway)


def _dial_briefly(namespace: str, address: str, port: int) -> None:
    with open_socket(namespace, socket.AF_INET, socket.SOCK_STREAM) as caller:
        caller.settimeout(0.2)
        caller.connect((address, port))


async def test_groups_let_in_and_out_what_they_say_live(land: Land) -> None:
    await land.network("lan", subnet6=SUBNET6)
    await land.network("far", mode=NetworkMode.ROUTED)
    land.group("clients")
    web_only = Rule(direction=IN, protocol=Protocol.TCP, ports="80-81", remote="group:clients")
    land.group("servers", web_only, Rule(direction=IN, protocol=Protocol.ICMP))
    land.group("mute", Rule(direction=OUT, protocol=Protocol.UDP, ports="53"))
    server = await land.guest("server", "lan", groups=("servers",))
    client = await land.guest("client", "lan", groups=("clients",))
    distant = await land.guest("distant", "far", groups=("clients",))
    other = await land.guest("other", "lan")
    mute = await land.guest("mute", "lan", groups=("mute",))
    await land.apply()
    address, address6 = server.port.address, server.port.address6

    with (
        listen(server.namespace, address, 80) as door,
        listen(server.namespace, address6, 80) as six,
    ):
        assert meet(door, dial(client.namespace, address, 80))[1] == b"pong"
        assert meet(six, dial(client.namespace, address6, 80))[1] == b"pong"
        assert meet(door, dial(distant.namespace, address, 80))[1] == b"pong"
        assert await _is_refused(land, server, other.namespace, address, 80)
        assert await _is_refused(land, server, land.host, address, 80)
        assert await _is_refused(land, server, client.namespace, address, 443)

        # one rule more, one less: at once, by a handful of commands, the rest goes on
        kept = dial(client.namespace, address, 80)
        held, _ = door.accept()
        land.group("servers", Rule(direction=IN, protocol=Protocol.TCP, remote=other.port.address))
        assert await land.apply() <= 8
        assert meet(door, dial(other.namespace, address, 80))[1] == b"pong"
        assert await _is_refused(land, server, client.namespace, address, 80)
        refused = (await land.counters(server)).refused_in
        kept.sendall(b"still there?")
        await land.wait_counted(server, lambda now: now.refused_in > refused)
        land.group("servers", web_only, Rule(direction=IN, protocol=Protocol.ICMP))
        await land.apply()
        assert held.recv(32) == b"still there?"  # sent again by TCP, and allowed again
        kept.close()
        held.close()

    # answers to what a guest asked pass, also where nothing else gets in
    with (
        udp(other.namespace, other.port.address, 53) as names,
        udp(mute.namespace, mute.port.address, 1053) as asker,
    ):
        asker.sendto(b"who", (other.port.address, 53))
        said, whom = names.recvfrom(16)
        names.sendto(b"me", whom)
        assert (said, asker.recv(16)) == (b"who", b"me")
        before = await land.counters(mute)
        asker.sendto(b"who", (other.port.address, 54))
        names.sendto(b"hello", (mute.port.address, 1054))
        await land.wait_counted(mute, lambda now: now.refused_out == before.refused_out + 1)
        await land.wait_counted(mute, lambda now: now.refused_in == before.refused_in + 1)

    # pings both ways, and pieces of a packet that is too large for one
    for version, target in (("-4", address), ("-6", address6)):
        words = ("ping", version, "-c1", "-W2", "-s", "3000", target)
        assert "1 received" in run_in(client.namespace, *words)
    assert "1 received" in run_in(server.namespace, "ping", "-c1", "-W2", other.port.address)
    assert (await land.counters(server)).spoofed == 0


async def test_what_somebody_broke_is_mended_and_a_new_daemon_changes_nothing(land: Land) -> None:
    await land.network("lan")
    land.group("web", Rule(direction=IN, protocol=Protocol.TCP, ports="80"))
    web = await land.guest("web", "lan", groups=("web",))
    await land.apply()
    assert await land.firewall.mend() == ""
    assert "1 received" in run_in(web.namespace, "ping", "-c1", "-W2", gateway_of(land.networks["lan"].spec))  # fmt: skip
    before = await land.counters(web)
    assert before.packets_out > 0

    # the next daemon reads what there is, and counters go on
    again = Firewall(land.owner, namespace=land.host)
    land.stack.push_async_callback(again.close)
    assert await again.apply(land.ruleset()) == 0
    land.firewall = again
    assert await land.counters(web) == before

    table = f"serai_{land.owner}"
    for words in (
        f"flush chain bridge {table} from_guest",
        f"delete element bridge {table} macs {{ {web.port.tap} . {web.port.mac} }}",
        f"add rule inet {table} forward accept",
        f"add chain bridge {table} stranger",
    ):
        run_in(land.host, "nft", words)
        assert "changed by somebody else" in await again.mend()
        assert await again.mend() == ""
    assert (await land.counters(web)).packets_out >= before.packets_out
    for words in (f"delete table inet {table}", "flush ruleset"):
        run_in(land.host, "nft", words)
        assert "made anew" in await again.mend()
    assert await _is_refused(land, web, land.host, web.port.address, 81)


async def test_two_daemons_side_by_side_leave_each_other_alone(land: Land) -> None:
    """One's tables, one's bridges; and what is neither's stays, whatever it is called."""
    await land.network("lan")
    web = await land.guest("web", "lan")
    land.forward(8080, web, 80)
    await land.apply()
    run_in(land.host, "nft", "add table inet filter")
    run_in(land.host, "nft", "add chain inet filter mine")
    rules = run_in(land.host, "nft", "list", "ruleset")
    links = run_in(land.host, "ip", "-d", "link")
    async with open_land(land.folder, owner="89abcdef", within=land) as other:
        await other.network("lan")
        guest = await other.guest("web2", "lan")
        other.forward(8081, guest, 80)
        await other.apply()
        assert await land.firewall.mend() == ""
        for each, port in ((web, 8080), (guest, 8081)):
            with listen(each.namespace, each.port.address, 80) as server:
                assert meet(server, dial(land.outside, HOST4, port))[0] == OUT4
        for link in await land.links.list_ours():
            await other.links.remove(link.name)  # not its own
        for link in await other.links.list_ours():
            await other.links.remove(link.name)
        await other.firewall.remove()
        await other.firewall.remove()
    assert _still(run_in(land.host, "nft", "list", "ruleset")) == _still(rules)
    assert _names(run_in(land.host, "ip", "-d", "link")) == _names(links)
    for link in await land.links.list_ours():
        await land.links.remove(link.name)
    await land.firewall.remove()
    assert "serai" not in run_in(land.host, "nft", "list", "ruleset")
    assert "serai" not in run_in(land.host, "ip", "-d", "link").replace("serai machine", "")
    await wait_until("routes of ours to be gone", lambda: "10." not in run_in(land.host, "ip", "route"), timeout=5, every=0.02)  # fmt: skip


def _still(rules: str) -> list[str]:
    """Return the lines that do not count."""
    return [line for line in rules.splitlines() if "packets" not in line]


def _names(links: str) -> set[str]:
    return {line.split(":")[1].split("@")[0] for line in links.splitlines() if line[:1].isdigit()}
