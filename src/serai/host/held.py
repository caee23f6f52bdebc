"""A running program, held by its pidfd (pidfd_open(2)), so that nothing we do hits another one.

A number is given to a new process once the old one was reaped; a pidfd stays with the one that it
was opened for. So a signal never reaches a stranger, and the end of a program that we did not start
is seen as soon as that of a child. Works under any event loop, and beside its own child watcher.
"""

import asyncio
import contextlib
import os
import signal

from serai.host.procfs import holds_memory, option_of


class Process:
    """A program that runs. Make it with ``process.spawn`` or ``attach``.

    ``leads``: a child that leads a process group of its own, which ends with it.
    """

    def __init__(self, pid: int, pidfd: int, *, is_child: bool, leads: bool = False) -> None:
        self.pid = pid
        self.is_child = is_child
        self._leads = leads
        self._pidfd = pidfd
        self._let_go = False
        self._ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit)

    @classmethod
    def attach(cls, pid: int, option: str, value: str, *, holds: str) -> "Process | None":
        """Hold the program ``pid`` if its argv has ``option value`` and it holds our memory file.

        None if it is not that one: the number may have gone to another, and anybody can write an
        argv, but only what we started has the memfd of that name (memfd_create(2)).
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if option_of(pid, option) != value or not holds_memory(pid, holds):
            os.close(pidfd)
            return None
        return cls(pid, pidfd, is_child=False)

    @property
    def has_ended(self) -> bool:
        """True once its end was seen."""
        return self._ended.done()

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        status = self._reap() if self.is_child else None
        if not self._ended.done():
            self._ended.set_result(status)
        if self._let_go:
            self._close_pidfd()

    def _reap(self) -> int | None:
        if self._leads:
            self._kill_group()  # it is not reaped yet: the group's number is still its own
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    async def wait(self) -> int | None:
        """Wait for its end; return its exit code (``-N`` after signal N), None if not our child."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended, or was let go, gets none."""
        if not self._ended.done() and not self._let_go:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """Kill it with all of its group. Only for a child that leads one."""
        assert self.is_child and self._leads
        if not self._ended.done():
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go. A child that still runs goes on, and is reaped when it ends.

        Whoever waits for one that is not our child is cancelled.
        """
        if self._let_go:
            return
        self._let_go = True
        if self._ended.done():
            self._close_pidfd()
        elif not self.is_child:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._ended.cancel()
            self._close_pidfd()

    def _close_pidfd(self) -> None:
        os.close(self._pidfd)
        self._pidfd = -1
