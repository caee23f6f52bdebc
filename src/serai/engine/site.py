"""One place where networks are put up: the host itself, or a bubble on it (docs/design/0048).

    Cabling ── Site ""         the host: all networks, and the ports of guests that are in no bubble
            └─ Site BUBBLE     a namespace: copies of the networks that ports in it are at, and those

A site has links, a firewall and one resolver a network, all in its namespace, and follows ``fabric``
for what is its own. The callers hold the lock of ``cabling``. A resolver that ends by itself is started
again at once, by a task that waits for its end.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import chain
from pathlib import Path

import msgspec

from serai.engine.fabric import Fabric, Held
from serai.errors import Code, Conflict, Problem, SeraiError
from serai.host.supervise import Supervisor
from serai.host.tap import open_tap
from serai.model.network import NetworkMode, NetworkRecord, Port
from serai.net.dnsmasq import Resolver
from serai.net.firewall import Firewall, Reading
from serai.net.links import Bridge, Link, Links, Tap
from serai.net.shaping import ensure_limits
from serai.plan.bubbles import leads_in_bubble, leads_on_host
from serai.plan.firewall import build_ruleset
from serai.plan.network import (
    bridge_of,
    gateway6_of,
    gateway_of,
    own_addresses6,
    shaper_of,
    spec_in_bubble,
    uplink_of,
)
from serai.plan.resolver import Lease

log = logging.getLogger(__name__)

RUN = Path("/run/serai-networks")
"""For what answers DHCP and names: not our own run folder, into which no other user may look."""
SHORT_LIFE = 1.0
"""Who ends sooner, in seconds, would again: it is left to the reconciler, which comes every 10 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where the cables lie: ``owner`` marks what is ours, ``uid`` is who answers DHCP.

    ``memory`` is a file that remembers whether the host routed before, ``supervisor`` owns the tasks
    that wait for something to end.
    """

    owner: str
    memory: Path
    uid: int
    supervisor: Supervisor

    @property
    def folder(self) -> Path:
        """One folder a network, named by id; for a copy in a bubble followed by ``@`` and its id."""
        return RUN / self.owner

    def folder_of(self, network_id: str, bubble: str) -> Path:
        """Return the folder of a network's resolver."""
        return self.folder / (f"{network_id}@{bubble}" if bubble else network_id)


@dataclass(slots=True)
class Mended:
    """What a turn of the reconciler found and did; ``taps`` were made anew."""

    sentences: list[str] = field(default_factory=list)
    taps: set[str] = field(default_factory=set)


class Site:
    """What there is in one namespace. ``bubble`` is an id, "" for the host; ``stack`` closes ``links``.

    Whoever calls it holds ``lock``.
    """

    def __init__(
        self,
        fabric: Fabric,
        ground: Ground,
        links: Links,
        lock: asyncio.Lock,
        *,
        bubble: str = "",
        stack: AsyncExitStack | None = None,
    ) -> None:
        self.links = links
        self._fabric = fabric
        self._ground = ground
        self._bubble = bubble
        self._stack = stack or AsyncExitStack()
        self._firewall = Firewall(ground.owner, namespace=links.namespace)
        self._lock = lock
        self._resolvers: dict[str, Resolver] = {}
        self._watched: dict[str, int] = {}
        self._problems: dict[str, Problem] = {} if bubble else fabric.problems

    def networks(self) -> list[NetworkRecord]:
        """Return the networks that are to be here, as they are here."""
        if not self._bubble:
            return self._fabric.all_networks()
        known = self._fabric.networks
        ids = dict.fromkeys(each.port.network for each in self.held())
        return [self._here(known[each]) for each in ids if each in known]

    def _here(self, record: NetworkRecord) -> NetworkRecord:
        if not self._bubble:
            return record
        return msgspec.structs.replace(record, spec=spec_in_bubble(record.spec))

    def held(self) -> list[Held]:
        """Return the ports that are to be here."""
        return self._fabric.ports_at(self._bubble)

    # -- networks ----------------------------------------------------------------------------------

    async def raise_network(self, record: NetworkRecord) -> bool:
        """Have bridge and resolver; True if the bridge had to be changed."""
        record = self._here(record)
        if record.spec.mode is NetworkMode.BRIDGE and not self._bubble:
            await self.check_bridge(record.spec.bridge)
            return False
        changed = await self.links.ensure_bridge(self._bridge(record))
        await self.resolve(record)
        return changed

    async def check_bridge(self, name: str) -> None:
        """Raise Conflict (``bridge-missing``) when there is no bridge of that name."""
        if not await self.links.has_bridge(name):
            raise Conflict(
                Code.BRIDGE_MISSING,
                f"this host has no bridge {name}",
                hint="See which there are: ip link show type bridge",
            )

    def _bridge(self, record: NetworkRecord) -> Bridge:
        spec = record.spec
        pairs = ((gateway_of(spec), spec.subnet), (gateway6_of(spec), spec.subnet6))
        ports = {each.port.id for each in self._fabric.neighbours(record.id, self._bubble)}
        return Bridge(
            name=spec.bridge or bridge_of(record.id),
            label=spec.name,
            addresses=tuple(f"{own}/{ip_network(net).prefixlen}" for own, net in pairs if net),
            reach_localhost=not self._bubble
            and any(each.port in ports for each in self._fabric.forwards.values()),
        )

    async def lower_network(self, record: NetworkRecord) -> None:
        """Have nothing of a network here, but for its rules."""
        resolver = self._resolvers.pop(record.id, None) or self._resolver(record)
        if resolver is not None:
            await resolver.remove()
        if record.spec.mode is not NetworkMode.BRIDGE or self._bubble:
            await self.links.remove(record.spec.bridge or bridge_of(record.id))
        self._problems.pop(record.id, None)

    async def forget_resolver(self, record: NetworkRecord) -> None:
        """End DHCP and names of a network: what they are told changes."""
        resolver = self._resolvers.pop(record.id, None)
        if resolver is not None:
            await resolver.remove()

    def _resolver(self, record: NetworkRecord) -> Resolver | None:
        if record.spec.mode is NetworkMode.BRIDGE:
            return None
        return Resolver(
            self._ground.folder_of(record.id, self._bubble),
            bridge=bridge_of(record.id),
            spec=record.spec,
            uid=self._ground.uid,
            namespace=self.links.namespace,
        )

    async def resolve(self, record: NetworkRecord) -> str:
        """Have DHCP and names running with the leases of the network's ports; say what was done."""
        resolver = self._resolvers.get(record.id) or self._resolver(self._here(record))
        if resolver is None:
            return ""
        self._resolvers[record.id] = resolver
        held = self._fabric.neighbours(record.id, self._bubble)
        leases = tuple(Lease(port=each.port, guest=each.known_as) for each in held)
        said = await resolver.ensure(leases)
        self._watch(record, resolver)
        return said

    def _watch(self, record: NetworkRecord, resolver: Resolver) -> None:
        """Have a task that waits for the end of the resolver's process, one for each."""
        if resolver.pid and self._watched.get(record.id) != resolver.pid:
            self._watched[record.id] = resolver.pid
            name = f"DHCP and names of {record.spec.name}"
            self._ground.supervisor.start(self._follow(record.id, resolver), name=name)

    async def _follow(self, network_id: str, resolver: Resolver) -> None:
        """Start the resolver again as soon as it has ended, unless somebody has ended it for good."""
        clock = asyncio.get_running_loop().time
        since = clock()
        await resolver.wait_ended()
        if clock() - since < SHORT_LIFE:
            return
        async with self._lock:
            record = self._fabric.networks.get(network_id)
            if record is None or self._resolvers.get(network_id) is not resolver or resolver.pid:
                return
            try:
                log.info("%s, since it had ended", await self.resolve(record))
            except SeraiError as error:
                log.warning("DHCP and names of %s have ended: %s", record.spec.name, error.message)

    async def resolve_all(self) -> None:
        """Have the names of everything here as it is now."""
        for record in self.networks():
            if record.id in self._fabric.networks:
                await self.resolve(record)

    async def rules(self) -> None:
        """Have the rules of everything that there is, and of networks that are coming."""
        fabric, is_host = self._fabric, not self._bubble
        forwards = fabric.forwards.values()
        if is_host:
            leads = leads_on_host(forwards, [each.port for each in fabric.ports()])
        else:
            leads = leads_in_bubble(forwards, [each.port for each in self.held()])
        bubbles = fabric.bubbles().values() if is_host else ()
        await self._firewall.apply(
            build_ruleset(
                self._ground.owner,
                networks=self.networks(),
                ports=[each.port for each in self.held()],
                groups=fabric.groups.values(),
                leads=leads,
                bubbles={each.id: each.transfer for each in bubbles},
            )
        )

    async def remove_rules(self) -> None:
        """Have no rules here."""
        await self._firewall.remove()
        await self._firewall.close()

    # -- ports -------------------------------------------------------------------------------------

    async def attach(self, guest: str, ports: Iterable[Port]) -> None:
        """Have these ports of a guest: rules, addresses, names, taps, limits. Rules come first."""
        ports = list(ports)
        await self.rules()
        for network_id in {port.network for port in ports}:
            await self._raise_unless_up(self._fabric.network(network_id))
            if network_id in self._resolvers:
                await self._resolvers[network_id].wait_ready()
        for port in ports:
            await self._lay_anyhow(guest, port)

    async def _raise_unless_up(self, record: NetworkRecord) -> None:
        """Have names and addresses; where they are served the bridge was there not long ago."""
        resolver = self._resolvers.get(record.id)
        if resolver is not None and resolver.pid:
            await self.resolve(record)
        else:
            await self.raise_network(record)

    async def _lay_anyhow(self, guest: str, port: Port) -> None:
        """Lay a port's cable; if somebody has taken the bridge away meanwhile, there is another."""
        try:
            await self._lay(guest, port)
        except Conflict as error:
            if error.code is not Code.BRIDGE_MISSING:
                raise
            await self.raise_network(self._fabric.network(port.network))
            await self._lay(guest, port)

    async def _lay(self, guest: str, port: Port) -> bool:
        record = self._fabric.network(port.network)
        bridge = record.spec.bridge or bridge_of(record.id)
        tap = Tap(name=port.tap, label=f"{guest} {port.name}", bridge=bridge, uid=0)
        changed = await self.links.ensure_tap(tap)
        await ensure_limits(self.links, port.tap, port.limits)
        return changed

    async def limit(self, ports: Iterable[Port]) -> None:
        """Have the limits of these ports."""
        for port in ports:
            await ensure_limits(self.links, port.tap, port.limits)

    async def detach(self, ports: Iterable[Port]) -> None:
        """Have nothing of these ports; they are not in the fabric any more."""
        ports = list(ports)
        for port in ports:
            await self.links.remove(port.tap)
        for network_id in {port.network for port in ports}:
            record = self._fabric.networks.get(network_id)
            if record is None:
                continue
            had = [(each.address, each.address6) for each in ports if each.network == network_id]
            bridge = record.spec.bridge or bridge_of(record.id)
            await self.links.forget_neighbours(bridge, chain.from_iterable(had))
            if self._bubble and not self._fabric.neighbours(network_id, self._bubble):
                await self.lower_network(self._here(record))
            else:
                await self.resolve(record)
        await self.rules()

    def open_tap(self, port: Port) -> int:
        """Open a port's tap for QEMU."""
        return open_tap(port.tap, namespace=self.links.namespace)

    # -- mending -----------------------------------------------------------------------------------

    async def mend(self, mended: Mended) -> None:
        """Put back what is not as it should be, and say what that was."""
        said = await self._firewall.mend()
        if said:
            mended.sentences.append(said)
        await self.rules()
        for record in self.networks():
            if record.id in self._fabric.networks:
                await self._mend_network(record, mended)
        there = {link.name: link for link in await self.links.list_ours()}
        for held in self.held():
            await self._mend_port(held, there, mended)

    async def _mend_network(self, record: NetworkRecord, mended: Mended) -> None:
        name, problems = record.spec.name, self._problems
        try:
            if await self.raise_network(record):
                mended.sentences.append(f"the bridge of {name} was put back")
        except SeraiError as error:
            if problems.get(record.id) != error.problem():
                mended.sentences.append(f"{name} is not up: {error.message}")
            problems[record.id] = error.problem()
            return
        if problems.pop(record.id, None) is not None:
            mended.sentences.append(f"{name} is up again")

    async def _mend_port(self, held: Held, there: dict[str, Link], mended: Mended) -> None:
        port = held.port
        record = self._fabric.networks.get(port.network)
        if record is None or record.id in self._problems:
            return
        link = there.get(port.tap)
        bridge = record.spec.bridge or bridge_of(record.id)
        if link is not None and link.is_up and link.bridge == bridge:
            return
        try:
            await self._lay(held.guest, port)
        except SeraiError as error:
            mended.sentences.append(f"{port.name} of {held.guest} is not up: {error.message}")
            return
        mended.sentences.append(f"{port.name} of {held.guest} was put back")
        if link is None:
            mended.taps.add(port.tap)

    async def sweep(self) -> list[str]:
        """Remove interfaces that an earlier daemon has left of what is gone."""
        said, expected = [], self._expected()
        for link in await self.links.list_ours():
            if link.name not in expected:
                await self.links.remove(link.name)
                said.append(f"{link.name} ({link.label}) was left over and is gone")
        return said

    def _expected(self) -> set[str]:
        names = {each.spec.bridge or bridge_of(each.id) for each in self.networks()}
        for each in self.held():
            names |= {each.port.tap, shaper_of(each.port.tap)}
        if not self._bubble:
            names |= {uplink_of(each) for each in self._fabric.bubbles()}
        return names

    # -- counting ----------------------------------------------------------------------------------

    async def read_counters(self) -> Reading:
        """Return what has passed the ports here."""
        networks = self._fabric.networks
        return await self._firewall.read_counters(
            {
                each.port.tap: (
                    *((each.port.address,) if each.port.address else ()),
                    *own_addresses6(each.port, networks[each.port.network].spec),
                )
                for each in self.held()
                if each.port.network in networks
            }
        )

    async def close(self) -> None:
        """Let go of everything; it stays."""
        await self._firewall.close()
        for resolver in self._resolvers.values():
            resolver.close()
        self._resolvers.clear()
        await asyncio.shield(self._stack.aclose())
