"""The blocking way to the daemon: HTTP/1.1 over its unix socket, by the standard library alone.

A connection is kept and used again. Not thread-safe: one ``Connection`` a thread.
"""

import contextlib
import http.client
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from serai.client.calls import LONG_POLL, Call, problem_in, show_job, waiting
from serai.errors import Code, Interrupted, NotFound, error_from_problem
from serai.model.job import Job

T = TypeVar("T")

OnProgress = Callable[[Job], None]

CHUNK = 256 << 10
PATH_LIMIT = 107
"""What fits into an address of a unix socket (unix(7))."""


def connect_socket(path: Path) -> socket.socket:
    """Return a socket connected to ``path``, however long; NotFound when nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) <= PATH_LIMIT:
            sock.connect(str(path))
        else:
            _connect_long(sock, path)
    except PermissionError as error:
        sock.close()
        raise NotFound(
            Code.DAEMON_UNREACHABLE,
            f"you may not talk to the daemon at {path}",
            hint="It belongs to another user: use its account, or a daemon of your own.",
        ) from error
    except OSError as error:
        sock.close()
        raise unreachable(path) from error
    return sock


def _connect_long(sock: socket.socket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def unreachable(path: Path) -> NotFound:
    """Return the error for a daemon that is not there."""
    return NotFound(
        Code.DAEMON_UNREACHABLE,
        f"no daemon answers at {path}",
        hint="Start one: serai daemon start",
    )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = connect_socket(self._path)


class Connection:
    """Sends calls to the daemon whose socket is at ``path``; connects when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._http: _UnixConnection | None = None

    def close(self) -> None:
        """Drop the connection; the next call makes a new one."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def ask(self, call: Call[T]) -> T:
        """Send a call and return its answer; raises the problem that it was answered with.

        NotFound ``daemon-unreachable`` when nobody listens, Interrupted when the daemon went away
        before it answered: then nobody knows whether it was done.
        """
        response = self._send(call, call.body)
        body = response.read()
        if response.status >= 400:
            raise problem_in(response.status, body)
        return call.decode(body) if call.kind is not None else body  # type: ignore[return-value]

    def stream(self, call: Call[bytes]) -> Iterator[bytes]:
        """Send a call and give its answer in pieces, as they come."""
        response = self._send(call, call.body)
        if response.status >= 400:
            raise problem_in(response.status, response.read())
        try:
            while chunk := response.read1(CHUNK):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(call) from error
        finally:
            self.close()

    def send(self, call: Call[None], chunks: Iterable[bytes]) -> None:
        """Send a call with a body of any length."""
        response = self._send(call, chunks)
        body = response.read()
        if response.status >= 400:
            raise problem_in(response.status, body)

    def finish(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """Send a call that makes a job and wait for its end; raises the problem that ended it.

        ``on_progress`` is called with the job about four times a second meanwhile.
        """
        seconds = LONG_POLL if on_progress is None else 0.25
        job = self.ask(waiting(call, seconds))
        while not job.is_final:
            if on_progress is not None:
                on_progress(job)
            job = self.ask(waiting(show_job(job.id), seconds))
        if job.problem is not None:
            raise error_from_problem(job.problem)
        return job

    def _send(
        self, call: Call[T], body: bytes | Iterable[bytes] | None
    ) -> http.client.HTTPResponse:
        if self._http is not None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._is_stale():
                    self.close()
        if self._http is None:
            self._http = _UnixConnection(self.path)
            self._http.connect()
        headers = {"Content-Type": call.content_type, **call.headers}
        try:
            if self._http.sock is not None:
                self._http.sock.settimeout(call.timeout)
            self._http.request(call.method, call.target, body=body, headers=headers)
            return self._http.getresponse()
        except TimeoutError as error:
            self.close()
            raise Interrupted(
                Code.TIMEOUT, f"the daemon did not answer within {call.timeout:g} s"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(call) from error

    def _is_stale(self) -> bool:
        """Tell whether the daemon has closed the kept connection meanwhile."""
        assert self._http is not None
        sock = self._http.sock
        if sock is None:
            return True
        sock.settimeout(0.0)
        try:
            return sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    def _lost(self, call: Call[T]) -> Interrupted:
        self.close()
        return Interrupted(
            Code.DAEMON_UNREACHABLE,
            "the daemon went away before it answered; it is not known whether it was done",
            hint="Look at what is there before you repeat it.",
            details={"request": f"{call.method} {call.path}"},
        )
