"""``serai schedule``: snapshots that are made, and deleted again, by themselves."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import click
import msgspec

from serai.cli.layout import age
from serai.cli.options import (
    complete_guest,
    complete_schedule,
    connection,
    format_option,
    new_name_argument,
)
from serai.cli.output import print_facts, print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import snapshot_calls
from serai.client.words import PERIODS, schedule_change_of, when_of
from serai.model.schedule import NAME_AS, Every, Judgement, Keep, Rule, Schedule, When
from serai.units import format_at, format_duration

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = ("GUEST", "NAME", "WHEN", "KEEPS", "SNAPSHOTS", "NEXT", "LAST", "PROBLEM")
JUDGED = ("SNAPSHOT", "MADE", "AGE", "STAYS", "WHY")
WHY = {
    Rule.LAST: "one of the last",
    Rule.HOURLY: "the newest of its hour",
    Rule.DAILY: "the newest of its day",
    Rule.WEEKLY: "the newest of its week",
    Rule.MONTHLY: "the newest of its month",
    Rule.ALL: "no rule says what goes",
    Rule.AHEAD: "made while the clock was ahead",
    Rule.NONE: "no rule keeps it",
}


@click.group()
def schedule() -> None:
    """Have snapshots made, and deleted again, by themselves.

    The daemon makes them when it is time, in UTC, and deletes those of its own that no --keep rule
    keeps; snapshots that somebody made by hand or that another schedule made are never touched. What
    was missed while no daemon ran is caught up once. A stopped guest that has not changed gets none.
    """


guest_word = click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
name_word = click.argument("name", metavar="NAME", shell_complete=complete_schedule)


def keep_options(function: F) -> F:
    """``--keep-last N`` and so on; what is not given is None."""
    wanted = (
        ("last", "Keep the last N."),
        ("hourly", "Keep the newest of each of N hours."),
        ("daily", "Keep the newest of each of N days."),
        ("weekly", "Keep the newest of each of N weeks."),
        ("monthly", "Keep the newest of each of N months."),
    )
    for rule, text in reversed(wanted):
        option = click.option(f"--keep-{rule}", rule, type=click.IntRange(0, 10_000), metavar="N",
                              help=text)  # fmt: skip
        function = option(function)
    return function


def how_options(function: F) -> F:
    """What the snapshots have and are called; what is not given is None."""
    options = (
        click.option("--memory/--no-memory", default=None,
                     help="With the memory of a guest that runs (so without being told), or its disks only."),
        click.option("--quiesce/--no-quiesce", default=None,
                     help="Have the agent hold the file systems for the moment."),
        click.option("--name-as", default=None, metavar="TEMPLATE", show_default=NAME_AS,
                     help="What they are called: {schedule}, {date} and {time} are filled in."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


AT = click.option("--at", default="", metavar="TIME",
                  help="When, in UTC: :15, 03:30, 'sun 03:30', '15 03:30'.")  # fmt: skip
EVERY = f"{'|'.join(PERIODS)}|15m"


@schedule.command()
@guest_word
@new_name_argument("[NAME]")
@click.option("--every", required=True, metavar=EVERY, help="How often.")
@AT
@keep_options
@how_options
@format_option
def create(guest: str, name: str, every: str, at: str, form: str, **given: Any) -> None:
    """Make a schedule of snapshots for a guest.

    The first is made when it is due the first time; `serai schedule run` makes one now. Without any
    --keep option all stay. The rules are asked from --keep-last to --keep-monthly; what one keeps,
    the next ones don't count. Without NAME it is called after --every.
    """
    daemon = connection()
    rules = {rule: given.pop(rule) or 0 for rule in Keep.__struct_fields__}
    how = {key: value for key, value in given.items() if value is not None}
    call = snapshot_calls.create_schedule(
        guest, when_of(every, at), name=name, keep=Keep(**rules), **how
    )
    [made] = finish(daemon, call).results
    shown = daemon.ask(snapshot_calls.show_schedule(guest, made))
    if form == "json":
        print_json(shown)
        return
    print_line(
        f"{shown.guest} {shown.name}: {when_text(shown.when)}, keeps {keep_text(shown.keep)}; "
        f"first at {moment(shown.next_at)}"
    )


@schedule.command(name="list")
@click.argument(
    "guest", metavar="[GUEST]", required=False, default="", shell_complete=complete_guest
)
@format_option
def list_schedules(guest: str, form: str) -> None:
    """List the schedules of a guest, or of all.

    SNAPSHOTS is how many of those that it made are there, NEXT in how long it is due, LAST how long
    ago its last turn was, PROBLEM what went wrong in that.
    """
    found = connection().all_of(partial(snapshot_calls.list_schedules, guest))
    if form == "json":
        print_json(found)
        return
    if not found:
        say(
            f"there are no schedules; to make one: serai schedule create {guest or 'GUEST'} --every daily"
        )
    now = time.time()
    print_table(COLUMNS, [row_of(each, now) for each in found])


def row_of(each: Schedule, now: float) -> tuple[str, ...]:
    """Return a schedule as a row under ``COLUMNS``."""
    coming = "paused" if each.paused else f"in {age(now, each.next_at)}"
    return (
        each.guest,
        each.name,
        when_text(each.when),
        keep_text(each.keep),
        str(each.snapshots),
        coming.replace("in now", "now"),
        age(each.ran_at, now) if each.ran_at else "-",
        each.problem.code if each.problem else "-",
    )


def when_text(when: When) -> str:
    """Return when as people say it: ``daily at 03:30 UTC``, ``every 15m``."""
    if when.every is Every.INTERVAL:
        return f"every {re.sub(' 0[hms]$', '', format_duration(when.interval))}"
    return f"{when.every} at {format_at(when.every, when.at)}"


def keep_text(keep: Keep) -> str:
    """Return rules in a few words: ``7 daily, 4 weekly``, ``all``."""
    counts = [(getattr(keep, rule), rule) for rule in keep.__struct_fields__]
    return ", ".join(f"{count} {rule}" for count, rule in counts if count) or "all"


def moment(at: float) -> str:
    """Return a moment as a date and time in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


@schedule.command()
@guest_word
@name_word
@format_option
def show(guest: str, name: str, form: str) -> None:
    """Show all that is known of a schedule."""
    each = connection().ask(snapshot_calls.show_schedule(guest, name))
    if form == "json":
        print_json(each)
    else:
        print_facts(facts_of(each, time.time()))


def facts_of(each: Schedule, now: float) -> list[tuple[str, str]]:
    """Return what is shown of a schedule, in order."""
    pairs = [
        ("name", each.name),
        ("id", each.id),
        ("guest", each.guest),
        ("when", when_text(each.when)),
        ("keeps", keep_text(each.keep)),
        ("memory", "yes" if each.memory else "no"),
        ("quiesced", "yes" if each.quiesce else "no"),
        ("called", each.name_as),
        ("snapshots", str(each.snapshots)),
        ("next", "never: it is paused" if each.paused else moment(each.next_at)),
        ("last", moment(each.ran_at) if each.ran_at else "never"),
    ]
    if each.said:
        pairs.append(("said", each.said))
    if each.problem is not None:
        pairs += [("problem", each.problem.message), ("hint", each.problem.hint or "-")]
    return pairs


@schedule.command(name="set")
@guest_word
@name_word
@click.option("--every", default="", metavar=EVERY, help="How often.")
@AT
@keep_options
@how_options
@format_option
def set_schedule(guest: str, name: str, every: str, at: str, form: str, **given: Any) -> None:
    """Change a schedule.

    What is not given stays as it is; --at goes with --every. What a new rule does not keep is deleted
    when the schedule is due: `serai schedule preview` shows it beforehand.
    """
    daemon = connection()
    rules = {rule: given.pop(rule) for rule in Keep.__struct_fields__}
    rules = {rule: count for rule, count in rules.items() if count is not None}
    if not (every or at or rules or any(value is not None for value in given.values())):
        raise click.UsageError("Nothing to change was given.", click.get_current_context())
    keep = None
    if rules:
        now = daemon.ask(snapshot_calls.show_schedule(guest, name)).keep
        keep = msgspec.structs.replace(now, **rules)
    change = schedule_change_of(every=every, at=at, keep=keep, **given)
    finish(daemon, snapshot_calls.set_schedule(guest, name, change))
    shown = daemon.ask(snapshot_calls.show_schedule(guest, name))
    if form == "json":
        print_json(shown)
        return
    print_line(
        f"{shown.guest} {shown.name}: {when_text(shown.when)}, keeps {keep_text(shown.keep)}"
    )


@schedule.command()
@guest_word
@name_word
@format_option
def pause(guest: str, name: str, form: str) -> None:
    """Hold what a schedule does by itself.

    When it is due it makes and deletes no snapshot, until it is resumed. `serai schedule run` does so all
    the same.
    """
    _pause(guest, name, form, paused=True)


@schedule.command()
@guest_word
@name_word
@format_option
def resume(guest: str, name: str, form: str) -> None:
    """Let a schedule go on.

    What it missed meanwhile is not caught up.
    """
    _pause(guest, name, form, paused=False)


def _pause(guest: str, name: str, form: str, *, paused: bool) -> None:
    daemon = connection()
    finish(daemon, snapshot_calls.set_schedule(guest, name, schedule_change_of(paused=paused)))
    shown = daemon.ask(snapshot_calls.show_schedule(guest, name))
    if form == "json":
        print_json(shown)
    else:
        then = "is paused" if paused else f"goes on, at {moment(shown.next_at)}"
        print_line(f"{shown.guest} {shown.name} {then}")


@schedule.command()
@guest_word
@name_word
@format_option
def run(guest: str, name: str, form: str) -> None:
    """Do now what a schedule does when it is due.

    A snapshot is made, unless the guest is stopped and has not changed, and those that no rule keeps
    are deleted. Also if it is paused: that holds only what it does by itself.
    """
    daemon = connection()
    job = finish(daemon, snapshot_calls.run_schedule(guest, name))
    if form == "json":
        print_json(daemon.ask(snapshot_calls.show_schedule(guest, name)))
    else:
        print_line(job.message)


@schedule.command()
@guest_word
@name_word
@keep_options
@format_option
def preview(guest: str, name: str, form: str, **rules: int | None) -> None:
    """Show which snapshots of a schedule would stay, and why; deletes nothing.

    By the rules that it has or, with --keep options, by those alone.
    """
    found = connection().ask(snapshot_calls.judge_schedule(guest, name, **rules)).items
    if form == "json":
        print_json(found)
        return
    now = time.time()
    print_table(JUDGED, [judged(each, now) for each in found])
    stays = sum(each.stays for each in found)
    say(f"{stays} of {len(found)} would stay")


def judged(each: Judgement, now: float) -> tuple[str, ...]:
    """Return what is said of a snapshot as a row under ``JUDGED``."""
    return (
        each.snapshot, moment(each.created_at), age(each.created_at, now),
        "yes" if each.stays else "no", WHY[each.rule],
    )  # fmt: skip


@schedule.command()
@guest_word
@click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_schedule
)
@format_option
def delete(guest: str, names: Sequence[str], form: str) -> int:
    """Delete schedules.

    The snapshots that they made stay, and nobody deletes them any more.
    """
    verb = Verb(lambda name: snapshot_calls.delete_schedule(guest, name), "is deleted")
    return do_to_all(names, verb, form)
