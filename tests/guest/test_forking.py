"""Forks of running guests: what they share, what they never share, and what is left of them."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keeper import Daemon, wait_for

from serai import Guest, SeraiError
from serai.errors import Code
from serai.host.tools import available_memory
from serai.model.event import EventKind
from serai.model.guest import AgentState
from serai.model.lifecycle import GuestState
from serai.plan.snapshot import ROOM_PER_FORK

LIMIT = 60.0


def read(guest: Guest, path: str) -> str:
    return guest.run(f"cat {path}").stdout.strip()


def state_of(daemon: Daemon, name: str) -> GuestState:
    return daemon.inn.guest(name).info.state


def wait_until(daemon: Daemon, name: str, state: GuestState) -> None:
    until = time.monotonic() + LIMIT
    while state_of(daemon, name) is not state:
        assert time.monotonic() < until, state_of(daemon, name)
        time.sleep(0.05)


def reach(daemon: Daemon, name: str) -> Guest:
    """Wait until the agent of a guest that was started answers."""
    until = time.monotonic() + LIMIT
    while (guest := daemon.inn.guest(name)).info.agent is not AgentState.ANSWERING:
        assert time.monotonic() < until
        time.sleep(0.05)
    return guest


def test_ten_forks_of_a_fresh_guest(daemon: Daemon) -> None:
    with daemon.inn.launch("tiny") as guest:
        guest.run("touch /ready")
        for fork in guest.fork(10):
            assert fork.run("test -e /ready").ok
    assert daemon.inn.guests() == []


def test_a_fork_goes_on_where_its_source_was(guest: Guest) -> None:
    guest.run(
        "echo before > /file; (while :; do echo x >> /busy; usleep 10000; done) >/dev/null 2>&1 &"
    )
    fork = guest.fork(name="web2")
    assert read(fork, "/file") == "before"
    seen = int(fork.run("wc -c < /busy").stdout)
    assert seen > 0
    assert (
        int(fork.run("wc -c < /busy; sleep 0.3; wc -c < /busy").stdout.split()[-1]) > seen
    )  # runs on
    assert guest.run("pidof sh").ok


def test_cpus_that_were_plugged_in_are_forked_too(daemon: Daemon) -> None:
    """Of a guest with disks: one that was there before the CPU, one that came after it."""
    guest = daemon.inn.launch("tiny", name="web1", memory="128MiB", disk="16MiB")
    guest.set(cpus=2)
    data = daemon.inn.create_volume("data", "16MiB").attach("web1")
    guest.run("echo mine > /dev/vda; sync")
    fork = guest.fork(name="web2")
    assert fork.run("nproc; head -c 5 /dev/vda; ls /dev/vd?").stdout.split() == [
        "2",
        "mine",
        "/dev/vda",
        "/dev/vdb",
    ]
    daemon.kill()
    daemon.start()
    guest = daemon.inn.guest("web1")
    assert guest.fork(name="web3").run("nproc").stdout.strip() == "2"
    guest.snapshot("before")
    guest.run("echo lost > /dev/vda; sync")
    guest.restore("before", force=True)
    assert guest.run("nproc; head -c 4 /dev/vda").stdout.split() == ["2", "mine"]
    daemon.delete_all()
    data.delete()


WRITE = """
for i in $(seq 100); do
    echo $WHO-$i > /p/f$i
    printf '%-511s\\n' $WHO-$i
done | dd of=/dev/vda bs=512 conv=notrunc,fsync 2>/dev/null
echo $WHO > /p/who
"""
CHECK = """
for i in $(seq 100); do read x < /p/f$i; [ $x = $WHO-$i ] || echo memory $i: $x; done
i=0
dd if=/dev/vda bs=512 count=100 iflag=direct 2>/dev/null | while read x; do
    i=$((i+1)); [ $x = $WHO-$i ] || echo disk $i: $x
done
"""


def test_neither_sees_what_the_other_writes(daemon: Daemon) -> None:
    """Patterns on all sides, in memory and on disks, thousands of times; five generations deep."""
    first = daemon.inn.launch("tiny", name="gen", memory="96MiB", disk="16MiB")
    first.run("mkdir /p; dd if=/dev/urandom of=/p/common bs=1M count=8 2>/dev/null")
    common = first.run("md5sum < /p/common").stdout
    family = [first]

    def everybody(script: str) -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            runs = pool.map(lambda each: each.run(script, env={"WHO": each.name}), family)
            return [done.stdout for done in runs]

    for generation in range(5):
        family += family[-1].fork(2 if generation == 2 else 1, name=f"gen{generation}")
        everybody(WRITE)
        assert everybody(CHECK) == [""] * len(family)
    everybody(WRITE)
    assert everybody(CHECK) == [""] * len(family)
    assert everybody("cat /p/who") == [f"{each.name}\n" for each in family]
    assert everybody("md5sum < /p/common") == [common] * len(family)


def test_a_fork_of_a_guest_that_still_boots_learns_who_it_is(daemon: Daemon) -> None:
    guest = daemon.inn.launch("tiny", name="early", memory="96MiB", wait=False)
    forks = guest.fork(2, name="twin")
    for each in forks:
        found = each.run("cd /sys/class/net; until cat eth0/address; do sleep 0.05; done")
        assert found.stdout.strip() == each.info.mac
        assert each.run("hostname").stdout.strip() == each.name


def test_a_fork_is_somebody_of_its_own(guest: Guest) -> None:
    guest.run("mkdir -p /etc; echo 0123456789abcdef0123456789abcdef > /etc/machine-id")
    forks = guest.fork(3, name="other")
    everybody = [guest, *forks]
    macs = {each.run("cat /sys/class/net/eth0/address").stdout.strip() for each in everybody}
    assert macs == {each.info.mac for each in everybody}
    assert len(macs) == len(everybody)
    assert [read(each, "/proc/sys/kernel/hostname") for each in forks] == [f.name for f in forks]
    assert len({read(each, "/etc/machine-id") for each in everybody}) == len(everybody)
    twins = guest.fork(2, name="twin", keep_identity=True)
    seeds = "cat /proc/sys/kernel/random/uuid"
    assert len({each.run(seeds).stdout for each in (*everybody, *twins)}) == 6
    for each in everybody:
        assert abs(float(each.run("date +%s").stdout) - time.time()) < 5


def test_kept_identity_is_kept(guest: Guest) -> None:
    fork = guest.fork(name="twin", keep_identity=True)
    hostname = read(guest, "/proc/sys/kernel/hostname")
    assert read(fork, "/proc/sys/kernel/hostname") == hostname
    address = "/sys/class/net/eth0/address"
    assert read(fork, address) == read(guest, address)


def test_the_source_may_go_and_its_forks_stay(daemon: Daemon, guest_reached: Guest) -> None:
    forks = guest_reached.fork(2, name="left")
    guest_reached.delete(force=True)
    again = forks[0].fork(name="later")
    forks[0].delete(force=True)
    assert again.run("true").ok and forks[1].run("true").ok


def test_a_paused_guest_is_forked_and_stays_paused(daemon: Daemon, guest: Guest) -> None:
    guest.pause()
    fork = guest.fork(name="awake")
    assert state_of(daemon, "web1") is GuestState.PAUSED
    assert fork.run("true").ok
    guest.resume()
    assert guest.run("true").ok


def test_a_stopped_guest_is_forked_from_its_disk(daemon: Daemon) -> None:
    source = daemon.inn.create("tiny", name="cold", memory="128MiB", disk="64MiB")
    fork = source.fork(name="started")
    assert fork.run("test -b /dev/vda").ok
    assert fork.run("hostname").stdout == "started\n", "told before anybody talks to it"
    source.publish("cold")
    for name in ("one", "two"):
        with daemon.inn.launch("cold", name=name) as launched:
            assert launched.run("hostname").stdout == f"{name}\n"
    daemon.inn.delete_image("cold")


def test_a_disk_is_forked_with_the_memory(daemon: Daemon, disky: Guest) -> None:
    put = "dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' $BYTE | dd of=/dev/vda bs=1M seek=$AT conv=notrunc,fsync 2>/dev/null"
    get = "for at in 0 1 2 3; do dd if=/dev/vda bs=1M skip=$at count=1 iflag=direct 2>/dev/null | md5sum; done"

    def write(guest: Guest, byte: str, at: int) -> None:
        assert guest.run(put, env={"BYTE": byte, "AT": str(at)}).ok

    def sums(guest: Guest) -> list[str]:
        found = guest.run(get).stdout.splitlines()
        assert len(found) == 4
        return found

    write(disky, "a", 0)
    one = disky.fork(name="one")
    write(disky, "b", 1)
    write(one, "c", 1)
    two = one.fork(name="two")
    write(one, "d", 2)
    write(two, "e", 3)
    before = [sums(each) for each in (disky, one, two)]
    assert before[0][0] == before[1][0] == before[2][0]
    assert before[1][1] == before[2][1] != before[0][1]
    assert len({tuple(each) for each in before}) == 3
    for each in (disky, one, two):  # what is on the disk is there after a cold start too
        each.stop(force=True)
        each.start()
    assert [sums(reach(daemon, name)) for name in ("disky", "one", "two")] == before


def test_a_fork_that_reboots_comes_up_from_its_own_image(daemon: Daemon, guest: Guest) -> None:
    fork = guest.fork(name="again")
    fork.run("touch /gone")
    with pytest.raises(SeraiError):
        fork.run("reboot -f", timeout=5)
    until = time.monotonic() + LIMIT
    while not any(e.kind is EventKind.GUEST_RESET for e in daemon.inn.events()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert reach(daemon, "again").run("test ! -e /gone").ok


# -- refused, cancelled, killed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"name": "web1"}, Code.GUEST_EXISTS),
        ({"name": "Not a name"}, Code.NAME_INVALID),
        ({"count": 0, "name": "x"}, Code.VALUE_INVALID),
        ({"count": 1000, "name": "x"}, Code.MEMORY_SHORT),
    ],
)
def test_what_can_not_be_forked_changes_nothing(
    daemon: Daemon, guest: Guest, how: dict[str, object], code: Code
) -> None:
    with pytest.raises(SeraiError) as caught:
        guest.fork(**how)  # type: ignore[call-overload]
    assert caught.value.code is code
    assert [each.name for each in daemon.inn.guests()] == ["web1"]
    assert guest.fork(name="x").run("true").ok


def test_a_name_that_is_taken_among_many_leaves_none(daemon: Daemon, guest: Guest) -> None:
    daemon.inn.create("tiny", name="many-3", memory="128MiB")
    with pytest.raises(SeraiError, match="many-3"):
        guest.fork(5, name="many")
    assert sorted(each.name for each in daemon.inn.guests()) == ["many-3", "web1"]


def test_killing_the_daemon_at_any_moment_leaves_whole_forks_or_none(
    daemon: Daemon, guest_reached: Guest
) -> None:
    guest_reached.run("echo here > /mark")
    for turn, delay in enumerate((0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2)):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(daemon.run, "fork", "web1", f"t{turn}", "--count", "2")
            time.sleep(delay + 0.25)  # the command itself takes a quarter of a second to ask
            daemon.kill()
            asked.result()
        daemon.start()
        assert read(daemon.inn.guest("web1"), "/mark") == "here"
        made = [each for each in daemon.inn.guests() if each.name.startswith(f"t{turn}")]
        assert len(made) in (0, 2), [each.name for each in made]
        for each in made:
            assert read(each, "/mark") == "here"
            each.delete(force=True)
        assert list(daemon.qemu_pids()) == [daemon.inn.guest("web1").id]


def test_another_daemon_forks_what_an_earlier_one_froze(
    daemon: Daemon, guest_reached: Guest
) -> None:
    fork = guest_reached.fork(name="first")
    fork.run("echo changed > /mark")
    daemon.kill()
    daemon.start()
    second = daemon.inn.guest("first").fork(name="second")
    assert read(second, "/mark") == "changed"
    assert daemon.inn.guest("web1").fork(name="third").run("test ! -e /mark").ok


def test_a_killed_fork_is_a_crashed_guest_and_nobody_elses_matter(
    daemon: Daemon, guest: Guest
) -> None:
    one, two = guest.fork(2, name="f")
    os.kill(one.info.pid, signal.SIGKILL)
    wait_until(daemon, one.name, GuestState.CRASHED)
    assert two.run("true").ok and guest.run("true").ok
    daemon.inn.guest(one.name).start()
    assert reach(daemon, one.name).run("true").ok


def test_a_source_that_dies_while_it_is_frozen(daemon: Daemon, guest: Guest) -> None:
    """A fork's QEMU starts while its source is being frozen, and goes where nothing comes of that."""
    guest.fork(name="first").delete(force=True)  # the source is on a base from then on
    pid = guest.refresh().info.pid
    os.kill(pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        forking = pool.submit(guest.fork, name="second")
        wait_for("the fork's QEMU", lambda: len(daemon.qemu_pids()) == 2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SeraiError):
            forking.result(LIMIT)
    wait_until(daemon, guest.name, GuestState.CRASHED)
    assert [each.name for each in daemon.inn.guests()] == [guest.name]
    assert not daemon.qemu_pids()


def test_many_forks_at_once(daemon: Daemon, guest: Guest) -> None:
    forks = guest.fork(24, name="c")
    assert len({each.id for each in forks}) == 24
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda each: each.run("hostname").stdout.strip(), forks))
    assert names == [each.name for each in forks]


def test_memory_is_promised_once(daemon: Daemon, guest: Guest) -> None:
    """Who asks while others are on their way finds what those have not taken yet taken."""
    room = available_memory() // ROOM_PER_FORK
    argv = [sys.executable, "-m", "serai", "fork", "web1", "first", "--count", str(room * 3 // 4)]
    with subprocess.Popen(argv, env=daemon.environ, stderr=subprocess.PIPE) as program:
        wait_for("they are on their way", lambda: len(daemon.inn.guests()) > 1)
        with pytest.raises(SeraiError, match=r"of which \d+ forks on their way take") as caught:
            guest.fork(room // 2, name="second")
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=LIMIT)
    assert caught.value.code is Code.MEMORY_SHORT
    wait_for("the first are gone", lambda: len(daemon.inn.guests()) == 1)
    guest.fork(name="second").delete(force=True)


def test_ctrl_c_leaves_nothing(daemon: Daemon, guest_reached: Guest, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "serai", "fork", "web1", "c", "--count", "8"]
    for pause in (0.4, 0.7, 1.0):
        with subprocess.Popen(argv, env=daemon.environ, stderr=subprocess.PIPE) as program:
            time.sleep(pause)
            program.send_signal(signal.SIGINT)
            program.communicate(timeout=LIMIT)
        until = time.monotonic() + LIMIT
        while (made := len(daemon.inn.guests()) - 1) not in (0, 8):
            assert time.monotonic() < until, made
            time.sleep(0.05)
        for each in daemon.inn.guests():
            if each.name != "web1":
                each.delete(force=True)
