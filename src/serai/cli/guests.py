"""Looking at guests and changing them: list, show, rename, set."""

import os
import sys
import time
from functools import partial

import click
import msgspec

from serai.cli.layout import age, ago, guest_table, size
from serai.cli.options import SIZE, connection, format_option, guest_argument, pairs_from
from serai.cli.output import print_coloured, print_facts, print_json, print_line
from serai.cli.progress import finish
from serai.client import guest_calls
from serai.client.words import change_of
from serai.model.guest import Accel, Guest, RestartPolicy

ACCEL_MEANS = {
    Accel.TCG: "emulated: slow, and no security boundary; see: serai doctor",
    Accel.KVM: "run by the processor itself",
}


@click.command(name="list")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only those with this label.")
@click.option("-q", "--quiet", is_flag=True, help="Only the names.")
@format_option
def list_guests(labels: tuple[str, ...], quiet: bool, form: str) -> None:
    """List all guests.

    Sorted by name. ACCEL tells how a guest's code is executed: kvm is the processor itself, tcg is
    emulation. With --format json: an array of objects, sizes in bytes, times in seconds since 1970.
    """
    pairs_from(labels, "--label")
    guests = connection().all_of(partial(guest_calls.list_guests, labels=labels))
    if form == "json":
        print_json(guests)
    elif quiet:
        for guest in guests:
            print_line(guest.name)
    else:
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        rows = [msgspec.to_builtins(guest) for guest in guests]
        print_coloured(guest_table(rows, colours=colours))


@click.command()
@guest_argument
@format_option
def show(guest: str, form: str) -> None:
    """Show all that is known of a guest.

    NAME is its name or its id.
    """
    view = connection().ask(guest_calls.show_guest(guest))
    if form == "json":
        print_json(view)
        return
    print_facts(facts_of(view, time.time()))


def facts_of(guest: Guest, now: float) -> list[tuple[str, str]]:
    """Return what is shown of a guest, in order."""
    pairs = [
        ("name", guest.name),
        ("id", guest.id),
        ("state", _state(guest, now)),
        ("agent", str(guest.agent)),
        ("image", f"{guest.image} ({guest.image_digest[:19]})"),
        ("cpus", str(guest.cpus)),
        ("memory", size(guest.memory)),
        ("disk", size(guest.disk)),
        ("accel", f"{guest.accel} ({ACCEL_MEANS[guest.accel]})"),
        ("machine", f"{guest.machine_type}, {guest.firmware}"),
        *_ports(guest),
        ("restart", f"{guest.restart}, {guest.restarts} so far"),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(guest.labels.items())) or "-"),
        ("created", ago(guest.created_at, now)),
    ]
    if guest.hostname:
        pairs.append(("host name", f"{guest.hostname}, as it was told at its first boot"))
    if guest.origin:
        pairs.append(("forked from", f"snapshot {guest.origin}"))
    if guest.expires_at:
        left = guest.expires_at - now
        pairs.append(("deleted", f"in {age(now, guest.expires_at)}" if left >= 1 else "now"))
    pairs += [("note", note) for note in guest.notes if "(TCG)" not in note]
    if guest.problem is not None:
        pairs += [("problem", guest.problem.message), ("hint", guest.problem.hint or "-")]
    return pairs


def _ports(guest: Guest) -> list[tuple[str, str]]:
    if not guest.ports:
        return [("network", f"user mode, MAC {guest.mac}")]
    pairs = [
        (each.name, ", ".join(filter(None, (each.network, each.address, each.address6, each.mac))))
        for each in guest.ports
    ]
    return pairs + _bubble(guest)


def _bubble(guest: Guest) -> list[tuple[str, str]]:
    first = guest.ports[0]
    if not first.bubble:
        return []
    return [("bubble", f"{first.bubble[:8]}, where it is known as {first.known_as}")]


def _state(guest: Guest, now: float) -> str:
    if guest.pid:
        since = age(guest.started_at, now)
        how_long = "less than 1s" if since == "now" else since
        return f"{guest.state} for {how_long}, process {guest.pid}"
    return f"{guest.state} ({guest.last_exit})"


@click.command()
@guest_argument
@click.argument("new", metavar="NEW")
@format_option
def rename(guest: str, new: str, form: str) -> None:
    """Give a guest another name.

    It may run meanwhile; its id stays. Others at its networks find it by the new name at once. A fork
    that has kept its identity stays known in its bubble by the name of its source: the guests in there
    ask for that. `serai show` says so.
    """
    daemon = connection()
    finish(daemon, guest_calls.rename_guest(guest, new))
    if form == "json":
        print_json(daemon.ask(guest_calls.show_guest(new)))
    else:
        print_line(f"{guest} is now {new}")


@click.command(name="set")
@guest_argument
@click.option("--cpus", type=int, metavar="N", help="Virtual CPUs; more are plugged in at once.")
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
    """Change a guest's size, policy or labels.

    What can be changed while it runs holds at once, the rest from its next start: a note says so.
    What is not named stays as it is.
    """
    if not labels and all(each is None for each in (cpus, memory, disk, restart)):
        raise click.UsageError("There is nothing to change.", click.get_current_context())
    daemon = connection()
    before = daemon.ask(guest_calls.show_guest(guest))
    change = change_of(
        cpus=cpus,
        memory=memory,
        disk=disk,
        restart=restart,
        labels=changed_labels(before.labels, labels) if labels else None,
    )
    finish(daemon, guest_calls.change_guest(guest, change, before.version if labels else 0))
    after = daemon.ask(guest_calls.show_guest(before.id))
    if form == "json":
        print_json(after)
        return
    print_line(f"{after.name} is changed")
    for note in after.notes:
        if note not in before.notes:
            print_line(f"note: {note}")


def changed_labels(labels: dict[str, str], words: tuple[str, ...]) -> dict[str, str]:
    """Return labels after ``K=V`` (set) and ``K-`` (drop); a usage error for another word."""
    after = dict(labels)
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key:
            after[key] = value
        elif not equals and word.endswith("-") and word != "-":
            after.pop(word[:-1], None)
        else:
            raise click.BadParameter(f"{word!r} is neither K=V nor K-", param_hint="--label")
    return after
