"""What is done to guests, to one or to many at once: start, stop and what is like them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from serai.cli.options import DURATION, connection, format_option, guests_argument
from serai.cli.output import print_error, print_json, print_line
from serai.cli.progress import finish
from serai.client import guest_calls, job_calls
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.errors import EXIT_CODES, SeraiError
from serai.model.job import Job

CallOfName = Callable[[str], Call[Job]]


@dataclass(frozen=True, slots=True)
class Verb:
    """What is asked of each guest, and how it is said that it was done."""

    call: CallOfName
    done: str


def do_to_all(names: Sequence[str], verb: Verb, form: str) -> int:
    """Ask it of all guests, then wait for each; return the exit code of the last failure."""
    daemon, code = connection(), 0
    begun = [_begin(daemon, name, verb.call) for name in names]
    results: list[dict[str, object]] = []
    for name, job in zip(names, begun, strict=True):
        try:
            if isinstance(job, SeraiError):
                raise job
            ended = (
                finish(daemon, job_calls.show_job(job.id))
                if not job.is_final
                else job_calls.outcome(job)
            )
        except SeraiError as error:
            print_error(error, form)
            code = EXIT_CODES[error.family]
            results.append(
                {"name": name, "ok": False, "message": error.message, "code": error.code}
            )
        else:
            message = ended.message or f"{name} {verb.done}"
            results.append({"name": name, "ok": True, "message": message, "code": ""})
            if form == "table":
                print_line(message)
    if form == "json":
        print_json(results)
    return code


def _begin(daemon: Connection, name: str, call: CallOfName) -> Job | SeraiError:
    try:
        return daemon.ask(call(name))
    except SeraiError as error:
        return error


@click.command()
@guests_argument
@format_option
def start(guests: tuple[str, ...], form: str) -> int:
    """Start guests.

    One that runs is left as it is.
    """
    verb = Verb(lambda name: guest_calls.do_to_guest(name, "start"), "is started")
    return do_to_all(guests, verb, form)


FORCE = click.option("--force", is_flag=True, help="At once, as if the plug were pulled.")
TIMEOUT = click.option(
    "--timeout", type=DURATION, default=0.0, show_default="30s",
    help="How long to wait for the guest before it is forced.",
)  # fmt: skip


@click.command()
@guests_argument
@FORCE
@TIMEOUT
@format_option
def stop(guests: tuple[str, ...], force: bool, timeout: float, form: str) -> int:
    """Stop guests: gracefully, then by force.

    A guest's agent is asked to shut it down, else its power button is pressed. What runs after
    --timeout is killed. One that does not run is left as it is.
    """
    verb = Verb(
        lambda name: guest_calls.stop_guest(name, force=force, timeout=timeout), "is stopped"
    )
    return do_to_all(guests, verb, form)


@click.command()
@guests_argument
@FORCE
@TIMEOUT
@format_option
def restart(guests: tuple[str, ...], force: bool, timeout: float, form: str) -> int:
    """Stop guests and start them anew.

    One that does not run is started.
    """
    verb = Verb(
        lambda name: guest_calls.restart_guest(name, force=force, timeout=timeout), "is restarted"
    )
    return do_to_all(guests, verb, form)


@click.command()
@guests_argument
@format_option
def pause(guests: tuple[str, ...], form: str) -> int:
    """Hold guests' virtual CPUs."""
    verb = Verb(lambda name: guest_calls.do_to_guest(name, "pause"), "is paused")
    return do_to_all(guests, verb, form)


@click.command()
@guests_argument
@format_option
def resume(guests: tuple[str, ...], form: str) -> int:
    """Let paused guests go on.

    Also those that were held because the host's disk was full.
    """
    verb = Verb(lambda name: guest_calls.do_to_guest(name, "resume"), "goes on")
    return do_to_all(guests, verb, form)


@click.command()
@guests_argument
@click.option("--force", is_flag=True, help="Also if it runs: it is killed first.")
@format_option
def delete(guests: tuple[str, ...], force: bool, form: str) -> int:
    """Delete guests, their disks and their snapshots.

    There is no way back. Forks of them, images that were published of them, and volumes that were attached
    to them stay. A guest that runs is only deleted with --force.
    """
    verb = Verb(lambda name: guest_calls.delete_guest(name, force=force), "is deleted")
    return do_to_all(guests, verb, form)
