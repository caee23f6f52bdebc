"""Bare QEMU: the command line that serai would give it, driven by as little asyncio as can be.

What a user of QEMU would write without serai: open the files, start it, talk to its sockets. No
confinement, no database, no events; that serai does all this too is what the ratios are about.
"""

import asyncio
import base64
import dataclasses
import json
import os
import socket
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from serai.model.machine import Machine
from serai.qemu.commandline import READ_ONLY, build_argv, tap_name
from serai.qemu.resources import NO_TAPS, kernel_to_boot

SOCKETS = ("qmp", "agent", "birth", "console")
UNLIMITED = 1 << 50
POLL = 0.001
AGENT_POLL = 0.1


def read_machine(running: Path) -> Machine:
    """Return the machine of a guest that runs, from what the daemon keeps beside its sockets."""
    return msgspec.convert(msgspec.json.decode(running.read_bytes())["machine"], Machine)


def another(machine: Machine) -> Machine:
    """Return the same machine with another identity."""
    return dataclasses.replace(machine, id=str(uuid.uuid4()), genid=str(uuid.uuid4()))


class BareGuest:
    """One QEMU.

    ``taps`` are open, by interface, and stay the caller's. ``memory`` is an open RAM file (-1: it gets a new one); with ``machine.ram_private`` it maps that
    privately and waits for a state. ``state`` is the file that its devices are saved to or loaded from.
    """

    def __init__(
        self,
        machine: Machine,
        qemu: str,
        folder: Path,
        *,
        memory: int = -1,
        state: Path | None = None,
        taps: Mapping[str, int] = NO_TAPS,
    ) -> None:
        self._machine = machine
        self._taps = taps
        self._memory = memory
        self._state = state
        self._qemu = qemu
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        folder.mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        """Start it; returns when its monitor answers."""
        with ExitStack() as stack:
            fds = self._open(stack)
            argv = build_argv(self._machine, fds, self._qemu)
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                pass_fds=tuple(fds.values()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=fds["log"],
                stderr=fds["log"],
            )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self._folder / "qmp.sock"))
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        await self._reader.readline()
        await self._ask("qmp_capabilities")

    def _open(self, stack: ExitStack) -> dict[str, int]:
        machine = self._machine
        fds = {"memory": os.dup(self._memory) if self._memory >= 0 else os.memfd_create("memory")}
        if self._memory < 0:
            os.truncate(fds["memory"], machine.memory)
        for name in SOCKETS:
            listener = socket.socket(socket.AF_UNIX)
            path = self._folder / f"{name}.sock"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
            fds[name] = listener.detach()
        fds["log"] = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for nic in machine.nics:
            if nic.tap:
                fds[tap_name(nic)] = os.dup(self._taps[nic.tap])
        for drive in machine.drives:
            for index, layer in enumerate(drive.chain):
                name = f"{drive.name}/{index}"
                fds[name + READ_ONLY] = os.open(layer.path, os.O_RDONLY)
                fds[name] = os.open(layer.path, os.O_RDONLY if layer.read_only else os.O_RDWR)
        for name, source in (("kernel", kernel_to_boot(machine)), ("initrd", machine.initrd)):
            if getattr(machine, name):
                fds[name] = os.open(source, os.O_RDONLY)
        for fd in fds.values():
            stack.callback(os.close, fd)
        return fds

    async def _ask(self, command: str, **arguments: object) -> Any:
        request = {"execute": command, "arguments": arguments}
        self._writer.write(json.dumps(request).encode())
        while "return" not in (answer := json.loads(await self._reader.readline())):
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    def keep_memory(self) -> int:
        """Open the RAM file of the running QEMU; its caller closes it."""
        assert self._process is not None
        return os.open(f"/proc/{self._process.pid}/map_files/{self._mapping()}", os.O_RDWR)

    def _mapping(self) -> str:
        assert self._process is not None
        maps = Path(f"/proc/{self._process.pid}/maps").read_text()
        return next(line.split()[0] for line in maps.splitlines() if "memfd:memory" in line)

    async def freeze(self) -> None:
        """Hold it, and save its devices: its memory stays in the RAM file."""
        await self._ask("stop")
        await self._skip_shared()
        await self._migrate("migrate")

    async def save(self) -> None:
        """Hold it, and save all of it, as stop-and-save does."""
        await self._ask("stop")
        await self._ask("migrate-set-parameters", **{"max-bandwidth": UNLIMITED})
        await self._migrate("migrate")

    async def take_up(self) -> None:
        """Load what was saved, and let it run."""
        await self._skip_shared()
        await self._migrate("migrate-incoming")
        await self._ask("cont")

    async def _skip_shared(self) -> None:
        wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        await self._ask("migrate-set-capabilities", capabilities=wanted)

    async def _migrate(self, command: str) -> None:
        assert self._state is not None
        fd = os.open(self._state, os.O_RDWR | os.O_CREAT)
        socket.send_fds(self._socket, [b'{"execute":"getfd","arguments":{"fdname":"state"}}'], [fd])
        os.close(fd)
        await self._reader.readline()
        await self._ask(command, uri="fd:state")
        while (await self._ask("query-migrate")).get("status") != "completed":
            await asyncio.sleep(POLL)

    async def wait_agent(self) -> None:
        """Wait until the agent inside has answered a ping, which waits in its channel till then."""
        reader, writer = await asyncio.open_unix_connection(self._folder / "agent.sock")
        writer.write(b'{"execute":"guest-ping"}\n')
        await reader.readline()
        writer.close()

    async def execute(self, script: str) -> str:
        """Run a script inside, wait for its end, and return what it printed."""
        reader, writer = await asyncio.open_unix_connection(self._folder / "agent.sock")

        async def ask(command: str, **arguments: object) -> Any:
            writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            return json.loads(await reader.readline())["return"]

        await ask("guest-ping")
        begun = await ask(
            "guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True}
        )
        while not (status := await ask("guest-exec-status", pid=begun["pid"]))["exited"]:
            await asyncio.sleep(AGENT_POLL)
        writer.close()
        return base64.b64decode(status.get("out-data", "")).decode()

    async def quit(self) -> None:
        """Pull the plug; returns when the process is gone."""
        assert self._process is not None
        self._writer.write(b'{"execute":"quit"}')
        await self._process.wait()
        self._writer.close()

    def kill(self) -> None:
        """Make sure that it is gone, whatever happened."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
