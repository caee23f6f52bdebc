"""A process that has imported the daemon, and forks one whenever it is asked: it is there in no time.

Most of what starting a daemon takes is importing it. What is forked does all that ``serai daemon run`` does
from its first line on; only how it came to be is another way, as a test of many daemons does not mind.

    python nursery.py FD      serves the socket FD until nobody has its other end
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from typing import NoReturn

from serai import __main__ as command
from serai.host.namespaces import enter

REQUEST_LIMIT = 1 << 20


class Child:
    """A daemon that another process has forked: what ``keeper`` uses of a Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has died already
            self._pidfd = os.open(os.devnull, os.O_RDONLY)  # readable, as that of an ended process

    def __del__(self) -> None:
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return 0 if select.select([self._pidfd], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("daemon", timeout or 0)
        return 0


class Nursery:
    """The process, as long as it is wanted; daemons outlive it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def fork(self, environ: Mapping[str, str], namespace: str, log_fd: int, ready_fd: int) -> Child:
        """Start a daemon; it prints to ``log_fd`` and says at ``ready_fd`` when it answers."""
        request = json.dumps([dict(environ), namespace]).encode()
        socket.send_fds(self._socket, [request], [log_fd, ready_fd])
        return Child(int(self._socket.recv(20)))

    def close(self) -> None:
        """Let it end."""
        self._socket.close()
        self._process.wait()


def _serve(ours: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        request, fds, _, _ = socket.recv_fds(ours, REQUEST_LIMIT, 2)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_daemon(*json.loads(request), *fds)
        for fd in fds:
            os.close(fd)
        ours.send(str(pid).encode())


def _be_daemon(environ: Mapping[str, str], namespace: str, log_fd: int, ready_fd: int) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.clear()
        os.environ.update(environ)
        for target in (1, 2):
            os.dup2(log_fd, target)
        os.close(log_fd)
        if namespace:
            enter(namespace)
        sys.argv[:] = ["serai", "daemon", "run", "--ready-fd", str(ready_fd)]
        code = command.main()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Import all that a daemon does, and serve."""
    for name in ("serai.cli.main", "serai.daemon"):
        import_module(name)
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        _serve(ours)


if __name__ == "__main__":
    main()
