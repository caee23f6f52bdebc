"""What leaks and what is lost when it goes on for long and everything is killed: ``make soak``.

``python -m bench.soak``                 all of it (most of an hour on two cores)
``python -m bench.soak --cycles 50 --kills 3 --hurts 10 --seed 7``   less of it; tests do this

Cycles: start and forced stop; then descriptors, threads, files, processes and memory are as before.
Kills: the daemon is killed at random moments during mixed work; whatever was acknowledged is so.
Hurts: QEMU is stopped, killed and let go on at random; each time only its own guest suffers.
Faults: the daemon is killed before every single step of snapshots, forks, restores and images.
Full disk: guests that write are held, go on when there is room, and have lost nothing.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from debian import check_forks, state_with_debian
from faults import CASES, count_steps, fresh_victim, sweep
from keeper import Daemon
from nursery import Nursery
from tiny import ROOT, copy_state, state_with_tiny

import serai
from bench.host import open_files, resident
from serai import Guest, SeraiError

SAVED = ROOT / ".work" / "failures" / "soak"
SMALL = "96MiB"
AT_ONCE = 4
MOST_GUESTS = 6
WARM_CYCLES = 100
GROWTH_LIMIT = 12 << 20
POOL_SLACK = 4  # the pool of threads for file work may still be growing to its bound
LIMIT = 60.0
WRITTEN = 128 << 20
SETTLED = {"running", "paused", "stopped"}
PATIENCE = {"heartbeat": "0.5s", "monitor_timeout": "1s"}


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"soak: {text}", file=sys.stderr, flush=True)


def wait_for(what: str, check: Callable[[], bool], limit: float = LIMIT) -> None:
    """Ask until it is so; AssertionError after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not check():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.05)


@contextmanager
def fresh_daemon(
    home: Path, nursery: Nursery | None = None, /, **settings: str
) -> Iterator[Daemon]:
    """A daemon with the tiny image; at the end all guests are deleted and nothing may be left."""
    copy_state(state_with_tiny(), home)
    daemon = Daemon(home, **settings)
    daemon.nursery = nursery
    try:
        daemon.start()
        yield daemon
        daemon.delete_all()
        daemon.stop()
        assert not (left := daemon.leftovers()), f"left behind: {left}"
    except BaseException:
        daemon.save(SAVED)
        say(f"logs, events and command lines are in {SAVED}")
        raise
    finally:
        daemon.kill_all()


# -- cycles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holdings:
    """What a daemon holds: things that must not grow."""

    descriptors: int
    threads: int
    files: int
    memory: int


def holdings(daemon: Daemon) -> Holdings:
    """Return what the daemon and its home hold now."""
    files = [path for path in daemon.home.rglob("*") if "serai.db" not in path.name]
    threads = len(os.listdir(f"/proc/{daemon.pid}/task"))
    return Holdings(open_files(daemon.pid), threads, len(files), resident(daemon.pid))


def soak_cycles(daemon: Daemon, cycles: int) -> None:
    """Start and stop guests; AssertionError names what has leaked."""
    guests = [daemon.inn.create("tiny", name=f"turn{n}", memory=SMALL) for n in range(AT_ONCE)]
    _turn(daemon, guests, WARM_CYCLES)
    before = holdings(daemon)
    begun = time.monotonic()
    _turn(daemon, guests, cycles)
    after = holdings(daemon)
    say(f"{cycles} cycles in {time.monotonic() - begun:.0f} s: {before} → {after}")
    assert daemon.qemu_pids() == {}, "processes were left"
    assert after.descriptors <= before.descriptors + POOL_SLACK, "descriptors leak"
    assert after.threads <= before.threads + POOL_SLACK, "threads leak"
    assert after.files <= before.files, "files leak"
    assert after.memory - before.memory < GROWTH_LIMIT, "memory leaks"
    for guest in guests:
        guest.delete()


def _turn(daemon: Daemon, guests: list[Guest], cycles: int) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        with serai.connect(daemon.socket) as inn:
            try:
                guest = inn.guest(name)
                for _ in range(cycles // len(guests)):
                    guest.start()
                    guest.stop(force=True)
            except BaseException as error:
                failures.append(error)

    _in_threads([partial(work, guest.name) for guest in guests])
    if failures:
        raise failures[0]


def _in_threads(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- killed daemons --------------------------------------------------------------------------------


class Client:
    """Does mixed work on guests of its own and remembers what was acknowledged.

    ``said`` has the last acknowledged state of each guest; one that was being worked on when the
    daemon died is in ``unsure``, since then the outcome is unknown.
    """

    def __init__(self, daemon: Daemon, name: str, chance: random.Random) -> None:
        self.said: dict[str, str] = {}
        self.unsure: set[str] = set()
        self._daemon = daemon
        self._name = name
        self._chance = chance
        self._count = 0

    def work(self, ended: threading.Event) -> None:
        """Work until the daemon dies or ``ended`` is set."""
        inn = serai.connect(self._daemon.socket)
        try:
            while not ended.is_set():
                self._step(inn)
        except (SeraiError, OSError):
            pass  # the daemon died; what was under way is in ``unsure``
        finally:
            inn.close()

    def _step(self, inn: serai.Inn) -> None:
        names = [name for name, state in self.said.items() if state != "gone"]
        verb = self._chance.choice(["launch", "launch", "start", "stop", "pause", "delete"])
        if len(names) >= MOST_GUESTS:
            verb = "delete"
        if verb == "launch" or not names:
            self._count += 1
            name = f"{self._name}-{self._count}"
            self._do(
                name, "running", lambda: inn.launch("tiny", name=name, memory=SMALL, wait=False)
            )
            return
        name = self._chance.choice(names)
        guest = inn.guest(name)
        match verb, self.said[name]:
            case "delete", _:
                self._do(name, "gone", lambda: guest.delete(force=True))
            case "start", "stopped":
                self._do(name, "running", guest.start)
            case "pause", "running":
                self._do(name, "paused", guest.pause)
            case "stop", _:
                self._do(name, "stopped", lambda: guest.stop(force=True))

    def _do(self, name: str, then: str, work: Callable[[], object]) -> None:
        self.unsure.add(name)
        work()
        self.said[name] = then
        self.unsure.discard(name)


def soak_kills(daemon: Daemon, kills: int, chance: random.Random) -> None:
    """Kill the daemon during mixed work; AssertionError names what was lost or left."""
    slowest = 0.0
    clients = [Client(daemon, f"c{n}", random.Random(chance.random())) for n in range(AT_ONCE)]
    for turn in range(kills):
        ended = threading.Event()
        killer = threading.Timer(chance.uniform(0.02, 1.5), daemon.kill)
        killer.start()
        _in_threads([partial(client.work, ended) for client in clients])
        killer.join()
        begun = time.monotonic()
        daemon.start()
        slowest = max(slowest, time.monotonic() - begun)
        wait_for("unfinished work ends", partial(_is_settled, daemon))
        _check(daemon, clients, turn)
    total = sum(len(client.said) for client in clients)
    say(f"{kills} killed daemons, {total} guests; slowest to answer again {slowest:.2f} s")


def _is_settled(daemon: Daemon) -> bool:
    states = {str(guest.info.state) for guest in daemon.inn.guests()}
    return states <= SETTLED and not daemon.inn.jobs("running") + daemon.inn.jobs("queued")


def _check(daemon: Daemon, clients: list[Client], turn: int) -> None:
    found = {guest.name: guest.info for guest in daemon.inn.guests()}
    for client in clients:
        for name, state in client.said.items():
            if name not in client.unsure:
                is_now = str(found[name].state) if name in found else "gone"
                assert is_now == state, f"turn {turn}: {name} was {state} and is {is_now}"
        for name in client.unsure:
            client.said[name] = str(found[name].state) if name in found else "gone"
        client.unsure.clear()
    running = {info.id: info.pid for info in found.values() if info.pid}
    assert daemon.qemu_pids() == running, f"turn {turn}: processes and guests differ"


# -- hurt guests -----------------------------------------------------------------------------------


def soak_hurts(daemon: Daemon, hurts: int, chance: random.Random) -> None:
    """Stop, kill and release QEMUs at random; each time the others must go on untouched."""
    names = [f"hurt{number}" for number in range(AT_ONCE)]
    for name, fork in zip(names[::2], names[1::2], strict=True):  # which share memory, two by two
        daemon.inn.launch("tiny", name=name, memory=SMALL).fork(name=fork)
    for _ in range(hurts):
        name = chance.choice(names)
        guest = daemon.inn.guest(name)
        others = {each: daemon.inn.guest(each).info.pid for each in names if each != name}
        if chance.random() < 0.5:
            _freeze(guest)
        else:
            _kill(guest)
        for other, pid in others.items():
            info = daemon.inn.guest(other).info
            assert (info.state, info.pid) == ("running", pid), f"{name} was hurt, {other} suffered"
    for name in names:
        _is_well(daemon.inn.guest(name))
    say(f"{hurts} QEMUs stopped or killed")


def _is_well(guest: Guest) -> None:
    wait_for("it answers", lambda: guest.refresh().info.agent == "answering")
    assert guest.run("echo well").stdout == "well\n"


def _freeze(guest: Guest) -> None:
    pid = guest.refresh().info.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for("it is unresponsive", lambda: guest.state == "unresponsive")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("it is back", lambda: guest.state == "running")
    assert guest.info.pid == pid


def _kill(guest: Guest) -> None:
    os.kill(guest.refresh().info.pid, signal.SIGKILL)
    wait_for("it has crashed", lambda: guest.state == "crashed")
    guest.start()


# -- a full disk -----------------------------------------------------------------------------------


@contextmanager
def small_home(size: str = "148m") -> Iterator[Path]:
    """A home on a file system of its own that is soon full. Needs root."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "soak", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def soak_full_disk(daemon: Daemon, written: int = WRITTEN) -> None:
    """Fill the disk under a guest that writes (whole MiB), make room, and compare what it wrote."""
    guest = daemon.inn.launch("tiny", name="writer", memory=SMALL, disk="256MiB")
    bystander = daemon.inn.launch("tiny", name="bystander", memory=SMALL)
    guest.run("head -c 1048576 /dev/urandom > /tmp/part")
    everything = f"for i in $(seq {written >> 20}); do cat /tmp/part; done"
    write = f"({everything}) > /dev/vda && sync && echo written > /tmp/done"
    guest.run(f"sh -c '{write}' > /dev/null 2>&1 &")
    wait_for("it is held", lambda: guest.state == "io-error")
    assert guest.info.problem is not None
    assert guest.info.problem.code == "disk-full"
    assert bystander.run("echo well").stdout == "well\n"
    refused = _refusal(lambda: daemon.inn.build_image("tiny", name="another"))
    assert refused == "disk-full", f"with a full disk a build said: {refused}"
    subprocess.run(["mount", "-o", "remount,size=1g", str(daemon.home)], check=True)
    wait_for("it goes on", lambda: guest.state == "running")
    wait_for("it has written all", lambda: guest.run("cat /tmp/done").ok)
    wanted = guest.run(f"({everything}) | md5sum").stdout
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    assert guest.run(f"head -c {written} /dev/vda | md5sum").stdout == wanted
    say("a full disk held one guest, and lost nothing")


def _refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except SeraiError as error:
        return str(error.code)
    return "nothing"


# -- faults ----------------------------------------------------------------------------------------


def soak_faults(every: int) -> None:
    """Kill the daemon before every step (or each ``every``-th) of each of ``faults.CASES``."""
    for make in CASES:
        with (
            tempfile.TemporaryDirectory(prefix="soak-") as name,
            fresh_victim(Path(name)) as victim,
        ):
            case = make(victim)
            count_steps(victim, case)  # the first freeze of a guest is another one
            steps = count_steps(victim, case)
            died = sweep(victim, case, range(1, len(steps) + 1, every))
            say(f"{case.name}: killed at {died} of {len(steps)} steps")


def soak_debian(home: Path) -> None:
    """Snapshots, forks, restores and a warm image of a full system that is at work."""
    copy_state(state_with_debian(), home)
    daemon = Daemon(home, agent_timeout="300")
    try:
        daemon.start()
        guest = daemon.inn.launch("debian", name="d1", memory="512MiB", cpus=2, disk="3GiB")
        wait_for("it is up", lambda: guest.run("systemctl is-active -q ssh").ok)
        check_forks(daemon, guest)
        daemon.delete_all()
        daemon.stop()
        assert not (left := daemon.leftovers()), f"left behind: {left}"
    except BaseException:
        daemon.save(SAVED)
        raise
    finally:
        daemon.kill_all()
    say("a full system was saved, forked and put back")


def main() -> int:
    """Soak; exit code 1 with the first thing that was lost or has leaked."""
    parser = argparse.ArgumentParser(prog="bench.soak")
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--hurts", type=int, default=60)
    parser.add_argument("--every", type=int, default=1, help="of the steps of faults; 0: none")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    say(f"seed {options.seed}")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name, fresh_daemon(Path(name)) as daemon:
        soak_cycles(daemon, options.cycles)
    with tempfile.TemporaryDirectory(prefix="soak-") as name, fresh_daemon(Path(name)) as daemon:
        soak_kills(daemon, options.kills, chance)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        fresh_daemon(Path(name), **PATIENCE) as daemon,
    ):
        soak_hurts(daemon, options.hurts, chance)
    if options.every:
        soak_faults(options.every)
        with tempfile.TemporaryDirectory(prefix="soak-") as name:
            soak_debian(Path(name))
    if os.geteuid() == 0:
        with small_home() as home, fresh_daemon(home, disk_reserve="16MiB") as daemon:
            soak_full_disk(daemon)
    say("nothing leaked, nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
