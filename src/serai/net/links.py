"""Bridges, taps and pairs through netlink; see ``serai.net``.

    Links ── one thread, in the namespace for as long as it lives ── one netlink socket

An interface is ours by its alias (``serai OWNER LABEL``), which is also what ``ip link`` shows to
people. Everything is looked at before it is changed; what is as it should be is left alone.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from errno import EEXIST, ENODEV, ENOENT
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError

from serai.errors import Code, Conflict, HostFailure
from serai.host.namespaces import enter, network_error
from serai.host.tap import make_tap
from serai.plan.network import TAP, mac_of, shaper_of

SYSCTL = Path("/proc/sys/net")
MAIN_TABLE = 254
NO_DAD = 0x02
ALIAS_LENGTH = 255

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A network's bridge as it should be. ``label`` is the network's name, for its alias.

    ``addresses`` are with their length ("10.1.0.1/24"). ``reach_localhost``: a forward should also
    answer at 127.0.0.1; the firewall then keeps guests from there.
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
class Pair:
    """Two interfaces that are joined: ``name`` here, ``peer`` in the namespace of that descriptor.

    ``reach_localhost`` is as a bridge's.
    """

    name: str
    label: str
    peer: str
    peer_namespace: int | None = None
    addresses: tuple[str, ...] = ()
    bridge: str = ""
    reach_localhost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of ours that is there. ``bridge`` is the one that it is attached to, or ""."""

    name: str
    kind: str
    label: str
    bridge: str
    is_up: bool


class Links:
    """The interfaces of one daemon in one namespace. Make it with ``open_links``."""

    def __init__(self, owner: str, namespace: str, thread: ThreadPoolExecutor) -> None:
        self.owner = owner
        self.namespace = namespace
        self._prefix = f"serai {owner} "
        self._thread = thread
        self._route: IPRoute | None = None  # opened by the thread itself

    # -- what the engine asks for

    async def ensure_bridge(self, wish: Bridge) -> bool:
        """Have the bridge as wished, with a MAC address that stays; True if anything was changed."""
        return await self.do(f"make the bridge {wish.name}", lambda: self._bridge(wish))

    async def ensure_tap(self, wish: Tap) -> bool:
        """Have the tap as wished, up and persistent; True if anything was changed.

        Conflict (``bridge-missing``) when its bridge is not there.
        """
        return await self.do(f"make the tap {wish.name}", lambda: self._tap(wish))

    async def ensure_pair(self, wish: Pair) -> bool:
        """Have the pair as wished; its other end is only made, with no address and down."""
        return await self.do(f"make the pair {wish.name}", lambda: self._pair(wish))

    async def ensure_address(
        self, name: str, addresses: tuple[str, ...], *, gateways: tuple[str, ...] = ()
    ) -> bool:
        """Have an interface up with exactly these addresses, and default routes by ``gateways``."""
        return await self.do(
            f"give {name} its addresses", lambda: self._addressed(name, addresses, gateways)
        )

    async def forget_neighbours(self, name: str, addresses: Iterable[str]) -> None:
        """Have the kernel ask anew who has these addresses behind an interface.

        Whoever gets one of them next would else not be reached until the kernel doubts its answer.
        """
        some = [each for each in addresses if each]
        await self.do(f"forget neighbours at {name}", lambda: self._forget_neighbours(name, some))

    async def remove(self, name: str) -> None:
        """Remove an interface of ours; fine if it is not there. One that is not ours stays."""
        await self.do(f"remove {name}", lambda: self._remove(name))

    async def list_ours(self) -> list[Link]:
        """Return all interfaces of this daemon in this namespace."""
        return await self.do("list interfaces", self._list_ours)

    async def has_bridge(self, name: str) -> bool:
        """Tell whether there is a bridge of that name, whoever looks after it."""
        return await self.do(f"look for {name}", lambda: _kind(self._find(name)) == "bridge")

    async def has(self, name: str) -> bool:
        """Tell whether there is an interface of that name."""
        return await self.do(f"look for {name}", lambda: bool(self.index_of(name)))

    async def routes(self) -> list[str]:
        """Return the prefixes that the host routes but for those of our own bridges."""
        return await self.do("read routes", self._routes)

    async def do(self, what: str, work: Callable[[], T]) -> T:
        """Do ``work`` in the thread of the namespace; for the other modules of this room.

        Raises Denied (``network-unavailable``), HostFailure (``network-failed``: "can't ``what``").
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except NetlinkError as error:
            raise network_error(what, OSError(error.code, str(error))) from error
        except OSError as error:
            raise network_error(what, error) from error

    # -- in the thread

    @property
    def route(self) -> Any:
        """The netlink socket; only in the thread (``do``)."""
        return self._route

    def _open(self) -> None:
        if self.namespace:
            enter(self.namespace)
        self._route = IPRoute()

    def _close(self) -> None:
        if self._route is not None:
            self._route.close()

    def _find(self, name: str) -> Any:
        """Return the link of that name, None without one."""
        try:
            return self.route.link("get", ifname=name)[0]
        except NetlinkError as error:
            if error.code == ENODEV:
                return None
            raise

    def index_of(self, name: str) -> int:
        """Return an interface's number, 0 without one; only in the thread."""
        link = self._find(name)
        return link["index"] if link is not None else 0

    def _bridge(self, wish: Bridge) -> bool:
        link, is_new = self._made(
            wish.name,
            lambda: self.route.link(
                "add", ifname=wish.name, kind="bridge", address=mac_of(wish.name),
                br_stp_state=0, br_mcast_snooping=0, br_forward_delay=0,
            ),
        )  # fmt: skip
        changed = self._label(link, wish.label) or is_new
        has_v6 = any(":" in each for each in wish.addresses)
        changed |= set_quiet(wish.name, disable_ipv6=not has_v6)
        changed |= write_sysctl(f"ipv4/conf/{wish.name}/route_localnet", int(wish.reach_localhost))
        changed |= self._addresses(link["index"], wish.addresses)
        return self._up(link) or changed

    def _tap(self, wish: Tap) -> bool:
        bridge = self.index_of(wish.bridge)
        if not bridge:
            raise Conflict(
                Code.BRIDGE_MISSING,
                f"there is no bridge {wish.bridge} on this host",
                hint="Bring it up again, or move the port to another network.",
            )
        link, is_new = self._made(wish.name, lambda: make_tap(wish.name, uid=wish.uid))
        changed = self._label(link, wish.label) or is_new
        changed |= set_quiet(wish.name, disable_ipv6=True)
        if link.get_attr("IFLA_MASTER") != bridge:
            self.route.link("set", index=link["index"], master=bridge)
            changed = True
        if is_new or wish.isolated != self._is_isolated(link):
            self.route.brport("set", index=link["index"], isolated=int(wish.isolated))
            changed = True
        return self._up(link) or changed

    def _is_isolated(self, link: Any) -> bool:
        info = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
        return bool(info is not None and info.get_attr("IFLA_BRPORT_ISOLATED"))

    def _pair(self, wish: Pair) -> bool:
        def make() -> None:
            peer: dict[str, object] = {"ifname": wish.peer}
            if wish.peer_namespace is not None:
                peer["net_ns_fd"] = wish.peer_namespace
            self.route.link("add", ifname=wish.name, kind="veth", peer=peer)

        link, is_new = self._made(wish.name, make)
        changed = self._label(link, wish.label) or is_new
        has_v6 = any(":" in each for each in wish.addresses)
        changed |= set_quiet(wish.name, disable_ipv6=not has_v6)
        changed |= write_sysctl(f"ipv4/conf/{wish.name}/route_localnet", int(wish.reach_localhost))
        bridge = self.index_of(wish.bridge) if wish.bridge else 0
        if bridge and link.get_attr("IFLA_MASTER") != bridge:
            self.route.link("set", index=link["index"], master=bridge)
            changed = True
        changed |= self._addresses(link["index"], wish.addresses)
        return self._up(link) or changed

    def _forget_neighbours(self, name: str, addresses: Iterable[str]) -> None:
        index = self.index_of(name)
        if not index:
            return
        for address in addresses:
            family = AF_INET6 if ":" in address else AF_INET
            try:
                self.route.neigh("del", dst=address, ifindex=index, family=family)
            except NetlinkError as error:
                if error.code != ENOENT:
                    raise

    def _made(self, name: str, make: Callable[[], object]) -> tuple[Any, bool]:
        link = self._find(name)
        if link is not None:
            return link, False
        try:
            make()
        except NetlinkError as error:
            if error.code != EEXIST:
                raise
        link = self._find(name)
        if link is None:
            raise HostFailure(Code.NETWORK_FAILED, f"{name} was made, but is not there")
        return link, True

    def _label(self, link: Any, label: str) -> bool:
        alias = (self._prefix + label)[:ALIAS_LENGTH]
        if link.get_attr("IFLA_IFALIAS") == alias:
            return False
        self.route.link("set", index=link["index"], ifalias=alias)
        return True

    def _up(self, link: Any) -> bool:
        if link["flags"] & 1:
            return False
        self.route.link("set", index=link["index"], state="up")
        return True

    def _addressed(self, name: str, addresses: tuple[str, ...], gateways: tuple[str, ...]) -> bool:
        link = self._find(name)
        if link is None:
            raise HostFailure(Code.NETWORK_FAILED, f"{name} is not there")
        changed = set_quiet(name, disable_ipv6=not any(":" in each for each in addresses))
        changed |= self._addresses(link["index"], addresses)
        changed |= self._up(link)
        for gateway in gateways:
            with _already_there():
                self.route.route("add", dst="default", gateway=gateway, oif=link["index"])
                changed = True
        return changed

    def _addresses(self, index: int, wished: tuple[str, ...]) -> bool:
        """Have exactly these addresses; what the kernel gave itself (link-local) stays."""
        there = {
            f"{each.get_attr('IFA_LOCAL') or each.get_attr('IFA_ADDRESS')}/{each['prefixlen']}"
            for each in self.route.get_addr(index=index)
            if each["scope"] != 253
        }
        for gone in there - set(wished):
            address, _, length = gone.partition("/")
            self.route.addr("del", index=index, address=address, prefixlen=int(length))
        new = [each for each in wished if each not in there]
        for each in new:
            address, _, length = each.partition("/")
            more = {"flags": NO_DAD} if ":" in address else {}
            with _already_there():
                self.route.addr("add", index=index, address=address, prefixlen=int(length), **more)
        return bool(new) or there != set(wished)

    def _remove(self, name: str) -> None:
        link = self._find(name)
        if link is not None and (link.get_attr("IFLA_IFALIAS") or "").startswith(self._prefix):
            with _gone_already():
                self.route.link("del", index=link["index"])
        if name.startswith(TAP):  # what limits it goes with it
            self._remove(shaper_of(name))

    def _list_ours(self) -> list[Link]:
        links = list(self.route.get_links())
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
        return [
            Link(
                name=names[link["index"]],
                kind=_kind(link),
                label=alias.removeprefix(self._prefix),
                bridge=names.get(link.get_attr("IFLA_MASTER"), ""),
                is_up=bool(link["flags"] & 1),
            )
            for link in links
            if (alias := link.get_attr("IFLA_IFALIAS") or "").startswith(self._prefix)
        ]

    def _routes(self) -> list[str]:
        ours = {
            link["index"]
            for link in self.route.get_links()
            if (link.get_attr("IFLA_IFALIAS") or "").startswith(self._prefix)
        }
        found = []
        for each in self.route.get_routes(table=MAIN_TABLE):
            destination = each.get_attr("RTA_DST")
            if destination is None or each.get_attr("RTA_OIF") in ours:
                continue
            prefix = ipaddress.ip_network(f"{destination}/{each['dst_len']}", strict=False)
            if not prefix.is_link_local and not prefix.is_multicast:
                found.append(str(prefix))
        return sorted(set(found))


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO") if link is not None else None
    return (info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""


@contextlib.contextmanager
def _ignoring(*codes: int) -> Any:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


def _already_there() -> Any:
    return _ignoring(EEXIST)


def _gone_already() -> Any:
    return _ignoring(ENODEV, ENOENT)


def set_quiet(name: str, *, disable_ipv6: bool) -> bool:
    """Have an interface that takes no address and no route from what anybody advertises."""
    changed = write_sysctl(f"ipv6/conf/{name}/disable_ipv6", int(disable_ipv6))
    for what, value in (("accept_ra", 0), ("autoconf", 0), ("accept_dad", 0)):
        changed |= write_sysctl(f"ipv6/conf/{name}/{what}", value)
    return changed


def write_sysctl(name: str, value: int) -> bool:
    """Have a setting of the kernel in this thread's namespace; True if it was another.

    False too where the kernel has none of that name: it was built, or started, without IPv6.
    """
    path = SYSCTL / name
    try:
        if path.read_text().strip() == str(value):
            return False
        path.write_text(str(value))
    except FileNotFoundError:
        return False
    return True


@asynccontextmanager
async def open_links(owner: str, *, namespace: str = "") -> AsyncIterator[Links]:
    """Open netlink in a namespace, for the daemon ``owner`` (``plan.network.owner_of``).

    Raises HostFailure (``network-failed``) when there is no such namespace. Without CAP_NET_ADMIN
    what only looks works, and what changes raises Denied (``network-unavailable``).
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"links{namespace and '-'}{namespace}")
    links = Links(owner, namespace, thread)
    try:
        await links.do(f"open netlink in {namespace or 'our namespace'}", links._open)
        yield links
    finally:
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, links._close))
        thread.shutdown(wait=False)
