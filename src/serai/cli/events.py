"""``serai events``: what happened, and what happens."""

from datetime import UTC, datetime

import click

from serai.cli.options import connection, format_option
from serai.cli.output import print_json, print_line
from serai.client import daemon_calls
from serai.client.words import read_events
from serai.errors import Code, Interrupted
from serai.model.event import Event


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens next, until ctrl-C.")
@click.option(
    "--after", type=click.IntRange(0), metavar="N", help="Only those with a number above N."
)
@format_option
def events(follow: bool, after: int | None, form: str) -> None:
    """Show what happened, or follow it.

    With -f alone only what is new; with --after N as well first all that came after N. The event
    `missed` says that this program was too slow: read the state anew. With --format json: an array,
    or with -f one object a line.
    """
    daemon = connection()
    if follow:
        for event in read_events(daemon.stream(daemon_calls.follow_events(after))):
            if form == "json":
                print_json(event)
            else:
                print_line(line_of(event))
        raise Interrupted(Code.DAEMON_STOPPING, "the daemon has ended; guests run on")
    found = _stored(after or 0)
    if form == "json":
        print_json(found)
    else:
        for event in found:
            print_line(line_of(event))


def _stored(after: int) -> list[Event]:
    daemon, found = connection(), list[Event]()
    while True:
        page = daemon.ask(daemon_calls.list_events(after))
        found += page.items
        if not page.next:
            return found
        after = int(page.next)


def line_of(event: Event) -> str:
    """Return an event as a line: number, local time, kind, subject, what else there is."""
    at = datetime.fromtimestamp(event.at, UTC).astimezone()
    data = " ".join(f"{key}={value}" for key, value in event.data.items())
    return f"{event.seq:>6} {at:%Y-%m-%d %H:%M:%S} {event.kind:<15} {event.subject} {data}".rstrip()
