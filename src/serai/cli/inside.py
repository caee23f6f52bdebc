"""Talking to a guest and looking at it: exec, log, screenshot."""

import sys
from pathlib import Path

import click

from serai.cli.options import DURATION, connection, guest_argument
from serai.cli.output import print_error, print_line, say, write_bytes, write_error_bytes
from serai.client import calls
from serai.errors import Code, SeraiError
from serai.model.talk import ExecRequest

CANNOT_RUN = 127
PROBLEM = 125


@click.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.option("-n", "--no-stdin", is_flag=True, help="Pass no standard input on.")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V", help="Set a variable for it.")
@click.option("--timeout", type=DURATION, default=0.0, help="Give up after so long.")
@guest_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def execute(
    no_stdin: bool, env: tuple[str, ...], timeout: float, guest: str, command: tuple[str, ...]
) -> int:
    """Run a command in a guest; its exit code becomes ours.

    Standard input is passed on unless it is a terminal. 125: the command could not be run because
    of a problem of ours; 127: the guest has no such command.
    """
    stdin = b"" if no_stdin or sys.stdin.isatty() else sys.stdin.buffer.read()
    request = ExecRequest(
        argv=list(command), stdin=stdin, env=dict(_pair(word) for word in env), timeout=timeout
    )
    try:
        result = connection().ask(calls.run_command(guest, request))
    except SeraiError as error:
        print_error(error)
        return CANNOT_RUN if error.code is Code.EXEC_FAILED else PROBLEM
    write_bytes(result.stdout)
    write_error_bytes(result.stderr)
    if result.truncated:
        say("note: the guest's agent kept only the first 16 MiB of the output")
    return result.code


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise click.BadParameter(f"{word!r} is not KEY=VALUE", param_hint="--env")
    return key, value


@click.command()
@guest_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what it prints next.")
@click.option("--tail", type=int, metavar="BYTES", help="Only the last so many bytes.")
def log(guest: str, follow: bool, tail: int | None) -> None:
    """Show what a guest printed on its serial console, also of one that is stopped."""
    for chunk in connection().stream(calls.show_log(guest, follow=follow, tail=tail)):
        write_bytes(chunk)


@click.command()
@guest_argument
@click.argument("file", metavar="FILE.png")
def screenshot(guest: str, file: str) -> None:
    """Save what a guest's screen shows as PNG; - writes it to standard output."""
    picture = connection().ask(calls.take_screenshot(guest))
    if file == "-":
        write_bytes(picture)
        return
    Path(file).write_bytes(picture)
    print_line(f"{file}: {len(picture)} bytes")
