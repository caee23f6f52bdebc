"""The readers: queries on threads of their own, beside the writer and never waiting for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import sqlalchemy as sa

from serai.errors import Busy, Code, SeraiError

T = TypeVar("T")

QUEUE_LIMIT = 4096

Explain = Callable[[Exception], SeraiError]
"""Say what an exception from the database means."""


class Reader:
    """Runs the queries of ``queries``, a few at a time."""

    def __init__(self, engine: sa.Engine, threads: ThreadPoolExecutor, explain: Explain) -> None:
        self._engine = engine
        self._threads = threads
        self._explain = explain
        self._waiting = 0

    async def read(self, query: Callable[..., T], *arguments: object) -> T:
        """Return ``query(connection, *arguments)``.

        Raises HostFailure (``database-failed``) when the database can't be read and Busy
        (``queue-full``) with 4,096 queries waiting.
        """
        if self._waiting >= QUEUE_LIMIT:
            raise Busy(Code.QUEUE_FULL, "too many wait to read", hint="Try again in a moment.")
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._threads, self._query, query, arguments)
        finally:
            self._waiting -= 1

    def _query(self, query: Callable[..., T], arguments: tuple[object, ...]) -> T:
        try:
            with self._engine.connect() as connection:
                return query(connection, *arguments)
        except Exception as error:
            raise self._explain(error) from error
