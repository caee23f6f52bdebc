"""``serai console``: a guest's serial console on this terminal, until ctrl-]."""

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

import click

from serai.cli.options import connection, guest_argument
from serai.cli.output import say, say_raw_terminal, write_bytes
from serai.client.console import Console
from serai.client.guest_calls import console_path, show_guest
from serai.errors import Code, Conflict
from serai.model.guest import Guest
from serai.model.lifecycle import Deny, Verb, admit

ESCAPE = b"\x1d"
CHUNK = 4096
LINGER = 1.0
"""For how long a guest must be silent after the end of a piped input, in seconds."""
ENDING = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@guest_argument
def console(guest: str) -> None:
    """Use a guest's serial console.

    Every key goes to the guest; ctrl-] leaves. What the guest printed before is in `serai log`.
    Standard input may be a pipe: after its end it goes on until the guest is silent for a second.
    """
    daemon = connection()
    view = daemon.ask(show_guest(guest))
    _must_look(view)
    with Console(daemon.path, console_path(view.id)) as opened, _raw_terminal() as is_terminal:
        if is_terminal:
            say_raw_terminal(f"connected to {view.name}, leave with ctrl-]")
        _talk(opened)
    if is_terminal:
        say("")


def _must_look(guest: Guest) -> None:
    """Raise Conflict with a sentence of its own: a WebSocket can only name the problem's code."""
    admission = admit(guest.state, Verb.LOOK)
    if isinstance(admission, Deny):
        raise Conflict(
            Code.GUEST_STATE,
            f"{guest.name} is {guest.state}: it has no console now",
            hint=f"What it printed: serai log {guest.name}. To start it: serai start {guest.name}",
            details={"state": str(guest.state), "reason": str(admission.reason)},
        )


@contextlib.contextmanager
def _raw_terminal() -> Iterator[bool]:
    """Pass every key on as it is; the terminal is put back whatever happens. True for a terminal."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    handlers = {number: signal.signal(number, _end) for number in ENDING}
    try:
        tty.setraw(sys.stdin)
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that the terminal is put back."""
    raise SystemExit(128 + number)


def _talk(opened: Console) -> None:
    """Pass bytes both ways until ctrl-], the end of the console, or silence after piped input."""
    keys = sys.stdin.fileno()
    has_input = True
    while opened.is_open:
        if opened.has_data:
            write_bytes(opened.receive())
        sources: list[int] = [opened.fileno(), *([keys] if has_input else [])]
        ready, _, _ = select.select(sources, [], [], None if has_input else LINGER)
        if not ready:
            return
        if opened.fileno() in ready:
            write_bytes(opened.receive())
        if keys in ready:
            data = os.read(keys, CHUNK)
            typed, escape, _ = data.partition(ESCAPE)
            if typed:
                opened.send(typed)
            if escape:
                return
            has_input = bool(data)
    write_bytes(opened.receive())  # also tells why it is closed, if that was not to be expected
