"""The requests about the daemon as a whole, as values."""

from serai.client.calls import Call, Page, get, post
from serai.model.event import Event
from serai.model.job import Job
from serai.model.node import DaemonStatus


def show_system() -> Call[DaemonStatus]:
    """How the daemon is."""
    return get("/v1/system", DaemonStatus)


def check_storage(*, repair: bool = False) -> Call[Job]:
    """Read everything that is stored."""
    return post("/v1/check", Job, {"repair": repair})


def list_events(after: int = 0, limit: int = 1000) -> Call[Page[Event]]:
    """Stored events, the oldest first."""
    return get("/v1/events", Page[Event], after=str(after), limit=str(limit))


def follow_events(after: int | None) -> Call[bytes]:
    """Events as they happen (text/event-stream)."""
    query = {} if after is None else {"after": str(after)}
    headers = {"Accept": "text/event-stream"}
    return Call(method="GET", path="/v1/events", query=query, headers=headers, timeout=None)
