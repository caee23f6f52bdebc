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

    async def tell(self, line: str, nonce: str, timeout: float) -> None:
        """Send a line that holds ``nonce``; return when the guest has done as it says.

        To be asked once at a time. On failure the guest may have done it all the same, and doing it
        again is harmless: Interrupted (``agent-unavailable``, ``agent-timeout``), HostFailure (``agent-protocol``).
        """
        try:
            async with asyncio.timeout(timeout):
                untrusted = await self._exchange(line, nonce)
        except TimeoutError as error:
            self.disconnect()
            raise Interrupted(
                Code.AGENT_TIMEOUT, f"nobody answered at the guest's birth port in {timeout:g} s"
            ) from error
        except OSError as error:
            self.disconnect()
            raise Interrupted(Code.AGENT_UNAVAILABLE, "the guest's birth port went away") from error
        except BaseException:
            self.disconnect()
            raise
        if untrusted != f"ok {nonce}".encode():
            raise _protocol(f"it says {untrusted[:80]!r}")

    async def _exchange(self, line: str, nonce: str) -> bytes:
        """Return the first line that comes back with the nonce in its second place."""
        message = line.encode()
        if len(message) > LINE_LIMIT:
            raise _protocol("it has too many ports to be told about")
        self.prepare()
        if self._socket is None:
            raise ConnectionError
        loop = asyncio.get_running_loop()
        # a line that another has begun, before the guest was frozen, ends here
        await loop.sock_sendall(self._socket, b"\n" + message + b"\n")
        untrusted, skipped = b"", 0
        while skipped <= SKIP_LIMIT:
            untrusted_line, end, rest = untrusted.partition(b"\n")
            if end and untrusted_line.split(b" ")[1:2] == [nonce.encode()]:
                return untrusted_line
            if end or len(untrusted) > ANSWER_LIMIT:
                skipped += len(untrusted) - len(rest)
                untrusted = rest
                continue
            chunk = await loop.sock_recv(self._socket, CHUNK)
            if not chunk:
                raise ConnectionError
            untrusted += chunk
        raise _protocol("it never stops talking")


def _protocol(what: str) -> HostFailure:
    return HostFailure(Code.AGENT_PROTOCOL, f"the guest's birth port can't be understood: {what}")
