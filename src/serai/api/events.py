"""Events: the stored ones as a list, new ones as a stream of server-sent events.

The stream follows the WHATWG's server-sent events: ``id`` is the event's number, so a client that
was cut off sends it as Last-Event-ID and misses nothing that is still stored.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from litestar.types import ASGIApp

from serai.api.answers import SSE, answer_json
from serai.api.bodies import EventsQuery, NoBody, Page
from serai.api.calls import Call
from serai.api.decoding import read_header
from serai.api.streams import Stream, as_generator
from serai.errors import Code, Invalid
from serai.model.event import Event, EventKind

HEARTBEAT = b":\n\n"


async def list_events(call: Call[EventsQuery, NoBody]) -> ASGIApp:
    """List events, or stream them.

    In the order in which they happened. `next` is the number to send as `after` for the part that
    follows. With `Accept: text/event-stream` the answer has no end: the stored events above `after`
    (or above Last-Event-ID, which a client sends that was cut off), then each new one as it
    happens. The event `missed` says that the client was too slow and must read the state again.
    """
    if SSE in read_header(call.request, b"accept"):
        events = call.room.engine.watch(after=_last_seen(call))
        headers = ((b"cache-control", b"no-store"),)
        return Stream(SSE, _render(events), headers=headers, room=call.room, heartbeat=HEARTBEAT)
    query = call.query
    events_found = await call.room.engine.events(after=query.after or 0, limit=query.limit + 1)
    items = events_found[: query.limit]
    more = len(events_found) > query.limit
    return answer_json(Page(items=items, next=str(items[-1].seq) if more else ""))


def _last_seen(call: Call[EventsQuery, NoBody]) -> int | None:
    """Return the number after which to go on. A browser that reconnects sends both: the header."""
    untrusted = read_header(call.request, b"last-event-id")
    if not untrusted:
        return call.query.after
    if untrusted.isascii() and untrusted.isdigit() and len(untrusted) <= 18:
        return int(untrusted)
    raise Invalid(
        Code.VALUE_INVALID,
        "Last-Event-ID is not the number of an event",
        details={"path": "Last-Event-ID"},
    )


async def _render(events: AsyncIterator[Event]) -> AsyncGenerator[bytes, None]:
    yield HEARTBEAT
    async with aclosing(as_generator(events)) as source:
        async for event in source:
            yield render_event(event)


def render_event(event: Event) -> bytes:
    """Return an event as it stands in a stream.

    ``missed`` has no id: a client that reconnects asks for what came after the last one it saw.
    Nor has an event without a number, which a full disk kept from being stored.
    """
    has_id = event.seq > 0 and event.kind is not EventKind.MISSED
    line = b"id: %d\n" % event.seq if has_id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (line, event.kind.encode(), msgspec.json.encode(event))
