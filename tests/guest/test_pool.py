"""The pool: forks that were made ahead are handed out, nobody sees them before, and none is left."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from keeper import Daemon, wait_for
from nursery import Nursery
from tiny import copy_state

from serai import Guest, SeraiError, Snapshot
from serai.client import guest_calls, job_calls
from serai.client.blocking import Connection
from serai.model.event import EventKind
from serai.model.job import JobState
from serai.plan.pool import MOST_OF_ONE

LOOK_EVERY = 2.0


def spares(daemon: Daemon) -> int:
    return daemon.inn.status().spares


def make_a_habit(daemon: Daemon, snapshot: Snapshot, spare_count: int = 1) -> None:
    """Fork a snapshot until the pool has seen that it is wanted, and has that many ready."""
    for _ in range(2):
        snapshot.fork().delete(force=True)
    if spare_count > 1:
        for each in snapshot.fork(spare_count):
            each.delete(force=True)
    wait_for(f"{spare_count} spares", lambda: spares(daemon) >= spare_count)


@pytest.fixture
def snapshot(guest: Guest) -> Snapshot:
    guest.run("touch /ready")
    return guest.snapshot("base")


def test_a_spare_becomes_a_guest_like_every_other(daemon: Daemon, snapshot: Snapshot) -> None:
    make_a_habit(daemon, snapshot, 3)
    before = set(daemon.qemu_pids().values())
    assert [each.name for each in daemon.inn.guests()] == ["web1"]
    assert daemon.inn.status().guests == 1
    assert daemon.run("list", "--format", "json").stdout.count(b'"id"') == 1
    seen = daemon.inn.events()[-1].seq

    forks = snapshot.fork(3, name="try", ttl=3600)

    assert {each.info.pid for each in forks} <= before, "none was started for this"
    assert [each.name for each in forks] == ["try-1", "try-2", "try-3"]
    now = time.time()
    for each in forks:
        told = each.run(
            "hostname; cat /sys/class/net/*/address; date +%s; test -e /ready && echo y"
        )
        name, *addresses, date, ready = told.stdout.split()
        assert name == each.name and ready == "y" and each.info.mac in addresses
        assert abs(float(date) - now) < 5
        assert now - 10 < each.info.created_at <= now
        assert each.info.expires_at == pytest.approx(each.info.created_at + 3600)
        assert each.info.origin == snapshot.id
    randoms = {each.run("head -c 8 /dev/urandom | base64").stdout for each in forks}
    assert len(randoms) == len({each.info.mac for each in forks}) == 3
    about = {event.subject for event in daemon.inn.events(seen)}
    assert {"try-1", "try-2", "try-3"} <= about
    assert not [each for each in about if each.startswith(".")], "no event tells of a spare"
    forked = [each for each in daemon.inn.events(seen) if each.kind is EventKind.GUEST_FORKED]
    assert {each.subject for each in forked} == {"try-1", "try-2", "try-3"}


def test_one_does_nothing_while_it_waits(daemon: Daemon, guest: Guest) -> None:
    """What runs in the snapshot runs on in who asked for a fork, and in nobody else."""
    guest.run("until ip route | grep -q default; do usleep 10000; done")
    guest.run("(while usleep 100000; do echo >>/beats; done) >/dev/null 2>&1 </dev/null &")
    snapshot = guest.snapshot("beating")
    make_a_habit(daemon, snapshot)
    time.sleep(3)  # thirty beats of one that runs
    before = set(daemon.qemu_pids().values())
    fork = snapshot.fork()
    assert fork.info.pid in before
    beats, now = fork.run("wc -l </beats; date +%s").stdout.split()
    assert int(beats) < 20 and abs(int(now) - time.time()) < 3
    fork.run("sleep 1")
    assert int(fork.run("wc -l </beats").stdout) > int(beats), "it goes on"
    assert fork.run("ping -c 1 -W 5 10.0.2.2").ok, "its cable is in"


# -- those of which there is only QEMU -------------------------------------------------------------


def have_two_wait(daemon: Daemon, guest: Guest) -> set[int]:
    """Fork a running guest until the pool has two forks of it that wait; return their pids."""
    for each in guest.fork(2):
        each.delete(force=True)
    wait_for("two are started", lambda: started(daemon) == 2)
    return {pid for owner, pid in daemon.qemu_pids().items() if owner != guest.id}


def started(daemon: Daemon) -> int:
    return daemon.inn.status().spares_started


def test_one_that_hangs_is_not_waited_for(daemon: Daemon, guest: Guest) -> None:
    for pid in have_two_wait(daemon, guest):
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    forks = guest.fork(3, name="try")
    assert {each.run("hostname").stdout for each in forks} == {"try-1\n", "try-2\n", "try-3\n"}
    assert time.monotonic() - begun < 15


def test_a_running_guest_has_forks_that_wait_for_its_moment(daemon: Daemon, guest: Guest) -> None:
    guest.run("touch /before")
    waiting = have_two_wait(daemon, guest)
    assert spares(daemon) == 0, "what they will be is not known yet"
    assert [each.name for each in daemon.inn.guests()] == ["web1"]
    guest.run("touch /after")
    seen = daemon.inn.events()[-1].seq
    forks = guest.fork(3, name="try", ttl=3600)
    pids = [each.info.pid for each in forks]
    assert waiting < set(pids), "two were not started for this"
    now = time.time()
    for each in forks:
        told = each.run("hostname; cat /sys/class/net/*/address; date +%s; ls /before /after")
        name, *addresses, date, after, before = told.stdout.split()
        assert name == each.name and each.info.mac in addresses
        assert abs(float(date) - now) < 5
        assert (after, before) == ("/after", "/before")
        assert now - 10 < each.info.created_at <= now
        assert each.info.expires_at == pytest.approx(each.info.created_at + 3600)
        assert each.info.origin == ""
    assert len({each.run("head -c 8 /dev/urandom | base64").stdout for each in forks}) == 3
    forks[0].run("touch /mine")
    assert not forks[1].run("test -e /mine").ok and not guest.run("test -e /mine").ok
    events = daemon.inn.events(seen)
    assert not [each for each in events if each.subject.startswith(".")]
    forked = [each.subject for each in events if each.kind is EventKind.GUEST_FORKED]
    assert sorted(forked) == ["try-1", "try-2", "try-3"]


def test_one_of_a_guest_that_has_changed_since_is_not_used(daemon: Daemon, guest: Guest) -> None:
    waiting = have_two_wait(daemon, guest)
    guest.set(labels={"a": "b"})
    fork = guest.fork(name="web2")
    assert fork.info.labels == {"a": "b"} and fork.info.pid not in waiting
    fork.delete(force=True)
    guest.stop(force=True)
    wait_for("none of a guest that is off", lambda: not daemon.qemu_pids(), 4 * LOOK_EVERY)
    assert started(daemon) == 0


def test_one_that_has_died_is_replaced(daemon: Daemon, guest: Guest) -> None:
    waiting = have_two_wait(daemon, guest)
    known = set(daemon.qemu_pids().values())
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    wait_for("others wait", lambda: bool(set(daemon.qemu_pids().values()) - known), 4 * LOOK_EVERY)
    assert guest.fork(name="web2").run("hostname").stdout == "web2\n"


def test_none_that_waits_is_left_by_a_daemon_that_ends(
    daemon: Daemon, guest_reached: Guest
) -> None:
    have_two_wait(daemon, guest_reached)
    daemon.kill()
    daemon.start()
    assert started(daemon) == 0 and set(daemon.qemu_pids()) == {guest_reached.id}
    again = daemon.inn.guest("web1")
    have_two_wait(daemon, again)
    daemon.stop()
    assert set(daemon.qemu_pids()) == {guest_reached.id}
    daemon.start()
    have_two_wait(daemon, daemon.inn.guest("web1"))
    daemon.inn.guest("web1").delete(force=True)
    daemon.stop()
    assert daemon.leftovers() == []


def test_a_fork_that_fails_leaves_none_of_those_it_took(daemon: Daemon, guest: Guest) -> None:
    """Cut off in the midst, it gives back names and machines."""
    have_two_wait(daemon, guest)
    connection = Connection(daemon.socket)
    for turn in range(4):
        job = connection.ask(guest_calls.fork_guest("web1", name="try", count=8))
        time.sleep(0.02 * turn)
        connection.ask(job_calls.cancel_job(job.id))
        wait_for("it has ended", lambda: not daemon.inn.jobs("running"))
        assert connection.ask(job_calls.show_job(job.id)).state is JobState.CANCELLED
    assert [each.name for each in daemon.inn.guests()] == ["web1"]
    assert guest.fork(name="try-1").run("hostname").stdout == "try-1\n"


def test_a_fork_that_is_cancelled_leaves_none_of_the_ready_ones_it_took(
    daemon: Daemon, snapshot: Snapshot
) -> None:
    connection = Connection(daemon.socket)
    call = guest_calls.fork_guest("web1", snapshot="base", name="try", count=2)
    for turn in range(8):
        for each in snapshot.fork(2):
            each.delete(force=True)
        wait_for("two are ready", lambda: spares(daemon) >= 2)
        job = connection.ask(call)
        time.sleep(0.001 * turn)
        with suppress(SeraiError):  # it is done
            connection.ask(job_calls.cancel_job(job.id))
        wait_for("it has ended", lambda: not daemon.inn.jobs("running"))
        for each in daemon.inn.guests():
            if each.name != "web1":
                each.delete(force=True)
    snapshot.delete()
    wait_for("none is left", lambda: len(daemon.qemu_pids()) == 1, 4 * LOOK_EVERY)


def test_a_burst_that_outlasts_the_ready_ones_has_some_started(
    daemon: Daemon, snapshot: Snapshot
) -> None:
    for each in snapshot.fork(MOST_OF_ONE + 1):
        each.delete(force=True)
    wait_for("all are there", lambda: (spares(daemon), started(daemon)) == (MOST_OF_ONE, 1))
    before = set(daemon.qemu_pids().values())
    forks = snapshot.fork(MOST_OF_ONE + 1)
    assert {each.info.pid for each in forks} <= before
    assert all(each.run("test -e /ready").ok and each.info.origin == snapshot.id for each in forks)


# -- what must not be left -------------------------------------------------------------------------


def test_they_are_nobodys_after_kill_9_and_none_is_left(daemon: Daemon, snapshot: Snapshot) -> None:
    make_a_habit(daemon, snapshot)
    assert len(daemon.qemu_pids()) > 1
    daemon.kill()
    daemon.start()
    assert [each.name for each in daemon.inn.guests()] == ["web1"]
    assert spares(daemon) == 0
    assert len(daemon.qemu_pids()) == 1
    again = daemon.inn.snapshot("web1@base")
    make_a_habit(daemon, again)
    assert snapshot.refresh().info.forks == 0, "a spare is not counted as a fork"
    again.delete()
    # also one that was being made just then, and counted as none yet
    wait_for("its spares go with it", lambda: len(daemon.qemu_pids()) == 1, 4 * LOOK_EVERY)
    assert spares(daemon) == 0


def test_a_daemon_that_ends_while_some_come_and_go_leaves_none(
    daemon: Daemon, guest_reached: Guest
) -> None:
    snapshot = guest_reached.snapshot("base")
    make_a_habit(daemon, snapshot, 3)
    for each in snapshot.fork(3):
        each.delete(force=True)
    daemon.stop()  # others are being made
    folders = {path.name for path in (daemon.home / "state" / "guests").iterdir()}
    assert set(daemon.qemu_pids()) == folders == {guest_reached.id}
    daemon.start()
    make_a_habit(daemon, daemon.inn.guest("web1").snapshots()[0], 3)
    daemon.inn.guest("web1").delete(force=True)
    daemon.stop()  # they are being removed
    assert daemon.leftovers() == []


def test_one_whose_agent_is_dead_is_replaced(daemon: Daemon, snapshot: Snapshot) -> None:
    """It was fine when it was made; whoever asks gets a guest all the same."""
    make_a_habit(daemon, snapshot)
    mine = {daemon.inn.guest("web1").info.pid}
    for pid in set(daemon.qemu_pids().values()) - mine:
        os.kill(pid, signal.SIGSTOP)
    fork = snapshot.fork(name="web2")
    assert fork.run("hostname").stdout == "web2\n"


def test_a_warm_image_is_launched_out_of_it(daemon: Daemon, guest: Guest) -> None:
    guest.publish("warm")
    for _ in range(2):
        daemon.inn.launch("warm").delete(force=True)
    wait_for("a spare", lambda: spares(daemon) >= 1)
    before = set(daemon.qemu_pids().values())
    launched = daemon.inn.launch("warm", name="web2", labels={"a": "b"}, restart="always")
    assert launched.info.pid in before
    assert launched.info.labels == {"a": "b"} and launched.info.restart == "always"
    assert launched.info.image == "warm"
    launched.delete(force=True)
    daemon.inn.delete_image("warm")
    assert spares(daemon) == 0


def test_without_memory_for_it_none_is_made(
    serai_home: Path, tiny_state: Path, nursery: Nursery
) -> None:
    copy_state(tiny_state, serai_home)
    keeper = Daemon(serai_home, pool_memory="0")
    keeper.nursery = nursery
    keeper.start()
    try:
        guest = keeper.inn.launch("tiny", name="web1", memory="128MiB")
        snapshot = guest.snapshot("base")
        for _ in range(3):
            snapshot.fork().delete(force=True)
        time.sleep(1.5 * LOOK_EVERY)  # the time in which one would have been begun
        assert spares(keeper) == 0
    finally:
        keeper.kill_all()
