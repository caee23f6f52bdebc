"""``serai fork``: new guests from a running one, or from a snapshot."""

import time
from collections.abc import Sequence

import click

from serai.cli.create import TTL, summary
from serai.cli.options import complete_source, connection, format_option, new_name_argument
from serai.cli.output import print_json, print_line
from serai.cli.progress import finish
from serai.client.blocking import Connection
from serai.client.guest_calls import fork_guest, list_guests, show_guest
from serai.model.guest import Guest
from serai.units import format_duration, split_source


@click.command()
@click.argument("source", metavar="SOURCE[@SNAPSHOT]", shell_complete=complete_source)
@new_name_argument("[NAME]")
@click.option("--count", type=int, default=1, show_default=True, metavar="N",
              help="How many; they are called NAME-1, NAME-2 and so on.")  # fmt: skip
@click.option("--keep-identity", is_flag=True,
              help="Leave them what the guest inside knows of itself, addresses too, in a bubble.")  # fmt: skip
@click.option("--with", "together", multiple=True, metavar="GUEST", shell_complete=complete_source,
              help="Fork that guest too, at the same moment into the same bubble; may be repeated.")  # fmt: skip
@TTL
@click.option("--wait/--no-wait", default=True, show_default="wait",
              help="Wait until their agents answer, or only until they run.")  # fmt: skip
@format_option
def fork(
    source: str,
    name: str,
    count: int,
    keep_identity: bool,
    together: tuple[str, ...],
    ttl: float,
    wait: bool,
    form: str,
) -> None:
    """Make new guests from a guest or from a snapshot.

    A fork of a guest that runs, or of a snapshot with memory, runs at once: it shares disk and
    memory with its source and keeps only what it changes. The source goes on. Each fork is born
    again before anyone talks to it: id, MAC address, host name, machine id, random numbers and
    clock are its own.

    --keep-identity leaves host name, machine id and addresses as they were. So that nothing collides,
    each such fork lives in a bubble: a copy of its networks for it alone, with a way out through NAT.
    With --with several guests are forked at one moment into one bubble, where they find each other
    under their old addresses and names; the forks are called NAME-GUEST.

    Without NAME the daemon picks one. Interrupted by ctrl-C nothing is left of them. With --format
    json: an array of guests.
    """
    guest, snapshot = split_source(source)
    began = time.monotonic()
    daemon = connection()
    call = fork_guest(
        guest, snapshot=snapshot, name=name, count=count,
        keep_identity=keep_identity, together=together, ttl=ttl, wait_agent=wait,
    )  # fmt: skip
    made = _guests(daemon, finish(daemon, call, cancel=True).results)
    if form == "json":
        print_json(made)
    elif len(made) == 1:
        print_line(summary(made[0], wait, time.monotonic() - began))
    else:
        print_line(_summary((source, *together), made, time.monotonic() - began))


def _guests(daemon: Connection, ids: Sequence[str]) -> list[Guest]:
    if len(ids) == 1:
        return [daemon.ask(show_guest(ids[0]))]
    found = {each.id: each for each in daemon.all_of(list_guests)}
    return [found[each] for each in ids if each in found]


def _summary(sources: Sequence[str], made: Sequence[Guest], seconds: float) -> str:
    states = {str(each.state) for each in made}
    how = states.pop() if len(states) == 1 else "there"
    names = f"{made[0].name} to {made[-1].name}" if made else "none"
    if 1 < len(sources) == len(made):
        names = ", ".join(each.name for each in made)
    return (
        f"{len(made)} forks of {', '.join(sources)} are {how}: {names} ({format_duration(seconds)})"
    )
