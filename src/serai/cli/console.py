"""``serai console``: the serial console over a WebSocket, escape with ctrl-]."""

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

import click
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from serai.cli.options import guest_argument
from serai.cli.output import say, write_bytes
from serai.client.blocking import connect_socket
from serai.client.calls import console_path, problem_in
from serai.errors import Code, Interrupted
from serai.settings import current_places

ESCAPE = b"\x1d"
CHUNK = 4096
LINGER = 1.0
"""How long to wait for more output after the end of a piped input, in seconds."""


@click.command()
@guest_argument
def console(guest: str) -> None:
    """Use a guest's serial console. Press ctrl-] to leave it."""
    with _open(guest) as socket, _raw_terminal():
        if sys.stdin.isatty():
            say(f"connected to {guest}, leave with ctrl-]\r")
        _talk(socket)
    if sys.stdin.isatty():
        say("")


@contextlib.contextmanager
def _open(guest: str) -> Iterator[ClientConnection]:
    sock = connect_socket(current_places().socket)
    try:
        with connect(
            f"ws://localhost{console_path(guest)}", sock=sock, compression=None, proxy=None
        ) as connection:
            yield connection
    except InvalidStatus as error:
        raise problem_in(error.response.status_code, bytes(error.response.body or b"")) from error
    except ConnectionClosed as error:
        reason = error.rcvd.reason if error.rcvd else ""
        if error.rcvd and error.rcvd.code in (1000, 1001):
            return
        raise Interrupted(
            Code.DAEMON_UNREACHABLE, f"the console was closed{f': {reason}' if reason else ''}"
        ) from error


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key on as it is; the terminal is put back whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _talk(connection: ClientConnection) -> None:
    """Pass bytes both ways until ctrl-], the end of the guest, or the end of a piped input."""
    network, keys = connection.socket.fileno(), sys.stdin.fileno()
    open_input = True
    while True:
        waiting = [network, keys] if open_input else [network]
        ready, _, _ = select.select(waiting, [], [], 0.05 if open_input else LINGER)
        if keys in ready:
            data = os.read(keys, CHUNK)
            before, escape, _ = data.partition(ESCAPE)
            if before:
                connection.send(before)
            if escape:
                return
            open_input = bool(data)
        if not _show(connection) and not ready and not open_input:
            return


def _show(connection: ClientConnection) -> bool:
    """Print all that has arrived; tell whether there was something."""
    shown = False
    while True:
        try:
            data = connection.recv(timeout=0)
        except TimeoutError:
            return shown
        write_bytes(data if isinstance(data, bytes) else data.encode())
        shown = True
