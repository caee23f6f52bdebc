"""Bridges, taps and pairs through netlink; see ``serai.net``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A network's bridge as it should be. ``label`` is the network's name, for its alias.

    ``addresses`` are with their length ("10.1.0.1/24"). ``reach_localhost``: a forward should also
    answer at 127.0.0.1.
    """

    name: str
    label: str
    addresses: tuple[str, ...] = ()
    reach_localhost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A port's tap as it should be: attached to ``bridge``, opened by ``uid`` (None: by root).

    ``isolated`` ports of a bridge reach its host, but not each other.
    """

    name: str
    label: str
    bridge: str
    uid: int | None = None
    isolated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of ours that is there."""

    name: str
    kind: str
    label: str
    bridge: str
    is_up: bool


class Links:
    """The interfaces of one daemon in one namespace. Make it with ``open_links``."""

    async def ensure_bridge(self, wish: Bridge) -> bool:
        """Have the bridge as wished; True if anything had to be changed."""
        raise NotImplementedError

    async def ensure_tap(self, wish: Tap) -> bool:
        """Have the tap as wished, up and persistent; True if anything had to be changed.

        Conflict (``bridge-missing``) when its bridge is not there.
        """
        raise NotImplementedError

    async def remove(self, name: str) -> None:
        """Remove an interface of ours; fine if it is not there. One that is not ours stays."""
        raise NotImplementedError

    async def list_ours(self) -> list[Link]:
        """Return all interfaces of this daemon in this namespace."""
        raise NotImplementedError

    async def has_bridge(self, name: str) -> bool:
        """Tell whether there is a bridge of that name, whoever looks after it."""
        raise NotImplementedError

    async def routes(self) -> list[str]:
        """Return the prefixes that the host routes but for those of our own bridges."""
        raise NotImplementedError


@asynccontextmanager
async def open_links(owner: str, *, namespace: str = "") -> AsyncIterator[Links]:
    """Open netlink in a namespace; Denied (``network-unavailable``) without CAP_NET_ADMIN."""
    raise NotImplementedError
    yield Links()
