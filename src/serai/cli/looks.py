"""Looking at a guest from outside: its serial log, its screen."""

import contextlib
from importlib import import_module
from pathlib import Path

import click

from serai.cli.options import connection, format_option, guest_argument
from serai.cli.output import print_json, print_line, say, write_bytes
from serai.client import guest_calls
from serai.client.copying import written_whole


@click.command()
@guest_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what it prints next.")
@click.option(
    "--tail", type=click.IntRange(0), metavar="BYTES", help="Only the last so many bytes."
)
def log(guest: str, follow: bool, tail: int | None) -> None:
    """Show what a guest printed on its serial console.

    Also of one that does not run. The newest part is kept, 1 MiB at most. With -f it ends when the
    guest is deleted. The bytes are the guest's own and may do anything to a terminal: in doubt
    pipe them through `less`.
    """
    for chunk in connection().stream(guest_calls.show_log(guest, follow=follow, tail=tail)):
        write_bytes(chunk)


@click.command()
@guest_argument
@click.argument("file", metavar="FILE.png")
@format_option
def screenshot(guest: str, file: str, form: str) -> None:
    """Save what a guest's screen shows.

    As PNG; FILE.png may be - for standard output.
    """
    picture = connection().ask(guest_calls.take_screenshot(guest))
    if file == "-":
        write_bytes(picture)
        return
    with written_whole(Path(file)) as target:
        target.write(picture)
    if form == "json":
        print_json({"file": file, "size": len(picture)})
    else:
        print_line(f"{file}: {len(picture)} bytes")


@click.command()
@guest_argument
@click.option("--tcp", type=click.IntRange(0, 65535), metavar="PORT", help="Forward a port of 127.0.0.1 until ctrl-C; 0 picks one.")  # fmt: skip
@format_option
def vnc(guest: str, tcp: int | None, form: str) -> None:
    """Print where a VNC viewer connects.

    It is the path of a unix socket that only you can open: vncviewer "$(serai vnc web1)". For a
    viewer that knows only TCP: --tcp 5901, then let it connect to 127.0.0.1:5901. Whoever is on
    this host can use that port while it is open.
    """
    address = connection().ask(guest_calls.show_vnc(guest)).socket
    if tcp is None:
        print_json({"socket": address}) if form == "json" else print_line(address)
        return
    forward = import_module("serai.cli.forward").forward

    def on_open(port: int) -> None:
        local = f"127.0.0.1:{port}"
        print_json({"socket": address, "tcp": local}) if form == "json" else print_line(local)
        say("open until ctrl-C")

    with contextlib.suppress(KeyboardInterrupt):
        forward(Path(address), tcp, on_open)
