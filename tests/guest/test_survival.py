"""The daemon dies, again and again; guests do not, and nothing that was said is lost."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from keeper import Daemon

import serai
from serai import Guest, SeraiError
from serai.errors import Code


def uptime(guest: Guest) -> float:
    return float(guest.run("cat /proc/uptime").stdout.split()[0])


def test_a_guest_outlives_a_killed_daemon(daemon: Daemon, guest_reached: Guest) -> None:
    pid, before = guest_reached.refresh().info.pid, uptime(guest_reached)
    daemon.kill()
    os.kill(pid, 0)
    daemon.start()
    again = daemon.inn.guest("web1")
    assert again.info.pid == pid
    assert again.info.state == "running"
    assert uptime(again) > before


def control_groups(guest: Guest) -> list[Path]:
    top = Path("/sys/fs/cgroup")
    return [*top.glob(f"*/serai/{guest.id}"), *top.glob(f"serai/{guest.id}")]


def test_no_control_group_is_left_of_a_guest_that_ended_alone(daemon: Daemon) -> None:
    guests = [daemon.inn.launch("tiny", name=n, memory="96MiB", wait=False) for n in ("a", "b")]
    for guest in guests:
        if guest.name == "b":
            daemon.kill()
        os.kill(guest.info.pid, signal.SIGKILL)
    daemon.start()
    for guest in guests:
        assert daemon.inn.guest(guest.name).info.state == "crashed"
        assert control_groups(guest) == []


def test_a_graceful_end_of_the_daemon_stops_no_guest(daemon: Daemon, guest: Guest) -> None:
    pid = guest.refresh().info.pid
    daemon.stop()
    daemon.start()
    assert daemon.inn.guest("web1").info.pid == pid


def test_a_paused_guest_is_adopted_paused(daemon: Daemon, guest: Guest) -> None:
    guest.pause()
    daemon.kill()
    daemon.start()
    again = daemon.inn.guest("web1")
    assert again.info.state == "paused"
    again.resume()
    assert again.run("echo on").ok


def test_what_happened_while_no_daemon_was_there_is_told_apart(daemon: Daemon, warm: str) -> None:
    off, killed, hung = (daemon.inn.launch(warm, name=n) for n in ("off", "killed", "hung"))
    off.run("sh -c 'sleep 1; poweroff' > /dev/null 2>&1 &")
    pids = {guest.name: guest.refresh().info.pid for guest in (off, killed, hung)}
    daemon.kill()
    os.kill(pids["killed"], signal.SIGKILL)
    os.kill(pids["hung"], signal.SIGSTOP)
    time.sleep(2.5)  # the guest powers itself off meanwhile
    daemon.environ.update(SERAI_HEARTBEAT="1s", SERAI_MONITOR_TIMEOUT="3s")
    daemon.start()
    try:
        deadline = time.monotonic() + 10
        while daemon.inn.guest("off").info.state != "stopped":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert daemon.inn.guest("off").info.last_exit == "powered-off"
        assert daemon.inn.guest("killed").info.state == "crashed"
        assert daemon.inn.guest("killed").info.last_exit == "crashed"
        assert daemon.inn.guest("hung").info.state == "unresponsive"
    finally:
        os.kill(pids["hung"], signal.SIGCONT)
    while daemon.inn.guest("hung").info.state != "running":
        assert time.monotonic() < deadline + 20
        time.sleep(0.1)


def test_a_reused_pid_is_never_taken_for_a_guest(daemon: Daemon, guest: Guest) -> None:
    """Another process that only looks alike is neither adopted nor killed."""
    guest_id = guest.id
    os.kill(guest.refresh().info.pid, signal.SIGKILL)
    daemon.kill()
    script = "import sys; sys.stdin.read()"
    stranger = subprocess.Popen(
        [sys.executable, "-c", script, "-uuid", guest_id], stdin=subprocess.PIPE
    )
    try:
        daemon.start()
        assert daemon.inn.guest("web1").info.pid != stranger.pid
        daemon.inn.guest("web1").delete(force=True)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.timeout(240)
def test_killing_the_daemon_at_any_moment_loses_nothing_acknowledged(daemon: Daemon) -> None:
    """Launch, stop, start and delete all the time, while the daemon is killed 8 times."""
    acknowledged: dict[str, str] = {}
    chance = random.Random(7)
    for turn in range(8):
        ended = threading.Event()

        def work(turn: int = turn, ended: threading.Event = ended) -> None:
            number = 0
            while not ended.is_set():
                name = f"g{turn}-{number}"
                number += 1
                try:
                    guest = daemon.inn.launch("tiny", name=name, memory="96MiB", wait=False)
                    acknowledged[name] = "running"
                    guest.stop(force=True)
                    acknowledged[name] = "stopped"
                    guest.delete()
                    acknowledged[name] = "deleted"
                except SeraiError:
                    acknowledged.setdefault(name, "unknown")
                    return

        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(chance.uniform(0.05, 1.2))
        daemon.kill()
        ended.set()
        worker.join(30)
        daemon.start()
    found = {guest.name: guest for guest in daemon.inn.guests()}
    for name, said in acknowledged.items():
        if said == "deleted":
            assert name not in found
        if said in ("running", "stopped"):  # the next step may have been done, but not undone
            assert name in found or said == "stopped"
    deadline = time.monotonic() + 20
    while daemon.inn.jobs("running") or daemon.inn.jobs("queued"):  # finished, or undone
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = {guest.name: guest for guest in daemon.inn.guests()}
    for guest in found.values():
        assert guest.state in ("running", "stopped")
    assert len(daemon.qemu_pids()) == sum(g.info.state == "running" for g in daemon.inn.guests())


@pytest.mark.timeout(300)
def test_fifty_guests_are_adopted_in_little_time(daemon: Daemon) -> None:
    for number in range(50):
        daemon.inn.launch("tiny", name=f"g{number}", memory="96MiB", wait=False).pause()
    pids = {guest.name: guest.info.pid for guest in daemon.inn.guests()}
    daemon.kill()
    daemon.start()
    took = processor_time(daemon.pid)
    assert {guest.name: guest.info.pid for guest in daemon.inn.guests()} == pids
    assert {str(guest.info.state) for guest in daemon.inn.guests()} == {"paused"}
    # all that it has used, importing itself too: how long that took depends on who else was there
    assert took < 3


def processor_time(pid: int) -> float:
    """Return how many seconds of a processor a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_two_daemons_never_have_one_home(daemon: Daemon) -> None:
    said = daemon.run("daemon", "run")
    assert said.returncode == 4
    assert "runs here already" in said.stderr.decode()
    assert daemon.inn.status().pid == daemon.pid


def test_a_command_without_a_daemon_says_how_to_start_one(daemon: Daemon) -> None:
    daemon.stop()
    said = daemon.run("show", "web1")
    assert said.returncode == 3
    assert "serai daemon start" in said.stderr.decode()


def test_a_hundred_clients_want_one_name_and_one_wins(daemon: Daemon) -> None:
    won, lost = [], []

    def want() -> None:
        inn = serai.connect(daemon.socket)
        try:
            inn.create("tiny", name="same")
            won.append(1)
        except SeraiError as error:
            lost.append(error.code)
        finally:
            inn.close()

    clients = [threading.Thread(target=want) for _ in range(100)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    assert len(won) == 1
    assert set(lost) == {Code.GUEST_EXISTS}
    assert len(lost) == 99
