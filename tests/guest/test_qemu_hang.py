"""QEMUs that stop, hang or die, and controllers that die on them: nothing hangs with them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from instances import SOON, Host, find_host, ping, tiny_machine, wait_event

from serai.errors import Busy, Code, Interrupted, SeraiError
from serai.host.process import Process
from serai.host.supervise import wait_until
from serai.model.machine import Machine
from serai.model.talk import ExecRequest
from serai.qemu.instance import Instance, InstanceEventKind, RunState, memory_name

SHORT = 0.3


@pytest.fixture
async def host(tiny_state: Path, tmp_path: Path) -> Host:
    return await find_host(tiny_state, tmp_path)


async def fails_soon(instance: Instance, timeout: float = SHORT) -> None:
    begun = time.monotonic()
    with pytest.raises(Interrupted) as caught:
        await instance.status(timeout=timeout)
    assert caught.value.code is Code.QMP_LOST
    assert time.monotonic() - begun < timeout + 2


# -- a QEMU that does not answer -------------------------------------------------------------------


async def test_a_stopped_qemu_is_silent_and_comes_back(host: Host) -> None:
    async with host.started() as instance:
        instance.process.signal(signal.SIGSTOP)
        for _ in range(12):  # more than may be unanswered
            await fails_soon(instance, 0.1)
        with pytest.raises(Interrupted):
            await instance.screenshot(timeout=SHORT)
        instance.process.signal(signal.SIGCONT)
        await answers(instance)
        assert (await instance.screenshot()).startswith(b"\x89PNG")
        await instance.hold()
        await wait_event(instance, InstanceEventKind.STOPPED)


async def answers(instance: Instance) -> None:
    async def says_so() -> bool:
        try:
            return await instance.status(timeout=1.0) is RunState.RUNNING
        except Interrupted:
            return False

    await wait_until("an answer", says_so, timeout=SOON, every=0.05)


async def test_a_stopped_qemu_is_ended_by_force_within_its_time(host: Host) -> None:
    async with host.started() as instance:
        instance.process.signal(signal.SIGSTOP)
        begun = time.monotonic()
        await instance.end(1.0)
        assert 1.0 <= time.monotonic() - begun < 3.0
        event = await wait_event(instance, InstanceEventKind.EXITED)
        assert event.detail.startswith("signal 9")


async def test_a_killed_qemu_is_told(host: Host) -> None:
    async with host.started() as instance:
        begun = time.monotonic()
        os.kill(instance.process.pid, signal.SIGKILL)
        event = await wait_event(instance, InstanceEventKind.EXITED)
        assert event.detail.startswith("signal 9")
        assert time.monotonic() - begun < 2
        await fails_soon(instance)
        with pytest.raises(SeraiError):
            await ping(instance, SHORT)


async def test_a_stopped_qemu_is_adopted_and_comes_back(host: Host) -> None:
    async with host.started() as instance:
        await instance.close()
        process = attach(host, instance.process.pid)
        process.signal(signal.SIGSTOP)
        adopted = await Instance.adopt(
            host.machine,
            process,
            started_at=instance.started_at,
            run_dir=host.run_dir,
            state_dir=host.state_dir,
            timeout=SHORT,
        )
        for _ in range(20):  # more than its socket keeps waiting
            await fails_soon(adopted, 0.05)
        process.signal(signal.SIGCONT)
        await answers(adopted)
        await adopted.end(5.0)
        await adopted.close()


def attach(host: Host, pid: int) -> Process:
    process = Process.attach(pid, "-uuid", host.machine.id, holds=memory_name(host.machine.id))
    assert process is not None
    return process


# -- a controller that is killed -------------------------------------------------------------------

HERE = Path(__file__).parent


@dataclass
class Orphanage:
    """Starts QEMUs through another process, which is killed by SIGKILL once they run."""

    host: Host
    tiny_state: Path
    pids: list[int]
    started_at: str = ""

    def start(self, kind: str) -> subprocess.Popen[str]:
        """Start a QEMU; it runs when this returns, and so does its controller."""
        controller = subprocess.Popen(
            [sys.executable, HERE / "controller.py", self.host.folder, self.tiny_state, kind],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert controller.stdout is not None
        pid, self.started_at = controller.stdout.readline().split()
        self.pids.append(int(pid))
        return controller

    def kill(self, controller: subprocess.Popen[str]) -> None:
        """Kill the controller, as hard as can be."""
        controller.kill()
        controller.communicate()

    async def adopt(self, machine: Machine | None = None) -> Instance:
        """Take up the QEMU that was started last."""
        return await Instance.adopt(
            machine or self.host.machine,
            attach(self.host, self.pids[-1]),
            started_at=float(self.started_at),
            run_dir=self.host.run_dir,
            state_dir=self.host.state_dir,
            timeout=SOON,
        )


@pytest.fixture
def orphanage(host: Host, tiny_state: Path) -> Iterator[Orphanage]:
    found = Orphanage(host, tiny_state, [])
    yield found
    for pid in found.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "state"), [("blank", RunState.RUNNING), ("held", RunState.PAUSED)]
)
async def test_a_qemu_outlives_its_controller(
    orphanage: Orphanage, kind: str, state: RunState
) -> None:
    orphanage.kill(orphanage.start(kind))
    adopted = await orphanage.adopt()
    assert not adopted.process.is_child
    assert await adopted.status() is state
    await adopted.hold()
    await adopted.go_on()
    await wait_event(adopted, InstanceEventKind.RESUMED)
    with pytest.raises(Busy):  # nobody is inside, and that is known
        await ping(adopted, SHORT)
    begun = time.monotonic()
    await adopted.end(5.0)
    assert time.monotonic() - begun < 2
    assert (await wait_event(adopted, InstanceEventKind.EXITED)).detail == ""
    await adopted.close()


async def test_what_happens_while_nobody_is_there_is_seen_as_state(
    orphanage: Orphanage, tiny_state: Path
) -> None:
    orphanage.kill(orphanage.start("tiny"))
    machine = tiny_machine(orphanage.host, tiny_state)
    first = await orphanage.adopt(machine)
    await ping(first, SOON)
    later = "setsid sh -c 'sleep 1; poweroff -f' < /dev/null > /dev/null 2>&1 &"
    await first.agent.execute(ExecRequest(argv=["sh", "-c", later]))
    await first.close()

    async def next_one_sees_it() -> bool:
        another = await orphanage.adopt(machine)
        state = await another.status()
        await another.close()
        return state is RunState.POWERED_OFF

    await wait_until("the power-off", next_one_sees_it, timeout=SOON, every=0.2)


async def test_viewers_and_consoles_after_a_change_of_hands(orphanage: Orphanage) -> None:
    orphanage.kill(orphanage.start("blank"))
    first = await orphanage.adopt()
    ours, theirs = socket.socketpair()
    ours.settimeout(SOON)
    await first.add_vnc_client(theirs)
    theirs.close()
    assert ours.recv(12) == b"RFB 003.008\n"
    _, writer = await first.open_console()
    await first.close()
    ours.sendall(b"RFB 003.008\n")
    assert ours.recv(2) == b"\x01\x01", "the viewer is served on: no password"
    writer.close()
    second = await orphanage.adopt()
    _, writer = await second.open_console()
    writer.close()
    ours.sendall(b"\x01")
    assert ours.recv(4) == b"\0\0\0\0"
    ours.close()
    await second.close()
