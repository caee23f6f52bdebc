"""``serai snapshot``: save a guest, look at what is saved, go back to it."""

import time
from collections.abc import Sequence
from functools import partial

import click

from serai.cli.layout import age, ago, cut, size
from serai.cli.options import (
    complete_guest,
    complete_snapshot,
    connection,
    format_option,
    new_name_argument,
    snapshots_from,
)
from serai.cli.output import can_print, print_facts, print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.tree import ASCII, LINES, Glyphs, draw_branches
from serai.cli.verbs import Verb, do_to_all
from serai.client import guest_calls, snapshot_calls
from serai.model.snapshot import Snapshot
from serai.units import format_duration, split_source

COLUMNS = ("NAME", "AGE", "OWN", "SHARED", "MEMORY", "STATE", "FORKS", "NOTE")
NOTE_LENGTH = 40
"""How much of a note stands in a list."""


@click.group()
def snapshot() -> None:
    """Save guests, look at what is saved, go back to it.

    A snapshot is one moment of a guest: all its disks, its configuration and, if it ran, its memory.
    Its guest goes on. `serai fork GUEST@SNAPSHOT NAME` makes new guests of it.
    """


one_snapshot = click.argument("words", metavar="GUEST SNAPSHOT", nargs=-1, required=True,
                              shell_complete=complete_snapshot)  # fmt: skip


@snapshot.command()
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@new_name_argument("[SNAPSHOT]")
@click.option("--memory/--no-memory", default=True, show_default="memory",
              help="With the memory of a guest that runs, or its disks only.")  # fmt: skip
@click.option(
    "--quiesce", is_flag=True, help="Have the agent hold the file systems for the moment."
)
@click.option("--note", default="", metavar="TEXT", help="A note, shown in the list.")
@format_option
def create(guest: str, name: str, memory: bool, quiesce: bool, note: str, form: str) -> None:
    """Make a snapshot of a guest.

    The guest goes on meanwhile. Without SNAPSHOT the daemon picks a name. Without memory, what the
    guest had not written to its disks is not in it: restoring that is like a start after a power
    cut, unless --quiesce had the agent write it out. --quiesce fails where no agent answers. The
    name may also be written as GUEST@SNAPSHOT.
    """
    guest, name = split_source(f"{guest}@{name}" if name else guest)
    began = time.monotonic()
    daemon = connection()
    call = snapshot_calls.create_snapshot(
        guest, name=name, memory=memory, quiesce=quiesce, note=note
    )
    [made] = finish(daemon, call, cancel=True).results
    shown = daemon.ask(snapshot_calls.show_snapshot(guest, made))
    if form == "json":
        print_json(shown)
        return
    what = "with memory" if shown.with_memory else "disks only"
    took = format_duration(time.monotonic() - began)
    print_line(
        f"{shown.guest}@{shown.name} is there: {what}, {size(shown.own)} of its own ({took})"
    )


@snapshot.command(name="list")
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@format_option
def list_snapshots(guest: str, form: str) -> None:
    """List the snapshots of a guest, as a tree.

    What stands right below another was made on it; several that were made on one begin with a
    branch. `← now` marks the one that the guest stands on. OWN is what would be free without it,
    SHARED what it uses together with others. Of a long note it has the beginning: `serai snapshot show` has
    all. With --format json: an array, parents first.
    """
    found = connection().all_of(partial(snapshot_calls.list_snapshots, guest))
    if form == "json":
        print_json(found)
        return
    if not found:
        say(f"{guest} has no snapshots; to make one: serai snapshot create {guest}")
    print_table(COLUMNS, rows_of(found, time.time(), LINES if can_print(LINES.all) else ASCII))


def rows_of(found: Sequence[Snapshot], now: float, glyphs: Glyphs) -> list[tuple[str, ...]]:
    """Return snapshots, parents first, as rows under ``COLUMNS``."""
    before = draw_branches([(each.id, each.parent) for each in found], glyphs)
    return [
        (
            f"{branch}{each.name}{glyphs.here if each.is_current else ''}",
            age(each.created_at, now),
            size(each.own),
            size(each.shared),
            "yes" if each.with_memory else "no",
            str(each.state),
            str(each.forks or "-"),
            cut(each.note, NOTE_LENGTH),
        )
        for branch, each in zip(before, found, strict=True)
    ]


@snapshot.command()
@one_snapshot
@format_option
def show(words: tuple[str, ...], form: str) -> None:
    """Show all that is known of a snapshot.

    It may also be written as GUEST@SNAPSHOT.
    """
    guest, name = _one(words)
    daemon = connection()
    each = daemon.ask(snapshot_calls.show_snapshot(guest, name))
    if form == "json":
        print_json(each)
        return
    parent = (
        daemon.ask(snapshot_calls.show_snapshot(guest, each.parent)).name if each.parent else "-"
    )
    print_facts(facts_of(each, parent, time.time()))


def facts_of(each: Snapshot, parent: str, now: float) -> list[tuple[str, str]]:
    """Return what is shown of a snapshot, in order."""
    pairs = [
        ("name", each.name),
        ("id", each.id),
        ("guest", f"{each.guest}, which stands on it" if each.is_current else each.guest),
        ("state", str(each.state)),
        ("made", ago(each.created_at, now)),
        ("parent", parent),
        ("memory", "yes" if each.with_memory else "no"),
        ("quiesced", "yes" if each.quiesced else "no"),
        ("own size", size(each.own)),
        ("shared", size(each.shared)),
        ("forks", str(each.forks)),
        ("note", each.note or "-"),
    ]
    if each.schedule:
        pairs.append(("schedule", each.schedule))
    if each.problem is not None:
        pairs += [("problem", each.problem.message), ("hint", each.problem.hint or "-")]
    return pairs


@snapshot.command()
@one_snapshot
@click.option("--force", is_flag=True, help="Also if work that is in no snapshot is lost.")
@format_option
def restore(words: tuple[str, ...], force: bool, form: str) -> None:
    """Put a guest back to a snapshot, in place.

    Disks, configuration and, if the snapshot has it, memory: then the guest runs on from there.
    What it did since its last snapshot is lost, and that needs --force. The snapshot may also be
    written as GUEST@SNAPSHOT.
    """
    guest, name = _one(words)
    began = time.monotonic()
    daemon = connection()
    finish(daemon, snapshot_calls.restore_snapshot(guest, name, force=force))
    view = daemon.ask(guest_calls.show_guest(guest))
    if form == "json":
        print_json(view)
    else:
        took = format_duration(time.monotonic() - began)
        print_line(f"{view.name} is back at {name}, and {view.state} ({took})")


@snapshot.command()
@click.argument("words", metavar="GUEST SNAPSHOT...", nargs=-1, required=True,
                shell_complete=complete_snapshot)  # fmt: skip
@format_option
def delete(words: tuple[str, ...], form: str) -> int:
    """Delete snapshots.

    The guest, its forks and its other snapshots keep what they stand on; what nobody needs any more
    is freed. They may also be written as GUEST@SNAPSHOT.
    """
    sources = [f"{guest}@{name}" for guest, name in snapshots_from(words)]
    verb = Verb(lambda source: snapshot_calls.delete_snapshot(*split_source(source)), "is deleted")
    return do_to_all(sources, verb, form)


@snapshot.command()
@one_snapshot
@click.argument("new", metavar="NEW")
@format_option
def rename(words: tuple[str, ...], new: str, form: str) -> None:
    """Give a snapshot another name.

    It may also be written as GUEST@SNAPSHOT.
    """
    guest, name = _one(words)
    _change(guest, name, f"{guest}@{name} is now {guest}@{new}", form, new=new)


@snapshot.command()
@one_snapshot
@click.argument("text", metavar="TEXT")
@format_option
def note(words: tuple[str, ...], text: str, form: str) -> None:
    """Give a snapshot another note.

    It may also be written as GUEST@SNAPSHOT. An empty TEXT removes the note.
    """
    guest, name = _one(words)
    _change(guest, name, f"{guest}@{name} has a new note", form, note=text)


def _change(
    guest: str,
    name: str,
    said: str,
    form: str,
    *,
    new: str | None = None,
    note: str | None = None,
) -> None:
    daemon = connection()
    snapshot_id = daemon.ask(snapshot_calls.show_snapshot(guest, name)).id
    finish(daemon, snapshot_calls.change_snapshot(guest, snapshot_id, name=new, note=note))
    if form == "json":
        print_json(daemon.ask(snapshot_calls.show_snapshot(guest, snapshot_id)))
    else:
        print_line(said)


def _one(words: Sequence[str]) -> tuple[str, str]:
    """Return the one snapshot that is named, as guest and snapshot; else a usage error."""
    found = snapshots_from(words)
    if len(found) > 1:
        raise click.UsageError(
            f"One snapshot at a time: {', '.join('@'.join(each) for each in found)}",
            click.get_current_context(),
        )
    return found[0]
