"""``serai push`` and ``serai pull``: files and folders into and out of guests."""

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from serai.cli.options import connection, format_option, guest_argument
from serai.cli.output import print_json, print_line, say, write_bytes
from serai.client import guest_calls, transfers
from serai.client.files import read_pieces

SHOWN = 5


@click.command()
@guest_argument
@click.argument("source", metavar="LOCAL")
@click.argument("path", metavar="PATH")
@format_option
def push(guest: str, source: str, path: str, form: str) -> None:
    """Copy a file or folder into a guest.

    LOCAL goes to PATH in the guest; LOCAL may be - for standard input. A PATH that ends with / is a
    folder into which LOCAL goes under its own name; any other PATH is the copy's own name, so doing
    it twice gives the same. Only a file whose PATH turns out to be a folder goes into that.

    Of a folder, what is in it is copied; what else is at PATH stays. Links are copied as links, all
    belongs to root, and sockets, pipes and devices are left out.
    """
    if source == "-":
        call = guest_calls.push_file(guest, path, mode=0o644, unpack=False)
        connection().send(call, read_pieces(sys.stdin.buffer))
        target = path
    else:
        left_out: list[str] = []
        target = transfers.push(connection(), guest, Path(source), path, left_out.append)
        _tell_left_out(left_out, "no files")
    _tell(source, f"{guest}:{target}", form)


@click.command()
@guest_argument
@click.argument("path", metavar="PATH")
@click.argument("local", metavar="LOCAL")
@format_option
def pull(guest: str, path: str, local: str, form: str) -> None:
    """Copy a file or folder out of a guest.

    PATH in the guest goes to LOCAL; LOCAL may be - for standard output. A LOCAL that ends with / is
    a folder into which PATH goes under its own name; any other LOCAL is the copy's own name, so
    doing it twice gives the same. Only a file whose LOCAL is a folder goes into that. A PATH that
    ends with / is a folder.

    A guest is not trusted: nothing is written outside LOCAL, and devices, set-uid bits and links
    that lead outside are left out.
    """
    daemon = connection()
    if local == "-":
        for chunk in daemon.stream(guest_calls.pull_file(guest, path, pack=path.endswith("/"))):
            write_bytes(chunk)
        return
    pulled = transfers.pull(daemon, guest, path, local)
    _tell_left_out(pulled.left_out, "not to be trusted")
    _tell(f"{guest}:{path}", str(pulled.path), form)


def _tell_left_out(names: Iterable[str], why: str) -> None:
    found = list(names)
    if found:
        more = ", …" if len(found) > SHOWN else ""
        say(f"left out, {why}: {', '.join(found[:SHOWN])}{more} ({len(found)} in all)")


def _tell(source: str, target: str, form: str) -> None:
    if form == "json":
        print_json({"source": source, "target": target})
    else:
        print_line(f"{source} is now {target}")
