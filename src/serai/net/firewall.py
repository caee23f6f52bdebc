"""Our two nftables tables in a namespace; see ``serai.net``."""

from collections.abc import Mapping
from dataclasses import dataclass

from serai.model.network import PortCounters
from serai.plan.firewall import Ruleset


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the kernel has counted, by tap. ``generation`` changes when it began anew."""

    generation: str
    ports: Mapping[str, PortCounters]


class Firewall:
    """The tables of one daemon in one namespace: it alone changes them."""

    def __init__(self, owner: str, *, namespace: str = "") -> None:
        raise NotImplementedError

    async def apply(self, after: Ruleset) -> int:
        """Make it so in one transaction, by difference to what was applied last.

        Return the number of commands, 0 if nothing was to change. The first call, and one after
        somebody meddled, loads everything. On failure nothing has changed.
        """
        raise NotImplementedError

    async def mend(self) -> str:
        """Compare the kernel's rules with those applied last, load all anew if they differ.

        Return a sentence that says what differed; "" when all is well.
        """
        raise NotImplementedError

    async def read_counters(self) -> Reading:
        """Return the counters of all ports, in one call."""
        raise NotImplementedError

    async def remove(self) -> None:
        """Remove our tables; fine if there are none."""
        raise NotImplementedError
