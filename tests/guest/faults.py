"""Killed at every step: guests, snapshots and forks are as before or as wanted, and nothing is left.

A ``Case`` is something that is asked of a daemon; ``Rounds`` asks for it again and again, and each time
the daemon dies at another step (``victim``). After each death the next daemon must bring all to the old
or the new state, with every guest well inside, and nothing may be left that nobody knows of.
"""

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import START_LIMIT, Daemon, open_files
from nursery import Child
from victim import Trap
from warm import WARM_DISK, copy_warm, state_with_warm

import serai
from serai import Guest, SeraiError

LIMIT = 30.0
AT_REST = {"running", "stopped", "crashed"}
AGAIN = 11
STILL = 0.05
"""Within this time something is done, or nothing is any more."""
PROGRAM = Path(__file__).with_name("victim.py")
PUT = "tr '\\0' $BYTE </dev/zero | head -c 65536 | dd of=/dev/vda bs=64k seek=$AT conv=notrunc,fsync 2>/dev/null"
GET = "dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | md5sum; cat /mark"


class Victim(Daemon):
    """A daemon that dies at the step that ``trap`` is set to."""

    def __init__(self, home: Path, **settings: str) -> None:
        # what is made ahead by itself would be counted among the steps of what is asked for
        super().__init__(home, **{"pool_memory": "0", **settings})
        self.trap = Trap(home / "trap")
        self._forker = subprocess.Popen(
            [sys.executable, str(PROGRAM)], env=self.environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers, or dies in its trap."""
        ready = self.home / "ready"
        ready.unlink(missing_ok=True)
        os.mkfifo(ready)
        reading = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
        assert self._forker.stdin and self._forker.stdout
        print(ready, file=self._forker.stdin, flush=True)
        self.process = Child(json.loads(self._forker.stdout.readline()))
        self._await_ready(reading)
        os.close(reading)
        self.inn.close()

        self.inn = serai.connect(self.socket)

    def _await_ready(self, reading: int) -> None:
        until = time.monotonic() + START_LIMIT
        while self.is_running:
            if select.select([reading], [], [], 0.02)[0] and os.read(reading, 1) == b"1":
                return
            if time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"no daemon: {self.log.read_text()[-2000:]}")

    def files_in(self, folder: str) -> list[Path]:
        """Return what is in a folder of its state."""
        return [*(self.home / "state" / folder).iterdir()]

    def close(self) -> None:
        """Let go of what daemons are forked from."""
        self._forker.kill()
        self._forker.wait()


# -- what must hold --------------------------------------------------------------------------------


def wait_for(what: str, check: Callable[[], bool], limit: float = LIMIT) -> None:
    """Ask until it is so; AssertionError after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not check():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.02)


def is_settled(daemon: Daemon) -> bool:
    """Tell whether all jobs have ended."""
    return not daemon.inn.jobs("running") and not daemon.inn.jobs("queued")


def rows(daemon: Daemon, table: str) -> list[dict[str, Any]]:
    """Return what the database has in a table."""
    with closing(sqlite3.connect(daemon.home / "state" / "serai.db")) as database:
        return [json.loads(body) for (body,) in database.execute(f"select body from {table}")]


def processes(daemon: Daemon) -> Counter[str]:
    """Return how many processes have files of each guest open."""
    return Counter(qemus(daemon).values())


def names_in(folder: Path) -> set[str]:
    """Return the names of what is in a folder; () if there is none."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def wait_tidy(daemon: Daemon, limit: float = 5.0) -> None:
    """Wait until ``check_tidy`` finds nothing: files go after what they were part of is forgotten."""
    end = time.monotonic() + limit
    while True:
        try:
            check_tidy(daemon)
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def check_tidy(daemon: Daemon) -> None:
    """Files, processes and records agree: nothing is half there, nothing is nobody's."""
    state, run = daemon.home / "state", daemon.home / "run" / "guests"
    guests = {each["id"]: each for each in rows(daemon, "guests")}
    snapshots = rows(daemon, "snapshots")
    memories = [each["memory"] for each in snapshots if each.get("memory")]
    assert {each["state"] for each in snapshots} <= {"ready"}
    assert names_in(state / "guests") == set(guests)
    layers = {f"{each['id']}.qcow2" for each in rows(daemon, "layers")}
    assert {name for name in names_in(state / "layers") if not name.endswith(".digest")} == layers
    stored = {each["id"] for each in memories} | {each["base"] for each in memories}
    assert names_in(state / "memory") == stored, (names_in(state / "memory"), stored)
    assert names_in(state / "firmware") == {each.get("firmware", "") for each in snapshots} - {""}
    assert names_in(state / "scratch") == set()
    infos = {each.id: each.info for each in daemon.inn.guests()}
    assert {str(info.state) for info in infos.values()} <= AT_REST, infos
    assert processes(daemon) == Counter(key for key, info in infos.items() if info.pid)
    for key, guest in guests.items():
        _check_folders(state / "guests" / key, run / key, guest, runs=bool(infos[key].pid))
    assert names_in(run) <= set(guests)


def _check_folders(folder: Path, run: Path, guest: dict[str, Any], *, runs: bool) -> None:
    heads = {each["head"] for each in guest.get("volumes", ())}
    known = heads | {"uefi-vars.fd", "serial.log", "qemu.log"}
    assert heads <= names_in(folder) <= known, (names_in(folder), heads)
    sockets = json.loads((run / "running.json").read_bytes()).get("sockets", "") if runs else ""
    listening = {"qmp.sock", "agent.sock", "birth.sock", "console.sock"} if runs else set()
    assert listening <= names_in(run / sockets), (names_in(run), sockets)
    left = {"running.json", "vnc.sock", sockets} if runs else set()
    assert names_in(run) <= left | (listening if not sockets else set()), names_in(run)


# -- guests and what is in them --------------------------------------------------------------------


def put(guest: Guest, byte: str) -> str:
    """Write the same into the guest's memory and on its disk; return what ``look`` gives then."""
    assert guest.run(f"echo {byte} >/mark; {PUT}", env={"BYTE": byte, "AT": "1"}).ok
    return look(guest)


def look(guest: Guest) -> str:
    """Return what is on the guest's disk and in its memory."""
    done = guest.run(GET)
    assert done.ok, done
    return done.stdout


def has_ended(daemon: Daemon, name: str) -> bool:
    """Tell how it went with a guest: True when it has no process any more, False when it answers."""
    ends = ("crashed", "stopped")

    def is_settled() -> bool:
        info = daemon.inn.guest(name).info
        return info.state in ends or info.agent == "answering"

    wait_for("it answers or has ended", is_settled)
    return daemon.inn.guest(name).info.state in ends


def reach(daemon: Daemon, name: str) -> Guest:
    """Wait until the agent of a guest answers."""
    wait_for("its agent answers", lambda: daemon.inn.guest(name).info.agent == "answering")
    return daemon.inn.guest(name)


# -- the rounds ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something that is asked. ``prepare`` is called before each round, ``check`` after it, with
    whether the asking was acknowledged; it also takes back what came of it."""

    name: str
    ask: Callable[[Daemon], object]
    check: Callable[[Daemon, bool], None]
    prepare: Callable[[Daemon], object] = lambda _: None


def count_steps(daemon: Victim, case: Case) -> list[str]:
    """Do it once undisturbed; return its steps."""
    case.prepare(daemon)
    daemon.trap.set(0)
    case.ask(daemon)
    wait_for("it is done", lambda: is_settled(daemon))
    steps = daemon.trap.steps()
    _check(daemon, case, done=True)
    return steps


def die_at(daemon: Victim, case: Case, at: int | str, again: int = 0) -> bool:
    """Have the daemon die before step ``at``, and the next at step ``again`` of its start; check.

    ``at`` is as ``Trap.set`` has it. Returns whether it died: there may be no such step.
    """
    case.prepare(daemon)
    daemon.trap.set(at)
    done = _ask(daemon, case)
    if done:
        _wait_still(daemon)
    told = daemon.trap.steps()
    daemon.trap.set(0)
    died = not daemon.is_running
    daemon.trap.set(again if died else 0)
    try:
        if died:
            daemon.start()
        if died and not daemon.is_running:
            told += ["then", *daemon.trap.steps()]
            daemon.trap.set(0)
            daemon.start()
        daemon.trap.set(0)
        _check(daemon, case, done=done)
    except BaseException as error:
        error.add_note(f"{case.name}, killed before step {at}: {told[-1:]}")
        raise
    return died


def _wait_still(daemon: Victim) -> None:
    """Wait for what is done after it was said to be done, as long as something is."""
    before = -1
    while daemon.is_running and len(daemon.trap.steps()) != before:
        before = len(daemon.trap.steps())
        time.sleep(STILL)


def _ask(daemon: Victim, case: Case) -> bool:
    try:
        case.ask(daemon)
    except SeraiError as error:
        try:
            wait_for("it has died", lambda: not daemon.is_running, 5.0)
        except AssertionError:
            raise error from None
        return False
    return True


def _check(daemon: Victim, case: Case, *, done: bool) -> None:
    wait_for("unfinished work ends", lambda: is_settled(daemon))
    case.check(daemon, done)
    wait_tidy(daemon)


def hurt_at(daemon: Victim, case: Case, at: str, which: Callable[[dict[int, str]], int]) -> str:
    """Have the daemon stop before the first step ``at``, end a process of a guest, let it go on.

    ``which`` picks one of ``qemus``. Returns the code of the problem that came of it, "" for none.
    """
    case.prepare(daemon)
    daemon.trap.set(at, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(case.ask, daemon)
        wait_for("it stops", lambda: _is_stopped(daemon.pid))
        daemon.trap.set(0)
        os.kill(which(qemus(daemon)), signal.SIGKILL)
        os.kill(daemon.pid, signal.SIGCONT)
        try:
            asked.result()
        except SeraiError as error:
            return str(error.code)
    return ""


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def qemus(daemon: Daemon) -> dict[int, str]:
    """Return the processes that have files of guests open, the oldest first, and whose they are."""
    guests = f"{daemon.home}/state/guests/"
    found = {
        pid: path.removeprefix(guests).partition("/")[0]
        for pid, path in open_files()
        if path.startswith(guests) and pid != daemon.pid
    }
    return dict(sorted(found.items(), key=lambda each: _started(each[0])))


def _started(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:  # it has ended meanwhile
        return 0


def sweep(daemon: Victim, case: Case, steps: Iterable[int]) -> int:
    """Die at each of the steps, in turn, and once more at some step of the next daemon's start.

    Returns how often it did: what is done last may be done in fewer steps now and then.
    """
    return sum(die_at(daemon, case, at, again=at % AGAIN) for at in steps)


# -- the cases -------------------------------------------------------------------------------------

SOURCE = "source"


def source_of(daemon: Daemon) -> Guest:
    """Return the guest that all is asked of."""
    return reach(daemon, SOURCE)


def snapshot_case(daemon: Daemon, *, memory: bool, booted: bool = False) -> Case:
    """Make a snapshot."""
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        if booted:
            source_of(daemon).restart(force=True)
        seen = put(source_of(daemon), "s")

    def check(daemon: Daemon, done: bool) -> None:
        source = source_of(daemon)
        assert look(source) == seen
        found = {each.name: each for each in source.snapshots()}
        assert not done or "new" in found
        if "new" in found:
            if memory:
                fork = found["new"].fork(name="proof")
                assert look(fork) == seen
                fork.delete(force=True)
            found["new"].delete()

    name = f"snapshot {'with' if memory else 'without'} memory{' of a booted guest' * booted}"
    return Case(
        name=name,
        prepare=prepare,
        ask=lambda daemon: daemon.inn.guest(SOURCE).snapshot("new", memory=memory),
        check=check,
    )


def fork_case(daemon: Daemon, snapshot: str = "") -> Case:
    """Make two forks, of the guest or of a snapshot of it."""
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        seen = put(source_of(daemon), "f")

    def ask(daemon: Daemon) -> None:
        if snapshot:
            daemon.inn.snapshot(f"{SOURCE}@{snapshot}").fork(name="child")
        else:
            daemon.inn.guest(SOURCE).fork(2, name="child")

    def check(daemon: Daemon, done: bool) -> None:
        assert look(source_of(daemon)) == seen
        made = [each for each in daemon.inn.guests() if each.name.startswith("child")]
        assert len(made) in (0, 1 if snapshot else 2)
        assert not done or made
        for each in made:
            if not done and has_ended(daemon, each.name):  # it was killed when it stood on its own
                each.delete(force=True)
                continue
            child = reach(daemon, each.name)
            assert snapshot or look(child) == seen
            assert child.run("hostname").stdout == f"{child.name}\n"
            child.delete(force=True)

    return Case(name=f"fork {snapshot}", prepare=prepare, ask=ask, check=check)


def restore_case(daemon: Daemon, snapshot: str, *, memory: bool = True) -> Case:
    """Put the guest back to a snapshot, or not at all."""
    source = source_of(daemon)
    old = put(source, "o")
    source.snapshot(snapshot, memory=memory)
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        seen = put(source_of(daemon), "n")

    def check(daemon: Daemon, done: bool) -> None:
        now = source_of(daemon).run(GET).stdout
        wanted = old if memory else old.partition("\n")[0] + "\n"
        assert now == wanted if done else now in (wanted, seen), (now, wanted, seen)

    return Case(
        name=f"restore {'with' if memory else 'without'} memory",
        prepare=prepare,
        ask=lambda daemon: daemon.inn.guest(SOURCE).restore(snapshot, force=True),
        check=check,
    )


def publish_case(daemon: Daemon) -> Case:
    """Publish the guest as an image, in the place of one that may be there."""
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        seen = put(source_of(daemon), "p")

    def check(daemon: Daemon, done: bool) -> None:
        assert look(source_of(daemon)) == seen
        there = {each.name for each in daemon.inn.images()}
        assert not done or "warm" in there
        if "warm" in there:
            guest = daemon.inn.launch("warm", name="proof")
            assert look(guest) == seen
            guest.delete(force=True)
            daemon.inn.delete_image("warm")

    return Case(
        name="publish",
        prepare=prepare,
        ask=lambda daemon: daemon.inn.guest(SOURCE).publish("warm"),
        check=check,
    )


def republish_case(daemon: Daemon) -> Case:
    """Publish the guest in the place of an image that is there."""
    seen = [""]

    def prepare(daemon: Daemon) -> None:
        seen.append(put(source_of(daemon), "qr"[len(seen) % 2]))
        if len(seen) == 2:
            daemon.inn.guest(SOURCE).publish("warm")
            seen.append(put(source_of(daemon), "qr"[len(seen) % 2]))

    def check(daemon: Daemon, done: bool) -> None:
        assert look(source_of(daemon)) == seen[-1]
        guest = daemon.inn.launch("warm", name="proof")
        now = look(guest)
        assert now == seen[-1] if done else now in seen
        guest.delete(force=True)

    return Case(
        name="publish again",
        prepare=prepare,
        ask=lambda daemon: daemon.inn.guest(SOURCE).publish("warm", replace=True),
        check=check,
    )


def launch_case(daemon: Daemon) -> Case:
    """Launch a warm image."""
    seen = put(source_of(daemon), "w")
    source_of(daemon).publish("hot")

    def check(daemon: Daemon, done: bool) -> None:
        made = [each.name for each in daemon.inn.guests() if each.name == "child"]
        assert not done or made
        for name in made:
            child = reach(daemon, name)
            assert look(child) == seen
            child.delete(force=True)

    return Case(
        name="launch of a warm image",
        ask=lambda daemon: daemon.inn.launch("hot", name="child"),
        check=check,
    )


def delete_case(daemon: Daemon) -> Case:
    """Delete a snapshot in the middle of three."""
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        source = source_of(daemon)
        there = {each.name for each in source.snapshots()}
        for name in ("below", "middle", "above"):
            if name not in there:
                seen = put(source, name[0])
                source.snapshot(name)

    def check(daemon: Daemon, done: bool) -> None:
        source = source_of(daemon)
        assert look(source) == seen
        found = {each.name for each in source.snapshots()}
        assert {"below", "above"} <= found
        assert not done or "middle" not in found
        fork = daemon.inn.snapshot(f"{SOURCE}@above").fork(name="proof")
        look(fork)
        fork.delete(force=True)

    return Case(
        name="delete a snapshot",
        prepare=prepare,
        ask=lambda daemon: daemon.inn.snapshot(f"{SOURCE}@middle").delete(),
        check=check,
    )


def merge_case(daemon: Daemon) -> Case:
    """Have upkeep make layers one, a few seconds after a daemon's start."""
    seen = ""

    def prepare(daemon: Daemon) -> None:
        nonlocal seen
        source = source_of(daemon)
        for name in ("one", "two"):
            seen = put(source, name[0])
            source.snapshot(f"merge-{name}", memory=False)
        for name in ("one", "two"):
            daemon.inn.snapshot(f"{SOURCE}@merge-{name}").delete()
        daemon.stop()
        daemon.start()

    def ask(daemon: Daemon) -> None:
        before = len(rows(daemon, "layers"))
        wait_for(
            "layers are one",
            lambda: not daemon.is_running or len(rows(daemon, "layers")) < before,
        )

    def check(daemon: Daemon, done: bool) -> None:
        assert look(source_of(daemon)) == seen

    return Case(name="merge", prepare=prepare, ask=ask, check=check)


CASES: tuple[Callable[[Daemon], Case], ...] = (
    lambda daemon: snapshot_case(daemon, memory=True, booted=True),
    lambda daemon: snapshot_case(daemon, memory=True),
    lambda daemon: snapshot_case(daemon, memory=False),
    fork_case,
    lambda daemon: fork_case(daemon, _snapshot(daemon)),
    lambda daemon: restore_case(daemon, "back"),
    publish_case,
    republish_case,
    launch_case,
    delete_case,
    merge_case,
)


def _snapshot(daemon: Daemon) -> str:
    source_of(daemon).snapshot("first")
    return "first"


@contextmanager
def fresh_victim(home: Path) -> Iterator[Victim]:
    """A daemon with a guest that runs and can be asked; at the end nothing may be left."""
    copy_warm(state_with_warm(), home)
    daemon = Victim(home, heartbeat="600s", pool_memory="0")
    try:
        daemon.start()
        daemon.inn.launch(WARM_DISK, name=SOURCE)
        yield daemon
        daemon.delete_all()
        for image in daemon.inn.images():
            daemon.inn.delete_image(image.name)
        wait_for("all is gone", lambda: not any(map(daemon.files_in, ("layers", "memory"))))
        daemon.stop()
        assert not (left := daemon.leftovers()), f"left behind: {left}"
    finally:
        daemon.kill_all()
        daemon.close()
