"""``serai vnc``: where a viewer connects, or a local port that is forwarded there."""

import contextlib
import selectors
import socket
from pathlib import Path

import click

from serai.cli.options import connection, guest_argument
from serai.cli.output import print_line, say
from serai.client import calls
from serai.client.blocking import connect_socket

CHUNK = 64 << 10


@click.command()
@guest_argument
@click.option("--tcp", type=int, metavar="PORT", help="Forward a port of 127.0.0.1 until ctrl-C; 0 picks one.")  # fmt: skip
def vnc(guest: str, tcp: int | None) -> None:
    """Print where a VNC viewer connects: the path of a unix socket that only you can open.

    For a viewer that knows only TCP: --tcp 5901, then let it connect to 127.0.0.1:5901. Whoever is
    on this host can use that port while it is open.
    """
    address = Path(connection().ask(calls.show_vnc(guest)).socket)
    if tcp is None:
        print_line(str(address))
        return
    with contextlib.suppress(KeyboardInterrupt):
        _forward(address, tcp)


def _forward(address: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:
        print_line(f"127.0.0.1:{listener.getsockname()[1]}")
        say("open until ctrl-C")
        while True:
            viewer, _ = listener.accept()
            with viewer, connect_socket(address) as screen:
                _pass_on(viewer, screen)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes both ways until either side ends."""
    with selectors.DefaultSelector() as both:
        both.register(one, selectors.EVENT_READ, other)
        both.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in both.select():
                source: socket.socket = key.fileobj  # type: ignore[assignment]
                data = source.recv(CHUNK)
                if not data:
                    return
                key.data.sendall(data)
