"""The life of one QEMU process: start it, adopt it after a daemon's restart, watch it, end it.

Everything that it uses is opened here and passed down as descriptors (``resources``); its sockets
listen before it is started, so that connecting never races. What happens to it comes as events
(``events``). What can be done with it while it lives is in ``instance``.
"""

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from serai.errors import Code, HostFailure, Interrupted, SeraiError
from serai.host.process import Confinement, Process, spawn
from serai.host.supervise import Supervisor
from serai.host.threads import in_own_thread
from serai.host.userfault import plant
from serai.model.guest import Accel
from serai.model.machine import Machine
from serai.model.node import Capabilities
from serai.qemu import commands, drives
from serai.qemu.agent import Agent
from serai.qemu.agent_wire import Port
from serai.qemu.birth_wire import BirthWire
from serai.qemu.commandline import build_argv
from serai.qemu.commands import CpuSlot
from serai.qemu.events import (
    EventQueue,
    InstanceEvent,
    InstanceEventKind,
    decode_event,
    decode_stream_end,
    decode_unplugged,
)
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor
from serai.qemu.resources import NO_TAPS, open_resources, remove_sockets, socket_path
from serai.qemu.words import gist, open_words, read_last_words

EARLY_END = 1.0
KILL_LIMIT = 30.0


class Life:
    """One QEMU process with its monitor and its agent; ``Instance`` is what is used of it."""

    def __init__(
        self, machine: Machine, process: Process, started_at: float, run_dir: Path, state_dir: Path
    ) -> None:
        self.machine = machine
        self.process = process
        self.started_at = started_at
        self.agent = Agent(socket_path(run_dir, "agent"))
        self._birth = BirthWire(socket_path(run_dir, "birth"))
        self._is_birth_open = False
        self.run_dir = run_dir
        self._state_dir = state_dir
        self._monitor: Monitor | None = None
        self._connecting = asyncio.Lock()
        self._lent = Lent()
        self._events = EventQueue()
        self._bell = asyncio.Event()
        self._stream_end: asyncio.Future[str] | None = None
        self._unplugging: dict[str, asyncio.Future[bool]] = {}
        self._leaving: dict[str, asyncio.Event] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._tasks = Supervisor()

    # -- beginning and end -------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        machine: Machine,
        *,
        capabilities: Capabilities,
        run_dir: Path,
        state_dir: Path,
        confinement: Confinement,
        timeout: float,
        taps: Mapping[str, int] = NO_TAPS,
    ) -> Self:
        """Start QEMU and wait until its monitor answers; the guest runs by then.

        Its memory is a new file called ``machine.ram`` (``machine.id`` if that is empty). ``taps`` that
        are open already stay the caller's, others are opened by name. On
        failure nothing is left, and HostFailure (``guest-start-failed``, ``disk-full``) tells
        QEMU's last words, or which file could not be opened.
        """
        paths = run_dir, state_dir
        process = await _open_and_spawn(machine, capabilities, *paths, confinement, None, taps)
        return await cls._begin(machine, process, *paths, timeout)

    @classmethod
    async def prepare(
        cls,
        machine: Machine,
        *,
        memory_fd: int,
        taps: Mapping[str, int],
        capabilities: Capabilities,
        run_dir: Path,
        state_dir: Path,
        confinement: Confinement,
        timeout: float,
    ) -> Self:
        """Start a QEMU that waits for a state to take up (``Instance.take_state``).

        It maps ``memory_fd`` privately, the file that is called ``machine.ram``; ``taps`` are those
        that a present QEMU of the same guest has (``tap_fds``), and both are the caller's; its
        agent's wire is connected. Nothing of the guest runs. Disks are opened, but neither read nor
        locked before the state is there, so another QEMU may still write to them. Fails as
        ``start`` does.
        """
        machine = dataclasses.replace(machine, ram_private=True)
        paths = run_dir, state_dir
        process = await _open_and_spawn(machine, capabilities, *paths, confinement, memory_fd, taps)
        instance = await cls._begin(machine, process, *paths, timeout)
        try:
            await commands.set_up_migration(await instance._connected(timeout), timeout)
            with contextlib.suppress(OSError):  # then it is held longer when it is saved
                await in_own_thread(plant, process.pid)
            if instance._preparing is not None:
                await instance._preparing
        except BaseException:
            await asyncio.shield(instance._give_up())
            raise
        return instance

    @classmethod
    async def _begin(
        cls, machine: Machine, process: Process, run_dir: Path, state_dir: Path, timeout: float
    ) -> Self:
        """Wait for the first answer of a QEMU that was just started."""
        instance = cls(machine, process, time.time(), run_dir, state_dir)
        instance.agent.wire.set_port(Port.CLOSED)
        instance._prepare_wires()
        try:
            await instance._greet(timeout)
            await drives.keep_limits(await instance._connected(timeout), machine, timeout)
        except BaseException:
            await asyncio.shield(instance._give_up())
            raise
        instance._tasks.start(instance._watch_exit(), name="exit")
        return instance

    @classmethod
    async def adopt(
        cls,
        machine: Machine,
        process: Process,
        *,
        started_at: float,
        run_dir: Path,
        state_dir: Path,
        timeout: float,
    ) -> Self:
        """Take up a QEMU that an earlier daemon started; its monitor may be silent.

        What happened meanwhile is not told as events: ``status`` says where it led to.
        """
        instance = cls(machine, process, started_at, run_dir, state_dir)
        instance.agent.wire.expect_half_read()
        with contextlib.suppress(SeraiError):
            await instance._connected(timeout)
            await instance._count_cpus(timeout)
        instance._tasks.start(instance._watch_exit(), name="exit")
        return instance

    async def _count_cpus(self, timeout: float) -> list[CpuSlot]:
        """Let ``machine`` say how many CPUs there are, plugged in ones too; return the free slots."""
        slots = await commands.query_cpu_slots(await self._connected(timeout), timeout)
        empty = [slot for slot in slots if slot.qom_path is None]
        self.machine = dataclasses.replace(self.machine, cpus=len(slots) - len(empty))
        return empty

    async def _greet(self, timeout: float) -> None:
        """Wait for the monitor's first answer, or for the process's early end."""
        async with Supervisor() as tasks:
            greeting = tasks.start(_failure_of(self._connect(timeout)), name="greeting")
            ending = tasks.start(self.process.wait(), name="early end")
            await asyncio.wait({greeting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if greeting.done() and greeting.result() is None and not ending.done():
                return
            await asyncio.wait({ending}, timeout=EARLY_END)
        raise self._start_failed(timeout)

    def _start_failed(self, timeout: float) -> HostFailure:
        words = self.last_words()
        ended = self.process.has_ended
        what = "ended at once" if ended else f"did not answer within {timeout:g} s"
        return HostFailure(
            Code.GUEST_START_FAILED,
            ": ".join([f"QEMU {what}", *gist(words)]),
            hint="See what this host can do: serai doctor",
            details={"stderr": words},
        )

    async def _give_up(self) -> None:
        try:
            await self.end(0.0)
        finally:
            await self.close()

    def last_words(self) -> str:
        """Return the end of what QEMU wrote to its log."""
        return read_last_words(self._state_dir)

    async def end(self, timeout: float) -> None:
        """End QEMU: ask it for at most ``timeout`` seconds, then kill it. Returns when it is gone.

        Raises HostFailure (``timeout``) if even the kernel can't end it (it hangs in a disk).
        """
        if timeout and self._monitor is not None and not self.process.has_ended:
            with contextlib.suppress(SeraiError, TimeoutError):
                async with asyncio.timeout(timeout):
                    await commands.quit_qemu(self._monitor, timeout)
                    await self.process.wait()
        self.process.signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_LIMIT):
                await self.process.wait()
        except TimeoutError as error:
            raise HostFailure(
                Code.TIMEOUT,
                f"process {self.process.pid} was killed, but has not ended in {KILL_LIMIT:g} s",
                hint="It waits for a disk or a network file system of this host.",
            ) from error

    async def close(self) -> None:
        """Let go of everything; the guest, if it still runs, goes on."""
        if self._monitor is not None:
            await self._monitor.close()
        await self._tasks.__aexit__(None, None, None)
        self.agent.wire.disconnect()
        self._birth.disconnect()
        if self.process.has_ended:
            remove_sockets(self.run_dir)
        self.process.close()

    # -- events ------------------------------------------------------------------------------------

    async def next_event(self) -> InstanceEvent:
        """Wait for the next event; EXITED is the last."""
        while (event := self._events.take()) is None:
            self._bell.clear()
            await self._bell.wait()
        return event

    def _tell(self, event: InstanceEvent) -> None:
        self._events.put(event)
        self._bell.set()

    def _on_qmp_event(self, untrusted: Mapping[str, object]) -> None:
        end = decode_stream_end(untrusted)
        if end is not None and self._stream_end is not None and not self._stream_end.done():
            self._stream_end.set_result(end)
        unplugged = decode_unplugged(untrusted)
        if unplugged is not None:
            self._on_unplugged(*unplugged)
        event = decode_event(untrusted)
        if event is None:
            return
        if event.kind in (InstanceEventKind.BIRTH_OPENED, InstanceEventKind.BIRTH_CLOSED):
            self._is_birth_open = event.kind is InstanceEventKind.BIRTH_OPENED
            return
        self._follow_agent(event.kind)
        self._tell(event)

    def _on_unplugged(self, device: str, is_gone: bool) -> None:
        waiting = self._unplugging.get(device)
        if waiting is not None and not waiting.done():
            waiting.set_result(is_gone)
        if is_gone and device in self._leaving:
            self._leaving[device].set()

    def _follow_agent(self, kind: InstanceEventKind) -> None:
        """Keep the wire to the agent in step with what QEMU tells of the guest."""
        wire = self.agent.wire
        match kind:
            case InstanceEventKind.AGENT_OPENED:
                if wire.port is Port.OPEN:  # another one, and the end of the first was not told
                    wire.disconnect()
                wire.set_port(Port.OPEN)
            case InstanceEventKind.AGENT_CLOSED | InstanceEventKind.RESET:
                if not wire.is_prepared():
                    wire.disconnect()
                    self._prepare_wires()
                wire.set_port(Port.CLOSED)
            case (
                InstanceEventKind.POWERED_OFF
                | InstanceEventKind.RESTART_WANTED
                | InstanceEventKind.PANICKED
            ):
                wire.disconnect()

    def _prepare_wires(self) -> None:
        """Connect to what is inside, ahead of anybody's asking."""
        if self.machine.birth_port:
            self._birth.prepare()
        if self._preparing is None or self._preparing.done():
            self._preparing = self._tasks.start(self.agent.wire.prepare(), name="agent")

    async def _watch_exit(self) -> None:
        status = await self.process.wait()
        self.agent.wire.disconnect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EARLY_END):
                if self._monitor is not None:
                    await self._monitor.wait_lost()  # what it told before its end comes first
        self._tell(InstanceEvent(InstanceEventKind.EXITED, self._describe_end(status)))

    def _describe_end(self, status: int | None) -> str:
        what = "" if status is None else f"signal {-status}" if status < 0 else f"code {status}"
        told = gist(self.last_words()) if status != 0 else []
        return ": ".join([part for part in (what, *told) if part])

    async def _watch_monitor(self, monitor: Monitor) -> None:
        """Tell when the monitor's connection is gone but its process is not."""
        await monitor.wait_lost()
        await monitor.close()
        try:
            async with asyncio.timeout(EARLY_END):
                await self.process.wait()
        except TimeoutError:
            self._tell(InstanceEvent(InstanceEventKind.LOST))

    def take_agent(self, old: "Life") -> None:
        """Go on with the conversation that ``old`` had with the agent of the same guest.

        Within ``old.agent.quiet``: whoever waits for his turn there gets it here, and what he does
        in several steps goes on. ``old`` has an agent that is not connected afterwards.
        """
        old.agent.wire.take_over(self.agent.wire)
        self.agent, old.agent = old.agent, Agent(socket_path(old.run_dir, "agent"))

    # -- the monitor -------------------------------------------------------------------------------

    async def _connected(self, timeout: float) -> Monitor:
        """Return the monitor, connected anew if the connection was lost."""
        async with self._connecting:
            if self._monitor is None or not self._monitor.is_connected:
                monitor = await self._connect(timeout)
                self._is_birth_open = False  # its closing may not have been told
                opened = await commands.is_port_open(monitor, "agent", timeout)
                self.agent.wire.set_port(Port.OPEN if opened else Port.CLOSED)
                self._prepare_wires()
                return monitor
            return self._monitor

    async def _connect(self, timeout: float) -> Monitor:
        path = socket_path(self.run_dir, "qmp")
        monitor = await Monitor.connect(path, self._on_qmp_event, timeout=timeout)
        self._monitor = monitor
        self._tasks.start(self._watch_monitor(monitor), name="monitor")
        return monitor


async def _open_and_spawn(
    machine: Machine,
    capabilities: Capabilities,
    run_dir: Path,
    state_dir: Path,
    confinement: Confinement,
    memory_fd: int | None,
    taps: Mapping[str, int],
) -> Process:
    """Open all that QEMU needs and start it; our copies of the descriptors are closed again."""
    try:
        with ExitStack() as stack:
            uid = confinement.uid
            fds = open_resources(stack, machine, run_dir, state_dir, uid, memory_fd, taps)
            words = open_words(stack, state_dir)
            argv = build_argv(machine, fds, capabilities.qemu_path)
            return await spawn(
                argv,
                pass_fds=tuple(fds.values()),
                stderr_to=words,
                confinement=confinement,
                # QEMU wants huge ones for the code that it makes. Who boots fills them, and runs up to a
                # tenth faster; a fork that hardly runs would have megabytes of which it uses a little
                small_pages=machine.accel is Accel.TCG and machine.ram_private,
            )
    except BaseException:
        remove_sockets(run_dir)
        raise


async def _failure_of(work: object) -> Interrupted | None:
    """Return how connecting failed instead of raising it; None when it did not."""
    try:
        await work  # type: ignore[misc]
    except Interrupted as error:
        return error
    return None
