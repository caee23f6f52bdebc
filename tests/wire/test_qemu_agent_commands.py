"""What the agent is asked for: commands, files, the machine; with an agent that is good or lies."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_agent import FakeAgent, FakeGuest, fake_agent, ping, refusal

from serai.errors import Code, HostFailure, Interrupted, Invalid, NotFound
from serai.model.talk import ExecRequest
from serai.qemu.agent import STDIN_INLINE, Agent
from serai.qemu.agent_wire import (
    Refused,
    Reply,
)

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
    await ping(agent, SOON)


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
