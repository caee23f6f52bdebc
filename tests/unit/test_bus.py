"""The bus: bounded queues, one MISSED for all that was lost, nothing lost behind anybody's back."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.engine import bus as bus_module
from serai.engine.bus import Bus, ReadEvents
from serai.errors import Busy, Code
from serai.model.event import Event, EventKind


def an_event(seq: int) -> Event:
    return Event(seq=seq, at=float(seq), kind=EventKind.GUEST_STATE, subject="web1")


def history(*stored: int) -> ReadEvents:
    """Return a store that has these events."""

    async def read(after: int, limit: int) -> list[Event]:
        await asyncio.sleep(0)
        return [an_event(seq) for seq in stored if seq > after][:limit]

    return read


async def take(source: AsyncIterator[Event], count: int) -> list[int]:
    """Return the numbers of the next events; those that were missed negative."""
    return [number(await asyncio.wait_for(anext(source), 5)) for _ in range(count)]


def number(event: Event) -> int:
    return -event.seq if event.kind is EventKind.MISSED else event.seq


async def drain(source: AsyncIterator[Event]) -> list[int]:
    return [number(event) async for event in source]


async def test_everybody_gets_every_event_in_order():
    bus = Bus()
    watchers = [bus.follow(history(), after=None) for _ in range(3)]
    for seq in range(1, 101):
        bus.publish(an_event(seq))
    for events in watchers:
        async with aclosing(events):
            assert await take(events, 100) == list(range(1, 101))


async def test_following_begins_with_the_call_not_with_the_first_look():
    bus = Bus()
    events = bus.follow(history(), after=None)
    bus.publish(an_event(1))
    assert await take(events, 1) == [1]
    await events.aclose()


async def test_history_comes_first_and_nothing_twice():
    bus = Bus()
    events = bus.follow(history(1, 2, 3, 4, 5), after=2)
    bus.publish(an_event(4))
    bus.publish(an_event(5))
    bus.publish(an_event(6))
    assert await take(events, 4) == [3, 4, 5, 6]
    await events.aclose()


async def test_without_a_number_there_is_no_history():
    bus = Bus()
    events = bus.follow(history(1, 2, 3), after=None)
    bus.publish(an_event(4))
    assert await take(events, 1) == [4]
    await events.aclose()


async def test_a_slow_watcher_is_told_once_what_it_lost():
    bus = Bus()
    with bus.subscribe(limit=10) as watcher:
        for seq in range(1, 31):
            bus.publish(an_event(seq))
        missed = await watcher.take()
        assert missed is not None
        assert (missed.kind, missed.seq, missed.data) == (EventKind.MISSED, 20, {"lost": "20"})
        kept = [await watcher.take() for _ in range(10)]
        assert kept == [an_event(seq) for seq in range(21, 31)]
        bus.publish(an_event(31))
        assert await watcher.take() == an_event(31)


async def test_a_slow_watcher_does_not_slow_the_others():
    bus = Bus()
    with bus.subscribe(limit=1) as slow, bus.subscribe(limit=100) as fast:
        for seq in range(1, 51):
            bus.publish(an_event(seq))
        assert [await fast.take() for _ in range(50)] == [an_event(seq) for seq in range(1, 51)]
        assert [number(await slow.take() or an_event(0)) for _ in range(2)] == [-49, 50]


async def test_what_history_brings_was_not_missed(monkeypatch: pytest.MonkeyPatch):
    """Events that overflowed while older ones were still being read are in the history itself."""
    monkeypatch.setattr(bus_module, "EVENT_LIMIT", 3)
    bus = Bus()
    events = bus.follow(history(*range(1, 21)), after=0)
    for seq in range(11, 21):
        bus.publish(an_event(seq))
    assert await take(events, 20) == list(range(1, 21))
    bus.publish(an_event(21))
    assert await take(events, 1) == [21]
    await events.aclose()


async def test_events_that_are_not_kept_any_more_are_told_as_missed():
    bus = Bus()
    assert await first_of(bus, after=5, stored=range(100, 103)) == [-99, 100, 101, 102]
    assert await first_of(bus, after=99, stored=range(100, 103)) == [100, 101, 102]
    assert await first_of(bus, after=0, stored=range(100, 103)) == [100, 101, 102]


async def first_of(bus: Bus, after: int, stored: range) -> list[int]:
    """Return what somebody sees who follows from ``after``, up to now."""
    events = bus.follow(history(*stored), after=after)
    bus.publish(an_event(1_000))
    seen = []
    while (latest := (await take(events, 1))[0]) != 1_000:
        seen.append(latest)
    await events.aclose()
    return seen


async def test_long_history_is_read_in_pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bus_module, "PAGE", 7)
    bus = Bus()
    bus.close()
    assert await drain(bus.follow(history(*range(1, 51)), after=0)) == list(range(1, 51))


async def test_closing_ends_everybody_after_what_waits():
    bus = Bus()
    events = bus.follow(history(), after=None)
    waiting = asyncio.create_task(drain(bus.follow(history(), after=0)))
    await asyncio.sleep(0)
    bus.publish(an_event(1))
    bus.close()
    assert await asyncio.wait_for(waiting, 5) == [1]
    assert await drain(events) == [1]
    assert await drain(bus.follow(history(1), after=None)) == []


async def test_a_history_that_fails_fails_only_its_watcher():
    bus = Bus()

    async def broken(after: int, limit: int) -> list[Event]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await drain(bus.follow(broken, after=0))
    assert len(bus._watchers) == 0


async def test_nobody_is_kept_who_does_not_watch_any_more():
    bus = Bus()
    never_begun = bus.follow(history(), after=None)
    begun = bus.follow(history(1), after=0)
    await anext(begun)
    with bus.subscribe():
        assert len(bus._watchers) == 3
    await begun.aclose()
    await never_begun.aclose()
    del never_begun, begun
    gc.collect()
    assert len(bus._watchers) == 0


async def test_a_watcher_that_is_cancelled_is_forgotten():
    bus = Bus()
    task = asyncio.create_task(drain(bus.follow(history(), after=None)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert len(bus._watchers) == 0


async def test_there_are_so_many_watchers_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bus_module, "WATCHER_LIMIT", 2)
    bus = Bus()
    with bus.subscribe(), bus.subscribe():
        with pytest.raises(Busy) as caught:
            bus.follow(history(), after=None)
        assert caught.value.code is Code.QUEUE_FULL
    with bus.subscribe():
        pass


@given(
    stored=st.integers(0, 30),
    after=st.integers(0, 30),
    steps=st.lists(st.integers(0, 6), max_size=30),
    limit=st.integers(1, 8),
)
def test_every_event_is_seen_once_in_order_or_told_as_missed(stored, after, steps, limit):
    """Whoever follows sees numbers that only grow, with no gap that no MISSED stands for."""
    seen = asyncio.run(_follow_while_publishing(stored, after, steps, limit))
    last = after
    for event in seen:
        assert event.seq > last
        assert event.seq == last + 1 or event.kind is EventKind.MISSED
        last = event.seq
    assert last == max(after, stored + sum(steps))


async def _follow_while_publishing(
    stored: int, after: int, steps: list[int], limit: int
) -> list[Event]:
    """Follow with a small queue, taking one event after each burst of ``steps``, then the rest."""
    bus = Bus()
    log = list(range(1, stored + 1))

    async def read(after: int, limit: int) -> list[Event]:
        return [an_event(seq) for seq in log if seq > after][:3]

    seen: list[Event] = []
    events = bus._follow(bus._open(limit), read, after)
    for burst in steps:
        for _ in range(burst):
            log.append(len(log) + 1)
            bus.publish(an_event(log[-1]))
        if log and (seen[-1].seq if seen else after) < log[-1]:
            seen.append(await asyncio.wait_for(anext(events), 5))
    bus.close()
    seen += [event async for event in events]
    return seen
