"""The wire to the port at which a copied guest is told who it is: one line, one answer, nothing believed.

The other end is ``disk/recipes/reborn.c``, which says what the lines are; what is in them is ``plan.reborn``'s.
A connection is made ahead and kept (``prepare``), so that the guest that is frozen sleeps at a port that
somebody is connected to, and a copy of it finds nothing else. Nothing is read from it but an answer that
is waited for: what a guest says otherwise stays in the socket, and at some time in the guest.
"""

import asyncio
import contextlib
import socket
from pathlib import Path

from serai.errors import Code, HostFailure, Interrupted
from serai.host.sockets import call_unix

LINE_LIMIT = 2047
"""What the guest takes as one line, without its end."""
ANSWER_LIMIT = 128
SKIP_LIMIT = 64 << 10
CHUNK = 4096


class BirthWire:
    """What is connected to the listening socket at ``path``, when something is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def prepare(self) -> None:
        """Connect ahead, if that has not been done; never raises."""
        if self._socket is None:
            with contextlib.suppress(OSError):
                self._socket = call_unix(self._path)

    def disconnect(self) -> None:
        """Drop the connection, and what was not sent."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def say(self, line: str) -> None:
        """Send a line; the guest has it once it runs and has its port open. Never raises.

        What comes of it, ``hear`` tells.
        """
        message = line.encode()
        self.prepare()
        try:
            if self._socket is None or len(message) > LINE_LIMIT:
                raise ConnectionError
            # a line that another has begun, before the guest was frozen, ends here
            if self._socket.send(b"\n" + message + b"\n") != len(message) + 2:
                raise ConnectionError
        except OSError:
            self.disconnect()

    async def hear(self, nonce: str, timeout: float) -> None:
        """Return when the guest has done as the line says that was sent last, with ``nonce`` in it.

        On failure it may have done so all the same, and doing it again is harmless: Interrupted
        (``agent-unavailable``, ``agent-timeout``), HostFailure (``agent-protocol``).
        """
        try:
            async with asyncio.timeout(timeout):
                untrusted = await self._find_answer(nonce)
            if untrusted != f"ok {nonce}".encode():
                raise _protocol(f"it says {untrusted!r}")
        except BaseException as error:
            self.disconnect()
            if isinstance(error, TimeoutError):
                raise Interrupted(
                    Code.AGENT_TIMEOUT, f"the guest's birth port was silent for {timeout:g} s"
                ) from error
            if isinstance(error, OSError):
                raise Interrupted(
                    Code.AGENT_UNAVAILABLE, "the guest's birth port went away"
                ) from error
            raise

    async def _find_answer(self, nonce: str) -> bytes:
        """Return the first line that has the nonce as its second word."""
        loop = asyncio.get_running_loop()
        untrusted, skipped = b"", 0
        while skipped <= SKIP_LIMIT:
            line, end, rest = untrusted.partition(b"\n")
            if end and line.split(b" ")[1:2] == [nonce.encode()] and len(line) <= ANSWER_LIMIT:
                return line
            if end or len(untrusted) > ANSWER_LIMIT:
                skipped += len(untrusted) - len(rest)
                untrusted = rest
                continue
            if self._socket is None:
                raise ConnectionError
            chunk = await loop.sock_recv(self._socket, CHUNK)
            if not chunk:
                raise ConnectionError
            untrusted += chunk
        raise _protocol("it never stops talking")


def _protocol(what: str) -> HostFailure:
    return HostFailure(Code.AGENT_PROTOCOL, f"the guest's birth port can't be understood: {what}")
