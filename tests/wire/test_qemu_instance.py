"""An instance around a process that is no QEMU, and a monitor that misbehaves."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from fake_agent import FakeAgent, fake_agent, ping
from fake_qemu import FakeQemu, fake_qemu

from serai.errors import Busy, Code, HostFailure, Interrupted, SeraiError
from serai.host.process import Confinement, Process, spawn
from serai.host.supervise import wait_until
from serai.model.guest import Accel, Firmware
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Machine, Media
from serai.model.node import Capabilities
from serai.qemu.agent_wire import Port
from serai.qemu.events import InstanceEvent, InstanceEventKind
from serai.qemu.instance import Instance, RunState
from serai.units import MIB

SOON = 5.0
SHORT = 0.3
UNCONFINED = Confinement(uid=None, setpriv="", cgroup=None)
MACHINE = Machine(
    id="0a1b2c3d-0000-4000-8000-000000000000",
    name="web1",
    machine_type="pc-q35-7.2",
    accel=Accel.TCG,
    cpus=1,
    max_cpus=1,
    memory=64 * MIB,
    firmware=Firmware.BIOS,
    genid="00000000-0000-4000-8000-000000000001",
    drives=(),
    nics=(),
)


def told(kind: InstanceEventKind, detail: str = "") -> InstanceEvent:
    return InstanceEvent(kind, detail)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    null = os.open(os.devnull, os.O_RDWR)
    sleeper = await spawn(["/bin/sleep", "60"], pass_fds=(), stderr_to=null, confinement=UNCONFINED)
    os.close(null)
    yield sleeper
    if not sleeper.has_ended:  # the instance has let go of it: nobody else knows how it ends
        os.kill(sleeper.pid, signal.SIGKILL)
        os.waitpid(sleeper.pid, 0)
    sleeper.close()


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qmp.sock") as fake:
        fake.answers["query-status"] = {"status": "running"}
        fake.answers["query-chardev"] = [{"label": "agent", "frontend-open": True}]
        yield fake


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with fake_agent(tmp_path / "agent.sock") as fake:
        yield fake


async def adopt(
    process: Process, folder: Path, timeout: float = SOON, machine: Machine = MACHINE
) -> Instance:
    return await Instance.adopt(
        machine, process, started_at=1.0, run_dir=folder, state_dir=folder, timeout=timeout
    )


@pytest.fixture
async def instance(
    process: Process, qemu: FakeQemu, inside: FakeAgent, tmp_path: Path
) -> AsyncIterator[Instance]:
    adopted = await adopt(process, tmp_path)
    yield adopted
    await adopted.close()


async def next_event(instance: Instance) -> InstanceEvent:
    async with asyncio.timeout(SOON):
        return await instance.next_event()


# -- adopting ------------------------------------------------------------------------------------


async def test_an_adopted_one_knows_whether_its_agent_is_there(
    process: Process, qemu: FakeQemu, inside: FakeAgent, tmp_path: Path
) -> None:
    instance = await adopt(process, tmp_path)
    assert (instance.started_at, instance.process.pid) == (1.0, process.pid)
    await ping(instance.agent, SOON)
    await instance.close()
    qemu.answers["query-chardev"] = [{"label": "agent", "frontend-open": False}]
    instance = await adopt(process, tmp_path)
    with pytest.raises(Busy):
        await ping(instance.agent, SHORT)
    await instance.close()
    assert not process.has_ended, "letting go stops no guest"


async def test_a_silent_one_is_adopted_and_comes_back(
    process: Process, inside: FakeAgent, tmp_path: Path
) -> None:
    async with fake_qemu(tmp_path / "qmp.sock", greeting=None) as qemu:
        begun = time.monotonic()
        instance = await adopt(process, tmp_path, timeout=SHORT)
        for _ in range(3):
            with pytest.raises(Interrupted) as caught:
                await instance.status(timeout=0.1)
            assert caught.value.code is Code.QMP_LOST
        assert time.monotonic() - begun < 3
        await ping(instance.agent, SOON)
        qemu.greeting = FakeQemu(qemu.path).greeting
        qemu.answers["query-status"] = {"status": "io-error"}
        qemu.answers["query-chardev"] = []
        assert await instance.status(timeout=SOON) is RunState.IO_ERROR
        await instance.close()


# -- events --------------------------------------------------------------------------------------


async def test_events_come_in_order_and_typed(qemu: FakeQemu, instance: Instance) -> None:
    qemu.tell("STOP")
    qemu.tell("BLOCK_IO_ERROR", **{"node-name": "root", "nospace": True, "action": "stop"})
    qemu.tell("WHATEVER", x=5)
    qemu.tell("SHUTDOWN", guest="perhaps")
    qemu.tell("GUEST_PANICKED", action="pause")
    assert await next_event(instance) == told(InstanceEventKind.STOPPED)
    assert await next_event(instance) == told(InstanceEventKind.DISK_FULL, "root")
    assert await next_event(instance) == told(InstanceEventKind.PANICKED, "pause")


async def test_the_end_is_the_last_event(
    qemu: FakeQemu, instance: Instance, tmp_path: Path
) -> None:
    (tmp_path / "qemu.log").write_text("one\nqemu: the last word\n")
    instance.process.signal(signal.SIGKILL)
    qemu.tell("SHUTDOWN", guest=True, reason="guest-shutdown")
    qemu.hang_up()
    assert (await next_event(instance)).kind is InstanceEventKind.POWERED_OFF
    assert await next_event(instance) == told(
        InstanceEventKind.EXITED, "signal 9: qemu: the last word"
    )


async def test_a_lost_monitor_is_told_and_connected_anew(
    qemu: FakeQemu, instance: Instance
) -> None:
    qemu.hang_up()
    assert await next_event(instance) == told(InstanceEventKind.LOST)
    assert await instance.status() is RunState.RUNNING
    assert qemu.connections == 2
    qemu.tell("RESUME")
    assert await next_event(instance) == told(InstanceEventKind.RESUMED)


# -- the agent's wire follows --------------------------------------------------------------------


async def test_a_reset_begins_anew_with_the_agent(
    qemu: FakeQemu, inside: FakeAgent, instance: Instance
) -> None:
    await ping(instance.agent, SOON)
    inside.answers["guest-ping"] = None
    asked = asyncio.ensure_future(ping(instance.agent, SOON))
    await inside.wait_told("guest-ping", 2)
    begun = time.monotonic()
    qemu.tell("RESET", guest=True, reason="guest-reset")
    with pytest.raises(Interrupted) as caught:
        await asked
    assert caught.value.code is Code.AGENT_UNAVAILABLE
    assert time.monotonic() - begun < 1
    await inside.wait_told("guest-sync-delimited", 2)
    assert instance.agent.wire.is_prepared()
    inside.answers["guest-ping"] = {}
    qemu.tell("VSERPORT_CHANGE", id="agent-port", open=True)
    await ping(instance.agent, SOON)
    assert inside.connections == 2


async def test_resets_all_day_cost_no_connections(
    qemu: FakeQemu, inside: FakeAgent, instance: Instance
) -> None:
    def all_day() -> None:
        for _ in range(1000):
            qemu.tell("RESET", guest=True, reason="guest-reset")
            qemu.tell("VSERPORT_CHANGE", id="agent-port", open=False)

    await asyncio.to_thread(all_day)
    assert await instance.status() is RunState.RUNNING
    assert (await next_event(instance)).kind is InstanceEventKind.RESET
    assert (await next_event(instance)).kind is InstanceEventKind.AGENT_CLOSED
    await inside.wait_told("guest-sync-delimited")
    assert inside.connections <= 3


async def test_an_agent_that_was_opened_twice_is_another(
    qemu: FakeQemu, inside: FakeAgent, instance: Instance
) -> None:
    await ping(instance.agent, SOON)
    qemu.tell("VSERPORT_CHANGE", id="agent-port", open=True)
    await next_event(instance)
    await ping(instance.agent, SOON)
    assert inside.connections == 2


async def test_power_off_ends_what_waits_for_the_agent(
    qemu: FakeQemu, inside: FakeAgent, instance: Instance
) -> None:
    inside.answers["guest-ping"] = None
    asked = asyncio.ensure_future(ping(instance.agent, SOON))
    await inside.wait_told("guest-ping")
    begun = time.monotonic()
    qemu.tell("SHUTDOWN", guest=True, reason="guest-shutdown")
    with pytest.raises(Interrupted):
        await asked
    assert time.monotonic() - begun < 1


async def test_the_end_of_qemu_ends_what_waits_for_the_agent(
    qemu: FakeQemu, inside: FakeAgent, instance: Instance
) -> None:
    inside.answers["guest-ping"] = None
    asked = asyncio.ensure_future(ping(instance.agent, SOON))
    await inside.wait_told("guest-ping")
    instance.process.signal(signal.SIGKILL)
    with pytest.raises(Interrupted):
        await asked


# -- the end -------------------------------------------------------------------------------------


async def test_one_that_does_not_quit_is_killed(qemu: FakeQemu, instance: Instance) -> None:
    qemu.silent.add("quit")
    begun = time.monotonic()
    await instance.end(SHORT)
    assert SHORT <= time.monotonic() - begun < 2
    assert qemu.names()[-1] == "quit"
    assert await instance.process.wait() == -signal.SIGKILL
    await instance.end(SHORT)


async def test_one_that_says_yes_and_stays_is_killed(qemu: FakeQemu, instance: Instance) -> None:
    await instance.end(SHORT)
    assert await instance.process.wait() == -signal.SIGKILL


async def test_ending_without_a_time_limit_is_at_once(qemu: FakeQemu, instance: Instance) -> None:
    begun = time.monotonic()
    await instance.end(0.0)
    assert time.monotonic() - begun < 1
    assert "quit" not in qemu.names()


async def test_sockets_of_an_ended_one_are_removed(
    process: Process, qemu: FakeQemu, inside: FakeAgent, tmp_path: Path
) -> None:
    instance = await adopt(process, tmp_path)
    await instance.end(0.0)
    await instance.close()
    assert not (tmp_path / "qmp.sock").exists()
    assert not (tmp_path / "agent.sock").exists()
    assert instance.agent.wire.port is Port.OPEN


# -- starts that fail ----------------------------------------------------------------------------


def pretender(folder: Path, script: str) -> Capabilities:
    """Return the capabilities of a host whose QEMU is a script."""
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Capabilities(
        qemu_path=str(path),
        qemu_version="7.2.0",
        machine_type="pc-q35-7.2",
        accel=Accel.TCG,
        accel_reason="",
    )


async def failed_start(
    folder: Path, capabilities: Capabilities, machine: Machine = MACHINE, timeout: float = SOON
) -> SeraiError:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SeraiError) as caught:
        await Instance.start(
            machine,
            capabilities=capabilities,
            run_dir=folder,
            state_dir=folder,
            confinement=UNCONFINED,
            timeout=timeout,
        )
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not list(folder.glob("*.sock"))
    return caught.value


async def test_last_words_tell_why_a_start_failed(tmp_path: Path) -> None:
    host = pretender(tmp_path, "echo first >&2; echo 'qemu: no such machine' >&2; exit 1")
    error = await failed_start(tmp_path, host)
    assert (type(error), error.code) == (HostFailure, Code.GUEST_START_FAILED)
    assert error.message == "QEMU ended at once: qemu: no such machine"
    assert error.details["stderr"] == "first\nqemu: no such machine"
    assert error.hint


async def test_words_without_an_end_are_cut(tmp_path: Path) -> None:
    host = pretender(tmp_path, "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1")
    error = await failed_start(tmp_path, host)
    assert len(error.details["stderr"]) <= 2000


async def test_one_that_never_answers_is_killed(tmp_path: Path) -> None:
    host = pretender(tmp_path, "exec sleep 60")
    begun = time.monotonic()
    error = await failed_start(tmp_path, host, timeout=SHORT)
    assert error.code is Code.GUEST_START_FAILED
    assert f"did not answer within {SHORT:g} s" in error.message
    assert time.monotonic() - begun < 4


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    host = pretender(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    starting = asyncio.ensure_future(
        Instance.start(
            MACHINE,
            capabilities=host,
            run_dir=tmp_path,
            state_dir=tmp_path,
            confinement=UNCONFINED,
            timeout=SOON,
        )
    )
    async with asyncio.timeout(SOON):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not list(tmp_path.glob("*.sock"))


async def test_a_missing_qemu(tmp_path: Path) -> None:
    host = pretender(tmp_path, "")
    Path(host.qemu_path).unlink()
    assert (await failed_start(tmp_path, host)).code is Code.TOOL_MISSING


async def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    layer = LayerFile(path=f"{tmp_path}/gone.qcow2", format=DiskFormat.QCOW2, read_only=False)
    root = Drive(name="root", media=Media.DISK, chain=(layer,), boot_index=1)
    machine = dataclasses.replace(MACHINE, drives=(root,))
    error = await failed_start(tmp_path, pretender(tmp_path, "exit 0"), machine)
    assert (type(error), error.code) == (HostFailure, Code.GUEST_START_FAILED)
    assert f"{tmp_path}/gone.qcow2 can't be opened: No such file" in error.message


# -- freezing --------------------------------------------------------------------------------------


@pytest.fixture
async def holder(qemu: FakeQemu, inside: FakeAgent, tmp_path: Path) -> AsyncIterator[Instance]:
    """An instance around a process that has a memory file, as a booted guest's QEMU has."""
    null = os.open(os.devnull, os.O_RDWR)
    memory = os.memfd_create(f"serai-ram-{MACHINE.id}", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, MACHINE.memory)
    sleeper = await spawn(
        ["/bin/sleep", "60"], pass_fds=(memory,), stderr_to=null, confinement=UNCONFINED
    )
    os.close(null)
    os.close(memory)
    adopted = await adopt(sleeper, tmp_path)
    yield adopted
    await adopted.end(0.0)
    await adopted.close()


@pytest.fixture
def state_fd() -> Iterator[int]:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


async def test_a_freeze_ends_with_the_event(
    holder: Instance, qemu: FakeQemu, state_fd: int
) -> None:
    freezing = asyncio.ensure_future(holder.freeze_shared(state_fd, SOON))
    await qemu.wait_told("migrate")
    qemu.tell("MIGRATION", status="active")
    await asyncio.sleep(0.05)
    assert not freezing.done()
    qemu.tell("MIGRATION", status="completed")
    await freezing
    names = qemu.names()
    assert names[names.index("migrate-set-capabilities") :] == [
        "migrate-set-capabilities",
        "getfd",
        "stop",
        "migrate",
    ]
    memory = holder.memory_fd()
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(memory, b"x", 0)
    os.close(memory)


async def test_a_freeze_that_qemu_gives_up(holder: Instance, qemu: FakeQemu, state_fd: int) -> None:
    qemu.answers["query-migrate"] = {"status": "failed", "error-desc": "a device does not like it"}
    freezing = asyncio.ensure_future(holder.freeze_shared(state_fd, SOON))
    await qemu.wait_told("migrate")
    qemu.tell("MIGRATION", status="failed")
    with pytest.raises(HostFailure, match="a device does not like it") as caught:
        await freezing
    assert caught.value.code is Code.SNAPSHOT_UNFIT
    memory = holder.memory_fd()
    assert os.pwrite(memory, b"x", 0) == 1, "nothing was sealed"
    os.close(memory)


@pytest.mark.parametrize("how", ["silent", "cancelled"])
async def test_a_freeze_that_does_not_end_is_called_off(
    holder: Instance, qemu: FakeQemu, state_fd: int, how: str
) -> None:
    limit = SHORT if how == "silent" else SOON
    freezing = asyncio.ensure_future(holder.freeze_shared(state_fd, limit))
    await qemu.wait_told("migrate")
    if how == "cancelled":
        freezing.cancel()
    with pytest.raises(HostFailure if how == "silent" else asyncio.CancelledError):
        await freezing
    assert qemu.names()[-1] == "migrate_cancel"


async def test_a_freeze_that_loses_its_monitor(
    holder: Instance, qemu: FakeQemu, state_fd: int
) -> None:
    freezing = asyncio.ensure_future(holder.freeze_shared(state_fd, SOON))
    await qemu.wait_told("migrate")
    begun = time.monotonic()
    qemu.hang_up()
    with pytest.raises(SeraiError):
        await freezing
    assert time.monotonic() - begun < 2


async def test_what_was_taken_back_of_a_held_one_is_taken_back_again(
    holder: Instance, qemu: FakeQemu
) -> None:
    qemu.answers["add-fd"] = {"fdset-id": 7, "fd": 30}
    await holder.hold()
    await holder.screenshot()
    assert qemu.names()[-3:] == ["add-fd", "screendump", "remove-fd"]
    await holder.go_on()
    assert qemu.names()[-2:] == ["cont", "remove-fd"]
    await holder.go_on()
    assert qemu.names()[-1] == "cont"


async def test_a_waiting_qemu_is_told_apart(holder: Instance, qemu: FakeQemu) -> None:
    for said, state in (("inmigrate", RunState.WAITING), ("postmigrate", RunState.PAUSED)):
        qemu.answers["query-status"] = {"status": said}
        assert await holder.status() is state


HEADS = {
    name: LayerFile(path="", format=DiskFormat.QCOW2, read_only=False, node=f"{name}-5")
    for name in ("root", "data1")
}


@pytest.fixture
def two_drives(holder: Instance, tmp_path: Path) -> Mapping[str, LayerFile]:
    """Give the machine two drives, and new heads for them."""
    heads = {}
    drives = []
    for name, head in HEADS.items():
        (tmp_path / name).write_bytes(b"")
        heads[name] = dataclasses.replace(head, path=str(tmp_path / name))
        old = LayerFile(path=f"/srv/{name}", format=DiskFormat.QCOW2, read_only=False)
        drives.append(Drive(name=name, media=Media.DISK, chain=(old,), boot_index=1))
    holder.machine = dataclasses.replace(holder.machine, drives=tuple(drives))
    return heads


async def test_all_heads_are_switched_in_one_transaction(
    holder: Instance, qemu: FakeQemu, two_drives: Mapping[str, LayerFile]
) -> None:
    qemu.answers["add-fd"] = {"fdset-id": 7, "fd": 30}
    qemu.answers["query-fdsets"] = [
        {"fdset-id": 3, "fds": [{"fd": 8, "opaque": "root/0"}, {"fd": 9, "opaque": "log"}]}
    ]
    await holder.switch_heads(two_drives)
    (transaction,) = [told for told in qemu.told if told.name == "transaction"]
    actions = transaction.arguments["actions"]
    assert [action["data"] for action in actions] == [  # type: ignore[attr-defined]
        {"node": "root", "overlay": "root-5"},
        {"node": "data1", "overlay": "data1-5"},
    ]
    chains = [drive.chain for drive in holder.machine.drives]
    assert [[layer.node for layer in chain] for chain in chains] == [
        ["root-5", "root"],
        ["data1-5", "data1"],
    ]
    assert qemu.told[-1].arguments == {"fdset-id": 3, "fd": 8}


async def test_a_refused_switch_is_undone(
    holder: Instance, qemu: FakeQemu, two_drives: Mapping[str, LayerFile]
) -> None:
    qemu.answers["add-fd"] = {"fdset-id": 7, "fd": 30}
    qemu.errors["transaction"] = "no"
    before = holder.machine
    with pytest.raises(HostFailure):
        await holder.switch_heads(two_drives)
    assert holder.machine == before
    after = qemu.names()[qemu.names().index("transaction") + 1 :]
    assert after == ["blockdev-del", "remove-fd"] * 2


async def test_a_switch_of_unknown_outcome_is_left_alone(
    holder: Instance, qemu: FakeQemu, two_drives: Mapping[str, LayerFile]
) -> None:
    qemu.answers["add-fd"] = {"fdset-id": 7, "fd": 30}
    qemu.silent.add("transaction")
    with pytest.raises(Interrupted):
        await holder.switch_heads(two_drives, SHORT)
    assert qemu.names()[-1] == "transaction"


# -- the birth port ----------------------------------------------------------------------------------

BORN = dataclasses.replace(MACHINE, birth_port=True)


@dataclasses.dataclass
class BirthPort:
    """What is behind the socket of the birth port: answers each line with its second word."""

    connected: int = 0
    lines: list[bytes] = dataclasses.field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                if line.strip():
                    self.lines.append(line)
                    writer.write(b"ok " + line.split()[1] + b"\n")
        self.connected -= 1
        writer.close()


@pytest.fixture
async def birth(tmp_path: Path) -> AsyncIterator[BirthPort]:
    port = BirthPort()
    server = await asyncio.start_unix_server(port.serve, tmp_path / "birth.sock")
    yield port
    server.close()
    await server.wait_closed()


async def wait_connected(birth: BirthPort, count: int) -> None:
    await wait_until(
        "connections", lambda: birth.connected == count, timeout=SOON, every=0.01, slowest=0.01
    )


def opened(qemu: FakeQemu, is_open: bool) -> None:
    qemu.answers["query-chardev"] = [
        {"label": "agent", "frontend-open": True},
        {"label": "birth", "frontend-open": is_open},
    ]


async def test_an_adopted_one_is_connected_to_its_birth_port(
    process: Process, qemu: FakeQemu, inside: FakeAgent, birth: BirthPort, tmp_path: Path
) -> None:
    opened(qemu, True)
    instance = await adopt(process, tmp_path, machine=BORN)
    await wait_connected(birth, 1)
    instance.say_reborn("serai1 n0")
    await instance.hear_reborn("n0", SOON)
    await instance.close()
    await wait_connected(birth, 0)
    assert birth.lines == [b"serai1 n0\n"]


async def test_whether_something_waits_to_be_told(
    process: Process, qemu: FakeQemu, inside: FakeAgent, birth: BirthPort, tmp_path: Path
) -> None:
    opened(qemu, False)
    instance = await adopt(process, tmp_path, machine=BORN)
    assert not await instance.waits_to_be_told()
    opened(qemu, True)
    assert await instance.waits_to_be_told()
    opened(qemu, False)
    for is_open in (True, False):
        qemu.tell("VSERPORT_CHANGE", id="birth-port", open=is_open)
        await wait_until_told(instance, is_open)
    await instance.close()


async def wait_until_told(instance: Instance, waits: bool) -> None:
    async def is_so() -> bool:
        return await instance.waits_to_be_told() is waits

    await wait_until("the event", is_so, timeout=SOON, every=0.01, slowest=0.01)


async def test_a_machine_without_the_port_is_not_asked(
    process: Process, qemu: FakeQemu, inside: FakeAgent, birth: BirthPort, tmp_path: Path
) -> None:
    opened(qemu, True)
    instance = await adopt(process, tmp_path)
    instance.say_reborn("serai1 n0")
    with pytest.raises(Busy):
        await instance.hear_reborn("n0", SOON)
    await instance.close()
    assert not birth.lines
