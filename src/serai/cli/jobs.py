"""``serai job`` and ``serai events``."""

import json
import time
from datetime import UTC, datetime

import click
import msgspec

from serai.cli.layout import age
from serai.cli.options import connection, format_option
from serai.cli.output import print_facts, print_json, print_line, print_table
from serai.cli.progress import finish
from serai.client import calls
from serai.client.inn import event_data
from serai.model.event import Event
from serai.model.job import Job, JobState
from serai.units import format_duration

COLUMNS = ("ID", "KIND", "SUBJECT", "STATE", "PHASE", "TOOK", "AGE", "PROBLEM")


@click.group()
def job() -> None:
    """Look at jobs, wait for them, cancel them."""


@job.command(name="list")
@click.option("--state", type=click.Choice([*map(str, JobState)]), default=None, help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True)
@format_option
def list_jobs(state: str | None, limit: int, form: str) -> None:
    """List the newest jobs."""
    jobs = connection().ask(calls.list_jobs(state or "", limit)).items
    if form == "json":
        print_json(jobs)
    else:
        print_table(COLUMNS, [_row(each) for each in jobs])


def _row(each: Job) -> tuple[str, ...]:
    problem = each.problem.code if each.problem else ""
    took = format_duration(each.updated_at - each.created_at)
    return (
        each.id, each.kind, each.subject, str(each.state), each.phase, took,
        age(each.created_at, time.time()), problem,
    )  # fmt: skip


def _print(each: Job, form: str) -> None:
    if form == "json":
        print_json(each)
        return
    pairs = [
        ("id", each.id),
        ("kind", each.kind),
        ("subject", each.subject),
        ("state", str(each.state)),
        ("phase", f"{each.phase} of {', '.join(each.phases)}"),
        ("progress", f"{each.done} of {each.total}" if each.total else "-"),
        ("message", each.message or "-"),
    ]
    if each.problem is not None:
        pairs += [("problem", each.problem.message), ("hint", each.problem.hint or "-")]
    print_facts(pairs)


@job.command()
@click.argument("job_id", metavar="ID")
@format_option
def show(job_id: str, form: str) -> None:
    """Show a job."""
    _print(connection().ask(calls.show_job(job_id)), form)


@job.command()
@click.argument("job_id", metavar="ID")
@format_option
def wait(job_id: str, form: str) -> None:
    """Wait for a job's end; fails as the job failed."""
    _print(finish(connection(), calls.show_job(job_id)), form)


@job.command()
@click.argument("job_id", metavar="ID")
@format_option
def cancel(job_id: str, form: str) -> None:
    """Ask a job to end early; what it had begun is undone."""
    _print(connection().ask(calls.cancel_job(job_id)), form)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens next.")
@click.option("--after", type=int, default=None, help="Only those with a number above this.")
@format_option
def events(follow: bool, after: int | None, form: str) -> None:
    """Show what happened, or follow it (json: one object a line with -f)."""
    daemon = connection()
    if follow:
        for data in event_data(daemon.stream(calls.follow_events(after))):
            event = msgspec.json.decode(data, type=Event)
            print_line(data.decode() if form == "json" else _line(event))
        return
    found = _stored(after or 0)
    if form == "json":
        print_line(json.dumps(msgspec.to_builtins(found)))
    else:
        for event in found:
            print_line(_line(event))


def _stored(after: int) -> list[Event]:
    daemon, found = connection(), list[Event]()
    while True:
        page = daemon.ask(calls.list_events(after))
        found += page.items
        if not page.next or not page.items:
            return found
        after = page.items[-1].seq


def _line(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).astimezone()
    data = " ".join(f"{key}={value}" for key, value in event.data.items())
    return f"{event.seq:>6} {at:%Y-%m-%d %H:%M:%S} {event.kind:<15} {event.subject} {data}".rstrip()
