"""The wire to one QEMU's monitor: QEMU's own ``qemu.qmp``, wrapped narrowly.

What the library leaves open is closed here. Its queue and history of events have no bound: events
go to one callback, and none is kept. It queues commands for a QEMU that has stopped reading:
beyond ``UNANSWERED_LIMIT`` a command is refused unsent. It logs what it also raises: its logger is
a mute one. Every command has a time limit, and the errors become ours: refused by QEMU
(``qmp-failed``), or outcome unknown because the monitor went silent or away (``qmp-lost``).
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from serai.errors import Code, HostFailure, Interrupted
from serai.host.sockets import short_address

LINE_LIMIT = 256 << 10
"""The longest reply that we ask for (CPU slots, 255 of them) has about 50 KiB."""
UNANSWERED_LIMIT = 8
CLOSE_LIMIT = 2.0

OnEvent = Callable[[Mapping[str, object]], None]

# not in the tree of loggers, on purpose
MUTE = logging.Logger("qemu.qmp", logging.CRITICAL + 1)


class _Client(QMPClient):
    """The library's client through the hooks that it documents; ``unanswered`` are command ids."""

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__(readbuflen=LINE_LIMIT)
        self.logger = MUTE
        self.unanswered: set[object] = set()

        def take(event: Message) -> bool:
            on_event(dict(event))
            return False  # so the library keeps nothing

        self.events.event_filter = take

    def _cb_outbound(self, msg: Message) -> Message:
        if "id" in msg:
            self.unanswered.add(msg["id"])
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if "id" in msg:
            self.unanswered.discard(msg["id"])
        return msg


class Monitor:
    """A connected monitor. Make it with ``connect``."""

    def __init__(self, client: _Client, wire: socket.socket) -> None:
        self._client = client
        self._wire = wire
        self._passing = asyncio.Lock()
        self._given_up: set[object] = set()
        self._closing = asyncio.Lock()
        self._is_closed = False

    @classmethod
    async def connect(cls, path: Path, on_event: OnEvent, *, timeout: float) -> "Monitor":
        """Connect to the listening socket at ``path``; QEMU may still be starting behind it.

        Raises Interrupted (``qmp-lost``) when nobody greets within ``timeout`` seconds.
        """
        client = _Client(on_event)
        wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            wire.setblocking(False)
            with short_address(path) as address:
                wire.connect(address)
            async with asyncio.timeout(timeout):
                await client.connect(wire)
        except BaseException as error:
            with contextlib.suppress(Exception):
                await client.disconnect()
            wire.close()
            # AssertionError: QEMU ended between its greeting and the library's last look at it
            if isinstance(error, TimeoutError | QMPError | OSError | EOFError | AssertionError):
                raise Interrupted(
                    Code.QMP_LOST,
                    f"the monitor did not answer within {timeout:g} s",
                    details={"why": repr(error)},
                ) from error
            raise
        return cls(client, wire)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float,
        fd: int | None = None,
    ) -> object:
        """Execute a command and return what it returned; ``fd`` goes along with it.

        Raises HostFailure (``qmp-failed``) when QEMU refuses it, Interrupted (``qmp-lost``) when
        the outcome is unknown.
        """
        try:
            async with asyncio.timeout(timeout):
                if fd is None:
                    return await self._ask(command, arguments)
                async with self._passing:
                    return await self._ask_with(fd, command, arguments)
        except ExecuteError as error:
            raise HostFailure(
                Code.QMP_FAILED,
                f"QEMU refused {command}: {error.error_class}: {error}"[:1000],
                details={"command": command},
            ) from error
        except TimeoutError as error:
            raise _lost(command, f"no answer within {timeout:g} s") from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise _lost(command, "the monitor is gone") from error

    async def _ask(self, command: str, arguments: Mapping[str, object] | None) -> object:
        if len(self._client.unanswered) >= UNANSWERED_LIMIT:
            raise Interrupted(
                Code.QMP_LOST,
                f"QEMU has not answered {UNANSWERED_LIMIT} commands; {command} was not sent",
                details={"command": command},
            )
        return await self._client.execute(command, arguments)

    async def _ask_with(
        self, fd: int, command: str, arguments: Mapping[str, object] | None
    ) -> object:
        """Send a descriptor, then the command that takes it.

        QEMU keeps the last descriptor that came. So one travels at a time, and none while a command
        that was given up may still take it.
        """
        if self._given_up & self._client.unanswered:
            raise _lost(command, "an earlier descriptor may still be under way")
        socket.send_fds(self._wire, [b" "], [fd])
        try:
            return await self._ask(command, arguments)
        except BaseException:
            self._given_up = set(self._client.unanswered)
            raise

    async def wait_lost(self) -> None:
        """Wait until the connection has ended, from whichever side."""
        while self.is_connected:
            await self._client.runstate_changed()

    @property
    def is_connected(self) -> bool:
        """True while the connection stands."""
        return self._client.runstate is Runstate.RUNNING

    async def close(self) -> None:
        """Disconnect; QEMU goes on. Never raises for what the other side did."""
        async with self._closing:  # the library can't be told twice at a time
            if self._is_closed:
                return
            with contextlib.suppress(OSError):
                self._wire.shutdown(socket.SHUT_RDWR)  # so that no unsent byte is waited for
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_LIMIT):
                    await self._client.disconnect()
            self._is_closed = True


def _lost(command: str, why: str) -> Interrupted:
    return Interrupted(
        Code.QMP_LOST,
        f"it is not known whether {command} took effect: {why}",
        hint="Look at the guest again before you repeat it.",
        details={"command": command},
    )
