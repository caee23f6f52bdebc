"""``serai job``: what is on its way, and what became of it."""

import time

import click

from serai.cli.layout import age
from serai.cli.options import connection, format_option
from serai.cli.output import print_facts, print_json, print_table
from serai.cli.progress import finish
from serai.client import job_calls
from serai.model.job import Job, JobState
from serai.units import format_duration

COLUMNS = ("ID", "KIND", "SUBJECT", "STATE", "PHASE", "TOOK", "AGE", "PROBLEM")


@click.group()
def job() -> None:
    """Look at jobs, wait for them, cancel them.

    Whatever changes something is a job: it is durable before the daemon answers, and goes on when
    the command that asked for it is gone.
    """


@job.command(name="list")
@click.option("--state", type=click.Choice([*map(str, JobState)]), default=None, help="Only these.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=30, show_default=True, metavar="N",
              help="At most so many.")  # fmt: skip
@format_option
def list_jobs(state: str | None, limit: int, form: str) -> None:
    """List the newest jobs."""
    jobs = connection().ask(job_calls.list_jobs(state or "", limit)).items
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
    of = f" of {', '.join(each.phases)}" if each.phases else ""
    pairs = [
        ("id", each.id),
        ("kind", each.kind),
        ("subject", each.subject),
        ("state", str(each.state)),
        ("phase", f"{each.phase or '-'}{of}"),
        ("progress", f"{each.done} of {each.total}" if each.total else "-"),
        ("message", each.message or "-"),
    ]
    if each.problem is not None:
        pairs += [("problem", each.problem.message), ("hint", each.problem.hint or "-")]
    print_facts(pairs)


job_argument = click.argument("job_id", metavar="ID")


@job.command()
@job_argument
@format_option
def show(job_id: str, form: str) -> None:
    """Show a job."""
    _print(connection().ask(job_calls.show_job(job_id)), form)


@job.command()
@job_argument
@format_option
def wait(job_id: str, form: str) -> None:
    """Wait for a job's end.

    Fails as the job failed.
    """
    _print(finish(connection(), job_calls.show_job(job_id)), form)


@job.command()
@job_argument
@format_option
def cancel(job_id: str, form: str) -> None:
    """Ask a job to end early.

    What it had begun is undone. It may take a moment: `serai job wait` tells how it ended.
    """
    _print(connection().ask(job_calls.cancel_job(job_id)), form)
