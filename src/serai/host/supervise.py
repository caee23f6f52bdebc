"""Tasks with an owner: whoever starts one also waits for its end.

The only place that creates bare tasks. A task that fails is logged with its trace and takes no
other down; the daemon goes on for all other guests.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

from serai.errors import Code, HostFailure

log = logging.getLogger(__name__)

T = TypeVar("T")


class Supervisor:
    """Owns tasks; closing cancels them and waits until all have ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        while self._tasks:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> "asyncio.Task[T]":
        """Start ``work``; a failure is logged under ``name``."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        if self._closing:
            task.cancel()
        return task

    def _on_done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the task %s failed", task.get_name(), exc_info=error)

    async def shielded(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """Do ``work`` to its end even if the caller is cancelled; its failure is the caller's."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


async def whole(work: Coroutine[Any, Any, T], *, patience: float) -> T:
    """Do ``work`` to its end, also when the caller is cancelled meanwhile: then CancelledError follows.

    What has not ended ``patience`` seconds after that is cancelled, and waited for.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            asyncio.get_running_loop().call_later(patience, task.cancel)
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s, after it was called off", error)
        raise


async def wait_until(
    what: str,
    check: Callable[[], Awaitable[bool] | bool],
    *,
    timeout: float,
    every: float,
    slowest: float = 0.0,
) -> None:
    """Ask ``check`` until it is true, for what has no event; the one polling loop of serai.

    The pause grows from ``every`` to ``slowest`` seconds. HostFailure (``timeout``) says ``what``
    it waited for.
    """
    pause = every
    try:
        async with asyncio.timeout(timeout):
            while True:
                answer = check()
                if await answer if inspect.isawaitable(answer) else answer:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, max(slowest, every))
    except TimeoutError as error:
        raise HostFailure(Code.TIMEOUT, f"{what}: not within {timeout:g} s") from error
