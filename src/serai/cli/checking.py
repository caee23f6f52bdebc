"""``serai check``: is everything that is stored there, and as it was stored?"""

import time
from collections.abc import Sequence

import click

from serai.cli.options import connection, format_option
from serai.cli.output import print_json, print_line, say
from serai.cli.progress import finish
from serai.client import daemon_calls, job_calls
from serai.errors import EXIT_CODES, Family
from serai.model.check import CheckReport, Finding
from serai.units import format_duration


@click.command()
@click.option("--repair", is_flag=True, help="Delete files that no record names.")
@format_option
def check(repair: bool, form: str) -> int:
    """Read everything that is stored and say what is wrong.

    All layers, memories and images are read and compared with their digests, and all records with
    the files. Guests go on meanwhile. A snapshot that stands on what is not sound becomes broken,
    and ready again when a later check finds it sound. Files that no record names are orphans:
    --repair deletes them, where nobody may want them, and nothing else. A guest's folder or a file
    among the volumes that nobody has may hold a disk: it is told of, and yours to remove. It ends with
    code 7 when something that is needed is not sound.
    """
    began = time.monotonic()
    call = daemon_calls.check_storage(repair=repair)
    report = job_calls.report_of(finish(connection(), call, cancel=True))
    if form == "json":
        print_json(report)
    else:
        _print(report, time.monotonic() - began)
    return 0 if report.is_sound else EXIT_CODES[Family.HOST_FAILURE]


def _print(report: CheckReport, took: float) -> None:
    for each in report.findings:
        print_line(line_of(each))
    if report.left_out:
        print_line(f"and {report.left_out} more")
    print_line(f"{report.sentence()} ({format_duration(took)})")
    if any(each.mendable and not each.mended for each in report.findings):
        say("to delete what nobody has: serai check --repair")


def line_of(finding: Finding) -> str:
    """Return a finding as one line: what it is, and who stands on it."""
    told = "deleted" if finding.mended else str(finding.fault)
    return f"{told}: {finding.message}{_users(finding.snapshots, finding.guests)}"


def _users(snapshots: Sequence[str], guests: Sequence[str]) -> str:
    named = [
        f"{word} {', '.join(names)}"
        for word, names in (("snapshots", snapshots), ("guests", guests))
        if names
    ]
    return f"; on it: {'; '.join(named)}" if named else ""
