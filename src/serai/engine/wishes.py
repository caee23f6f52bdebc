"""What a fork, or a launch of a published image, is to make; and how a spare becomes it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from serai.engine.ahead import Spare
from serai.engine.moments import Frozen
from serai.model.event import EventKind
from serai.model.firstboot import WaitFor
from serai.model.guest import GuestSpec
from serai.model.network import InBubble, PortSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be made: a guest for each name, from what ``find`` gives.

    ``origin`` is a snapshot's id, "" where guests are forked as they are now; then ``guest`` is the id
    of the one, "" of several. ``seed`` and ``hostname`` are what the new guest is told at its first
    boot, "" for what its source was. In a group each of ``groups`` has a name for everything that
    ``find`` gives, in the same order; guests of a group share a bubble. ``bubble`` is the one in which
    the source is.
    """

    names: list[str]
    source: str
    subject: str
    origin: str
    find: Callable[[], Awaitable[Sequence[Frozen]]]
    spec: Callable[[GuestSpec], GuestSpec]
    ttl: float
    keep_identity: bool
    wait: bool
    guest: str = ""
    ports: tuple[PortSpec, ...] = ()
    wait_for: WaitFor = WaitFor.AGENT
    seed: str = ""
    hostname: str = ""
    groups: list[list[str]] = field(default_factory=list)
    bubble: InBubble | None = None

    @property
    def stock(self) -> str:
        """The source under which the pool has such guests, "" where they can't be made ahead.

        That is so for what is known only now: who it is to be, and where.
        """
        if self.keep_identity or self.ports or self.bubble:
            return ""
        return self.origin or self.guest

    def which(self, name: str) -> int:
        """Return the place, in what ``find`` gives, of what the guest is made from."""
        return next((group.index(name) for group in self.groups if name in group), 0)


async def hand_out(spare: Spare, wish: Wish, spec: GuestSpec, *, name: str, job_id: str) -> None:
    """Make a spare the guest that is wished for, one like ``spec``. What is stored of it says POOL."""
    driver = spare.driver
    house, now = driver.house, driver.house.journal.now()
    driver.revise(
        spec=msgspec.structs.replace(wish.spec(spec), name=name),
        created_at=now,
        expires_at=now + wish.ttl if wish.ttl else 0.0,
        coming=job_id,
        hostname=name if driver.record.seed else "",
    )
    house.fabric.hold(driver.record.id, name, driver.record.ports)
    if driver.record.ports:
        await house.cabling.refresh()
    driver.tell(EventKind.GUEST_FORKED, source=wish.source)
    driver.tell(EventKind.GUEST_STATE, state=str(driver.state), before="")
