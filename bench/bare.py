"""Bare QEMU: the command line that serai would give it, driven by as little asyncio as can be.

What a user of QEMU would write without serai: open the files, start it, talk to its sockets. No
confinement, no database, no events; that serai does all this too is what the ratios are about.
"""

import asyncio
import dataclasses
import json
import os
import socket
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from serai.model.machine import Machine
from serai.qemu.commandline import build_argv

SOCKETS = ("qmp", "agent", "console")


def read_machine(running: Path) -> Machine:
    """Return the machine of a guest that runs, from what the daemon keeps beside its sockets."""
    return msgspec.convert(msgspec.json.decode(running.read_bytes())["machine"], Machine)


def another(machine: Machine) -> Machine:
    """Return the same machine with another identity."""
    return dataclasses.replace(machine, id=str(uuid.uuid4()), genid=str(uuid.uuid4()))


class BareGuest:
    """One QEMU without drives (the tiny image has none)."""

    def __init__(self, machine: Machine, qemu: str, folder: Path) -> None:
        self._machine = machine
        self._qemu = qemu
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
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
        self._reader, self._writer = await asyncio.open_unix_connection(self._folder / "qmp.sock")
        await self._reader.readline()
        await self._ask("qmp_capabilities")

    def _open(self, stack: ExitStack) -> dict[str, int]:
        machine = self._machine
        fds = {"memory": os.memfd_create("memory")}
        os.truncate(fds["memory"], machine.memory)
        for name in SOCKETS:
            listener = socket.socket(socket.AF_UNIX)
            path = self._folder / f"{name}.sock"
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen()
            fds[name] = listener.detach()
        fds["log"] = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name in ("kernel", "initrd"):
            if path_of := getattr(machine, name):
                fds[name] = os.open(path_of, os.O_RDONLY)
        for fd in fds.values():
            stack.callback(os.close, fd)
        return fds

    async def _ask(self, command: str) -> Any:
        self._writer.write(json.dumps({"execute": command}).encode())
        while "return" not in (answer := json.loads(await self._reader.readline())):
            pass
        return answer["return"]

    async def wait_agent(self) -> None:
        """Wait until the agent inside has answered a ping, which waits in its channel till then."""
        reader, writer = await asyncio.open_unix_connection(self._folder / "agent.sock")
        writer.write(b'{"execute":"guest-ping"}\n')
        await reader.readline()
        writer.close()

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
