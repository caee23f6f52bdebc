"""Blocking work in a thread of its own: it waits for nobody else's, and nobody leaves it behind."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
