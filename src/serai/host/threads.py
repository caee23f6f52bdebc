"""Blocking work in a thread of its own: it waits for nobody else's, and nobody leaves it behind."""

import asyncio
import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

M_ARENA_MAX = -8


def share_heap() -> None:
    """Let all threads take memory from one heap; called once, by the daemon, before it has any.

    Else each has one of its own, to which what it has freed goes back and which nobody else takes
    from (mallopt(3)): with a hundred snapshots that was 13 MiB of 110. A C library without that
    changes nothing.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


async def in_own_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do ``work`` in a new thread and return what it returns.

    A caller that is cancelled goes on only when the work has ended: what it uses may be let go
    then.
    """
    with contextlib.closing(_Pool()) as pool:
        doing = pool.submit(work, *args, **kwargs)
        try:
            return await asyncio.shield(asyncio.wrap_future(doing))
        except asyncio.CancelledError:
            with contextlib.suppress(BaseException):
                await asyncio.shield(asyncio.wrap_future(doing))
            raise


class _Pool(ThreadPoolExecutor):
    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="own")

    def close(self) -> None:
        """Let the thread end when its work has."""
        self.shutdown(wait=False)
