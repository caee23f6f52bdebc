"""What a QEMU tells: read strictly, kept within bounds."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.qemu.events import (
    EVENTS_LIMIT,
    EventQueue,
    InstanceEvent,
    InstanceEventKind,
    decode_event,
    decode_stream_end,
)

Kind = InstanceEventKind
STAMP = {"seconds": 1, "microseconds": 2}


@pytest.mark.parametrize(
    ("name", "data", "kind", "detail"),
    [
        (
            "SHUTDOWN",
            {"guest": True, "reason": "guest-shutdown"},
            Kind.POWERED_OFF,
            "guest-shutdown",
        ),
        (
            "SHUTDOWN",
            {"guest": True, "reason": "guest-reset"},
            Kind.RESTART_WANTED,
            "guest-reset",
        ),
        ("RESET", {"guest": True, "reason": "guest-reset"}, Kind.RESET, "guest"),
        ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}, Kind.RESET, "host"),
        ("GUEST_PANICKED", {"action": "pause"}, Kind.PANICKED, "pause"),
        ("STOP", None, Kind.STOPPED, ""),
        ("RESUME", None, Kind.RESUMED, ""),
        (
            "BLOCK_IO_ERROR",
            {
                "device": "",
                "node-name": "root",
                "operation": "write",
                "action": "stop",
                "nospace": True,
                "reason": "No space left on device",
            },
            Kind.DISK_FULL,
            "root",
        ),
        ("VSERPORT_CHANGE", {"id": "agent-port", "open": True}, Kind.AGENT_OPENED, ""),
        ("VSERPORT_CHANGE", {"id": "agent-port", "open": False}, Kind.AGENT_CLOSED, ""),
    ],
)
def test_what_means_something(name: str, data: Any, kind: Kind, detail: str) -> None:
    message = {"event": name, "timestamp": STAMP} | ({} if data is None else {"data": data})
    assert decode_event(message) == InstanceEvent(kind, detail)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"event": "SHUTDOWN"},
        {"event": "SHUTDOWN", "data": {"guest": False, "reason": "host-qmp-quit"}},
        {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-panic"}},
        {"event": "SHUTDOWN", "data": {"guest": "true", "reason": "guest-shutdown"}},
        {"event": "SHUTDOWN", "data": []},
        {"event": ["SHUTDOWN"]},
        {"event": 5},
        {"event": "RESET", "data": {}},
        {"event": "BLOCK_IO_ERROR", "data": {"action": "report", "nospace": True}},
        {"event": "BLOCK_IO_ERROR", "data": {"action": "stop", "nospace": False}},
        {"event": "BLOCK_IO_ERROR", "data": {"action": "stop"}},
        {"event": "VSERPORT_CHANGE", "data": {"id": "other", "open": True}},
        {"event": "RTC_CHANGE", "data": {"offset": 1}},
    ],
)
def test_what_means_nothing(message: dict[str, object]) -> None:
    assert decode_event(message) is None


events = st.builds(InstanceEvent, st.sampled_from(Kind), st.sampled_from(["", "a", "b"]))


@given(st.lists(events, max_size=200))
def test_the_queue_keeps_the_order_of_what_came_last(put: list[InstanceEvent]) -> None:
    queue = EventQueue()
    for event in put:
        queue.put(event)
    got = []
    while (event := queue.take()) is not None:
        got.append(event)
    expected = sorted(set(put), key=lambda event: len(put) - 1 - put[::-1].index(event))
    assert got == expected


def test_what_was_read_may_come_again() -> None:
    queue, event = EventQueue(), InstanceEvent(Kind.RESET, "guest")
    for _ in range(3):
        queue.put(event)
        assert queue.take() == event
        assert queue.take() is None


def test_the_queue_is_bounded_and_the_newest_stay() -> None:
    queue = EventQueue()
    many = [InstanceEvent(Kind.DISK_FULL, str(number)) for number in range(EVENTS_LIMIT * 3)]
    for event in many:
        queue.put(event)
    got = []
    while (event := queue.take()) is not None:
        got.append(event)
    assert got == many[-EVENTS_LIMIT:]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_the_end_of_a_stream(status: str) -> None:
    assert decode_stream_end({"event": "MIGRATION", "data": {"status": status}}) == status


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"event": "MIGRATION"},
        {"event": "MIGRATION", "data": {"status": "active"}},
        {"event": "MIGRATION", "data": {"status": 5}},
        {"event": "MIGRATION", "data": ["completed"]},
        {"event": "MIGRATION_PASS", "data": {"status": "completed"}},
        {"event": ["MIGRATION"], "data": {"status": "completed"}},
    ],
)
def test_what_ends_no_stream(message: dict[str, Any]) -> None:
    assert decode_stream_end(message) is None
