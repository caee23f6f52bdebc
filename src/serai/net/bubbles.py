"""Namespaces in which machines keep their addresses; see ``serai.net``."""

from dataclasses import dataclass

from serai.net.links import Links


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubble:
    """A bubble as it should be. ``transfer`` ("100.64.0.4/30") joins it to the host, unique there.

    Inside, bridges, taps and the firewall are as on a host: made by the same hands with
    ``namespace=bubble.namespace``; ``transfer`` goes into ``uplinks`` of the host's ruleset.
    """

    id: str
    namespace: str
    transfer: str


async def ensure_bubble(links: Links, wish: Bubble) -> bool:
    """Have the namespace and its way out through the host; True if anything had to be changed."""
    raise NotImplementedError


async def remove_bubble(links: Links, bubble: Bubble) -> None:
    """Remove it with all that is inside; fine if it is not there."""
    raise NotImplementedError


async def list_bubbles(links: Links) -> list[str]:
    """Return the namespaces of this daemon's bubbles."""
    raise NotImplementedError
