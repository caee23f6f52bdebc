"""``serai daemon``: run it here, or in the background; stop it; see how it is.

Stopping the daemon stops no guest. Wiring, like ``daemon`` itself: it may start that.
"""

import logging
import os
import select
import signal
import sys
import time
from importlib import import_module

import click

from serai.cli.layout import age, size
from serai.cli.options import connection, format_option
from serai.cli.output import print_facts, print_json, print_line, say
from serai.client import calls
from serai.errors import Code, HostFailure, Interrupted, SeraiError
from serai.host.process import start_detached
from serai.model.node import DaemonStatus
from serai.settings import current_places, read_settings

START_LIMIT = 30.0
STOP_LIMIT = 15.0
LOG_TAIL = 2000


@click.group()
def daemon() -> None:
    """Run, start, stop the daemon; guests run on without it."""


@daemon.command()
@click.option("--ready-fd", type=int, default=None, hidden=True)
def run(ready_fd: int | None) -> int:
    """Run the daemon in the foreground until ctrl-C."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    places = current_places()
    settings = read_settings(os.environ, places.state / "serai.toml")
    if ready_fd is None:
        say(f"serai daemon {os.getpid()}, socket {places.socket}; ctrl-C ends it, guests run on")
    return int(import_module("serai.daemon").run_daemon(settings, places, ready_fd))


@daemon.command()
def start() -> None:
    """Start the daemon in the background and wait until it answers."""
    status = _status()
    if status is not None:
        print_line(f"the daemon runs already, as process {status.pid}")
        return
    _spawn()
    status = connection().ask(calls.show_system())
    print_line(f"the daemon runs, as process {status.pid}")
    if status.problem:
        say(f"note: {status.problem}; see: serai doctor")


def _spawn() -> None:
    places = current_places()
    places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "serai", "daemon", "run", "--ready-fd", str(writing)]
    with open(places.log, "ab") as log:
        pid = start_detached(argv, env=os.environ, pass_fds=(writing,), output_to=log.fileno())
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], START_LIMIT)
    answered = bool(ready) and os.read(reading, 1) == b"1"
    os.close(reading)
    if not answered:
        raise _start_failed(pid)


def _start_failed(pid: int) -> HostFailure:
    log = current_places().log
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)  # our own child, not reaped: the number is still its own
    end = log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
    what = "ended at once" if ended else f"did not answer within {START_LIMIT:.0f} s"
    return HostFailure(
        Code.DAEMON_START_FAILED,
        f"the daemon {what}: {end.splitlines()[-1] if end else 'it said nothing'}",
        hint=f"See all of its log: {log}",
        details={"log": end},
    )


@daemon.command()
def stop() -> None:
    """Stop the daemon; guests run on."""
    status = _status()
    if status is None:
        print_line("no daemon runs")
        return
    pidfd = os.pidfd_open(status.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended, _, _ = select.select([pidfd], [], [], STOP_LIMIT)
    finally:
        os.close(pidfd)
    if not ended:
        raise Interrupted(
            Code.TIMEOUT, f"process {status.pid} has not ended within {STOP_LIMIT:.0f} s"
        )
    running = f"; {status.running} guests run on" if status.running else ""
    print_line(f"the daemon is stopped{running}")


@daemon.command()
@format_option
def status(form: str) -> None:
    """Say whether the daemon runs, and how it is; exit code 3 when it does not."""
    found = connection().ask(calls.show_system())
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
        ("qemu", f"{can.qemu_version or 'none'} {can.machine_type}"),
        ("accel", f"{can.accel}: {can.accel_reason}"),
        ("host", f"{can.cpus} CPUs, {size(can.memory)}, cgroup {can.cgroup}"),
        *(("note", note) for note in can.notes),
    ]
    return [*pairs, ("problem", found.problem)] if found.problem else pairs


def _status() -> DaemonStatus | None:
    try:
        return connection().ask(calls.show_system())
    except SeraiError:
        return None
