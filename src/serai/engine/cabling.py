"""What there is of networks, put up on this host: bridges, taps, rules, DHCP and names.

Everything follows from ``fabric``: each method looks at what should be there and has the hands
(``serai.net``) do what is missing, so it may be called again at any time. ``reconcile`` does it for
all, after a restart of daemon or host and now and then; it says what it had to mend.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

from serai.engine.fabric import Fabric, Held
from serai.errors import Code, Conflict, Denied, Problem, SeraiError, error_from_problem
from serai.model.guest import GuestRecord
from serai.model.network import (
    NetworkMode,
    NetworkRecord,
    NetworkSpec,
    Port,
    PortCounters,
    PortUsage,
)
from serai.net.dnsmasq import Resolver
from serai.net.firewall import Firewall
from serai.net.forwarding import ensure_forwarding
from serai.net.links import Bridge, Link, Links, Tap, open_links
from serai.net.shaping import ensure_limits
from serai.plan.firewall import build_ruleset
from serai.plan.network import (
    bridge_of,
    counted,
    gateway6_of,
    gateway_of,
    own_addresses6,
    shaper_of,
)
from serai.plan.resolver import Lease

INSTEAD = (
    "Run the daemon as root for networks. A guest without one reaches out through QEMU's own, "
    "and `serai forward add` leads in."
)


RUN = Path("/run/serai-networks")
"""For what answers DHCP and names: not our own run folder, into which no other user may look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where the cables lie: ``owner`` marks what is ours, ``uid`` is who answers DHCP.

    ``memory`` is a file that remembers whether the host routed before.
    """

    owner: str
    memory: Path
    uid: int

    @property
    def folder(self) -> Path:
        """One folder a network, named by id."""
        return RUN / self.owner


@dataclass(slots=True)
class Mended:
    """What a turn of the reconciler found and did; ``taps`` were made anew."""

    sentences: list[str] = field(default_factory=list)
    taps: set[str] = field(default_factory=set)


class Cabling:
    """Keeps the host as ``fabric`` wants it. Make it with ``open_cabling``.

    Without ``links`` this host has no networks, and ``unavailable`` says why.
    """

    def __init__(
        self, fabric: Fabric, ground: Ground, links: Links | None, unavailable: Problem | None
    ) -> None:
        self._fabric = fabric
        self._ground = ground
        self._links = links
        self._unavailable = unavailable
        self._firewall = Firewall(ground.owner)
        self._resolvers: dict[str, Resolver] = {}
        self._lock = asyncio.Lock()
        self._unsaved: set[str] = set()

    def check(self) -> Links:
        """Raise Denied (``network-unavailable``) where this host has no networks."""
        if self._links is not None:
            return self._links
        if self._unavailable is None:
            raise Denied(Code.NETWORK_UNAVAILABLE, "this host has no networks", hint=INSTEAD)
        raise error_from_problem(self._unavailable)

    async def check_bridge(self, name: str) -> None:
        """Raise Conflict (``bridge-missing``) when the host has no bridge of that name."""
        if not await self.check().has_bridge(name):
            raise Conflict(
                Code.BRIDGE_MISSING,
                f"this host has no bridge {name}",
                hint="See which there are: ip link show type bridge",
            )

    async def routes(self) -> list[str]:
        """Return what this host routes already, but for our own networks."""
        return await self.check().routes()

    # -- networks ----------------------------------------------------------------------------------

    async def put_up(self, record: NetworkRecord) -> None:
        """Have a network on the host, its rules with it. On failure some of it may be there."""
        self.check()
        self._ground.folder.mkdir(parents=True, exist_ok=True)
        for folder in (RUN, self._ground.folder):
            folder.chmod(0o755)  # whatever our umask is
        async with self._lock:
            await self._rules()
            await self._route()
            await self._raise(record)

    async def take_down(self, record: NetworkRecord) -> None:
        """Have nothing of a network on the host; it is not in the fabric any more."""
        links = self.check()
        async with self._lock:
            resolver = self._resolvers.pop(record.id, None) or self._resolver(record)
            if resolver is not None:
                await resolver.remove()
            if record.spec.mode is not NetworkMode.BRIDGE:
                await links.remove(bridge_of(record.id))
            await self._route()
            self._fabric.problems.pop(record.id, None)
            await (self._rules() if self._fabric.all_networks() else self._leave())

    async def _leave(self) -> None:
        """Have nothing on this host: there are no networks. The folder says so, and goes last."""
        await self._firewall.remove()
        await self._firewall.close()
        with contextlib.suppress(OSError):  # another daemon has something there
            self._ground.folder.rmdir()
            RUN.rmdir()

    async def change(self, before: NetworkRecord, after: NetworkRecord) -> None:
        """Have a network on the host as it is now."""
        self.check()
        async with self._lock:
            resolver = self._resolvers.pop(before.id, None)
            if resolver is not None:
                await resolver.remove()
            await self._rules()
            await self._raise(after)

    async def _raise(self, record: NetworkRecord) -> bool:
        """Have bridge and resolver; True if the bridge had to be changed."""
        links, spec = self.check(), record.spec
        if spec.mode is NetworkMode.BRIDGE:
            await self.check_bridge(spec.bridge)
            return False
        changed = await links.ensure_bridge(self._bridge(record))
        await self._resolve(record)
        return changed

    def _bridge(self, record: NetworkRecord) -> Bridge:
        spec = record.spec
        pairs = ((gateway_of(spec), spec.subnet), (gateway6_of(spec), spec.subnet6))
        ports = {each.port.id for each in self._fabric.ports_in(record.id)}
        return Bridge(
            name=bridge_of(record.id),
            label=spec.name,
            addresses=tuple(f"{own}/{ip_network(net).prefixlen}" for own, net in pairs if net),
            reach_localhost=any(each.port in ports for each in self._fabric.forwards.values()),
        )

    def _resolver(self, record: NetworkRecord) -> Resolver | None:
        if record.spec.mode is NetworkMode.BRIDGE:
            return None
        return Resolver(
            self._ground.folder / record.id,
            bridge=bridge_of(record.id),
            spec=record.spec,
            uid=self._ground.uid,
        )

    async def _resolve(self, record: NetworkRecord) -> str:
        """Have DHCP and names running with the leases of the network's ports; say what was done."""
        resolver = self._resolvers.get(record.id) or self._resolver(record)
        if resolver is None:
            return ""
        self._resolvers[record.id] = resolver
        held = self._fabric.ports_in(record.id)
        return await resolver.ensure(
            tuple(Lease(port=each.port, guest=each.guest) for each in held)
        )

    async def _rules(self) -> None:
        """Have the rules of everything that there is, and of networks that are coming."""
        fabric = self._fabric
        await self._firewall.apply(
            build_ruleset(
                self._ground.owner,
                networks=fabric.all_networks(),
                ports=[each.port for each in fabric.ports()],
                groups=fabric.groups.values(),
                forwards=[each for each in fabric.forwards.values() if each.port],
            )
        )

    async def _route(self) -> None:
        """Have the host route as far as its networks need it."""
        out = (NetworkMode.NAT, NetworkMode.ROUTED)
        routed = [spec for spec in self._fabric.specs() if spec.mode in out]
        await ensure_forwarding(
            self._ground.memory,
            v4=any(spec.subnet for spec in routed),
            v6=any(spec.subnet6 for spec in routed),
        )

    # -- ports -------------------------------------------------------------------------------------

    async def connect(self, record: GuestRecord) -> None:
        """Have all that a guest's ports need, before it is started."""
        await self.attach(record.spec.name, record.ports)

    async def attach(self, guest: str, ports: Iterable[Port]) -> None:
        """Have these ports of a guest: rules, addresses, names, taps, limits. Rules come first."""
        ports = list(ports)
        if not ports:
            return
        links = self.check()
        async with self._lock:
            await self._rules()
            for network_id in {port.network for port in ports}:
                await self._raise(self._fabric.network(network_id))
                if network_id in self._resolvers:
                    await self._resolvers[network_id].wait_ready()
            for port in ports:
                await self._lay(links, guest, port)

    async def _lay(self, links: Links, guest: str, port: Port) -> bool:
        record = self._fabric.network(port.network)
        bridge = record.spec.bridge or bridge_of(record.id)
        tap = Tap(name=port.tap, label=f"{guest} {port.name}", bridge=bridge, uid=0)
        changed = await links.ensure_tap(tap)
        await ensure_limits(links, port.tap, port.limits)
        return changed

    async def detach(self, ports: Iterable[Port]) -> None:
        """Have nothing of these ports on the host; they are not in the fabric any more."""
        ports = list(ports)
        if not ports or self._links is None:
            return
        async with self._lock:
            for port in ports:
                await self._links.remove(port.tap)
                await self._links.remove(shaper_of(port.tap))
                self._fabric.usage.pop(port.id, None)
            for network_id in {port.network for port in ports}:
                if network_id in self._fabric.networks:
                    await self._resolve(self._fabric.networks[network_id])
            await self._rules()

    async def refresh(self) -> None:
        """Have the rules and names of everything as it is now."""
        if self._links is None:
            return
        async with self._lock:
            await self._rules()
            for record in self._fabric.networks.values():
                await self._resolve(record)

    async def refresh_rules(self, *changed: Port) -> None:
        """Have all rules as they should be now, and the limits of ``changed``: in one transaction."""
        if self._links is None:
            return
        async with self._lock:
            await self._rules()
            for port in changed:
                await ensure_limits(self._links, port.tap, port.limits)

    async def refresh_bridge(self, network_id: str) -> None:
        """Have a bridge as its forwards need it now."""
        record = self._fabric.networks.get(network_id)
        if record is not None and self._links is not None:
            async with self._lock:
                await self._raise(record)

    # -- mending -----------------------------------------------------------------------------------

    async def reconcile(self) -> Mended:
        """Put back what is not as it should be; never raises, whatever it finds."""
        mended = Mended()
        if self._links is None or not (self._fabric.networks or self._resolvers):
            return mended
        async with self._lock:
            try:
                await self._mend(self._links, mended)
            except SeraiError as error:
                mended.sentences.append(f"networks: {error.message}")
        return mended

    async def sweep(self) -> list[str]:
        """Remove what an earlier daemon has left of networks and ports that are gone."""
        if self._links is None:
            return []
        said = []
        async with self._lock:
            try:
                expected = self._expected()
                for link in await self._links.list_ours():
                    if link.name not in expected:
                        await self._links.remove(link.name)
                        said.append(f"{link.name} ({link.label}) was left over and is gone")
                said += await self._end_strangers()
                if not self._fabric.networks and self._ground.folder.exists():
                    await self._route()
                    await self._leave()
            except SeraiError as error:
                said.append(f"networks: {error.message}")
        return said

    async def _end_strangers(self) -> list[str]:
        """End what answers DHCP for networks that are gone."""
        said = []
        folder = self._ground.folder
        for each in list(folder.iterdir()) if folder.exists() else []:
            if each.name not in self._fabric.networks:
                gone = NetworkSpec(name=each.name)
                bridge = bridge_of(each.name)
                await Resolver(each, bridge=bridge, spec=gone, uid=self._ground.uid).remove()
                said.append(f"DHCP and names of {each.name} were left over and are gone")
        return said

    def _expected(self) -> set[str]:
        names = {bridge_of(each.id) for each in self._fabric.all_networks()}
        for each in self._fabric.ports():
            names |= {each.port.tap, shaper_of(each.port.tap)}
        return names

    async def _mend(self, links: Links, mended: Mended) -> None:
        said = await self._firewall.mend()
        if said:
            mended.sentences.append(said)
        await self._rules()
        await self._route()
        for record in list(self._fabric.networks.values()):
            await self._mend_network(record, mended)
        there = {link.name: link for link in await links.list_ours()}
        for held in self._fabric.ports():
            await self._mend_port(links, held, there, mended)

    async def _mend_network(self, record: NetworkRecord, mended: Mended) -> None:
        name, problems = record.spec.name, self._fabric.problems
        try:
            if await self._raise(record):
                mended.sentences.append(f"the bridge of {name} was put back")
        except SeraiError as error:
            if problems.get(record.id) != error.problem():
                mended.sentences.append(f"{name} is not up: {error.message}")
            problems[record.id] = error.problem()
            return
        if problems.pop(record.id, None) is not None:
            mended.sentences.append(f"{name} is up again")

    async def _mend_port(
        self, links: Links, held: Held, there: dict[str, Link], mended: Mended
    ) -> None:
        port = held.port
        record = self._fabric.networks.get(port.network)
        if record is None or record.id in self._fabric.problems:
            return
        link = there.get(port.tap)
        bridge = record.spec.bridge or bridge_of(record.id)
        if link is not None and link.is_up and link.bridge == bridge:
            return
        try:
            await self._lay(links, held.guest, port)
        except SeraiError as error:
            mended.sentences.append(f"{port.name} of {held.guest} is not up: {error.message}")
            return
        mended.sentences.append(f"{port.name} of {held.guest} was put back")
        if link is None:
            mended.taps.add(port.tap)

    # -- counting ----------------------------------------------------------------------------------

    async def count(self) -> None:
        """Add what has passed each port since it was last looked."""
        if self._links is None or not self._fabric.ports():
            return
        async with self._lock:
            reading = await self._firewall.read_counters(self._addresses())
        for held in self._fabric.ports():
            now = reading.ports.get(held.port.tap)
            if now is not None:
                self._add(held, now, reading.generation)

    def _addresses(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses of each port, by its tap."""
        networks = self._fabric.networks
        return {
            each.port.tap: (
                *((each.port.address,) if each.port.address else ()),
                *own_addresses6(each.port, networks[each.port.network].spec),
            )
            for each in self._fabric.ports()
            if each.port.network in networks
        }

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
        await self._firewall.close()
        for resolver in self._resolvers.values():
            resolver.close()


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
