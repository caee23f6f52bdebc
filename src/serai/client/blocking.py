"""The blocking way to the daemon: HTTP/1.1 over its unix socket, by the standard library alone.

A connection is kept and used again for short questions; what lasts (a stream, an upload) gets one
of its own. Not thread-safe: one ``Connection`` a thread.
"""

import http.client
import os
import select
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from serai.client.asking import Asking
from serai.client.calls import Call
from serai.client.faults import cut, lost, not_allowed, problem_in, too_late, unreachable

T = TypeVar("T")

CHUNK = 256 << 10
CONNECT_TIMEOUT = 10.0
PATH_LIMIT = 107
"""What fits into an address of a unix socket (unix(7))."""


def connect_socket(path: Path) -> socket.socket:
    """Return a socket connected to ``path``, however long; NotFound when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT)
    try:
        if len(os.fsencode(path)) <= PATH_LIMIT:
            sock.connect(str(path))
        else:
            _connect_long(sock, path)
    except PermissionError as error:
        sock.close()
        raise not_allowed(path) from error
    except OSError as error:
        sock.close()
        raise unreachable(path) from error
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return sock


def _connect_long(sock: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost")
        self.sock = connect_socket(path)
        self.sock.settimeout(timeout)

    def connect(self) -> None:
        """Refuse: a connection that has ended is replaced, and never opened over the network."""
        raise http.client.NotConnected

    @property
    def has_answer(self) -> bool:
        """True when there is something to read, be it the end of the connection."""
        return self.sock is None or bool(select.select([self.sock], [], [], 0)[0])


class _Answered(Exception):
    """The daemon has answered before it had all of the body: there is no use in sending more."""


class _SourceFailed(Exception):
    """Reading what was to be sent failed; the cause says how."""


def _until_answered(connection: _UnixConnection, chunks: Iterable[bytes]) -> Iterator[bytes]:
    source = iter(chunks)
    while True:
        try:
            chunk = next(source, None)
        except Exception as error:
            raise _SourceFailed from error
        if chunk is None:
            return
        if connection.has_answer:
            raise _Answered
        if chunk:
            yield chunk


class Connection(Asking):
    """Sends calls to the daemon whose socket is at ``path``; connects when it is first needed.

    Several threads may use it at once: each call has a connection to itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[_UnixConnection] = []

    def close(self) -> None:
        """Drop what is connected and idle; the next call connects anew."""
        while self._idle:
            self._idle.pop().close()

    def _take(self, timeout: float | None) -> "_UnixConnection":
        """Return an idle connection that still stands, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_answer:
                connection.sock.settimeout(timeout)
                return connection
            connection.close()  # nothing was asked: it is the end of an idle connection
        return _UnixConnection(self.path, timeout)

    def ask(self, call: Call[T]) -> T:
        """Send a call and return its answer; raises the problem that it was answered with.

        NotFound ``daemon-unreachable`` when nobody listens; Interrupted when the daemon went away
        or was silent too long: then nobody knows whether it was done.
        """
        connection = self._take(call.timeout)
        try:
            response = _send(connection, call, call.body)
            body = _read(response, call)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        if response.status >= 400:
            raise problem_in(response.status, body)
        return call.decode(body)

    def stream(self, call: Call[bytes]) -> Iterator[bytes]:
        """Send a call and give its answer in pieces, as they come.

        Raises Interrupted when the answer is cut off before its end.
        """
        own = _UnixConnection(self.path, call.timeout)
        try:
            response = _send(own, call, call.body)
            if response.status >= 400:
                raise problem_in(response.status, _read(response, call))
            yield from _pieces(response, call)
        finally:
            own.close()

    def collect(self, call: Call[bytes]) -> bytes:
        """Send a call and give its answer, however long, when all of it is there."""
        return b"".join(self.stream(call))

    def send(self, call: Call[None], chunks: Iterable[bytes]) -> None:
        """Send a call with a body of any length; what reading ``chunks`` raises is passed on."""
        own = _UnixConnection(self.path, call.timeout)
        try:
            response = _send(own, call, _until_answered(own, chunks))
            body = _read(response, call)
        except _SourceFailed as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        finally:
            own.close()
        if response.status >= 400:
            raise problem_in(response.status, body)


def _send(
    connection: _UnixConnection, call: Call[T], body: bytes | Iterable[bytes] | None
) -> http.client.HTTPResponse:
    """Send a request and return the head of its answer, also of one that came too early."""
    headers = {"Content-Type": call.content_type, **call.headers}
    try:
        try:
            connection.request(call.method, call.target, body=body, headers=headers)
        except (_Answered, BrokenPipeError, ConnectionResetError):
            pass  # what it has to say can still be read
        response = connection.getresponse()
    except TimeoutError as error:
        raise too_late(call) from error
    except (OSError, http.client.HTTPException) as error:
        raise lost(call) from error
    if response.length is None and not response.chunked:
        raise lost(call)  # the daemon tells how long an answer is: this head was cut off
    return response


def _read(response: http.client.HTTPResponse, call: Call[T]) -> bytes:
    try:
        return response.read()
    except TimeoutError as error:
        raise too_late(call) from error
    except (OSError, http.client.HTTPException) as error:
        raise cut(call) from error


def _pieces(response: http.client.HTTPResponse, call: Call[bytes]) -> Iterator[bytes]:
    try:
        while chunk := response.read1(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise cut(call) from error
    if response.length:  # read1 takes the end of the connection for the end of the answer
        raise cut(call)
