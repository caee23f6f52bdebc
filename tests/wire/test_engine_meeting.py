"""Guests that are frozen together: nobody goes on before all are held, and nobody waits in vain."""

import asyncio

import pytest

from serai.engine import meeting as module
from serai.engine.meeting import ALONE, Meeting
from serai.errors import Busy, Code


async def test_nobody_is_held_before_all_are_ready_nor_goes_on_before_all_are_held() -> None:
    meeting, seen = Meeting(3), list[str]()

    async def guest(delay: float) -> None:
        await asyncio.sleep(delay)
        seen.append("ready")
        await meeting.wait_ready()
        await asyncio.sleep(delay)
        seen.append("held")
        await meeting.wait_held()
        seen.append("goes on")

    await asyncio.gather(*map(guest, (0.0, 0.01, 0.02)))
    assert seen == ["ready"] * 3 + ["held"] * 3 + ["goes on"] * 3


async def test_who_does_not_come_breaks_it_off_for_all() -> None:
    meeting = Meeting(2)
    waiting = asyncio.create_task(meeting.wait_ready())
    await asyncio.sleep(0)
    await meeting.break_off()
    with pytest.raises(Busy) as raised:
        await waiting
    assert raised.value.code is Code.MOMENT_MISSED and raised.value.hint
    with pytest.raises(Busy):
        await meeting.wait_held()


async def test_who_is_held_is_not_held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_LIMIT", 0.02)
    with pytest.raises(Busy):
        await Meeting(2).wait_held()


async def test_alone_nobody_waits() -> None:
    for _ in range(2):
        await ALONE.wait_ready()
        await ALONE.wait_held()
