"""The only place that prints: results to standard output, all else to standard error."""

import json
import os
import sys
from collections.abc import Sequence

import msgspec

from serai.cli.layout import facts, table
from serai.errors import SeraiError


def print_line(text: str) -> None:
    """Print a line of result."""
    _write(sys.stdout, text + "\n")


def print_json(value: object) -> None:
    """Print a result as JSON."""
    print_line(json.dumps(msgspec.to_builtins(value)))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under columns."""
    print_line(table(columns, rows))


def print_facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Print one fact a line."""
    print_line(facts(pairs))


def write_bytes(data: bytes) -> None:
    """Write a result as it is."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_error_bytes(data: bytes) -> None:
    """Write what a guest's command said on its standard error."""
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()


def say(text: str) -> None:
    """Tell a person something that is no result."""
    _write(sys.stderr, text + "\n")


def say_progress(text: str) -> None:
    """Redraw the one line that tells how far something is; empty ends it."""
    _write(sys.stderr, f"\r\x1b[K{text}")


def print_error(error: SeraiError, form: str = "table") -> None:
    """Tell what went wrong and what to do about it."""
    if form == "json":
        say(json.dumps(msgspec.to_builtins(error.problem())))
        return
    say(f"{_red('error:')} {error.message}")
    if error.hint:
        say(f"{_dim('hint:')} {error.hint}")


def draws() -> bool:
    """Tell whether somebody sees what is drawn on standard error."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _colours() -> bool:
    return draws() and not os.environ.get("NO_COLOR")


def _red(text: str) -> str:
    return f"\x1b[1;31m{text}\x1b[0m" if _colours() else text


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if _colours() else text


def _write(file: object, text: str) -> None:
    print(text, end="", file=file, flush=True)  # type: ignore[call-overload]
