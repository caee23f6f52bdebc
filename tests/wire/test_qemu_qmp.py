"""The monitor against a fake QEMU: silence, lies, floods; no wait without an end."""

import asyncio
import contextlib
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from fake_qemu import FakeQemu, fake_qemu

from serai.errors import Code, HostFailure, Interrupted
from serai.qemu import commands
from serai.qemu.commands import RunState
from serai.qemu.qmp import UNANSWERED_LIMIT, Monitor

SOON = 5.0
SHORT = 0.1


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qmp.sock") as fake:
        yield fake


@pytest.fixture
async def events() -> list[Mapping[str, object]]:
    return []


@pytest.fixture
async def monitor(qemu: FakeQemu, events: list[Mapping[str, object]]) -> AsyncIterator[Monitor]:
    connected = await Monitor.connect(qemu.path, events.append, timeout=SOON)
    yield connected
    await connected.close()


async def refused(monitor: Monitor, command: str, timeout: float = SOON) -> Code:
    with pytest.raises((HostFailure, Interrupted)) as caught:
        await monitor.execute(command, timeout=timeout)
    return caught.value.code


# -- connecting ----------------------------------------------------------------------------------


async def test_a_command_goes_there_and_its_answer_comes_back(
    qemu: FakeQemu, monitor: Monitor
) -> None:
    qemu.answers["query-x"] = {"a": [1, "é"]}
    assert await monitor.execute("query-x", {"name": 'a,"b"\n'}, timeout=SOON) == {"a": [1, "é"]}
    assert qemu.told[-1].arguments == {"name": 'a,"b"\n'}


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        await Monitor.connect(tmp_path / "none.sock", lambda event: None, timeout=SOON)
    assert caught.value.code is Code.QMP_LOST


@pytest.mark.parametrize(
    "greeting",
    [
        None,
        b"",
        b'{"QMP": ',
        b"\xff\xfe\n",
        b'{"QMP": 5}\n',
        b"[]\n",
        b'{"event": "X"}\n',
        b"[" * 100_000 + b"\n",
        b" " * 300_000,
    ],
)
async def test_a_bad_greeting_is_no_connection(tmp_path: Path, greeting: bytes | None) -> None:
    begun = time.monotonic()
    async with fake_qemu(tmp_path / "qmp.sock", greeting=greeting) as qemu:
        with pytest.raises(Interrupted) as caught:
            await Monitor.connect(qemu.path, lambda event: None, timeout=0.3)
        assert caught.value.code is Code.QMP_LOST
        assert time.monotonic() - begun < SOON


async def test_an_end_right_after_the_greeting_is_no_connection(tmp_path: Path) -> None:
    async with fake_qemu(tmp_path / "qmp.sock", last="qmp_capabilities") as qemu:
        for _ in range(20):  # the library sees the end before or after it is connected
            try:
                monitor = await Monitor.connect(qemu.path, lambda event: None, timeout=SOON)
            except Interrupted as error:
                assert error.code is Code.QMP_LOST
            else:
                await monitor.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100)
    folder.mkdir()
    async with fake_qemu(tmp_path / "s") as qemu:
        (folder / "qmp.sock").hardlink_to(qemu.path)
        monitor = await Monitor.connect(folder / "qmp.sock", lambda event: None, timeout=SOON)
        assert await commands.query_status(monitor_of(qemu, monitor)) is RunState.RUNNING
        await monitor.close()


def monitor_of(qemu: FakeQemu, monitor: Monitor) -> Monitor:
    qemu.answers["query-status"] = {"status": "running"}
    return monitor


# -- answers -------------------------------------------------------------------------------------


async def test_what_qemu_refuses_says_why(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.errors["device_add"] = "no slot"
    with pytest.raises(HostFailure, match="refused device_add: GenericError: no slot") as caught:
        await monitor.execute("device_add", timeout=SOON)
    assert caught.value.code is Code.QMP_FAILED
    qemu.errors.clear()
    assert await monitor.execute("device_add", timeout=SOON) == {}


async def test_silence_ends_at_the_limit_and_a_late_answer_harms_nobody(
    qemu: FakeQemu, monitor: Monitor
) -> None:
    qemu.silent.add("slow")
    qemu.answers["slow"] = "late"
    begun = time.monotonic()
    assert await refused(monitor, "slow", SHORT) is Code.QMP_LOST
    assert SHORT <= time.monotonic() - begun < 1
    qemu.answers["quick"] = "now"
    assert await monitor.execute("quick", timeout=SOON) == "now"
    qemu.speak()
    assert await monitor.execute("quick", timeout=SOON) == "now"


async def test_a_hung_qemu_gets_only_so_many_commands(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.silent.add("query-status")
    for _ in range(UNANSWERED_LIMIT + 5):
        assert await refused(monitor, "query-status", 0.02) is Code.QMP_LOST
    assert len(qemu.names()) == UNANSWERED_LIMIT
    qemu.speak()
    qemu.answers["query-status"] = {"status": "paused"}
    while monitor._client.unanswered:
        await asyncio.sleep(0)
    assert await commands.query_status(monitor) is RunState.PAUSED


async def test_the_connection_ends_under_a_command(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.silent.add("slow")
    asked = asyncio.ensure_future(refused(monitor, "slow"))
    await qemu.wait_told("slow")
    begun = time.monotonic()
    qemu.hang_up()
    assert await asked is Code.QMP_LOST
    async with asyncio.timeout(SOON):
        await monitor.wait_lost()
    assert time.monotonic() - begun < 1
    assert not monitor.is_connected
    assert await refused(monitor, "more") is Code.QMP_LOST


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\n",
        b"[1, 2]\n",
        b"{" * 5000 + b"\n",
        b'{"a":' * 20_000 + b"\n",
        b'{"id": [], "return": {}}\n',
        b'{"id": {}, "return": {}}\n',
        b'{"error": {"class": "x", "desc": "y"}}\n',
        b"x" * 600_000,
    ],
)
async def test_rubbish_ends_the_connection_and_hangs_nobody(
    qemu: FakeQemu, monitor: Monitor, rubbish: bytes
) -> None:
    qemu.silent.add("slow")
    asked = asyncio.ensure_future(refused(monitor, "slow"))
    await qemu.wait_told("slow")
    await asyncio.to_thread(_push, qemu, rubbish)
    assert await asked is Code.QMP_LOST
    assert not monitor.is_connected


def _push(qemu: FakeQemu, data: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it hung up on us, as it should
        qemu.send(data)


@pytest.mark.parametrize(
    "noise",
    [
        b'{"id": "nobody", "return": {}}\n',
        b'{"return": 5}\n',
        b'{"id": null, "return": 5}\n',
        b'{"event": 5}\n',
        b'{"event": "X", "data": [[[[]]]]}\n',
        b"{}\n",
    ],
)
async def test_noise_is_passed_over(qemu: FakeQemu, monitor: Monitor, noise: bytes) -> None:
    for _ in range(3):
        qemu.send(noise)
    qemu.answers["x"] = 7
    assert await monitor.execute("x", timeout=SOON) == 7


async def test_an_answer_given_twice(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.answers["x"] = 1
    await monitor.execute("x", timeout=SOON)
    again = str(qemu.told[-1].id).encode()
    qemu.send(b'{"id": "%s", "return": 2}\n' % again * 3)
    qemu.answers["x"] = 3
    assert await monitor.execute("x", timeout=SOON) == 3


@pytest.mark.parametrize(
    "answer", [5, [], {"status": 5}, {"status": None}, {"x": "running"}, "running", None]
)
async def test_an_answer_of_the_wrong_kind(
    qemu: FakeQemu, monitor: Monitor, answer: object
) -> None:
    qemu.answers["query-status"] = answer
    with pytest.raises(HostFailure) as caught:
        await commands.query_status(monitor)
    assert caught.value.code is Code.QMP_FAILED


# -- events --------------------------------------------------------------------------------------


async def test_a_flood_of_events_is_told_and_not_kept(
    qemu: FakeQemu, monitor: Monitor, events: list[Mapping[str, object]]
) -> None:
    seen = 0
    one = b'{"event": "RESET", "data": {"guest": true, "x": "%s"}}\n' % (b"y" * 500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            await asyncio.to_thread(qemu.send, one * 500)
            await monitor.execute("x", timeout=SOON)
            seen += len(events)
            assert all(event["event"] == "RESET" for event in events)
            events.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert seen == 20_000
    assert grown < 1 << 20, "11 MB of events went through; nothing of them may stay"


# -- descriptors ---------------------------------------------------------------------------------


def _a_file(tmp_path: Path, name: str) -> tuple[int, int]:
    fd = os.open(tmp_path / name, os.O_CREAT | os.O_RDWR)
    return fd, os.fstat(fd).st_ino


async def test_each_command_gets_its_own_descriptor(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    files = [_a_file(tmp_path, str(number)) for number in range(10)]

    async def give(number: int) -> None:
        fd, _ = files[number]
        await monitor.execute("getfd", {"fdname": str(number)}, timeout=SOON, fd=fd)

    await asyncio.gather(
        *(give(number) for number in range(10)),
        *(monitor.execute("other", timeout=SOON) for _ in range(5)),
    )
    got = {told.arguments["fdname"]: told.inode for told in qemu.told if told.name == "getfd"}
    assert got == {str(number): inode for number, (_, inode) in enumerate(files)}
    for fd, _ in files:
        os.close(fd)


async def test_no_descriptor_travels_while_one_may_still_be_taken(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    fd, inode = _a_file(tmp_path, "x")
    qemu.silent.add("add-fd")
    with pytest.raises(Interrupted):
        await monitor.execute("add-fd", timeout=SHORT, fd=fd)
    with pytest.raises(Interrupted, match="under way"):
        await monitor.execute("getfd", {"fdname": "n"}, timeout=SOON, fd=fd)
    assert "getfd" not in qemu.names()
    qemu.speak()
    await monitor.execute("x", timeout=SOON)
    await monitor.execute("getfd", {"fdname": "n"}, timeout=SOON, fd=fd)
    assert qemu.told[-1].inode == inode
    os.close(fd)


async def test_a_viewer_that_vnc_does_not_take_is_not_kept(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    fd, _ = _a_file(tmp_path, "x")
    qemu.errors["add_client"] = "no VNC"
    with pytest.raises(HostFailure, match="no VNC"):
        await commands.add_vnc_client(monitor, fd)
    assert qemu.names() == ["getfd", "add_client", "closefd"]
    assert qemu.told[-1].arguments == qemu.told[-3].arguments
    os.close(fd)


# -- commands ------------------------------------------------------------------------------------


async def test_cpus_are_plugged_as_qemu_names_them(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.answers["query-hotpluggable-cpus"] = [
        {"type": "max-cpu", "vcpus-count": 1, "props": {"socket-id": 0, "core-id": core}, **more}
        for core, more in ((2, {}), (1, {}), (0, {"qom-path": "/machine/x"}))
    ]
    slots = await commands.query_cpu_slots(monitor)
    assert [slot.qom_path for slot in slots] == ["/machine/x", None, None]
    await commands.plug_cpu(monitor, slots[1])
    assert qemu.told[-1].arguments == {
        "driver": "max-cpu",
        "id": "cpu-0-0-1-0",
        "socket-id": 0,
        "core-id": 1,
    }


async def test_whether_a_port_is_open(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.answers["query-chardev"] = [
        {"label": "qmp", "filename": "x", "frontend-open": True},
        {"label": "agent", "filename": "x", "frontend-open": False},
    ]
    assert await commands.is_port_open(monitor, "qmp")
    assert not await commands.is_port_open(monitor, "agent")
    assert not await commands.is_port_open(monitor, "other")


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("running", RunState.RUNNING),
        ("paused", RunState.PAUSED),
        ("shutdown", RunState.POWERED_OFF),
        ("guest-panicked", RunState.PANICKED),
        ("io-error", RunState.IO_ERROR),
        ("what-qemu-11-says", RunState.OTHER),
    ],
)
async def test_run_states(qemu: FakeQemu, monitor: Monitor, word: str, state: RunState) -> None:
    qemu.answers["query-status"] = {"status": word, "running": False, "singlestep": False}
    assert await commands.query_status(monitor) is state


async def test_going_on_waits_until_a_stream_is_finished(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.errors["cont"] = "Migration is not finalized yet"
    qemu.answers["query-status"] = {"status": "finish-migrate"}
    asked = asyncio.ensure_future(commands.cont(monitor))
    await qemu.wait_told("query-status", 2)
    assert not asked.done()
    del qemu.errors["cont"]
    qemu.answers["query-status"] = {"status": "postmigrate"}
    await asked
    assert qemu.names().count("cont") == 2


# -- the end -------------------------------------------------------------------------------------


async def test_close_waits_for_nobody(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.silent.add("slow")
    asked = asyncio.ensure_future(refused(monitor, "slow"))
    await qemu.wait_told("slow")
    begun = time.monotonic()
    await monitor.close()
    assert time.monotonic() - begun < 1
    assert await asked is Code.QMP_LOST
    await monitor.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
