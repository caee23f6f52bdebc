"""Bubbles: namespaces in which machines keep their addresses; out through NAT, so none collide.

    bridge, taps, firewall, dnsmasq (as on a host)
        │ NAT
    up0 ═══ su… on the host, in a transfer subnet of its own ── NAT ── outside

Inside, everything is made by the same hands with ``namespace=``; only the way out is made here.
"""

import asyncio
import os
from dataclasses import dataclass

from serai.host.namespaces import (
    has_namespace,
    list_namespaces,
    make_namespace,
    path_of,
    remove_namespace,
)
from serai.net.links import Links, Pair, open_links, write_sysctl
from serai.plan.bubbles import LENGTH6, ends_of
from serai.plan.network import bubble_of, bubbles_of, uplink_of

INNER = "up0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubble:
    """A bubble as it should be. ``transfer`` ("100.64.0.4/30") joins it to the host, unique there.

    ``transfer`` also goes into ``uplinks`` of the host's ruleset, which lets it out. ``has_ipv6``: IPv6
    leads out, too. ``reach_localhost``: a forward into it also answers at the host's 127.0.0.1.
    """

    id: str
    label: str
    transfer: str
    has_ipv6: bool = False
    reach_localhost: bool = False

    def namespace(self, owner: str) -> str:
        """Return the name of its namespace, for a daemon."""
        return bubble_of(owner, self.id)

    @property
    def outer(self) -> tuple[str, ...]:
        """The host's addresses on the pair, with their lengths."""
        ends = ends_of(self.transfer)
        return self._known(f"{ends.outer}/{ends.length}", f"{ends.outer6}/{LENGTH6}")

    @property
    def inner(self) -> tuple[str, ...]:
        """Its own addresses on the pair, with their lengths."""
        ends = ends_of(self.transfer)
        return self._known(f"{ends.inner}/{ends.length}", f"{ends.inner6}/{LENGTH6}")

    @property
    def gateways(self) -> tuple[str, ...]:
        """Where what leaves it goes to."""
        ends = ends_of(self.transfer)
        return self._known(ends.outer, ends.outer6)

    def _known(self, v4: str, v6: str) -> tuple[str, ...]:
        return (v4, v6) if self.has_ipv6 else (v4,)


async def ensure_bubble(links: Links, wish: Bubble) -> bool:
    """Have the namespace and its way out through the host; True if anything was changed.

    ``links`` are the host's. Raises Denied (``network-unavailable``), HostFailure.
    """
    namespace = wish.namespace(links.owner)
    is_new = not has_namespace(namespace)
    await asyncio.to_thread(make_namespace, namespace)
    inner_end = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        pair = Pair(
            name=uplink_of(wish.id),
            label=f"bubble {wish.label}",
            peer=INNER,
            peer_namespace=inner_end,
            addresses=wish.outer,
            reach_localhost=wish.reach_localhost,
        )
        async with open_links(links.owner, namespace=namespace) as inside:
            if not await inside.has(INNER):  # where there is a pair, it leads somewhere else
                await links.remove(pair.name)
            changed = await links.ensure_pair(pair)
            changed |= await _lead_out(inside, wish)
    finally:
        os.close(inner_end)
    return changed or is_new


async def _lead_out(inside: Links, wish: Bubble) -> bool:
    changed = await inside.ensure_address("lo", ("127.0.0.1/8",))
    changed |= await inside.ensure_address(INNER, wish.inner, gateways=wish.gateways)
    changed |= await inside.do("let a bubble route", lambda: _route(v6=wish.has_ipv6))
    return changed


def _route(*, v6: bool) -> bool:
    changed = write_sysctl("ipv4/ip_forward", 1)
    return write_sysctl("ipv6/conf/all/forwarding", int(v6)) or changed


async def remove_bubble(links: Links, bubble: Bubble) -> None:
    """Remove it with all interfaces inside; fine if it is not there.

    Programs inside are ended by whoever started them, beforehand.
    """
    await links.remove(uplink_of(bubble.id))
    await remove_namespace_of(bubble.namespace(links.owner))


async def remove_namespace_of(namespace: str) -> None:
    """Remove the namespace of a bubble that nobody knows; what led into it goes with it."""
    await asyncio.to_thread(remove_namespace, namespace)


async def list_bubbles(links: Links) -> list[str]:
    """Return the namespaces of this daemon's bubbles."""
    return await asyncio.to_thread(list_namespaces, bubbles_of(links.owner))
