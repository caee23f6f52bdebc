"""Tasks have an owner: one that fails takes no other down, and closing waits for all."""

import asyncio
import logging

import pytest

from serai.errors import Code, HostFailure
from serai.host.supervise import Supervisor, wait_until, whole


async def test_closing_cancels_and_waits() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async with Supervisor() as supervisor:
        for _ in range(3):
            supervisor.start(work(), name="work")
        await asyncio.sleep(0)
        assert len(supervisor) == 3
    assert len(supervisor) == 0
    assert ended == [True] * 3


async def test_a_failure_is_logged_and_takes_nobody_down(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async with Supervisor() as supervisor:
        other = supervisor.start(asyncio.sleep(0.01, "fine"), name="other")
        supervisor.start(fail(), name="the one that fails")
        assert await other == "fine"
    record = next(each for each in caplog.records if each.levelno == logging.ERROR)
    assert "the one that fails" in record.getMessage()
    assert record.exc_info is not None


async def test_who_is_started_while_closing_is_cancelled_too() -> None:
    begun = []

    async def late() -> None:
        begun.append(True)
        await asyncio.sleep(3600)

    async with Supervisor() as supervisor:

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                supervisor.start(late(), name="late")

        supervisor.start(work(), name="work")
        await asyncio.sleep(0)
    assert len(supervisor) == 0


async def test_shielded_work_goes_on_without_its_caller() -> None:
    gate, done = asyncio.Event(), []

    async def work() -> str:
        await gate.wait()
        done.append(True)
        return "result"

    async with Supervisor() as supervisor:
        caller = supervisor.start(supervisor.shielded(work(), name="work"), name="caller")
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert len(supervisor) == 1
        gate.set()
        await asyncio.sleep(0.01)
        assert done == [True]
        assert await supervisor.shielded(work(), name="work") == "result"


async def test_a_failure_of_shielded_work_is_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async with Supervisor() as supervisor:
        with pytest.raises(ValueError, match="broken"):
            await supervisor.shielded(fail(), name="work")
    assert caplog.records == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_wait_until_asks_until_it_is_so(asynchronous: bool) -> None:
    asked = []

    def check() -> bool:
        asked.append(True)
        return len(asked) == 4

    async def check_later() -> bool:
        return check()

    await wait_until("it", check_later if asynchronous else check, timeout=5, every=0.001)
    assert len(asked) == 4


async def test_wait_until_says_what_it_waited_for() -> None:
    with pytest.raises(HostFailure) as caught:
        await wait_until("the kettle boils", lambda: False, timeout=0.02, every=0.005)
    assert caught.value.code is Code.TIMEOUT
    assert caught.value.message == "the kettle boils: not within 0.02 s"


async def test_what_the_check_raises_is_passed_on() -> None:
    def check() -> bool:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await wait_until("it", check, timeout=5, every=0.001)


async def test_what_is_whole_is_done_to_its_end_although_its_caller_is_cancelled():
    begun, go_on, done = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        begun.set()
        await go_on.wait()
        done.append(True)

    caller = asyncio.create_task(whole(work(), patience=60))
    await begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == [True]


async def test_whole_waits_for_what_nobody_wants_only_as_long_as_it_has_patience():
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    caller = asyncio.create_task(whole(work(), patience=0.01))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [True]


async def test_whole_returns_and_raises_what_the_work_does():
    async def work(answer: int) -> int:
        return 6 // answer

    assert await whole(work(2), patience=1) == 3
    with pytest.raises(ZeroDivisionError):
        await whole(work(0), patience=1)
