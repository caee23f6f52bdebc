"""The only place that prints: results to standard output, all else to standard error.

What guests, images and tools say may hold control characters that would command a terminal: in text
for people they are shown as ``\\x1b``. Only ``write_bytes`` passes everything on, for commands whose
purpose that is.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import msgspec

from serai.cli.layout import facts, table
from serai.errors import SeraiError

CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def plain(untrusted: str) -> str:
    """Return text that does nothing to a terminal but stand there."""
    return untrusted.translate(CONTROLS)


def print_line(text: str) -> None:
    """Print a line of result."""
    _write(sys.stdout, plain(text) + "\n")


def print_json(value: object) -> None:
    """Print a result as JSON, on one line."""
    _write(sys.stdout, json.dumps(msgspec.to_builtins(value)) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under columns."""
    print_line(table(columns, [[plain(cell).replace("\n", " ") for cell in row] for row in rows]))


def print_coloured(text: str) -> None:
    """Print lines that hold colours of our own and nothing untrusted."""
    _write(sys.stdout, text + "\n")


def print_facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Print one fact a line."""
    print_line(facts([(plain(name), value) for name, value in pairs]))


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
    _write(sys.stderr, plain(text) + "\n")


def say_raw_terminal(text: str) -> None:
    """Tell something while the terminal is raw, where a new line needs both characters."""
    _write(sys.stderr, plain(text) + "\r\n")


def print_error(error: SeraiError, form: str = "table") -> None:
    """Tell what went wrong and what to do about it; with ``json`` as one object with the code."""
    if form == "json":
        _write(sys.stderr, json.dumps(msgspec.to_builtins(error.problem())) + "\n")
        return
    _write(sys.stderr, f"{_in('1;31', 'error:')} {plain(error.message)}\n")
    if error.hint:
        _write(sys.stderr, f"{_in('2', 'hint:')} {plain(error.hint)}\n")


def can_print(text: str) -> bool:
    """Tell whether standard output can hold ``text``."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def draws() -> bool:
    """Tell whether somebody sees what is drawn on standard error."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _in(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if draws() and not os.environ.get("NO_COLOR") else text


def _write(file: TextIO, text: str) -> None:
    """Write at once. What the terminal's encoding can't hold becomes ``?``, not an error."""
    try:
        print(text, end="", file=file, flush=True)
    except UnicodeEncodeError:
        encoding = file.encoding
        print(text.encode(encoding, "replace").decode(encoding), end="", file=file, flush=True)
