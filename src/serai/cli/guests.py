"""Looking at guests and changing them: list, show, start, stop and what is like them."""

import time
from collections.abc import Callable, Iterable

import click
import msgspec

from serai.cli.layout import GUEST_COLUMNS, age, guest_row, size
from serai.cli.options import (
    DURATION,
    SIZE,
    connection,
    format_option,
    guest_argument,
    guests_argument,
)
from serai.cli.output import print_error, print_facts, print_json, print_line, print_table
from serai.cli.progress import finish
from serai.client import calls
from serai.client.calls import Call
from serai.client.words import change_of
from serai.errors import EXIT_CODES, SeraiError
from serai.model.guest import Guest, RestartPolicy
from serai.model.job import Job

CallOfName = Callable[[str], Call[Job]]


@click.command(name="list")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only those with this label.")
@click.option("-q", "--quiet", is_flag=True, help="Only the names.")
@format_option
def list_guests(labels: tuple[str, ...], quiet: bool, form: str) -> None:
    """List all guests by name."""
    page = connection().ask(calls.list_guests(limit=10_000))
    guests = [guest for guest in page.items if _has(guest, labels)]
    if form == "json":
        print_json(guests)
    elif quiet:
        for guest in guests:
            print_line(guest.name)
    else:
        print_table(GUEST_COLUMNS, [guest_row(msgspec.to_builtins(guest)) for guest in guests])


def _has(guest: Guest, labels: Iterable[str]) -> bool:
    pairs = (label.partition("=") for label in labels)
    return all(guest.labels.get(key) == value for key, _, value in pairs)


@click.command()
@guest_argument
@format_option
def show(guest: str, form: str) -> None:
    """Show all that is known of a guest."""
    view = connection().ask(calls.show_guest(guest))
    if form == "json":
        print_json(view)
        return
    print_facts(_facts(view))


def _facts(guest: Guest) -> list[tuple[str, str]]:
    now = time.time()
    running = f"process {guest.pid}, for {age(guest.started_at, now)}" if guest.pid else "no"
    pairs = [
        ("name", guest.name),
        ("id", guest.id),
        ("state", str(guest.state)),
        ("running", running),
        ("last exit", str(guest.last_exit)),
        ("agent", str(guest.agent)),
        ("image", f"{guest.image} ({guest.image_digest[:19]})"),
        ("cpus", str(guest.cpus)),
        ("memory", size(guest.memory)),
        ("disk", size(guest.disk)),
        ("machine", f"{guest.machine_type}, {guest.firmware}, {guest.accel}"),
        ("address", f"MAC {guest.mac}, user-mode network"),
        ("restart", f"{guest.restart}, {guest.restarts} so far"),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(guest.labels.items())) or "-"),
        ("created", f"{age(guest.created_at, now)} ago"),
    ]
    pairs += [("note", note) for note in guest.notes]
    if guest.problem is not None:
        pairs += [("problem", guest.problem.message), ("hint", guest.problem.hint or "-")]
    return pairs


def _each(names: tuple[str, ...], call: CallOfName, done: str) -> int:
    """Do something to guests, one after the other; return the exit code of the last failure."""
    daemon, code = connection(), 0
    for name in names:
        try:
            job = finish(daemon, call(name))
        except SeraiError as error:
            print_error(error)
            code = EXIT_CODES[error.family]
        else:
            print_line(job.message or f"{name} {done}")
    return code


@click.command()
@guests_argument
def start(guests: tuple[str, ...]) -> int:
    """Start guests; one that runs is left as it is."""
    return _each(guests, lambda name: calls.do_to_guest(name, "start"), "is started")


FORCE = click.option("--force", is_flag=True, help="At once, as if the plug were pulled.")
TIMEOUT = click.option(
    "--timeout", type=DURATION, default=0.0, help="How long to wait before it is forced."
)


@click.command()
@guests_argument
@FORCE
@TIMEOUT
def stop(guests: tuple[str, ...], force: bool, timeout: float) -> int:
    """Stop guests: by their agent, else by the power button; after --timeout by force."""
    return _each(
        guests, lambda name: calls.stop_guest(name, force=force, timeout=timeout), "is stopped"
    )


@click.command()
@guests_argument
@FORCE
@TIMEOUT
def restart(guests: tuple[str, ...], force: bool, timeout: float) -> int:
    """Stop guests and start them anew."""
    return _each(
        guests, lambda name: calls.restart_guest(name, force=force, timeout=timeout), "is restarted"
    )


@click.command()
@guests_argument
def pause(guests: tuple[str, ...]) -> int:
    """Hold guests' virtual CPUs."""
    return _each(guests, lambda name: calls.do_to_guest(name, "pause"), "is paused")


@click.command()
@guests_argument
def resume(guests: tuple[str, ...]) -> int:
    """Let paused guests go on."""
    return _each(guests, lambda name: calls.do_to_guest(name, "resume"), "goes on")


@click.command()
@guests_argument
@click.option("--force", is_flag=True, help="Also if it runs.")
def delete(guests: tuple[str, ...], force: bool) -> int:
    """Delete guests and all their volumes."""
    return _each(guests, lambda name: calls.delete_guest(name, force=force), "is deleted")


@click.command()
@guest_argument
@click.argument("new", metavar="NEW")
def rename(guest: str, new: str) -> None:
    """Give a guest another name."""
    finish(connection(), calls.rename_guest(guest, new))
    print_line(f"{guest} is now {new}")


@click.command(name="set")
@guest_argument
@click.option("--cpus", type=int, help="Virtual CPUs; more are plugged in at once.")
@click.option("--memory", type=SIZE, help="Memory; less at once, more from the next start.")
@click.option("--disk", type=SIZE, help="Size of the disk; it only grows, at once.")
@click.option(
    "--restart", type=click.Choice([*map(str, RestartPolicy)]), help="The restart policy."
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Set a label; K- drops it.")
@format_option
def set_guest(
    guest: str,
    cpus: int | None,
    memory: int | None,
    disk: int | None,
    restart: str | None,
    labels: tuple[str, ...],
    form: str,
) -> None:
    """Change a guest: at once where it can be, else from its next start."""
    daemon = connection()
    before = daemon.ask(calls.show_guest(guest))
    change = change_of(
        cpus=cpus,
        memory=memory,
        disk=disk,
        restart=restart,
        labels=_changed_labels(before.labels, labels) if labels else None,
    )
    finish(daemon, calls.change_guest(guest, change, before.version))
    after = daemon.ask(calls.show_guest(guest))
    if form == "json":
        print_json(after)
        return
    print_line(f"{guest} is changed")
    for note in after.notes:
        print_line(f"note: {note}")


def _changed_labels(labels: dict[str, str], words: tuple[str, ...]) -> dict[str, str]:
    after = dict(labels)
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            after[key] = value
        elif word.endswith("-"):
            after.pop(word[:-1], None)
        else:
            raise click.BadParameter(f"{word!r} is neither K=V nor K-", param_hint="--label")
    return after
