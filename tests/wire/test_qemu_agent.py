"""The agent's wire against agents that are good, dead, slow, wrong, or lie on purpose."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_agent import FakeAgent, fake_agent, ping, refusal, reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.errors import Busy, Code, HostFailure, Interrupted, SeraiError
from serai.qemu.agent import Agent
from serai.qemu.agent_wire import (
    CHUNK,
    HALF_READ_LIMIT,
    NUMBER,
    OPENING_LIMIT,
    REPLY_LIMIT,
    Port,
    Refused,
)

SOON = 5.0
SHORT = 0.2


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with fake_agent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
async def agent(fake: FakeAgent) -> AsyncIterator[Agent]:
    real = Agent(fake.path)
    yield real
    real.wire.disconnect()


async def failure(agent: Agent, timeout: float = SOON) -> tuple[type[SeraiError], Code]:
    begun = time.monotonic()
    with pytest.raises(SeraiError) as caught:
        await ping(agent, timeout)
    assert time.monotonic() - begun < timeout + 1
    return type(caught.value), caught.value.code


UNAVAILABLE = (Interrupted, Code.AGENT_UNAVAILABLE)
TIMED_OUT = (Interrupted, Code.AGENT_TIMEOUT)
NONSENSE = (HostFailure, Code.AGENT_PROTOCOL)


# -- being in step -------------------------------------------------------------------------------


async def test_a_good_agent_is_asked_over_one_connection(fake: FakeAgent, agent: Agent) -> None:
    for _ in range(3):
        await ping(agent, SOON)
    assert [name for name, _ in fake.told] == ["guest-sync-delimited"] + 3 * ["guest-ping"]
    assert fake.connections == 1


async def test_nobody_listens(tmp_path: Path) -> None:
    assert await failure(Agent(tmp_path / "none")) == UNAVAILABLE


@pytest.mark.parametrize(
    "stale",
    [
        reply({}),
        refusal("JSON parse error, stray '\ufffd'"),
        b"\xff" + reply(4),
        b'{"return": {"half": ',
        b"\xff\xff\xff\n\n\n",
        b"x" * 2_000_000 + b"\n",
        (b"\xff" + reply(5)) * 20,
    ],
)
async def test_what_an_earlier_call_left_is_skipped(
    fake: FakeAgent, agent: Agent, stale: bytes
) -> None:
    fake.greeting = stale
    await ping(agent, SOON)
    assert fake.connections == 1


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(
    fake: FakeAgent, agent: Agent
) -> None:
    fake.answers["guest-exec"] = None
    with pytest.raises(Interrupted) as caught:
        await agent.wire.call("guest-exec", NUMBER, timeout=SHORT)
    assert caught.value.code is Code.AGENT_TIMEOUT
    fake.greeting = reply(13)  # the late one: QEMU gives it to whoever connects next
    fake.answers["guest-exec"] = reply(14)
    assert await agent.wire.call("guest-exec", NUMBER, timeout=SOON) == 14


async def test_a_second_answer_is_not_taken_for_the_next(fake: FakeAgent, agent: Agent) -> None:
    numbers = iter((1, 2))
    fake.answers["x"] = lambda arguments: reply(next(numbers)) + reply(666)
    assert await agent.wire.call("x", NUMBER, timeout=SOON) == 1
    assert await agent.wire.call("x", NUMBER, timeout=SOON) == 2
    assert fake.connections == 2


async def test_calls_take_turns(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["echo"] = lambda arguments: arguments["n"]
    got = await asyncio.gather(
        *(agent.wire.call("echo", NUMBER, {"n": n}, timeout=SOON) for n in range(20))
    )
    assert got == list(range(20))


async def test_waiting_for_a_turn_ends_at_the_limit(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["slow"] = None
    slow = asyncio.ensure_future(agent.wire.call("slow", NUMBER, timeout=1.0))
    await fake.wait_told("slow")
    assert await failure(agent, SHORT) == TIMED_OUT
    with pytest.raises(Interrupted):
        await slow
    await ping(agent, SOON)


async def test_the_mark_comes_only_after_something_went_wrong(
    fake: FakeAgent, agent: Agent
) -> None:
    await ping(agent, SOON)
    assert fake.marks == 0, "its answer would be one more thing to do for a fork"
    fake.answers["guest-exec"] = None
    with pytest.raises(Interrupted):
        await agent.wire.call("guest-exec", NUMBER, timeout=SHORT)
    await ping(agent, SOON)
    assert (fake.connections, fake.marks) == (2, 1)
    agent.wire.disconnect()
    await ping(agent, SOON)
    assert fake.marks == 2


async def test_one_who_comes_after_another_sends_it(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.expect_half_read()
    await ping(agent, SOON)
    assert fake.marks == 1


async def test_an_agent_that_had_read_half_of_something(fake: FakeAgent, agent: Agent) -> None:
    fake.sync = lambda number: (
        b"\xff" + reply(number) if fake.marks else refusal("JSON parse error")
    )
    begun = time.monotonic()
    await ping(agent, SOON)
    assert HALF_READ_LIMIT <= time.monotonic() - begun < HALF_READ_LIMIT + 1
    assert (fake.connections, fake.marks) == (2, 1)


async def test_it_is_met_when_it_answers_to_the_sync(fake: FakeAgent, agent: Agent) -> None:
    for _ in range(2):
        await agent.meet(timeout=SOON)
    assert [name for name, _ in fake.told] == ["guest-sync-delimited"]
    fake.sync = lambda number: None
    agent.wire.disconnect()
    with pytest.raises(Interrupted):
        await agent.meet(timeout=SHORT)


# -- agents that are not there -------------------------------------------------------------------


async def test_a_closed_port_is_waited_for_a_moment_only(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.set_port(Port.CLOSED)
    begun = time.monotonic()
    assert await failure(agent) == (Busy, Code.AGENT_UNAVAILABLE)
    assert OPENING_LIMIT <= time.monotonic() - begun < OPENING_LIMIT + 1
    assert fake.told == [], "nothing was sent"


async def test_a_port_that_opens_meanwhile(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.set_port(Port.CLOSED)
    asked = asyncio.ensure_future(ping(agent, SOON))
    await asyncio.sleep(0)
    agent.wire.set_port(Port.OPEN)
    begun = time.monotonic()
    await asked
    assert time.monotonic() - begun < 1


async def test_prepared_ahead_of_the_agent(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.set_port(Port.CLOSED)
    await agent.wire.prepare()
    await fake.wait_told("guest-sync-delimited")
    assert agent.wire.is_prepared()
    await agent.wire.prepare()
    agent.wire.set_port(Port.OPEN)
    await ping(agent, SOON)
    assert [name for name, _ in fake.told] == ["guest-sync-delimited", "guest-ping"]


async def test_preparing_never_raises(tmp_path: Path) -> None:
    await Agent(tmp_path / "none").wire.prepare()


@pytest.mark.parametrize("when", ["sync", "answer"])
async def test_a_dead_agent_costs_its_time_limit(fake: FakeAgent, agent: Agent, when: str) -> None:
    if when == "sync":
        fake.sync = lambda number: None
    else:
        fake.answers["guest-ping"] = None
    assert await failure(agent, SHORT) == TIMED_OUT


async def test_the_connection_ends_under_a_call(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = None
    asked = asyncio.ensure_future(failure(agent))
    await fake.wait_told("guest-ping")
    assert fake.writer is not None
    fake.writer.transport.abort()
    assert await asked == UNAVAILABLE
    fake.answers["guest-ping"] = {}
    await ping(agent, SOON)


async def test_dropping_the_connection_ends_a_call(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = None
    asked = asyncio.ensure_future(failure(agent))
    await fake.wait_told("guest-ping")
    begun = time.monotonic()
    agent.wire.disconnect()
    assert await asked == UNAVAILABLE
    assert time.monotonic() - begun < 1


async def test_an_agent_that_reads_nothing(fake: FakeAgent, agent: Agent) -> None:
    await ping(agent, SOON)
    assert fake.writer is not None
    fake.writer.transport.pause_reading()  # type: ignore[attr-defined]
    begun = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        await agent.wire.call("x", NUMBER, {"x": "y" * 3_000_000}, timeout=SHORT)
    assert caught.value.code is Code.AGENT_TIMEOUT
    assert time.monotonic() - begun < 1
    assert agent.wire._writer is None, "what was not sent is not kept"


# -- agents that lie -----------------------------------------------------------------------------

LIES: list[bytes] = [
    b"\n",
    b"null\n",
    b"[]\n",
    b"{}\n",
    b"7\n",
    b'"x"\n',
    b"\xff\xff\xff\n",
    b'{"return": 5}\n',
    b'{"return": [1]}\n',
    b'{"return": null}\n',
    b'{"error": 5}\n',
    b'{"error": null}\n',
    b'{"error": {"desc": 5}}\n',
    b'{"retur',
    b'{"return": {}} {"return": {}}\n',
    b'{"return":' * 50_000 + b"\n",
    b"[" * 500_000 + b"\n",
    b'{"x":' * 100_000 + b"\n",
    b"x" * (REPLY_LIMIT + CHUNK * 3),
    b" " * (REPLY_LIMIT + CHUNK * 3),
]


# -- quiet ---------------------------------------------------------------------------------------


async def test_nothing_is_asked_while_it_is_quiet(fake: FakeAgent, agent: Agent) -> None:
    async with agent.quiet(SOON):
        asked = asyncio.ensure_future(ping(agent, SOON))
        await asyncio.sleep(0.05)
        assert fake.names() == []
    await asked
    assert fake.names() == ["guest-ping"]


async def test_quiet_comes_after_the_call_under_way(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = None
    asked = asyncio.ensure_future(failure(agent, 0.5))
    await fake.wait_told("guest-ping")
    with pytest.raises(Busy) as caught:
        async with agent.quiet(0.1):
            pytest.fail("a call is under way")
    assert caught.value.code is Code.AGENT_TIMEOUT
    async with agent.quiet(SOON):
        assert asked.done() or agent.wire._writer is None
    await asked


async def test_quiet_ends_with_an_error_too(fake: FakeAgent, agent: Agent) -> None:
    with pytest.raises(ZeroDivisionError):
        async with agent.quiet(SOON):
            raise ZeroDivisionError
    await ping(agent, SOON)


async def test_who_waits_for_his_turn_gets_it_behind_another_qemu(
    fake: FakeAgent, agent: Agent, tmp_path: Path
) -> None:
    await ping(agent, SOON)
    async with fake_agent(tmp_path / "other.sock") as other:
        upcoming = Agent(tmp_path / "other.sock")
        await upcoming.wire.prepare()
        async with agent.quiet(SOON):
            asked = asyncio.ensure_future(ping(agent, SOON))
            await asyncio.sleep(0)
            agent.wire.take_over(upcoming.wire)
        await asked
        assert (fake.names(), other.names()) == (["guest-ping"], ["guest-ping"])
        assert (fake.connections, other.connections) == (1, 1)
        upcoming.wire.disconnect()
        await ping(agent, SOON)
        assert other.connections == 1
        agent.wire.disconnect()


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
async def test_a_lie_is_an_error_and_the_next_call_is_fine(
    fake: FakeAgent, agent: Agent, lie: bytes
) -> None:
    fake.answers["guest-ping"] = lie
    timeout = SHORT if lie == b'{"retur' else SOON
    assert await failure(agent, timeout) in (NONSENSE, TIMED_OUT)
    fake.answers["guest-ping"] = {}
    await ping(agent, SOON)


async def test_wrong_ids_for_ever(fake: FakeAgent, agent: Agent) -> None:
    fake.sync = lambda number: (b"\xff" + reply(number + 1)) * 10_000
    assert await failure(agent) == NONSENSE


@pytest.mark.parametrize("sync", [b"\xff", b"\xff\n", b"\xff{}\n", b"\xff[[[\n", b"\xff5\n"])
async def test_a_sync_that_is_none(fake: FakeAgent, agent: Agent, sync: bytes) -> None:
    fake.sync = lambda number: sync
    assert await failure(agent, SHORT) == TIMED_OUT


@pytest.mark.parametrize("unit", [b"\n", b"x", b"\xff\n", b"{}\n", b"\xff" + reply(1), b"\0" * 999])
async def test_a_flood_neither_fills_memory_nor_holds_up_the_others(
    fake: FakeAgent, agent: Agent, unit: bytes
) -> None:
    """Everything that a flooding agent gets is its own call's end."""
    stop = asyncio.Event()

    async def flood() -> None:
        await fake.wait_told("guest-sync-delimited")
        assert fake.writer is not None
        block = unit * (100_000 // len(unit))
        while not stop.is_set() and not fake.writer.is_closing():
            fake.writer.write(block)
            await fake.writer.drain()

    fake.sync = lambda number: None
    flooding = asyncio.ensure_future(flood())
    longest = asyncio.ensure_future(_longest_pause(stop))
    tracemalloc.start()
    try:
        assert await failure(agent, 1.0) in (NONSENSE, TIMED_OUT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        stop.set()
    assert peak < 8 << 20
    assert await longest < 0.5
    flooding.cancel()


async def _longest_pause(stop: asyncio.Event) -> float:
    """Return for how long nobody else had a turn, in seconds of this thread's processor time."""
    longest, last = 0.0, time.thread_time()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.thread_time() - last), time.thread_time()
    return longest


async def test_a_huge_answer_is_not_built_up(fake: FakeAgent, agent: Agent) -> None:
    """What the answer's type does not name is skipped: a list of millions costs its bytes."""
    fake.answers["guest-exec-status"] = b'{"x": [' + b"[]," * 5_000_000 + b"0]}\n"
    tracemalloc.start()
    try:
        with pytest.raises(HostFailure):
            await agent._wait_exec(1, 10.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(noise=st.binary(max_size=200))
def test_any_bytes_are_an_error_or_an_answer(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    async def ask() -> None:
        async with fake_agent(tmp_path_factory.mktemp("a") / "s") as fake:
            fake.answers["guest-ping"] = noise + b"\n"
            agent = Agent(fake.path)
            try:
                await ping(agent, SOON)
            except SeraiError as error:
                assert error.code is Code.AGENT_PROTOCOL
            fake.answers["guest-ping"] = {}
            await ping(agent, SOON)
            agent.wire.disconnect()

    asyncio.run(ask())


async def test_what_the_agent_refuses_is_told_in_its_words(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = refusal("no\nway " * 1000)
    with pytest.raises(Refused, match="no\nway") as caught:
        await ping(agent, SOON)
    assert len(caught.value.message) <= 400
    assert fake.connections == 1
