"""The mailbox of one guest's task: what happened comes first, then what is asked, all bounded."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from serai.errors import Busy, Code
from serai.model.actions import Action
from serai.model.job import Job
from serai.model.lifecycle import Verb

T = TypeVar("T")

ORDER_LIMIT = 64
HAPPENED_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """An action for a guest's task; ``accepted`` gets its job, or the refusal."""

    verb: Verb
    action: Action
    key: str = ""
    accepted: asyncio.Future[Job] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Errand:
    """Work of somebody else that needs the guest to itself: done in the guest's task, in its turn.

    ``verb`` is what the guest's state has to allow. ``done`` gets what ``work`` returned or raised,
    or the refusal; with ``called_off`` set it is not begun any more.
    """

    def __init__(self, verb: Verb, work: Callable[[], Awaitable[Any]]) -> None:
        self.verb = verb
        self.work = work
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.called_off = False


class Mailbox(Generic[T]):
    """Two bounded queues and one bell. ``T`` is what may happen."""

    def __init__(self) -> None:
        self._happened: deque[T] = deque(maxlen=HAPPENED_LIMIT)
        self._orders: deque[Order | Errand] = deque()
        self._bell = asyncio.Event()

    def tell(self, what: T) -> None:
        """Say that something happened; with over 1,024 unread, the oldest are lost."""
        self._happened.append(what)
        self._bell.set()

    def ask(self, order: Order | Errand) -> None:
        """Put an order at the end; Busy (``queue-full``) with over 64 unread."""
        if len(self._orders) >= ORDER_LIMIT:
            raise Busy(
                Code.QUEUE_FULL,
                "too many requests wait for this guest",
                hint="Wait until some have ended: serai job list",
            )
        self._orders.append(order)
        self._bell.set()

    async def take(self) -> T | Order | Errand:
        """Wait for the next message: all that happened before anything that is asked."""
        while not self._happened and not self._orders:
            self._bell.clear()
            await self._bell.wait()
        return self._happened.popleft() if self._happened else self._orders.popleft()

    def close(self) -> list[Order | Errand]:
        """Return the orders that nobody will read any more."""
        orders = list(self._orders)
        self._orders.clear()
        return orders
