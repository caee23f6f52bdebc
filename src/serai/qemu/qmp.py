"""The wire to one QEMU's monitor: QEMU's own ``qemu.qmp``, wrapped narrowly.

What the library leaves open is closed here: its event history and queues have no bound, so events
go to one callback instead; every command has a time limit; and its errors become ours: refused by
QEMU (``qmp-failed``), or outcome unknown because the monitor went silent or away (``qmp-lost``).
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from serai.errors import Code, HostFailure, Interrupted
from serai.host.sockets import short_address

OnEvent = Callable[[Mapping[str, object]], None]

# a reply that comes after its time limit is logged by the library as an unknown id; that is ours
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class _Client(QMPClient):
    """The library's client with events given to a callback, none kept."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__()
        self._on_event = on_event

    async def _event_dispatch(self, msg: Message) -> None:
        self._on_event(msg)

    def send_fd_scm(self, fd: int) -> None:
        """Send a descriptor; the library's own way reaches into asyncio, which uvloop lacks."""
        if self._writer is None:
            raise EOFError("not connected")
        number = self._writer.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(number)) as own:
            socket.send_fds(own, [b" "], [fd])


class Monitor:
    """A connected monitor. Make it with ``connect``."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, path: Path, on_event: OnEvent, *, timeout: float) -> "Monitor":
        """Connect to the listening socket at ``path``; QEMU may still be starting behind it.

        Raises Interrupted (``qmp-lost``) when nobody greets within ``timeout`` seconds.
        """
        client = _Client(on_event)
        try:
            async with asyncio.timeout(timeout):
                with short_address(path) as address:
                    await client.connect(address)
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            raise Interrupted(
                Code.QMP_LOST,
                f"the monitor did not answer within {timeout:g} s",
                details={"why": repr(error)},
            ) from error
        return cls(client)

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float
    ) -> object:
        """Execute a command and return what it returned.

        Raises HostFailure (``qmp-failed``) when QEMU refuses it, Interrupted (``qmp-lost``) when
        the outcome is unknown.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise HostFailure(
                Code.QMP_FAILED,
                f"QEMU refused {command}: {error.error_class}: {error}",
                details={"command": command},
            ) from error
        except TimeoutError as error:
            raise _lost(command, f"no answer within {timeout:g} s") from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise _lost(command, "the monitor is gone") from error

    def send_descriptor(self, fd: int) -> None:
        """Send a descriptor along with the next command (SCM_RIGHTS, unix(7))."""
        try:
            self._client.send_fd_scm(fd)
        except (OSError, EOFError) as error:
            raise _lost("sending a descriptor", "the monitor is gone") from error

    async def wait_lost(self) -> None:
        """Wait until the connection has ended."""
        while self.is_connected:
            await self._client.runstate_changed()

    @property
    def is_connected(self) -> bool:
        """True while the connection stands."""
        return self._client.runstate is Runstate.RUNNING

    async def close(self) -> None:
        """Disconnect; QEMU goes on. Never raises for what the other side did."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1.0):
                await self._client.disconnect()


def _lost(command: str, why: str) -> Interrupted:
    return Interrupted(
        Code.QMP_LOST,
        f"it is not known whether {command} took effect: {why}",
        hint="Look at the guest again before you repeat it.",
        details={"command": command},
    )
