"""What there is of networks, put up on this host: bridges, taps, rules, DHCP and names, bubbles.

Everything follows from ``fabric``: each method looks at what should be there and has the hands
(``serai.net``) do what is missing, so it may be called again at any time. ``reconcile`` does it for
all, after a restart of daemon or host and now and then; it says what it had to mend. The host and each
bubble are a ``Site``; what is done in one is in ``serai.engine.site``.
"""

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from serai.engine.fabric import Fabric, Held
from serai.engine.site import RUN, Ground, Mended, Site
from serai.errors import Code, Denied, Problem, SeraiError, error_from_problem
from serai.host.namespaces import has_namespace, inside, network_error
from serai.model.guest import GuestRecord
from serai.model.network import (
    InBubble,
    NetworkMode,
    NetworkRecord,
    NetworkSpec,
    Port,
    PortCounters,
    PortUsage,
)
from serai.net.bubbles import (
    Bubble,
    ensure_bubble,
    list_bubbles,
    remove_bubble,
    remove_namespace_of,
)
from serai.net.dnsmasq import Resolver
from serai.net.forwarding import ensure_forwarding
from serai.net.links import Links, open_links
from serai.plan.network import bridge_of, counted

INSTEAD = (
    "Run the daemon as root for networks. A guest without one reaches out through QEMU's own, "
    "and `serai forward add` leads in."
)
MENDED_AT_ONCE = 8
"""How many bubbles are looked at in a turn of the reconciler, besides those that it has not seen."""


class Cabling:
    """Keeps the host as ``fabric`` wants it. Make it with ``open_cabling``.

    ``links`` are those of the host; without them there are no networks here, and ``unavailable`` says
    why.
    """

    def __init__(
        self, fabric: Fabric, ground: Ground, links: Links | None, unavailable: Problem | None
    ) -> None:
        self._fabric = fabric
        self._ground = ground
        self._lock = asyncio.Lock()
        self._host = Site(fabric, ground, links, self._lock) if links is not None else None
        self._unavailable = unavailable
        self._bubbles: dict[str, Site] = {}
        self._unsaved: set[str] = set()

    def check(self) -> Site:
        """Raise Denied (``network-unavailable``) where this host has no networks."""
        if self._host is not None:
            return self._host
        if self._unavailable is None:
            raise Denied(Code.NETWORK_UNAVAILABLE, "this host has no networks", hint=INSTEAD)
        raise error_from_problem(self._unavailable)

    async def check_bridge(self, name: str) -> None:
        """Raise Conflict (``bridge-missing``) when the host has no bridge of that name."""
        await self.check().check_bridge(name)

    async def routes(self) -> list[str]:
        """Return what this host routes already, but for our own networks."""
        return await self.check().links.routes()

    def _sites(self) -> list[Site]:
        return [*([self._host] if self._host else []), *self._bubbles.values()]

    def _sites_in_use(self) -> list[Site]:
        """Return where rules are to be: not on a host without networks, which has nothing of us."""
        return self._sites() if self._fabric.all_networks() else []

    # -- networks ----------------------------------------------------------------------------------

    async def put_up(self, record: NetworkRecord) -> None:
        """Have a network on the host, its rules with it. On failure some of it may be there."""
        host = self.check()
        self._ground.folder.mkdir(parents=True, exist_ok=True)
        for folder in (RUN, self._ground.folder):
            folder.chmod(0o755)  # whatever our umask is
        async with self._lock:
            await host.rules()
            await self._route()
            await host.raise_network(record)

    async def take_down(self, record: NetworkRecord) -> None:
        """Have nothing of a network on the host; it is not in the fabric any more."""
        host = self.check()
        async with self._lock:
            await host.lower_network(record)
            await self._route()
            await (host.rules() if self._fabric.all_networks() else self._leave(host))

    async def _leave(self, host: Site) -> None:
        """Have nothing on this host: there are no networks. The folder says so, and goes last."""
        await host.remove_rules()
        with contextlib.suppress(OSError):  # another daemon has something there
            self._ground.folder.rmdir()
            RUN.rmdir()

    async def change(self, before: NetworkRecord, after: NetworkRecord) -> None:
        """Have a network on the host, and its copies in bubbles, as it is now."""
        host = self.check()
        inside = {each.port.site for each in self._fabric.ports_in(after.id)}
        async with self._lock:
            for bubble in [each for key, each in self._fabric.bubbles().items() if key in inside]:
                await self._site(bubble)
            for site in (host, *(each for key, each in self._bubbles.items() if key in inside)):
                await site.forget_resolver(before)
                await site.rules()
                await site.raise_network(after)

    async def _route(self) -> None:
        """Have the host route as far as its networks and bubbles need it."""
        out = (NetworkMode.NAT, NetworkMode.ROUTED)
        routed = [spec for spec in self._fabric.specs() if spec.mode in out]
        await ensure_forwarding(
            self._ground.memory,
            v4=any(spec.subnet for spec in routed) or bool(self._fabric.bubbles()),
            v6=any(spec.subnet6 for spec in routed)
            or any(self._wish(each).has_ipv6 for each in self._fabric.bubbles().values()),
        )

    # -- bubbles -----------------------------------------------------------------------------------

    async def _site(self, bubble: InBubble | None) -> Site:
        """Return where a port is to be: the host, or its bubble, which is there then."""
        host = self.check()
        if bubble is None:
            return host
        await host.rules()  # they keep it from the networks here before it has a way out
        await self._route()
        wish, owner = self._wish(bubble), self._ground.owner
        if not has_namespace(wish.namespace(owner)):
            await self._forget(bubble.id)
        await ensure_bubble(host.links, wish)
        if bubble.id not in self._bubbles:
            stack = AsyncExitStack()
            links = await stack.enter_async_context(
                open_links(owner, namespace=wish.namespace(owner))
            )
            self._bubbles[bubble.id] = Site(
                self._fabric, self._ground, links, self._lock, bubble=bubble.id, stack=stack
            )
        return self._bubbles[bubble.id]

    def _wish(self, bubble: InBubble) -> Bubble:
        """Return a bubble as those who are in it, and the forwards to them, need it."""
        fabric = self._fabric
        ports = {each.port.id: each.port for each in fabric.ports_at(bubble.id)}
        networks = [fabric.networks.get(each.network) for each in ports.values()]
        return dataclasses.replace(
            _plain(bubble),
            has_ipv6=any(each.spec.subnet6 for each in networks if each is not None),
            reach_localhost=any(each.port in ports for each in fabric.forwards.values()),
        )

    async def _forget(self, bubble_id: str) -> None:
        site = self._bubbles.pop(bubble_id, None)
        if site is not None:
            await site.close()

    async def _burst(self, bubble: InBubble) -> None:
        """Have nothing of a bubble on the host: no port is in it any more."""
        host = self.check()
        await self._forget(bubble.id)
        await self._end_resolvers(f"@{bubble.id}")
        await remove_bubble(host.links, _plain(bubble))

    async def _end_resolvers(self, ending: str) -> None:
        folder = self._ground.folder
        for each in list(folder.iterdir()) if folder.exists() else []:
            if each.name.endswith(ending):
                network_id = each.name.partition("@")[0]
                gone = NetworkSpec(name=each.name)
                bridge = bridge_of(network_id)
                await Resolver(each, bridge=bridge, spec=gone, uid=self._ground.uid).remove()

    # -- ports -------------------------------------------------------------------------------------

    async def connect(self, record: GuestRecord) -> None:
        """Have all that a guest's ports need, before it is started."""
        await self.attach(record.spec.name, record.ports)

    async def attach(self, guest: str, ports: Iterable[Port]) -> None:
        """Have these ports of a guest: rules, addresses, names, taps, limits. Rules come first."""
        by_site: dict[str, list[Port]] = {}
        for port in ports:
            by_site.setdefault(port.site, []).append(port)
        for some in by_site.values():
            self.check()
            async with self._lock:
                await (await self._site(some[0].bubble)).attach(guest, some)

    async def detach(self, ports: Iterable[Port]) -> None:
        """Have nothing of these ports on the host; they are not in the fabric any more.

        A bubble goes with its last port.
        """
        ports = list(ports)
        if not ports or self._host is None:
            return
        async with self._lock:
            for port in ports:
                self._fabric.usage.pop(port.id, None)
            here = [port for port in ports if port.bubble is None]
            if here:
                await self._host.detach(here)
            bubbles = {port.site: port.bubble for port in ports if port.bubble is not None}
            for bubble in bubbles.values():
                if not self._fabric.ports_at(bubble.id):
                    await self._burst(bubble)
                elif bubble.id in self._bubbles:
                    mine = [port for port in ports if port.site == bubble.id]
                    await self._bubbles[bubble.id].detach(mine)
            if bubbles:
                await self._host.rules()
                await self._route()

    @contextmanager
    def open_taps(
        self, ports: Iterable[Port], given: Mapping[str, int]
    ) -> Iterator[dict[str, int]]:
        """Open the taps in bubbles, which nobody finds by name, as long as the block lasts.

        Those that are ``given`` are only added.
        """
        opened: dict[str, int] = {}
        try:
            for port in ports:
                if port.site in self._bubbles and port.tap not in given:
                    opened[port.tap] = self._bubbles[port.site].open_tap(port)
            yield {**given, **opened}
        finally:
            for fd in opened.values():
                os.close(fd)

    def open_tap(self, port: Port) -> int:
        """Open the tap of a port that is attached; the descriptor is the caller's."""
        return (self._bubbles[port.site] if port.site else self.check()).open_tap(port)

    def open_socket(self, bubble: InBubble, family: int) -> socket.socket:
        """Open a TCP socket in a bubble, that does not block; HostFailure (``network-failed``)."""
        namespace = _plain(bubble).namespace(self._ground.owner)
        try:
            found = inside(namespace, lambda: socket.socket(family, socket.SOCK_STREAM))
        except OSError as error:
            raise network_error("reach into the bubble", error) from error
        found.setblocking(False)
        return found

    async def refresh(self) -> None:
        """Have the rules and names of everything as it is now."""
        async with self._lock:
            for site in self._sites_in_use():
                await site.rules()
                await site.resolve_all()

    async def refresh_rules(self, *changed: Port) -> None:
        """Have all rules as they should be now, and the limits of ``changed``."""
        async with self._lock:
            for site in self._sites_in_use():
                await site.rules()
            for port in changed:
                if self._host is not None:
                    await (self._bubbles.get(port.site) or self._host).limit([port])

    async def refresh_forwards(self, port: Port) -> None:
        """Have all rules as they should be now, and the way to a port as forwards to it need it."""
        record = self._fabric.networks.get(port.network)
        host = self.check()
        async with self._lock:
            if port.bubble is not None and port.site in self._fabric.bubbles():
                await self._site(port.bubble)
            elif record is not None and port.bubble is None:
                await host.raise_network(record)
            for site in self._sites():
                await site.rules()

    # -- mending -----------------------------------------------------------------------------------

    async def reconcile(self) -> Mended:
        """Put back what is not as it should be; never raises, whatever it finds."""
        mended = Mended()
        if self._host is None or not self._fabric.networks:
            return mended
        async with self._lock:
            try:
                await self._host.mend(mended)
                await self._route()
            except SeraiError as error:
                mended.sentences.append(f"networks: {error.message}")
            for bubble in self._whose_turn():
                try:
                    await (await self._site(bubble)).mend(mended)
                except SeraiError as error:
                    mended.sentences.append(f"the bubble {bubble.id}: {error.message}")
        return mended

    def _whose_turn(self) -> list[InBubble]:
        """Return the bubbles that are looked at: all that are new to us, and some others in turn."""
        known = self._fabric.bubbles()
        new = [each for key, each in known.items() if key not in self._bubbles]
        turn = [key for key in self._bubbles if key in known][:MENDED_AT_ONCE]
        for key in turn:  # to the end of the row
            self._bubbles[key] = self._bubbles.pop(key)
        return new + [known[key] for key in turn]

    async def sweep(self) -> list[str]:
        """Remove what an earlier daemon has left of networks, ports and bubbles that are gone."""
        if self._host is None:
            return []
        said = []
        async with self._lock:
            try:
                said += await self._end_strangers()
                said += await self._burst_strangers(self._host)
                for site in self._sites():
                    said += await site.sweep()
                if not self._fabric.networks and self._ground.folder.exists():
                    await self._route()
                    await self._leave(self._host)
            except SeraiError as error:
                said.append(f"networks: {error.message}")
        return said

    async def _end_strangers(self) -> list[str]:
        """End what answers DHCP for networks that are gone."""
        said = []
        folder, ports = self._ground.folder, [each.port for each in self._fabric.ports()]
        known = {self._ground.folder_of(port.network, port.site).name for port in ports}
        for each in list(folder.iterdir()) if folder.exists() else []:
            if each.name not in known.union(self._fabric.networks):
                await self._end_resolvers(each.name)
                said.append(f"DHCP and names of {each.name} were left over and are gone")
        return said

    async def _burst_strangers(self, host: Site) -> list[str]:
        """Remove the namespaces of bubbles that are gone; what led into them goes as it is found."""
        owner = self._ground.owner
        known = {_plain(each).namespace(owner) for each in self._fabric.bubbles().values()}
        said = []
        for namespace in await list_bubbles(host.links):
            if namespace not in known:
                await remove_namespace_of(namespace)
                said.append(f"the bubble {namespace} was left over and is gone")
        return said

    # -- counting ----------------------------------------------------------------------------------

    async def count(self) -> None:
        """Add what has passed each port since it was last looked."""
        if self._host is None or not self._fabric.ports():
            return
        async with self._lock:
            readings = {site: await site.read_counters() for site in self._sites()}
        for held in self._fabric.ports():
            for reading in readings.values():
                now = reading.ports.get(held.port.tap)
                if now is not None:
                    self._add(held, now, reading.generation)

    def _add(self, held: Held, now: PortCounters, generation: str) -> None:
        usage, port = self._fabric.usage, held.port
        before = usage.get(port.id) or PortUsage(port=port.id, guest_id=held.guest_id)
        seen = before.seen if before.generation == generation else PortCounters()
        usage[port.id] = PortUsage(
            port=port.id,
            guest_id=held.guest_id,
            total=counted(before.total, seen, now),
            seen=now,
            generation=generation,
        )
        if usage[port.id] != before:
            self._unsaved.add(port.id)

    def take_unsaved(self) -> list[PortUsage]:
        """Return what was counted and is not stored yet, and take it as stored."""
        ids, self._unsaved = self._unsaved, set()
        there = {each.port.id for each in self._fabric.ports()}
        return [self._fabric.usage[each] for each in ids & there if each in self._fabric.usage]

    async def close(self) -> None:
        """Let go of everything; it stays on the host."""
        for site in self._sites():
            await site.close()
        self._bubbles.clear()


def _plain(bubble: InBubble) -> Bubble:
    return Bubble(id=bubble.id, label=bubble.id[:8], transfer=bubble.transfer)


@asynccontextmanager
async def open_cabling(
    fabric: Fabric, ground: Ground, *, privileged: bool
) -> AsyncIterator[Cabling]:
    """Open what networks are made with, for as long as the block lasts; all stays on the host."""
    if not privileged:
        unavailable = Denied(
            Code.NETWORK_UNAVAILABLE,
            "this daemon may not make networks: it does not run as root",
            hint=INSTEAD,
        )
        yield Cabling(fabric, ground, None, unavailable.problem())
        return
    async with open_links(ground.owner) as links:
        cabling = Cabling(fabric, ground, links, None)
        try:
            yield cabling
        finally:
            await cabling.close()
