"""Bytes to and from a guest, like its serial console: a WebSocket on the daemon's socket, without threads or a loop.

``fileno`` makes it something to ``select`` on; ``receive`` then gives what has arrived.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from serai.client.blocking import connect_socket
from serai.client.faults import problem_in
from serai.errors import Code, Conflict, Interrupted, SeraiError

CHUNK = 64 << 10
TIMEOUT = 30.0
"""How long the daemon may take to open a console, or to take what is typed, in seconds."""
GOOD_ENDS = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)
REASONS: Mapping[str, Code] = {code.value: code for code in Code}


class Console:
    """One open console; use it in a ``with`` block. Making it raises the problem of a refusal.

    ``what`` is how it is called where something goes wrong.
    """

    def __init__(self, path: Path, target: str, what: str = "console") -> None:
        self._what = what
        self._protocol = ClientProtocol(parse_uri(f"ws://localhost{target}"))
        self._waiting = b""
        self._at_end = False
        self._socket = connect_socket(path)
        self._socket.settimeout(TIMEOUT)
        try:
            self._shake_hands()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when something has arrived."""
        return self._socket.fileno()

    @property
    def is_open(self) -> bool:
        """False after the console's end."""
        return self._protocol.state is State.OPEN

    @property
    def has_data(self) -> bool:
        """True when ``receive`` has something already: what came along with the daemon's consent."""
        return bool(self._waiting)

    def send(self, data: bytes) -> None:
        """Type ``data``. Raises Interrupted when the daemon is gone."""
        if self.is_open:
            self._protocol.send_binary(data)
            self._flush()

    def receive(self) -> bytes:
        """Return what has arrived, waiting for something; look at ``is_open`` afterwards.

        Raises the reason when the console did not end well: Conflict for a problem that the daemon
        names, Interrupted when it stops or is gone.
        """
        if self.is_open and not self._waiting:
            self._read()
            self._take()
            self._flush()
        data, self._waiting = self._waiting, b""
        end = self._protocol.close_rcvd
        if not self.is_open and not data and (end is None or end.code not in GOOD_ENDS):
            raise self._closed()
        return data

    def _shake_hands(self) -> None:
        request = self._protocol.connect()
        self._protocol.send_request(request)
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read()
        self._take()
        refused = self._protocol.handshake_exc
        if isinstance(refused, InvalidStatus):
            answer = refused.response
            raise problem_in(answer.status_code, bytes(answer.body or b"")) from refused
        if refused is not None:
            raise self._closed() from refused

    def _take(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            assert isinstance(event, Frame)
            if event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                self._waiting += event.data

    def _read(self) -> None:
        if self._at_end:
            return
        try:
            data = self._socket.recv(CHUNK)
        except OSError:
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._at_end = True
            self._protocol.receive_eof()

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.sendall(data)
                else:
                    self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other side is gone: the next ``receive`` says so

    def _closed(self) -> SeraiError:
        reason = self._protocol.close_rcvd.reason if self._protocol.close_rcvd else ""
        code = REASONS.get(reason, Code.DAEMON_UNREACHABLE)
        if code is Code.DAEMON_STOPPING:
            return Interrupted(code, "the daemon is stopping; the guest runs on")
        if code is Code.DAEMON_UNREACHABLE:
            return Interrupted(code, f"the {self._what} was cut off: the daemon went away")
        return Conflict(code, f"the {self._what} can't be used: {reason}")
