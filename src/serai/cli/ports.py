"""``serai port``: how guests are attached to networks."""

import time
from functools import partial

import click

from serai.cli.layout import size
from serai.cli.options import complete_guest, connection, format_option
from serai.cli.output import print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.client import network_calls
from serai.client.network_words import Limits, limits_of, port_change_of, port_of
from serai.model.network import PortLimits, PortView
from serai.units import format_duration

COLUMNS = (
    "PORT",
    "NETWORK",
    "ADDRESS",
    "ADDRESS6",
    "MAC",
    "GROUPS",
    "IN",
    "OUT",
    "LIMITS",
    "REFUSED",
    "SPOOFED",
)

one_guest = click.argument("guest", metavar="GUEST", shell_complete=complete_guest)


RATE_IN = click.option("--rate-in", metavar="SIZE",
                       help="The most that it receives in a second, like 10MiB; 'none' lifts it.")  # fmt: skip
RATE_OUT = click.option("--rate-out", metavar="SIZE", help="The most that it sends in a second.")
BURST_IN = click.option("--burst-in", metavar="SIZE", help="How much more it may receive at once.")
BURST_OUT = click.option("--burst-out", metavar="SIZE", help="How much more it may send at once.")


def _limits(**words: str | None) -> Limits:
    given: Limits = {key: word for key, word in words.items() if word is not None}  # type: ignore[assignment]
    return given


@click.group()
def port() -> None:
    """Attach guests to networks, also while they run.

    A guest without any port has QEMU's own network: it reaches out, and `serai forward add` leads in.
    """


@port.command(name="list")
@one_guest
@format_option
def list_ports(guest: str, form: str) -> None:
    """List the ports of a guest.

    With what has passed them since they were made. REFUSED counts packets that no rule allowed,
    SPOOFED those that were sent under an address of somebody else. With --format json: an array.
    """
    found = connection().all_of(partial(network_calls.list_ports, guest))
    if form == "json":
        print_json(found)
        return
    if not found:
        say(f"{guest} has QEMU's own network; to attach it: serai port add {guest} NETWORK")
    print_table(COLUMNS, [_row(each) for each in found])


def _row(each: PortView) -> tuple[str, ...]:
    counted = each.counters
    return (
        each.name,
        each.network,
        each.address or "-",
        each.address6 or "-",
        each.mac,
        ",".join(each.groups) or "-",
        size(counted.bytes_in),
        size(counted.bytes_out),
        _limit_words(each.limits),
        str(counted.refused_in + counted.refused_out),
        str(counted.spoofed),
    )


def _limit_words(limits: PortLimits) -> str:
    pairs = (("in", limits.rate_in), ("out", limits.rate_out))
    return ", ".join(f"{way} {size(rate)}/s" for way, rate in pairs if rate) or "-"


@port.command()
@one_guest
@click.argument("attachment", metavar="NETWORK[,address=A][,address6=A][,mac=M][,group=G]")
@RATE_IN
@RATE_OUT
@BURST_IN
@BURST_OUT
@format_option
def add(
    guest: str,
    attachment: str,
    rate_in: str | None,
    rate_out: str | None,
    burst_in: str | None,
    burst_out: str | None,
    form: str,
) -> None:
    """Attach a guest to a network.

    At once, also while it runs. Addresses that are not given are picked. In a security group only
    what its rules allow gets in; group= may be repeated.
    """
    words = _limits(rate_in=rate_in, rate_out=rate_out, burst_in=burst_in, burst_out=burst_out)
    spec = port_of(attachment, limits_of(words))
    began = time.monotonic()
    daemon = connection()
    [made] = finish(daemon, network_calls.add_port(guest, spec), cancel=True).results
    shown = daemon.ask(network_calls.show_port(guest, made))
    if form == "json":
        print_json(shown)
        return
    took = format_duration(time.monotonic() - began)
    print_line(f"{shown.guest} has {shown.name} at {shown.network}: {_address(shown)} ({took})")


def _address(each: PortView) -> str:
    return " and ".join(filter(None, (each.address, each.address6))) or each.mac


@port.command()
@one_guest
@click.argument("name", metavar="PORT")
@format_option
def remove(guest: str, name: str, form: str) -> None:
    """Take a port from a guest.

    At once, also while it runs. Forwards to it go too.
    """
    daemon = connection()
    shown = daemon.ask(network_calls.show_port(guest, name))
    finish(daemon, network_calls.remove_port(guest, shown.id))
    if form == "json":
        print_json(shown)
    else:
        print_line(f"{shown.guest} has {shown.name} no more")


@port.command(name="set")
@one_guest
@click.argument("name", metavar="PORT")
@click.option("--group", "groups", multiple=True, metavar="GROUP",
              help="Security groups, in place of those that it is in; 'none': in none.")  # fmt: skip
@RATE_IN
@RATE_OUT
@BURST_IN
@BURST_OUT
@format_option
def set_port(
    guest: str,
    name: str,
    groups: tuple[str, ...],
    rate_in: str | None,
    rate_out: str | None,
    burst_in: str | None,
    burst_out: str | None,
    form: str,
) -> None:
    """Change a port's security groups or limits, at once.

    What is not named stays as it is.
    """
    words = _limits(rate_in=rate_in, rate_out=rate_out, burst_in=burst_in, burst_out=burst_out)
    if not groups and not words:
        raise click.UsageError("There is nothing to change.", click.get_current_context())
    daemon = connection()
    shown = daemon.ask(network_calls.show_port(guest, name))
    wanted = (() if groups == ("none",) else groups) if groups else None
    change = port_change_of(wanted, limits_of(words, shown.limits))
    finish(daemon, network_calls.change_port(guest, shown.id, change))
    after = daemon.ask(network_calls.show_port(guest, shown.id))
    if form == "json":
        print_json(after)
    else:
        print_line(f"{after.name} of {after.guest} is changed")
