"""The agent's wire against agents that are good, dead, slow, wrong, or lie on purpose."""

import asyncio
import base64
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_agent import FakeAgent, FakeGuest, fake_agent, refusal, reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.errors import Busy, Code, HostFailure, Interrupted, Invalid, NotFound, SeraiError
from serai.model.talk import ExecRequest
from serai.qemu.agent import STDIN_INLINE, Agent
from serai.qemu.agent_wire import CHUNK, NUMBER, OPENING_LIMIT, REPLY_LIMIT, Port, Refused, Reply

SOON = 5.0
SHORT = 0.2


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with fake_agent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
async def guest(fake: FakeAgent) -> FakeGuest:
    inside = FakeGuest()
    fake.answers.update(inside.answers())
    return inside


@pytest.fixture
async def agent(fake: FakeAgent) -> AsyncIterator[Agent]:
    real = Agent(fake.path)
    yield real
    real.wire.disconnect()


async def failure(agent: Agent, timeout: float = SOON) -> tuple[type[SeraiError], Code]:
    begun = time.monotonic()
    with pytest.raises(SeraiError) as caught:
        await agent.ping(timeout=timeout)
    assert time.monotonic() - begun < timeout + 1
    return type(caught.value), caught.value.code


UNAVAILABLE = (Interrupted, Code.AGENT_UNAVAILABLE)
TIMED_OUT = (Interrupted, Code.AGENT_TIMEOUT)
NONSENSE = (HostFailure, Code.AGENT_PROTOCOL)


# -- being in step -------------------------------------------------------------------------------


async def test_a_good_agent_is_asked_over_one_connection(fake: FakeAgent, agent: Agent) -> None:
    for _ in range(3):
        await agent.ping(timeout=SOON)
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
    await agent.ping(timeout=SOON)
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
    await agent.ping(timeout=SOON)


# -- agents that are not there -------------------------------------------------------------------


async def test_a_closed_port_is_waited_for_a_moment_only(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.set_port(Port.CLOSED)
    begun = time.monotonic()
    assert await failure(agent) == (Busy, Code.AGENT_UNAVAILABLE)
    assert OPENING_LIMIT <= time.monotonic() - begun < OPENING_LIMIT + 1
    assert fake.told == [], "nothing was sent"


async def test_a_port_that_opens_meanwhile(fake: FakeAgent, agent: Agent) -> None:
    agent.wire.set_port(Port.CLOSED)
    asked = asyncio.ensure_future(agent.ping(timeout=SOON))
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
    await agent.ping(timeout=SOON)
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
    await agent.ping(timeout=SOON)


async def test_dropping_the_connection_ends_a_call(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = None
    asked = asyncio.ensure_future(failure(agent))
    await fake.wait_told("guest-ping")
    begun = time.monotonic()
    agent.wire.disconnect()
    assert await asked == UNAVAILABLE
    assert time.monotonic() - begun < 1


async def test_an_agent_that_reads_nothing(fake: FakeAgent, agent: Agent) -> None:
    await agent.ping(timeout=SOON)
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
        asked = asyncio.ensure_future(agent.ping(timeout=SOON))
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
    await agent.ping(timeout=SOON)


async def test_who_waits_for_his_turn_gets_it_behind_another_qemu(
    fake: FakeAgent, agent: Agent, tmp_path: Path
) -> None:
    await agent.ping(timeout=SOON)
    async with fake_agent(tmp_path / "other.sock") as other:
        upcoming = Agent(tmp_path / "other.sock")
        await upcoming.wire.prepare()
        async with agent.quiet(SOON):
            asked = asyncio.ensure_future(agent.ping(timeout=SOON))
            await asyncio.sleep(0)
            agent.wire.take_over(upcoming.wire)
        await asked
        assert (fake.names(), other.names()) == (["guest-ping"], ["guest-ping"])
        assert (fake.connections, other.connections) == (1, 1)
        upcoming.wire.disconnect()
        await agent.ping(timeout=SOON)
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
    await agent.ping(timeout=SOON)


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
    longest, last = 0.0, time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
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
                await agent.ping(timeout=SOON)
            except SeraiError as error:
                assert error.code is Code.AGENT_PROTOCOL
            fake.answers["guest-ping"] = {}
            await agent.ping(timeout=SOON)
            agent.wire.disconnect()

    asyncio.run(ask())


async def test_what_the_agent_refuses_is_told_in_its_words(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-ping"] = refusal("no\nway " * 1000)
    with pytest.raises(Refused, match="no\nway") as caught:
        await agent.ping(timeout=SOON)
    assert len(caught.value.message) <= 400
    assert fake.connections == 1


# -- commands ------------------------------------------------------------------------------------


async def test_a_command_with_all_that_it_may_have(guest: FakeGuest, agent: Agent) -> None:
    guest.ends_after = 3
    guest.status = {
        "exited": True,
        "exitcode": 3,
        "out-data": base64.b64encode(b"out\0\xff").decode(),
        "err-data": base64.b64encode(b"err").decode(),
        "err-truncated": True,
    }
    request = ExecRequest(argv=["a", 'b"\n'], stdin=b"in\0", env={"LANG": "C", "X": "a=b"})
    done = await agent.execute(request)
    assert (done.code, done.stdout, done.stderr, done.truncated) == (3, b"out\0\xff", b"err", True)
    (ran,) = guest.ran
    assert (ran["path"], ran["arg"], ran["capture-output"]) == ("a", ['b"\n'], True)
    assert base64.b64decode(ran["input-data"]) == b"in\0"
    assert ran["env"][0].startswith("PATH=/usr/local/sbin:")
    assert ran["env"][1:] == ["LANG=C", "X=a=b"]


async def test_a_command_alone(guest: FakeGuest, agent: Agent) -> None:
    await agent.execute(ExecRequest(argv=["true"], env={"PATH": "/x"}))
    assert guest.ran[0]["env"] == ["PATH=/x"]
    await agent.execute(ExecRequest(argv=["true"]))
    assert guest.ran[1] == {"path": "true", "arg": [], "capture-output": True}


async def test_a_signal_is_128_and_its_number(guest: FakeGuest, agent: Agent) -> None:
    guest.status = {"exited": True, "signal": 9}
    assert (await agent.execute(ExecRequest(argv=["x"]))).code == 137


async def test_what_the_guest_cannot_run(fake: FakeAgent, guest: FakeGuest, agent: Agent) -> None:
    fake.answers["guest-exec"] = refusal("Failed to execute child process “x”")
    with pytest.raises(Invalid, match="child process “x”") as caught:
        await agent.execute(ExecRequest(argv=["x"]))
    assert caught.value.code is Code.EXEC_FAILED


async def test_a_command_that_does_not_end(guest: FakeGuest, agent: Agent) -> None:
    guest.ends_after = 1 << 30
    begun = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        await agent.execute(ExecRequest(argv=["x"], timeout=0.5))
    assert caught.value.code is Code.AGENT_TIMEOUT
    assert 0.5 <= time.monotonic() - begun < 2
    assert guest.asked < 40, "asked less and less often"
    guest.ends_after = 0
    await agent.execute(ExecRequest(argv=["x"]))


async def test_an_agent_that_was_started_anew_has_forgotten_the_command(
    fake: FakeAgent, guest: FakeGuest, agent: Agent
) -> None:
    fake.answers["guest-exec-status"] = refusal("Invalid parameter 'pid'")
    with pytest.raises(Interrupted, match="not known") as caught:
        await agent.execute(ExecRequest(argv=["x"]))
    assert caught.value.code is Code.AGENT_UNAVAILABLE


@pytest.mark.parametrize(
    "status",
    [
        {"exited": "yes"},
        {"exited": True, "exitcode": "0"},
        {"exited": True, "out-data": "not base64!"},
        {"exited": True, "out-data": 5},
        {},
        [],
    ],
)
async def test_a_status_that_is_none(guest: FakeGuest, agent: Agent, status: Any) -> None:
    guest.status = status
    with pytest.raises(HostFailure) as caught:
        await agent.execute(ExecRequest(argv=["x"], timeout=SOON))
    assert caught.value.code is Code.AGENT_PROTOCOL


async def test_long_input_goes_through_a_private_file(guest: FakeGuest, agent: Agent) -> None:
    stdin = bytes(range(256)) * 4096
    await agent.execute(ExecRequest(argv=["a", "b"], stdin=stdin, env={"X": "y"}))
    (name,) = guest.files
    assert guest.files[name] == stdin
    make, run = guest.ran
    assert make["arg"][1:] == ['umask 077; : > "$1"', "sh", name]
    assert run["arg"][1:] == ['exec < "$1"; rm -f "$1"; shift; exec "$@"', "sh", name, "a", "b"]
    assert run["env"][1] == "X=y"
    assert "input-data" not in run


async def test_input_up_to_the_limit_goes_along(guest: FakeGuest, agent: Agent) -> None:
    await agent.execute(ExecRequest(argv=["a"], stdin=b"x" * STDIN_INLINE))
    assert len(guest.ran) == 1


async def test_a_file_for_input_that_cannot_be_written_is_removed(
    fake: FakeAgent, guest: FakeGuest, agent: Agent
) -> None:
    fake.answers["guest-file-write"] = refusal("No space left on device")
    with pytest.raises(NotFound, match="No space left"):
        await agent.execute(ExecRequest(argv=["a"], stdin=b"x" * 300_000))
    (name,) = guest.files
    assert guest.ran[-1]["path"] == "rm"
    assert guest.ran[-1]["arg"] == ["-f", name]


async def test_a_command_that_is_too_long(guest: FakeGuest, agent: Agent) -> None:
    with pytest.raises(Invalid) as caught:
        await agent.execute(ExecRequest(argv=["a", "b" * (1 << 20)]))
    assert caught.value.code is Code.VALUE_INVALID
    assert guest.ran == []


# -- files ---------------------------------------------------------------------------------------


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_file_there_and_back(guest: FakeGuest, agent: Agent) -> None:
    content = bytes(range(256)) * 5000
    await agent.write_file("/f", pieces(content[:7], b"", content[7:]), mode=0o640)
    assert guest.files["/f"] == content
    assert [guest.ran[0]["path"], *guest.ran[0]["arg"]] == ["chmod", "640", "/f"]
    got = b"".join([chunk async for chunk in agent.read_file("/f")])
    assert got == content


async def test_the_mode_is_set_before_the_first_byte(
    fake: FakeAgent, guest: FakeGuest, agent: Agent
) -> None:
    await agent.write_file("/f", pieces(b"secret"), mode=0o600)
    names = fake.names()
    assert names.index("guest-exec") < names.index("guest-file-write")
    fake.told.clear()
    await agent.write_file("/f", pieces(b"x"), mode=None)
    assert fake.names() == ["guest-file-open", "guest-file-write", "guest-file-close"]


async def test_an_empty_file(guest: FakeGuest, agent: Agent) -> None:
    await agent.write_file("/f", pieces(), mode=None)
    assert guest.files == {"/f": b""}
    assert [chunk async for chunk in agent.read_file("/f")] == []


async def test_a_guest_that_writes_a_little_at_a_time(guest: FakeGuest, agent: Agent) -> None:
    guest.most_per_write = 100_000
    await agent.write_file("/f", pieces(b"ab" * 200_000), mode=None)
    assert guest.files["/f"] == b"ab" * 200_000


@pytest.mark.parametrize("count", [0, -1, 10])
async def test_a_guest_that_lies_about_what_it_wrote(
    fake: FakeAgent, guest: FakeGuest, agent: Agent, count: int
) -> None:
    fake.answers["guest-file-write"] = {"count": count, "eof": False}
    with pytest.raises(HostFailure) as caught:
        await agent.write_file("/f", pieces(b"abc"), mode=None)
    assert caught.value.code is Code.AGENT_PROTOCOL
    assert fake.names()[-1] == "guest-file-close"


@pytest.mark.parametrize("where", ["guest-file-open", "guest-file-write", "guest-file-close"])
async def test_writing_fails_in_the_guests_words(
    fake: FakeAgent, guest: FakeGuest, agent: Agent, where: str
) -> None:
    fake.answers[where] = refusal("No space left on device")
    with pytest.raises(NotFound, match="No space left") as caught:
        await agent.write_file("/f", pieces(b"abc"), mode=None)
    assert caught.value.code is Code.FILE_FAILED


async def test_a_mode_that_cannot_be_set_is_an_error(guest: FakeGuest, agent: Agent) -> None:
    guest.status = {"exited": True, "exitcode": 1, "err-data": base64.b64encode(b"ro").decode()}
    with pytest.raises(NotFound, match="ro"):
        await agent.write_file("/f", pieces(b"abc"), mode=0o600)
    assert guest.files["/f"] == b"", "nothing was written under the wrong mode"


@pytest.mark.parametrize("where", ["guest-file-open", "guest-file-read"])
async def test_reading_fails_in_the_guests_words(
    fake: FakeAgent, guest: FakeGuest, agent: Agent, where: str
) -> None:
    guest.files["/f"] = bytearray(b"x")
    fake.answers[where] = refusal("Is a directory")
    with pytest.raises(NotFound, match="Is a directory"):
        [chunk async for chunk in agent.read_file("/f")]


async def test_who_stops_reading_closes_the_file(
    fake: FakeAgent, guest: FakeGuest, agent: Agent
) -> None:
    guest.files["/f"] = bytearray(b"x" * 1_000_000)
    reading = agent.read_file("/f")
    await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]
    assert fake.names() == ["guest-file-open", "guest-file-read", "guest-file-close"]


# -- the machine ---------------------------------------------------------------------------------


async def test_a_shutdown_is_not_answered_when_it_works(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-shutdown"] = None
    await agent.shutdown("powerdown", timeout=SOON)
    assert ("guest-shutdown", {"mode": "powerdown"}) in fake.told


async def test_a_shutdown_that_is_refused(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-shutdown"] = refusal("child process has failed to shutdown")
    with pytest.raises(Refused, match="failed to shutdown"):
        await agent.shutdown("powerdown", timeout=SOON)
    await agent.ping(timeout=SOON)


async def test_an_agent_that_is_gone_has_obeyed(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-shutdown"] = None
    fake.answers["guest-ping"] = None
    asked = asyncio.ensure_future(agent.shutdown("powerdown", timeout=SOON))
    await fake.wait_told("guest-ping")
    agent.wire.disconnect()
    await asked


async def test_a_hung_agent_cannot_be_told_to_shut_down(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-shutdown"] = None
    fake.answers["guest-ping"] = None
    with pytest.raises(Interrupted) as caught:
        await agent.shutdown("powerdown", timeout=SHORT)
    assert caught.value.code is Code.AGENT_TIMEOUT


async def test_new_cpus_are_brought_up_when_the_guest_finds_them(
    fake: FakeAgent, agent: Agent
) -> None:
    found = iter(
        [
            [{"logical-id": 0, "online": True}],
            [{"logical-id": 0, "online": True}, {"logical-id": 1, "online": False}],
        ]
    )
    fake.answers["guest-get-vcpus"] = lambda arguments: next(found)
    fake.answers["guest-set-vcpus"] = 1
    await agent.online_cpus(2, timeout=SOON)
    assert fake.told[-1] == (
        "guest-set-vcpus",
        {"vcpus": [{"logical-id": 1, "online": True}]},
    )


async def test_addresses_and_freezing(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["guest-network-get-interfaces"] = [
        {"name": "lo", "statistics": {"x": 1}},
        {
            "name": "eth0",
            "hardware-address": "52:54:00:00:00:01",
            "ip-addresses": [
                {"ip-address": "10.0.2.15", "prefix": 24, "ip-address-type": "ipv4"},
            ],
        },
    ]
    fake.answers |= {"guest-fsfreeze-freeze": 2, "guest-fsfreeze-thaw": 2}
    first, second = await agent.interfaces(timeout=SOON)
    assert (first.name, first.ip_addresses) == ("lo", [])
    assert second.hardware_address == "52:54:00:00:00:01"
    assert [address.ip_address for address in second.ip_addresses] == ["10.0.2.15"]
    assert await agent.freeze(timeout=SOON) == 2
    assert await agent.thaw(timeout=SOON) == 2


async def test_a_message_is_one_line_whatever_is_in_it(fake: FakeAgent, agent: Agent) -> None:
    fake.answers["x"] = lambda arguments: arguments == {"a": 'line\nline\r\u2028"\\é\U0001f600'}
    answer = msgspec.json.Decoder(Reply[bool])
    assert await agent.wire.call("x", answer, {"a": 'line\nline\r\u2028"\\é\U0001f600'})
    assert json.dumps(fake.told[-1][1])
