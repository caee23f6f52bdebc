"""``serai daemon``: run it here, or in the background; stop it; see how it is.

Stopping the daemon stops no guest. Wiring, like ``daemon`` itself: it may start that. Whether a
daemon runs is told by its lock, not by its socket: one that hangs is still there and can be stopped.
"""

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import click

from serai.cli.layout import age, size
from serai.cli.options import connection, format_option
from serai.cli.output import print_facts, print_json, print_line, say
from serai.client import daemon_calls
from serai.errors import EXIT_CODES, Code, Family, HostFailure, Interrupted, NotFound, SeraiError
from serai.host.process import start_detached
from serai.model.node import DaemonStatus
from serai.settings import Places, current_places, read_settings

START_LIMIT = 30.0
STOP_LIMIT = 15.0
END_LIMIT = 5.0
"""How long a process that has closed the ready pipe may take to be gone."""
LOG_TAIL = 2000
LOOK_LIMIT = 3.0
LOOK_EVERY = 0.05
LOCKS = Path("/proc/locks")


@click.group()
def daemon() -> None:
    """Run, start, stop the daemon.

    Guests run on without it: it can be stopped, updated and killed at any time.
    """


@daemon.command()
@click.option("--ready-fd", type=int, default=None, hidden=True)
def run(ready_fd: int | None) -> int:
    """Run the daemon in the foreground until ctrl-C.

    Its settings: docs/settings.md. Where everything is: SERAI_HOME=DIR moves it all under DIR.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    places = current_places()
    settings = read_settings(os.environ, places.state / "serai.toml")
    if ready_fd is None:
        say(f"serai daemon {os.getpid()}, socket {places.socket}; ctrl-C ends it, guests run on")
    return int(_load_daemon().run_daemon(settings, places, ready_fd))


def _load_daemon() -> ModuleType:
    """Import the daemon. Nothing that is imported is garbage; looking for it takes a fifth of that."""
    gc.disable()
    try:
        return import_module("serai.daemon")
    finally:
        gc.freeze()
        gc.enable()


@daemon.command()
@format_option
def start(form: str) -> None:
    """Start the daemon in the background and wait until it answers.

    One that runs already is left as it is. What it prints goes to daemon.log in its state folder.
    """
    places = current_places()
    was_there = holder_of(places) is not None
    if not was_there:
        was_there = not start_daemon(places, os.environ)
    status = _status_soon(places)
    if form == "json":
        print_json(status)
        return
    print_line(f"the daemon runs{' already' if was_there else ''}, as process {status.pid}")
    if status.problem:
        say(f"note: {status.problem}; see: serai doctor")


def _status_soon(places: Places) -> DaemonStatus:
    """Ask the daemon how it is; one that somebody else has just started answers in a moment."""
    until = time.monotonic() + START_LIMIT
    while True:
        try:
            return connection().ask(daemon_calls.show_system())
        except NotFound:
            if time.monotonic() > until or holder_of(places) is None:
                raise
        time.sleep(LOOK_EVERY)  # nothing tells when another's socket is there


def start_daemon(places: Places, environ: Mapping[str, str]) -> bool:
    """Start a daemon and wait until it answers; False when another one was faster.

    ``environ`` must lead to ``places``. Raises HostFailure (``daemon-start-failed``).
    """
    places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "serai", "daemon", "run", "--ready-fd", str(writing)]
    try:
        with open(places.log, "ab") as log:
            begun_at = log.tell()
            pid = start_detached(argv, env=environ, pass_fds=(writing,), output_to=log.fileno())
    finally:
        os.close(writing)
    with _child(pid) as child:
        ready, _, _ = select.select([reading], [], [], START_LIMIT)
        answered = bool(ready) and os.read(reading, 1) == b"1"
        os.close(reading)
        if answered:
            return True
        code = _end_of(child, pid) if ready else None
        if code == EXIT_CODES[Family.CONFLICT] and holder_of(places) is not None:
            return False
        if code is None:
            signal.pidfd_send_signal(child, signal.SIGKILL)
    raise _start_failed(places, begun_at, ended=code is not None)


@contextmanager
def _child(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _end_of(child: int, pid: int) -> int | None:
    """Return the exit code of a child that is ending; None if it has not after a while."""
    if not select.select([child], [], [], END_LIMIT)[0]:
        return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _start_failed(places: Places, begun_at: int, *, ended: bool) -> HostFailure:
    with open(places.log, "rb") as log:
        log.seek(max(begun_at, log.seek(0, os.SEEK_END) - LOG_TAIL))
        end = log.read().decode(errors="replace").strip()
    what = "ended at once" if ended else f"did not answer within {START_LIMIT:.0f} s"
    return HostFailure(
        Code.DAEMON_START_FAILED,
        f"the daemon {what}: {_last_words(end)}",
        hint=f"See all of its log: {places.log}",
        details={"log": end},
    )


def _last_words(end: str) -> str:
    """Return the line that says what is wrong, or else the last one."""
    lines = end.splitlines() or ["it said nothing"]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


@daemon.command()
@format_option
def stop(form: str) -> None:
    """Stop the daemon; guests run on.

    The next daemon takes them up. Also stops a daemon that does not answer any more.
    """
    places = current_places()
    status = _status()
    pid = holder_of(places)
    message = "no daemon runs"
    if pid is not None:
        end_daemon(places, pid)
        running = f"; {_guests(status.running)} on" if status and status.running else ""
        message = f"the daemon is stopped{running}"
    if form == "json":
        print_json({"pid": pid or 0, "message": message})
    else:
        print_line(message)


def _guests(count: int) -> str:
    return f"{count} guests run" if count > 1 else "1 guest runs"


def holder_of(places: Places) -> int | None:
    """Return the process that holds the daemon's lock; None when nobody does.

    Asks the kernel's list of locks (proc_locks(5)): trying the lock would be in the way of a daemon
    that starts at this moment.
    """
    try:
        text = places.lock.read_text().strip()
        inode = str(places.lock.stat().st_ino)
    except OSError:
        return None
    for line in LOCKS.read_text().splitlines():
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[4] == text and words[5].rpartition(":")[2] == inode:
            return int(text)
    return None


def end_daemon(places: Places, pid: int) -> None:
    """End the daemon and wait until it is gone; guests run on.

    The lock is looked at once more when the process is held by a descriptor: its number can't be
    another's by then.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if holder_of(places) != pid:
            return
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended, _, _ = select.select([pidfd], [], [], STOP_LIMIT)
    finally:
        os.close(pidfd)
    if not ended:
        raise Interrupted(
            Code.TIMEOUT,
            f"process {pid} has not ended within {STOP_LIMIT:.0f} s",
            hint=f"Its guests survive it: kill -9 {pid}",
        )


@daemon.command()
@format_option
def status(form: str) -> None:
    """Say whether the daemon runs, and how it is.

    The exit code is 3 when it does not. With --format json: an object with pid and version.
    """
    found = connection().ask(daemon_calls.show_system())
    if form == "json":
        print_json(found)
        return
    print_facts(_facts(found))


def _facts(found: DaemonStatus) -> list[tuple[str, str]]:
    can = found.capabilities
    pairs = [
        ("pid", str(found.pid)),
        ("version", found.version),
        ("running for", age(found.started_at, time.time())),
        ("socket", found.socket),
        ("guests", f"{found.guests}, {found.running} of them running"),
        ("spares", f"{found.spares} ready, {found.spares_started} started"),
        ("qemu", f"{can.qemu_version or 'none'} {can.machine_type}"),
        ("accel", f"{can.accel}: {can.accel_reason}"),
        ("host", f"{can.cpus} CPUs, {size(can.memory)}, cgroup {can.cgroup}"),
        *(("note", note) for note in can.notes),
    ]
    return [*pairs, ("problem", found.problem)] if found.problem else pairs


def _status() -> DaemonStatus | None:
    """Return how the daemon is; None when it does not say so soon."""
    try:
        return connection().ask(replace(daemon_calls.show_system(), timeout=LOOK_LIMIT))
    except SeraiError:
        return None
