"""``serai exec``: a command in a guest, as if it ran here."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from serai.cli.options import DURATION, connection, format_option, guest_argument, pairs_from
from serai.cli.output import print_error, print_json, say, write_bytes, write_error_bytes
from serai.client.files import read_pieces
from serai.client.transfers import run
from serai.errors import Code, SeraiError
from serai.model.talk import ExecRequest, ExecResult

CANNOT_RUN = 127
PROBLEM = 125
WITH_VALUE = frozenset({"-e", "--env", "--timeout", "--format"})


class Execute(click.Command):
    """Options of ours come before the command; all that follows is the command's."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Take options also between NAME and ``--``, but never from the command."""
        ours = args[: args.index("--")] if "--" in args else args
        mixed = "--" in args and _positional(ours) <= 1
        return super().make_context(info_name, args, parent, allow_interspersed_args=mixed, **extra)


def _positional(words: list[str]) -> int:
    """Count the words that are neither options nor their values."""
    before = ["", *words[:-1]] if words else []
    return sum(
        1
        for earlier, word in zip(before, words, strict=True)
        if not word.startswith("-") and earlier not in WITH_VALUE
    )


@click.command(name="exec", cls=Execute)
@click.option("-n", "--no-stdin", is_flag=True, help="Pass no standard input on.")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V", help="Set a variable for it.")
@click.option("--timeout", type=DURATION, default=0.0, show_default="none", help="Give up after so long.")  # fmt: skip
@format_option
@guest_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def execute(
    no_stdin: bool,
    env: tuple[str, ...],
    timeout: float,
    form: str,
    guest: str,
    command: tuple[str, ...],
) -> int:
    """Run a command in a guest.

    Its exit code becomes ours, 128 + N if signal N ended it; its output becomes ours when it has
    ended. Standard input is passed on, unless it is a terminal: in a loop over lines use -n. There
    is no shell unless you name one: serai exec web1 -- sh -c 'ls | wc -l'.

    125: it could not be run because of a problem of ours. 127: the guest has no such command. With
    --format json: an object with code, stdout, stderr, truncated.
    """
    request = ExecRequest(argv=list(command), env=pairs_from(env, "--env"), timeout=timeout)
    try:
        result = run(connection(), guest, request, () if no_stdin else _standard_input())
    except SeraiError as error:
        print_error(error, form)
        return CANNOT_RUN if error.code is Code.EXEC_FAILED else PROBLEM
    except KeyboardInterrupt:
        say("interrupted: the command may still run in the guest")
        raise
    _print(result, form)
    return result.code


def _standard_input() -> Iterator[bytes]:
    """Give standard input, unless it is a terminal or closed."""
    if sys.stdin is not None and not sys.stdin.isatty():
        yield from read_pieces(sys.stdin.buffer)


def _print(result: ExecResult, form: str) -> None:
    if form == "json":
        texts = {
            "stdout": result.stdout.decode(errors="replace"),
            "stderr": result.stderr.decode(errors="replace"),
        }
        print_json({"code": result.code, **texts, "truncated": result.truncated})
        return
    write_bytes(result.stdout)
    write_error_bytes(result.stderr)
    if result.truncated:
        say("note: the guest's agent kept only the first 16 MiB of the output")
