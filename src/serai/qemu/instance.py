"""One QEMU process: start it, adopt it after a daemon's restart, watch it, end it.

Everything that QEMU uses is opened here and passed down as descriptors (``_open_all``); leaving the
``ExitStack`` after the spawn closes our copies. Its sockets listen before it is started, so that
connecting never races. Not for: deciding anything about the guest (``engine``).
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serai.errors import Code, HostFailure, Interrupted, SeraiError
from serai.host.process import Confinement, Process, spawn
from serai.host.sockets import bind_unix, connect_unix
from serai.host.supervise import Supervisor
from serai.model.machine import Machine
from serai.model.node import Capabilities
from serai.qemu import commands
from serai.qemu.agent import Agent
from serai.qemu.commandline import build_argv
from serai.qemu.commands import RunState
from serai.qemu.qmp import Monitor

__all__ = ["Instance", "InstanceEvent", "InstanceEventKind", "RunState", "memory_name"]

EVENTS_LIMIT = 256
SCREENSHOT_LIMIT = 64 << 20
LOG_TAIL = 2000
EARLY_END = 1.0
SOCKETS = ("qmp", "agent", "console")


class InstanceEventKind(StrEnum):
    """What a QEMU may tell."""

    POWERED_OFF = "powered-off"
    RESET = "reset"
    PANICKED = "panicked"
    STOPPED = "stopped"
    RESUMED = "resumed"
    DISK_FULL = "disk-full"
    AGENT_OPENED = "agent-opened"
    AGENT_CLOSED = "agent-closed"
    LOST = "lost"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """One thing that a QEMU told, or that was seen of its process; ``detail`` is for people."""

    kind: InstanceEventKind
    detail: str = ""


class Instance:
    """One running QEMU. Make it with ``start`` or ``adopt``."""

    def __init__(
        self, machine: Machine, process: Process, started_at: float, run_dir: Path, state_dir: Path
    ) -> None:
        self.machine = machine
        self.process = process
        self.started_at = started_at
        self.agent = Agent(run_dir / "agent.sock")
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._monitor: Monitor | None = None
        self._connecting = asyncio.Lock()
        self._events: deque[InstanceEvent] = deque(maxlen=EVENTS_LIMIT)
        self._bell = asyncio.Event()
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
    ) -> "Instance":
        """Start QEMU and wait until its monitor answers; the guest runs by then.

        On failure nothing is left, and HostFailure (``guest-start-failed``) tells QEMU's last words.
        """
        with ExitStack() as stack:
            fds = _open_all(stack, machine, run_dir, state_dir, confinement.uid)
            log = os.open(
                state_dir / "qemu.log",
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC,
                0o600,
            )
            stack.callback(os.close, log)
            argv = build_argv(machine, fds, capabilities.qemu_path)
            process = await spawn(
                argv, pass_fds=tuple(fds.values()), stderr_to=log, confinement=confinement
            )
        instance = cls(machine, process, time.time(), run_dir, state_dir)
        try:
            await instance._greet(timeout)
        except BaseException:
            await asyncio.shield(instance.end(0.0))
            await instance.close()
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
    ) -> "Instance":
        """Take up a QEMU that an earlier daemon started; its monitor may be silent."""
        instance = cls(machine, process, started_at, run_dir, state_dir)
        with contextlib.suppress(Interrupted):
            await instance._connected(timeout)
        instance._tasks.start(instance._watch_exit(), name="exit")
        return instance

    async def _greet(self, timeout: float) -> None:
        """Wait for the monitor's first answer, or for the process's early end."""
        async with Supervisor() as tasks:
            greeting = tasks.start(_quietly(self._connected(timeout)), name="greeting")
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
            f"QEMU {what}{f': {words.splitlines()[-1]}' if words else ''}",
            hint="See what this host can do: serai doctor",
            details={"stderr": words},
        )

    def last_words(self) -> str:
        """Return the end of what QEMU wrote to its log."""
        try:
            with open(self._state_dir / "qemu.log", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    async def end(self, timeout: float) -> None:
        """End QEMU: ask it for at most ``timeout`` seconds, then kill it. Returns when it is gone."""
        if timeout and self._monitor is not None and not self.process.has_ended:
            with contextlib.suppress(SeraiError, TimeoutError):
                async with asyncio.timeout(timeout):
                    await commands.quit_qemu(self._monitor, timeout)
                    await self.process.wait()
        self.process.signal(9)
        await self.process.wait()

    async def close(self) -> None:
        """Let go of everything; the guest, if it still runs, goes on."""
        self.agent.disconnect()
        await self._tasks.__aexit__(None, None, None)
        if self._monitor is not None:
            await self._monitor.close()
        self.process.close()

    # -- events ------------------------------------------------------------------------------------

    async def next_event(self) -> InstanceEvent:
        """Wait for the next event; EXITED is the last."""
        while not self._events:
            self._bell.clear()
            await self._bell.wait()
        return self._events.popleft()

    def _tell(self, kind: InstanceEventKind, detail: str = "") -> None:
        self._events.append(InstanceEvent(kind, detail))
        self._bell.set()

    def _on_qmp_event(self, message: Mapping[str, object]) -> None:
        kind, detail = _read_event(message)
        if kind in (InstanceEventKind.AGENT_CLOSED, InstanceEventKind.RESET):
            self.agent.disconnect()
        if kind is not None:
            self._tell(kind, detail)

    async def _watch_exit(self) -> None:
        status = await self.process.wait()
        self.agent.disconnect()
        words = self.last_words()
        detail = "" if status is None else f"signal {-status}" if status < 0 else f"code {status}"
        if words and status != 0:
            detail = f"{detail}: {words.splitlines()[-1]}" if detail else words.splitlines()[-1]
        self._tell(InstanceEventKind.EXITED, detail)

    # -- the monitor -------------------------------------------------------------------------------

    async def _connected(self, timeout: float) -> Monitor:
        """Return the monitor, connected anew if the connection was lost."""
        async with self._connecting:
            if self._monitor is None or not self._monitor.is_connected:
                path = self._run_dir / "qmp.sock"
                self._monitor = await Monitor.connect(path, self._on_qmp_event, timeout=timeout)
            return self._monitor

    async def status(self, timeout: float = commands.TIMEOUT) -> RunState:
        """Return what the guest is doing; Interrupted (``qmp-lost``) when QEMU does not say."""
        return await commands.query_status(await self._connected(timeout), timeout)

    async def go_on(self) -> None:
        """Let the virtual CPUs run."""
        await commands.cont(await self._connected(commands.TIMEOUT))

    async def hold(self) -> None:
        """Hold the virtual CPUs."""
        await commands.stop(await self._connected(commands.TIMEOUT))

    async def press_power(self) -> None:
        """Press the power button."""
        await commands.press_power(await self._connected(commands.TIMEOUT))

    async def resize_drive(self, name: str, size: int) -> None:
        """Grow a drive to ``size`` bytes."""
        await commands.resize_block(await self._connected(commands.TIMEOUT), name, size)

    async def set_balloon(self, size: int) -> None:
        """Ask the guest to live with ``size`` bytes of memory."""
        await commands.set_balloon(await self._connected(commands.TIMEOUT), size)

    async def plug_cpus(self, count: int) -> None:
        """Plug CPUs in until there are ``count``; those that are there stay."""
        monitor = await self._connected(commands.TIMEOUT)
        slots = await commands.query_cpu_slots(monitor)
        filled = sum(slot.qom_path is not None for slot in slots)
        empty = [slot for slot in reversed(slots) if slot.qom_path is None]
        for slot in empty[: max(0, count - filled)]:
            await commands.plug_cpu(monitor, slot)

    # -- looking -----------------------------------------------------------------------------------

    async def screenshot(self) -> bytes:
        """Return what the screen shows, as PNG."""
        monitor = await self._connected(commands.TIMEOUT)
        picture = os.memfd_create("screenshot", os.MFD_CLOEXEC)
        try:
            await self._dump_screen(monitor, picture)
            return os.pread(picture, SCREENSHOT_LIMIT, 0)
        finally:
            os.close(picture)

    async def _dump_screen(self, monitor: Monitor, picture: int) -> None:
        # QEMU takes from an fdset only a descriptor with the very access mode that it wants
        write_only = os.open(f"/proc/self/fd/{picture}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fdset = await commands.add_fd(monitor, write_only)
        finally:
            os.close(write_only)
        try:
            await commands.screendump(monitor, fdset)
        finally:
            with contextlib.suppress(SeraiError):
                await commands.remove_fdset(monitor, fdset)

    async def add_vnc_client(self, viewer: socket.socket) -> None:
        """Let QEMU serve the connected VNC ``viewer``; the caller closes its own copy."""
        await commands.add_vnc_client(await self._connected(commands.TIMEOUT), viewer.fileno())

    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the serial console; one at a time is served, others wait."""
        return await connect_unix(self._run_dir / "console.sock")


async def _quietly(work: object) -> BaseException | None:
    """Return how ``work`` failed instead of raising it; None when it did not."""
    try:
        await work  # type: ignore[misc]
    except SeraiError as error:
        return error
    return None


def _open_all(
    stack: ExitStack, machine: Machine, run_dir: Path, state_dir: Path, uid: int | None
) -> dict[str, int]:
    """Open all that the machine needs, each under its name; the stack closes our copies."""
    fds = {"memory": _memory(machine, uid), "log": _append(state_dir / "serial.log")}
    for fd in fds.values():
        stack.callback(os.close, fd)
    for name in SOCKETS:
        listener = stack.enter_context(bind_unix(run_dir / f"{name}.sock", mode=0o600))
        fds[name] = listener.fileno()
    for name, path, flags in _files(machine):
        fds[name] = os.open(path, flags | os.O_CLOEXEC)
        stack.callback(os.close, fds[name])
    return fds


def _files(machine: Machine) -> list[tuple[str, str, int]]:
    found = []
    for drive in machine.drives:
        for index, layer in enumerate(drive.chain):
            flags = os.O_RDONLY if layer.read_only else os.O_RDWR
            found.append((f"{drive.name}/{index}", layer.path, flags))
    for name, path, flags in (
        ("kernel", machine.kernel, os.O_RDONLY),
        ("initrd", machine.initrd, os.O_RDONLY),
        ("uefi-vars", machine.uefi_vars, os.O_RDWR),
    ):
        if path:
            found.append((name, path, flags))
    return found


def memory_name(guest_id: str) -> str:
    """Return the name of a guest's memory file: what tells its QEMU from a lookalike."""
    return f"serai-{guest_id}"


def _memory(machine: Machine, uid: int | None) -> int:
    """Make the guest's memory: a sparse file without a name, the guest's own."""
    fd = os.memfd_create(memory_name(machine.id), os.MFD_CLOEXEC)
    os.ftruncate(fd, machine.memory)
    os.fchmod(fd, 0o600)
    if uid is not None:
        os.fchown(fd, uid, uid)
    return fd


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _read_event(message: Mapping[str, object]) -> tuple[InstanceEventKind | None, str]:
    """Return what an event of QEMU's means for us, and a word for people."""
    name = message.get("event")
    data = message.get("data")
    facts: Mapping[str, object] = data if isinstance(data, dict) else {}
    match name:
        case "SHUTDOWN" if facts.get("guest") and facts.get("reason") != "guest-panic":
            return InstanceEventKind.POWERED_OFF, str(facts.get("reason", ""))
        case "RESET":
            return InstanceEventKind.RESET, "guest" if facts.get("guest") else "host"
        case "GUEST_PANICKED":
            return InstanceEventKind.PANICKED, str(facts.get("action", ""))
        case "STOP":
            return InstanceEventKind.STOPPED, ""
        case "RESUME":
            return InstanceEventKind.RESUMED, ""
        case "BLOCK_IO_ERROR" if facts.get("nospace") and facts.get("action") == "stop":
            return InstanceEventKind.DISK_FULL, str(facts.get("node-name", ""))
        case "VSERPORT_CHANGE" if facts.get("id") == "agent-port":
            opened = bool(facts.get("open"))
            kind = InstanceEventKind.AGENT_OPENED if opened else InstanceEventKind.AGENT_CLOSED
            return kind, ""
        case _:
            return None, ""
