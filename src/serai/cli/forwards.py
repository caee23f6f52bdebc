"""``serai forward``: ports of the host that lead into guests."""

from collections.abc import Sequence

import click

from serai.cli.options import complete_guest, connection, format_option
from serai.cli.output import print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import network_calls
from serai.client.network_words import forwarded_ports
from serai.errors import Code, NotFound
from serai.model.network import Forward, ForwardSpec, Protocol
from serai.units import shorten

COLUMNS = ("HOST", "GUEST", "TO", "STATE", "ID")


@click.group()
def forward() -> None:
    """Let ports of the host lead into guests.

    Also into those with QEMU's own network, as an ordinary user too.
    """


@forward.command()
@click.argument("guest", metavar="GUEST", shell_complete=complete_guest)
@click.argument("ports", metavar="HOST_PORT[:GUEST_PORT]")
@click.option("--udp", is_flag=True, help="UDP instead of TCP.")
@click.option("--address", default="", metavar="ADDRESS", show_default="all",
              help="Only at this address of the host, like 127.0.0.1.")  # fmt: skip
@click.option("--port", default="", metavar="PORT", show_default="the first",
              help="The guest's network port, like net1.")  # fmt: skip
@format_option
def add(guest: str, ports: str, udp: bool, address: str, port: str, form: str) -> None:
    """Let a port of the host lead into a guest.

    Without GUEST_PORT to the same number there. A guest that does not run is reached once it does.
    """
    host_port, guest_port = forwarded_ports(ports)
    spec = ForwardSpec(
        guest=guest,
        host_port=host_port,
        guest_port=guest_port,
        protocol=Protocol.UDP if udp else Protocol.TCP,
        host_address=address,
        port=port,
    )
    daemon = connection()
    [made] = finish(daemon, network_calls.add_forward(spec), cancel=True).results
    shown = next(each for each in daemon.all_of(network_calls.list_forwards) if each.id == made)
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{_outside(shown)} leads to {shown.guest}, {_inside(shown)}")


def _outside(each: Forward) -> str:
    address = f"[{each.host_address}]" if ":" in each.host_address else each.host_address or "*"
    return f"{address}:{each.host_port}/{each.protocol}"


def _inside(each: Forward) -> str:
    return f"{each.address or 'QEMU'}:{each.guest_port}"


@forward.command(name="list")
@format_option
def list_forwards(form: str) -> None:
    """List forwards.

    Sorted by the host's port; `*` is every address of the host. With --format json: an array.
    """
    found = connection().all_of(network_calls.list_forwards)
    if form == "json":
        print_json(found)
        return
    if not found:
        say("there are no forwards; to add one: serai forward add GUEST 8080:80")
    rows = [
        (
            _outside(each),
            each.guest,
            _inside(each),
            "up" if each.problem is None else each.problem.message,
            each.id,
        )
        for each in found
    ]
    print_table(COLUMNS, rows)


@forward.command()
@click.argument("forwards", metavar="HOST_PORT[/udp]|ID...", nargs=-1, required=True)
@format_option
def remove(forwards: tuple[str, ...], form: str) -> int:
    """Remove forwards.

    They are named by the host's port, as 8080 or 53/udp, or by id.
    """
    there = connection().all_of(network_calls.list_forwards)
    wanted = {word: _find(there, word) for word in forwards}
    verb = Verb(lambda word: network_calls.remove_forward(wanted[word]), "leads nowhere now")
    return do_to_all(forwards, verb, form)


def _find(there: Sequence[Forward], word: str) -> str:
    """Return the id of the forward that is meant."""
    port, _, protocol = word.partition("/")
    for each in there:
        if word == each.id or (port, protocol or "tcp") == (str(each.host_port), each.protocol):
            return each.id
    raise NotFound(
        Code.FORWARD_NOT_FOUND,
        f"there is no forward {shorten(word)}",
        hint="See which there are: serai forward list",
    )
