"""How fast a port may be: token buckets in the kernel (tc-tbf(8)), both ways.

    guest receives   a bucket on its tap
    guest sends      what comes from the tap goes through an interface of its own (ifb) with a bucket

What is over the rate waits, up to a tenth of a second's worth, and is dropped beyond, so that TCP
finds its rate without stopping. Rates count whole frames. Limits are changed live.
"""

from typing import Any

from pyroute2 import NetlinkError

from serai.errors import Code, HostFailure
from serai.model.network import PortLimits
from serai.net.links import Links, set_quiet
from serai.plan.network import shaper_of

HANDLE = 0x10000
INGRESS = 0xFFFF0000
ROOT = 0xFFFFFFFF
LATENCY = "100ms"
LEAST_BURST = 64 << 10
"""A frame of virtio may be 64 KiB large before it is cut up."""
BURST_SECONDS = 0.02
ETH_P_ALL = 0x0003
ABSENT = (2, 19, 22, 95)
"""ENOENT, ENODEV, EINVAL and EOPNOTSUPP: what the kernel says of something that is not there."""


def burst_of(rate: int, burst: int) -> int:
    """Return the burst, or what is chosen for a rate where none was."""
    return max(burst or int(rate * BURST_SECONDS), LEAST_BURST)


async def ensure_limits(links: Links, tap: str, limits: PortLimits) -> None:
    """Have a tap limited as wished, live; no limits remove what was there.

    Raises HostFailure (``network-failed``) when there is no such tap.
    """
    await links.do(f"limit {tap}", lambda: _limit(links, tap, limits))


def _limit(links: Links, tap: str, limits: PortLimits) -> None:
    index = links.index_of(tap)
    if not index:
        raise HostFailure(Code.NETWORK_FAILED, f"{tap} is not there")
    there = links.route.get_qdiscs(index=index)
    if not limits.rate_in and not limits.rate_out and not any(map(_is_limit, there)):
        return
    _bucket(links, index, limits.rate_in, limits.burst_in)
    shaper = shaper_of(tap)
    if not limits.rate_out:
        _forget(links, tap, shaper)
        return
    through = _shaper(links, tap, shaper)
    _bucket(links, through, limits.rate_out, limits.burst_out)
    _lead(links, index, through)


def _is_limit(qdisc: Any) -> bool:
    return qdisc.get_attr("TCA_KIND") in ("tbf", "ingress")


def _bucket(links: Links, index: int, rate: int, burst: int) -> None:
    has_one = any(
        each["parent"] == ROOT and each.get_attr("TCA_KIND") == "tbf"
        for each in links.route.get_qdiscs(index=index)
    )
    if not rate:
        if has_one:
            links.route.tc("del", index=index, parent=ROOT)
        return
    links.route.tc(
        "change" if has_one else "replace",
        "tbf",
        index=index,
        parent=ROOT,
        handle=HANDLE,
        rate=f"{rate * 8}bit",
        burst=burst_of(rate, burst),
        latency=LATENCY,
    )


def _shaper(links: Links, tap: str, shaper: str) -> int:
    if not links.index_of(shaper):
        links.route.link("add", ifname=shaper, kind="ifb")
    index = links.index_of(shaper)
    set_quiet(shaper, disable_ipv6=True)
    links.route.link("set", index=index, ifalias=f"serai {links.owner} limits {tap}", state="up")
    return index


def _lead(links: Links, index: int, through: int) -> None:
    """Send all that comes from the tap through ``through``; once is enough."""
    if any(each.get_attr("TCA_KIND") == "ingress" for each in links.route.get_qdiscs(index=index)):
        return
    links.route.tc("add", "ingress", index=index, handle=INGRESS)
    links.route.tc(
        "add-filter", "u32", index=index, parent=INGRESS, prio=1, protocol=ETH_P_ALL,
        keys=["0x0/0x0+0"], target=HANDLE,
        action=[
            {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": through}
        ],
    )  # fmt: skip


def _forget(links: Links, tap: str, shaper: str) -> None:
    index, through = links.index_of(tap), links.index_of(shaper)
    try:
        links.route.tc("del", "ingress", index=index, parent=0xFFFFFFF1)
    except NetlinkError as error:
        if error.code not in ABSENT:
            raise
    if through:
        links.route.link("del", index=through)
