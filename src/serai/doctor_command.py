"""``serai doctor``: what this host can do and what is missing. Needs no daemon. Wiring."""

import asyncio
import os
import shlex

import click

from serai.cli.options import format_option
from serai.cli.output import print_json, print_line, say
from serai.host.doctor import find_findings, mend
from serai.model.node import Finding, Severity
from serai.settings import current_places, read_settings

MARKS = {Severity.OK: "ok", Severity.NOTE: "note", Severity.MISSING: "MISSING"}


@click.command()
@click.option("--fix", is_flag=True, help="Run the commands that mend what is missing.")
@format_option
def doctor(fix: bool, form: str) -> int:
    """Say what this host can do, what is missing, and the exact command that mends it.

    The exit code is 1 when something is missing that serai needs.
    """
    findings = _look()
    if fix and _to_mend(findings):
        asyncio.run(mend(findings, say))
        findings = _look()
    if form == "json":
        print_json(findings)
    else:
        for finding in findings:
            _print(finding)
    return int(any(finding.severity is Severity.MISSING for finding in findings))


def _look() -> list[Finding]:
    places = current_places()
    settings = read_settings(os.environ, places.state / "serai.toml")
    return asyncio.run(find_findings(settings, places))


def _to_mend(findings: list[Finding]) -> bool:
    return any(finding.fix and finding.severity is not Severity.OK for finding in findings)


def _print(finding: Finding) -> None:
    print_line(f"{MARKS[finding.severity]:<8} {finding.name}: {finding.message}")
    if finding.fix:
        sudo = "" if os.geteuid() == 0 else "sudo "
        print_line(f"{'':<8} → {sudo}{shlex.join(finding.fix)}")
