"""``serai network``: links that guests share."""

import time

import click

from serai.cli.layout import age, ago
from serai.cli.options import complete_network, connection, format_option, pairs_from
from serai.cli.output import print_facts, print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import network_calls
from serai.client.network_words import network_change_of, network_of
from serai.model.network import Network, NetworkMode
from serai.units import format_duration

COLUMNS = ("NAME", "MODE", "SUBNET", "SUBNET6", "PORTS", "FREE", "BUBBLES", "AGE", "STATE")
MODES = "|".join((*map(str, list(NetworkMode)[:-1]), "bridge=INTERFACE"))


@click.group()
def network() -> None:
    """Make and manage networks.

    A network is a link that guests share: with addresses, names by which they find each other, and a
    way out. `serai launch IMAGE --network NAME` attaches a guest, `serai port add` one that is there.
    """


one_network = click.argument("name", metavar="NAME", shell_complete=complete_network)


@network.command()
@click.argument("name", metavar="NAME")
@click.option("--subnet", default="", metavar="CIDR", show_default="a free one",
              help="IPv4 addresses, like 10.20.0.0/24.")  # fmt: skip
@click.option("--subnet6", default="", metavar="CIDR", show_default="none",
              help="IPv6 addresses, a /64 like fd12:3456:789a:1::/64.")  # fmt: skip
@click.option("--mode", default="nat", show_default=True, metavar=MODES,
              help="How it is joined to the world outside.")  # fmt: skip
@click.option("--dns", multiple=True, metavar="ADDRESS",
              help="Who is asked for names from outside; may be repeated. Else as the host does.")  # fmt: skip
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label; may be repeated.")
@format_option
def create(
    name: str,
    subnet: str,
    subnet6: str,
    mode: str,
    dns: tuple[str, ...],
    labels: tuple[str, ...],
    form: str,
) -> None:
    """Make a network.

    nat: out through the host's address, in only by `serai forward`. routed: the host routes, and
    somebody outside knows the way back. isolated: its guests reach each other, and nothing else.
    bridge=INTERFACE: a bridge of the host that somebody else looks after, addresses too.
    """
    spec = network_of(
        name,
        mode=mode,
        subnet=subnet,
        subnet6=subnet6,
        dns=dns,
        labels=pairs_from(labels, "--label"),
    )
    began = time.monotonic()
    daemon = connection()
    job = finish(daemon, network_calls.create_network(spec), cancel=True)
    made = daemon.ask(network_calls.show_network(job.results[0]))
    if form == "json":
        print_json(made)
        return
    took = format_duration(time.monotonic() - began)
    print_line(f"{made.name} is there: {_addresses(made)} ({made.mode}, {took})")


def _addresses(each: Network) -> str:
    return " and ".join(filter(None, (each.subnet, each.subnet6))) or f"bridge {each.interface}"


@network.command(name="list")
@format_option
def list_networks(form: str) -> None:
    """List networks.

    Sorted by name. FREE counts IPv4 addresses, BUBBLES the bubbles with a copy of it, whose ports
    are not counted here. With --format json: an array.
    """
    found = connection().all_of(network_calls.list_networks)
    if form == "json":
        print_json(found)
        return
    if not found:
        say("there are no networks; to make one: serai network create NAME")
    print_table(COLUMNS, [_row(each, time.time()) for each in found])


def _row(each: Network, now: float) -> tuple[str, ...]:
    mode = f"{each.mode}={each.interface}" if each.mode is NetworkMode.BRIDGE else str(each.mode)
    return (
        each.name,
        mode,
        each.subnet or "-",
        each.subnet6 or "-",
        str(each.ports),
        str(each.free) if each.subnet else "-",
        str(each.bubbles) if each.bubbles else "-",
        age(each.created_at, now),
        "up" if each.problem is None else each.problem.code,
    )


@network.command()
@one_network
@format_option
def show(name: str, form: str) -> None:
    """Show all that is known of a network."""
    each = connection().ask(network_calls.show_network(name))
    if form == "json":
        print_json(each)
        return
    pairs = [
        ("name", each.name),
        ("id", each.id),
        ("mode", str(each.mode)),
        ("subnet", _with_gateway(each.subnet, each.gateway)),
        ("subnet6", _with_gateway(each.subnet6, each.gateway6)),
        ("interface", each.interface),
        ("dns", ", ".join(each.dns) or "as the host does"),
        ("ports", f"{each.ports}, {each.free} addresses free" if each.subnet else str(each.ports)),
        ("bubbles", f"{each.bubbles}, each with a copy of it" if each.bubbles else "-"),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(each.labels.items())) or "-"),
        ("created", ago(each.created_at, time.time())),
    ]
    if each.problem is not None:
        pairs += [("problem", each.problem.message), ("hint", each.problem.hint or "-")]
    print_facts(pairs)


def _with_gateway(subnet: str, gateway: str) -> str:
    return f"{subnet}, the host is {gateway}" if subnet else "-"


@network.command(name="set")
@one_network
@click.option("--dns", multiple=True, metavar="ADDRESS",
              help="Who is asked for names from outside; may be repeated. 'host': as the host does.")  # fmt: skip
@click.option("--subnet6", metavar="CIDR", help="IPv6 addresses; 'none' takes them away.")
@click.option("--label", "labels", multiple=True, metavar="K=V",
              help="Labels, in place of those that there are.")  # fmt: skip
@format_option
def set_network(
    name: str, dns: tuple[str, ...], subnet6: str | None, labels: tuple[str, ...], form: str
) -> None:
    """Change a network, in place.

    What is not named stays as it is. IPv6 can't be taken away while guests have ports there.
    """
    if not dns and subnet6 is None and not labels:
        raise click.UsageError("There is nothing to change.", click.get_current_context())
    change = network_change_of(
        dns=(() if dns == ("host",) else dns) if dns else None,
        subnet6="" if subnet6 == "none" else subnet6,
        labels=pairs_from(labels, "--label") if labels else None,
    )
    daemon = connection()
    finish(daemon, network_calls.change_network(name, change))
    after = daemon.ask(network_calls.show_network(name))
    if form == "json":
        print_json(after)
    else:
        print_line(f"{after.name} is changed")


@network.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True,
                shell_complete=complete_network)  # fmt: skip
@format_option
def delete(names: tuple[str, ...], form: str) -> int:
    """Delete networks.

    No guest may have a port there. Nothing of them is left on the host.
    """
    return do_to_all(names, Verb(network_calls.delete_network, "is deleted"), form)
