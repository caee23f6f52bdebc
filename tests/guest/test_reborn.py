"""What waits in a guest to be told who it is: what it does, what it refuses, and what is done without it."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from instances import SOON, Host, find_host, tiny_machine, wait_inside
from keeper import Daemon

from serai import Guest
from serai.errors import Busy, Code, HostFailure, Interrupted
from serai.host.supervise import wait_until
from serai.model.talk import ExecRequest
from serai.plan.reborn import NewPort, NewSelf, as_line, as_name_line
from serai.qemu.instance import Instance
from serai.qemu.resources import socket_path

SEED = "5eed" * 16
MAC, OTHER, GROUP = "52:54:00:00:00:01", "52:54:00:00:00:02", "53:54:00:00:00:03"
LATER = 2_000_000_000.0
ME = NewSelf(seed=SEED, now=LATER)
BORN = dataclasses.replace(ME, name="born", machine_id="0a" * 16, macs={MAC: OTHER})

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tiny_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return await find_host(tiny_state, tmp_path_factory.mktemp("reborn"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def booted(host: Host, tiny_state: Path) -> AsyncIterator[Instance]:
    async with host.started(tiny_machine(host, tiny_state)) as instance:
        yield await wait_inside(instance)


@pytest_asyncio.fixture(loop_scope="module")
async def inside(booted: Instance) -> Instance:
    """The guest as it was booted, for whoever tells it something."""
    await says(booted, f"ip link set eth0 up; ip link set eth0 address {MAC}; hostname tiny")
    await wait_until("it waits", lambda: waits(booted), timeout=SOON, every=0.05)
    return booted


async def waits(instance: Instance) -> bool:
    return await instance.waits_to_be_told()


async def says(instance: Instance, script: str) -> str:
    done = await instance.agent.execute(ExecRequest(argv=["sh", "-c", script]))
    assert done.code == 0, done
    return done.stdout.decode().strip()


async def tell(instance: Instance, new: NewSelf, nonce: str, timeout: float = SOON) -> None:
    instance.say_reborn(as_line(new, nonce))
    await instance.hear_reborn(nonce, timeout)


async def mac_of(instance: Instance) -> str:
    return await says(instance, "cat /sys/class/net/eth0/address")


async def year_of(instance: Instance) -> str:
    return await says(instance, "date -u +%Y")


async def test_it_takes_all_on(inside: Instance) -> None:
    await says(inside, "echo old >/etc/hostname; echo 0123456789abcdefXX >/etc/machine-id")
    await says(inside, "until ip address show dev eth0 | grep -q 10.0.2; do sleep 0.1; done")
    await says(inside, "date -u -s @1000000; ip address add 192.0.2.1/24 dev eth0")
    await tell(inside, BORN, "all")
    assert await says(inside, "hostname; cat /etc/hostname /etc/machine-id") == "\n".join(
        ["born", "born", "0a" * 16]
    )
    assert await mac_of(inside) == OTHER
    assert abs(int(await says(inside, "date +%s")) - LATER) < SOON
    assert "192.0.2.1" in await says(inside, "ip address show dev eth0")
    await says(inside, "rm /etc/hostname /etc/machine-id; ip -4 address flush dev eth0")


async def start_waiting(instance: Instance, name: str) -> None:
    """Start a process of that name, and write its number down where sshd writes its own."""
    script = f"printf '#!/bin/sh\\nwhile :; do sleep 1; done\\n' >/tmp/{name}; chmod +x /tmp/{name}"
    await says(instance, f"{script}; /tmp/{name} >/dev/null 2>&1 & echo $! >/run/sshd.pid")
    get_name = "cat /proc/$(cat /run/sshd.pid)/comm"

    async def is_there() -> bool:
        return await says(instance, f"{get_name} 2>/dev/null || :") == name

    await wait_until(f"{name} runs", is_there, timeout=SOON, every=0.05)


async def test_an_ssh_server_with_keys_of_another_is_ended(inside: Instance) -> None:
    """Not by what leaves the machine who it is, and nothing else that has its number."""
    left = "ls -d /run/sshd.* /proc/$PID/cwd 2>/dev/null || :"
    await start_waiting(inside, "sshd")
    await tell(inside, ME, "same")
    pid = await says(inside, "cat /run/sshd.pid")
    assert (await says(inside, left.replace("$PID", pid))).split() == [
        f"/proc/{pid}/cwd",
        "/run/sshd.pid",
    ]
    await tell(inside, BORN, "else")

    async def is_gone() -> bool:
        return await says(inside, left.replace("$PID", pid)) == "/run/sshd.reborn"

    await wait_until("it was ended", is_gone, timeout=SOON, every=0.05)
    await says(inside, "rm /run/sshd.reborn")
    await start_waiting(inside, "other")
    await tell(inside, BORN, "other")
    other = await says(inside, "cat /run/sshd.pid")
    assert await says(inside, left.replace("$PID", other)) != "/run/sshd.reborn"
    assert await says(inside, "ls /run/sshd.*") == "/run/sshd.pid"
    await says(inside, f"kill {other}; rm /run/sshd.pid")


async def test_files_that_say_nothing_stay_so(inside: Instance) -> None:
    await says(inside, "rm -f /etc/hostname; : >/etc/machine-id")
    await tell(inside, BORN, "none")
    assert await says(inside, "ls /etc/hostname 2>&1; cat /etc/machine-id; hostname") == (
        "ls: /etc/hostname: No such file or directory\nborn"
    )


async def test_links_go_down_and_up_for_new_addresses_only(inside: Instance) -> None:
    find = "ip -6 address show dev eth0 scope link | grep -c inet6 || :"

    async def has_one() -> bool:
        return await says(inside, find) == "1"

    await says(inside, "ip link set eth0 down; ip link set eth0 up")
    await wait_until("it has an address of its own making", has_one, timeout=SOON, every=0.1)
    old = await says(inside, "ip -6 address show dev eth0 scope link")
    dad = "/proc/sys/net/ipv6/conf/eth0/accept_dad"
    await says(inside, f"echo 1 >{dad}")
    await tell(inside, dataclasses.replace(BORN, ports=(NewPort(mac=OTHER),)), "anew")
    assert await says(inside, f"cat {dad}; echo 1 >{dad}") == "0", (
        "nobody is asked whether it has it"
    )
    await wait_until("it has made another", has_one, timeout=SOON, every=0.1)
    assert "ff:fe00:2/" in await says(inside, "ip -6 address show dev eth0 scope link") != old
    await tell(inside, dataclasses.replace(BORN, macs={OTHER: MAC}), "keep")
    assert await mac_of(inside) == MAC
    assert "ff:fe00:2/" in await says(inside, "ip -6 address show dev eth0 scope link")


async def test_it_has_its_new_ipv4_address_at_once(inside: Instance) -> None:
    """And its way out, unless there is one; of what is no address, nothing comes but the new MAC address."""
    find = "ip -4 -o address show dev eth0 | tr -s ' ' | cut -d' ' -f4; ip route | grep default"
    await says(inside, "killall -STOP udhcpc")  # it would have its say about addresses
    mine = NewPort(mac=OTHER, address="192.0.2.7/25", router="192.0.2.1")
    await tell(inside, dataclasses.replace(BORN, ports=(mine,)), "address")
    has = "192.0.2.7/25\ndefault via 192.0.2.1 dev eth0"
    assert await says(inside, find) == has
    for number, wrong in enumerate(
        (
            "",
            "=",
            "/",
            "300.0.0.1/24",
            "192.0.2/24",
            "192.0.2.9",
            "192.0.2.9/0",
            "192.0.2.9/33",
            "192.0.2.9/999999999999",
        )
    ):
        line = f"serai1 w{number} {SEED} {LATER:.0f} 0 born {'0a' * 16} keep {OTHER}={OTHER}"
        inside.say_reborn(line.replace("keep", "anew") + f"={wrong}=192.0.2.2")
        await inside.hear_reborn(f"w{number}", SOON)
        assert await says(inside, find + "|| :") == has.partition("\n")[0], wrong
    lone = NewPort(mac=MAC, address="192.0.2.8/24")
    await tell(inside, dataclasses.replace(BORN, macs={OTHER: MAC}, ports=(lone,)), "lone")
    assert await says(inside, find + "|| :") == "192.0.2.8/24"
    await says(inside, "ip -4 address flush dev eth0; killall -CONT udhcpc")


async def test_one_that_was_put_back_stays_who_it_is(inside: Instance) -> None:
    await says(inside, "date -u -s @1000000")
    await tell(inside, ME, "back")
    assert await year_of(inside) == "2033"
    assert (await says(inside, "hostname"), await mac_of(inside)) == ("tiny", MAC)


async def test_a_line_that_comes_again_is_done_once(inside: Instance) -> None:
    await tell(inside, BORN, "twice")
    await says(inside, "hostname later; date -u -s @1000000")
    await tell(inside, BORN, "twice")
    assert await says(inside, "hostname") == "later"
    assert await year_of(inside) == "1970"
    await tell(inside, BORN, "thrice")
    assert await says(inside, "hostname") == "born"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "serai1",
        f"serai1 n0 {SEED} 1",
        f"serai1 n0 {SEED}  1 0",
        f"serai1 n0 {SEED} 1 0 name",
        f"serai1 n0 {SEED} 1 0 name id",
        f"serai2 n0 {SEED} 1 0",
        f"serai1 {'n' * 32} {SEED} 1 0",
        f"{as_line(BORN, 'n0')}{' a=b' * 70}",
        "x" * 9000,
        "\0" * 100,
        "serai1 " * 64,
        f"serai1 n0 {SEED} 1 0 name id perhaps",
        f"serai1 n0 {SEED} -1 0 name id keep",
        f"serai1 n0 {SEED} 1 {'9' * 19}",
    ],
)
async def test_a_line_that_is_none_does_nothing(inside: Instance, line: str) -> None:
    await says(inside, "date -u -s @1000000")
    reader, writer = await asyncio.open_unix_connection(_freed(inside))
    try:
        async with asyncio.timeout(SOON):
            right = as_line(dataclasses.replace(ME, now=1e6), f"n{len(line)}")
            writer.write(f"{line}\n{right}\n".encode())
            answer = await reader.readline()
    finally:
        writer.close()
    assert answer == f"ok n{len(line)}\n".encode(), "nothing else is answered"
    assert await year_of(inside) == "1970"
    assert await says(inside, "hostname") == "tiny"


def _freed(instance: Instance) -> Path:
    """Return the port's socket, with nobody connected to it."""
    instance._birth.disconnect()
    return socket_path(instance.run_dir, "birth")


async def test_it_says_what_it_could_not_do(inside: Instance) -> None:
    with pytest.raises(HostFailure) as raised:
        await tell(inside, dataclasses.replace(BORN, macs={MAC: GROUP}), "group")
    assert raised.value.code is Code.AGENT_PROTOCOL
    assert "error group m 99" in raised.value.message
    assert (await says(inside, "hostname"), await mac_of(inside)) == ("born", MAC)
    await tell(inside, ME, "after")


async def test_nobody_who_hears_it_holds_it_up(inside: Instance) -> None:
    _, writer = await asyncio.open_unix_connection(_freed(inside))
    lines = "".join(f"{as_line(ME, f'n{number}')}\n" for number in range(1000))
    writer.write(lines.encode())
    await writer.drain()
    writer.transport.abort()
    await tell(inside, BORN, "heard", timeout=60.0)  # it does as each line says before
    assert await says(inside, "hostname") == "born"


async def test_it_sleeps_where_nobody_is_connected(inside: Instance) -> None:
    _freed(inside)
    count = "grep ctxt_switches /proc/$(pidof reborn)/status"
    before = await says(inside, count)
    await asyncio.sleep(1.0)
    assert await says(inside, count) == before
    await tell(inside, BORN, "woken")


async def test_an_answer_to_whom_it_has_not_seen_yet_is_not_lost(inside: Instance) -> None:
    for turn in range(5):
        _freed(inside)
        await asyncio.sleep(0.3)
        await tell(inside, ME, f"unseen{turn}", timeout=5.0)


async def test_it_comes_back_when_it_was_killed(inside: Instance) -> None:
    await says(inside, "kill -9 $(pidof reborn)")
    await wait_until("it waits again", lambda: waits(inside), timeout=SOON, every=0.05)
    await tell(inside, BORN, "again")


async def test_a_name_is_all_that_changes(inside: Instance) -> None:
    await says(inside, "echo old >/etc/hostname; echo 0123456789abcdefXX >/etc/machine-id")
    year = await year_of(inside)
    inside.say_reborn(as_name_line("called", "name"))
    await inside.hear_reborn("name", SOON)
    now = await says(inside, "hostname; cat /etc/hostname /etc/machine-id")
    assert now.split() == ["called", "called", "0123456789abcdefXX"]
    assert (await year_of(inside), await mac_of(inside)) == (year, MAC)
    for nonsense in ("serai1-name", "serai1-name x", "serai1-name x y z"):
        inside.say_reborn(nonsense)
        with pytest.raises(Interrupted):
            await inside.hear_reborn("x", 0.5)
    assert await says(inside, "hostname") == "called"


async def test_where_nothing_waits_that_is_known(inside: Instance) -> None:
    await says(inside, "mv /sbin/reborn /sbin/away; kill -9 $(pidof reborn)")
    try:

        async def is_gone() -> bool:
            return not await waits(inside)

        await wait_until("it is gone", is_gone, timeout=SOON, every=0.05)
    finally:
        await says(inside, "mv /sbin/away /sbin/reborn")


async def test_a_machine_without_the_port_is_as_before(host: Host, tiny_state: Path) -> None:
    folder = host.folder / "old"
    folder.mkdir()
    old = await find_host(tiny_state, folder)
    async with old.started(tiny_machine(old, tiny_state, birth_port=False)) as instance:
        await wait_inside(instance)
        assert not socket_path(instance.run_dir, "birth").exists()
        with pytest.raises(Busy):
            await tell(instance, BORN, "old")


# -- by the daemon ---------------------------------------------------------------------------------

NO_SHELL = "rm /bin/sh"


def first(guest: Guest, *argv: str) -> str:
    return guest.run(argv).stdout.strip()


async def test_nothing_is_started_in_a_fork(guest: Guest) -> None:
    guest.run("echo old >/etc/machine-id; date -u -s @1000000")
    assert guest.run(NO_SHELL).ok
    for fork in guest.fork(2, name="twin"):
        assert first(fork, "hostname") == fork.name
        assert first(fork, "cat", "/sys/class/net/eth0/address") == fork.info.mac
        assert first(fork, "cat", "/etc/machine-id") == fork.id.replace("-", "")
        assert abs(float(first(fork, "date", "+%s")) - time.time()) < SOON
    assert first(guest, "hostname") not in ("twin-1", "twin-2")


async def test_nothing_is_started_in_one_that_is_put_back(guest: Guest) -> None:
    guest.run(f"hostname mine; date -u -s @1000000; {NO_SHELL}")
    guest.snapshot("then")
    guest.restore("then", force=True)
    assert abs(float(first(guest, "date", "+%s")) - time.time()) < SOON
    assert first(guest, "hostname") == "mine"


@pytest.mark.parametrize(
    "harm", ["mv /sbin/reborn /tmp; kill -9 $(pidof reborn)", "kill -STOP $(pidof reborn)"]
)
async def test_its_agent_does_it_where_nothing_waits(guest: Guest, harm: str) -> None:
    guest.run("echo old >/etc/machine-id; date -u -s @1000000")
    assert guest.run(harm).ok
    fork = guest.fork(name="twin")
    assert first(fork, "hostname") == "twin"
    assert first(fork, "cat", "/sys/class/net/eth0/address") == fork.info.mac
    assert first(fork, "cat", "/etc/machine-id") == fork.id.replace("-", "")
    assert abs(float(first(fork, "date", "+%s")) - time.time()) < SOON


async def test_a_fork_of_a_fork_after_a_restart_of_the_daemon(daemon: Daemon, guest: Guest) -> None:
    assert guest.run(NO_SHELL).ok
    guest.fork(name="one")
    daemon.kill()
    daemon.start()
    last = daemon.inn.guest("one").fork(name="two").fork(name="three")
    assert first(last, "hostname") == "three"
    assert first(last, "cat", "/sys/class/net/eth0/address") == last.info.mac
