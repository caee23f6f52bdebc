"""What there is of networks: every network, port, security group and forward, as the store has it.

Read by everybody. Ports are claimed here in one step that nothing can interrupt, so of a hundred
clients who want the same address one wins, and the others are told before anything is written.
What of it is on the host is ``cabling``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from serai.errors import Code, Conflict, NotFound, Problem
from serai.model.guest import GuestRecord
from serai.model.network import (
    Forward,
    ForwardRecord,
    Group,
    GroupRecord,
    InBubble,
    Network,
    NetworkRecord,
    NetworkSpec,
    Port,
    PortBrief,
    PortCounters,
    PortSpec,
    PortUsage,
    PortView,
)
from serai.plan.network import (
    address_taken,
    bridge_of,
    capacity,
    gateway6_of,
    gateway_of,
    make_port,
    pick_transfer,
    tap_of,
)
from serai.plan.rules import shown_rules
from serai.units import shorten


@dataclass(frozen=True, slots=True)
class Held:
    """A port and who has it: the id and the name of a guest."""

    guest_id: str
    guest: str
    port: Port

    @property
    def known_as(self) -> str:
        """The name by which others at its network find the guest."""
        return self.port.bubble.known_as if self.port.bubble else self.guest


class Fabric:
    """All networks, groups and forwards by id, and who holds which port.

    ``problems`` and ``forward_problems`` say what could not be put up on this host, by id.
    """

    def __init__(self) -> None:
        self.networks: dict[str, NetworkRecord] = {}
        self.groups: dict[str, GroupRecord] = {}
        self.forwards: dict[str, ForwardRecord] = {}
        self.usage: dict[str, PortUsage] = {}
        self.problems: dict[str, Problem] = {}
        self.forward_problems: dict[str, Problem] = {}
        self.coming: dict[str, NetworkRecord] = {}
        self._held: dict[str, Held] = {}

    def fill(
        self,
        networks: Iterable[NetworkRecord],
        groups: Iterable[GroupRecord],
        forwards: Iterable[ForwardRecord],
        usage: Iterable[PortUsage],
    ) -> None:
        """Take in everything that the store has; ports come with their guests (``hold``)."""
        self.networks = {each.id: each for each in networks}
        self.groups = {each.id: each for each in groups}
        self.forwards = {each.id: each for each in forwards}
        self.usage = {each.port: each for each in usage}

    # -- finding -----------------------------------------------------------------------------------

    def network(self, name_or_id: str) -> NetworkRecord:
        """Return a network; NotFound (``network-not-found``)."""
        for record in self.networks.values():
            if name_or_id in (record.spec.name, record.id):
                return record
        raise NotFound(
            Code.NETWORK_NOT_FOUND,
            f"there is no network {shorten(name_or_id)}",
            hint="See which there are: serai network list",
        )

    def group(self, name_or_id: str) -> GroupRecord:
        """Return a security group; NotFound (``group-not-found``)."""
        for record in self.groups.values():
            if name_or_id in (record.spec.name, record.id):
                return record
        raise NotFound(
            Code.GROUP_NOT_FOUND,
            f"there is no security group {shorten(name_or_id)}",
            hint="See which there are: serai rules list",
        )

    def forward(self, forward_id: str) -> ForwardRecord:
        """Return a forward; NotFound (``forward-not-found``)."""
        if forward_id in self.forwards:
            return self.forwards[forward_id]
        raise NotFound(
            Code.FORWARD_NOT_FOUND,
            f"there is no forward {shorten(forward_id)}",
            hint="See which there are: serai forward list",
        )

    def group_ids(self) -> dict[str, str]:
        """Return the ids of all groups by name."""
        return {each.spec.name: each.id for each in self.groups.values()}

    def specs(self, but: str = "") -> list[NetworkSpec]:
        """Return what all networks are, those on their way too, without the network ``but``."""
        return [each.spec for each in self.all_networks() if each.id != but]

    def all_networks(self) -> list[NetworkRecord]:
        """Return all networks, those on their way too."""
        return [*self.networks.values(), *self.coming.values()]

    def check_free(self, name: str) -> None:
        """Raise Conflict (``network-exists``) when a network has that name, or soon will."""
        if any(spec.name == name for spec in self.specs()):
            raise Conflict(
                Code.NETWORK_EXISTS,
                f"there is a network {name} already",
                hint=f"Choose another name, or: serai network delete {name}",
            )

    # -- ports -------------------------------------------------------------------------------------

    def ports(self) -> list[Held]:
        """Return all ports and who has them."""
        return list(self._held.values())

    def ports_in(self, network_id: str) -> list[Held]:
        """Return the ports at a network, on the host and in bubbles."""
        return [each for each in self._held.values() if each.port.network == network_id]

    def ports_at(self, site: str) -> list[Held]:
        """Return the ports in a bubble, "": on the host itself."""
        return [each for each in self._held.values() if each.port.site == site]

    def neighbours(self, network_id: str, site: str) -> list[Held]:
        """Return the ports that reach each other at a network: in a bubble, "": on the host itself."""
        return [each for each in self.ports_in(network_id) if each.port.site == site]

    def bubbles(self) -> dict[str, InBubble]:
        """Return all bubbles by id: those that a port is in."""
        return {
            each.port.site: each.port.bubble for each in self._held.values() if each.port.bubble
        }

    def check_known_as(self, bubble: InBubble, name: str, guest_id: str = "") -> None:
        """Raise Conflict (``guest-exists``) when another guest in a bubble is known there by a name."""
        for each in self.ports_at(bubble.id):
            if each.known_as == name and each.guest_id != guest_id:
                raise Conflict(
                    Code.GUEST_EXISTS,
                    f"{each.guest} is known as {name} in the same bubble",
                    hint="Choose a name that nobody has there: serai port list shows them.",
                )

    def pick_transfer(self, taken: Iterable[str], routes: Iterable[str]) -> str:
        """Return a subnet to join a bubble to the host, ``taken`` aside; nobody has it yet."""
        known = {each.transfer for each in self.bubbles().values()}
        own = [spec.subnet for spec in self.specs() if spec.subnet]
        return pick_transfer(known.union(taken), [*routes, *own])

    def ports_with(self, group_id: str) -> list[Port]:
        """Return the ports in a security group."""
        return [each.port for each in self._held.values() if group_id in each.port.groups]

    def hold(self, guest_id: str, guest: str, ports: Iterable[Port]) -> None:
        """Note that a guest (its id and name) has these ports, new or changed."""
        for port in ports:
            self._held[port.id] = Held(guest_id, guest, port)

    def release(self, ports: Iterable[Port]) -> None:
        """Free ports and their addresses; one that is free stays so."""
        for port in ports:
            self._held.pop(port.id, None)

    def claim(
        self,
        owner: tuple[str, str],
        specs: Mapping[str, PortSpec],
        names: Iterable[str] = (),
        bubble: InBubble | None = None,
        first: Iterable[str] = (),
    ) -> tuple[Port, ...]:
        """Take a port for each of ``specs`` (by id), with addresses that nobody else there has.

        ``owner`` is a guest's id and name, ``names`` those that its other NICs have, ``bubble`` where it
        is; ``first`` are the names that are given before others. All or none; raises as ``make_port`` does.
        """
        taken_names, made, wanted = set(names), list[Port](), iter(first)
        try:
            for port_id, spec in specs.items():
                name = next(wanted, "") or _free_name(taken_names)
                taken_names.add(name)
                made.append(self._claim_one(owner, port_id, name, spec, bubble))
        except BaseException:
            self.release(made)
            raise
        return tuple(made)

    def _claim_one(
        self,
        owner: tuple[str, str],
        port_id: str,
        name: str,
        spec: PortSpec,
        bubble: InBubble | None,
    ) -> Port:
        network = self.network(spec.network)
        site = bubble.id if bubble else ""
        port = make_port(
            spec,
            port_id=port_id,
            name=name,
            network_id=network.id,
            network=network.spec,
            groups=self.group_ids(),
            taken=[each.port for each in self.neighbours(network.id, site)],
        )
        port = msgspec.structs.replace(port, bubble=bubble)
        self.hold(*owner, [port])
        return port

    def claim_like(
        self,
        owner: tuple[str, str],
        ports: Mapping[str, Port],
        bubble: InBubble | None = None,
        *,
        same: bool = False,
    ) -> tuple[Port, ...]:
        """Take ports that are like ``ports`` (by the new id), with the same names, for a fork.

        One whose network is gone is left out, and so are groups that are gone. All or none. With
        ``same`` they keep their addresses, for a ``bubble``; Conflict (``address-taken``) where another
        in it has one of those.
        """
        made = list[Port]()
        try:
            for port_id, like in ports.items():
                if like.network not in self.networks:
                    continue
                if same:
                    port = self._same(port_id, like, bubble)
                else:
                    spec = PortSpec(network=like.network, limits=like.limits)
                    port = self._claim_one(owner, port_id, like.name, spec, bubble)
                groups = tuple(each for each in like.groups if each in self.groups)
                made.append(msgspec.structs.replace(port, groups=groups))
                self.hold(*owner, made[-1:])
        except BaseException:
            self.release(made)
            raise
        return tuple(made)

    def _same(self, port_id: str, like: Port, bubble: InBubble | None) -> Port:
        """Return the same port in a bubble: only its id and its tap are others."""
        port = msgspec.structs.replace(like, id=port_id, tap=tap_of(port_id), bubble=bubble)
        own = {port.mac, port.address, port.address6} - {""}
        for other in self.neighbours(port.network, port.site):
            both = own & {other.port.mac, other.port.address, other.port.address6}
            if both:
                raise address_taken(min(both), self.networks[port.network].spec)
        return port

    def forget_forwards(self, guest_id: str) -> None:
        """Forget the forwards that lead to a guest that is gone."""
        for each in [each for each in self.forwards.values() if each.guest_id == guest_id]:
            del self.forwards[each.id]
            self.forward_problems.pop(each.id, None)

    # -- showing -----------------------------------------------------------------------------------

    def name_of(self, network_id: str) -> str:
        """Return the name of a network, "" for one that is gone."""
        record = self.networks.get(network_id)
        return record.spec.name if record else ""

    def brief(self, ports: Iterable[Port]) -> tuple[PortBrief, ...]:
        """Return ports as they stand with their guest."""
        return tuple(
            PortBrief(
                name=port.name,
                network=self.name_of(port.network),
                mac=port.mac,
                address=port.address,
                address6=port.address6,
                bubble=port.site,
                known_as=port.bubble.known_as if port.bubble else "",
            )
            for port in ports
        )

    def show_port(self, guest: GuestRecord, port: Port) -> PortView:
        """Return all that is shown of a port."""
        usage = self.usage.get(port.id)
        return PortView(
            name=port.name,
            id=port.id,
            guest=guest.spec.name,
            network=self.name_of(port.network),
            mac=port.mac,
            address=port.address,
            address6=port.address6,
            groups=tuple(
                self.groups[each].spec.name for each in port.groups if each in self.groups
            ),
            limits=port.limits,
            interface=port.tap,
            counters=usage.total if usage else PortCounters(),
            bubble=port.site,
            known_as=port.bubble.known_as if port.bubble else "",
        )

    def show_network(self, record: NetworkRecord) -> Network:
        """Return what is shown of a network."""
        spec, used = record.spec, len(self.neighbours(record.id, ""))
        return Network(
            name=spec.name,
            id=record.id,
            mode=spec.mode,
            subnet=spec.subnet,
            subnet6=spec.subnet6,
            gateway=gateway_of(spec),
            gateway6=gateway6_of(spec),
            interface=spec.bridge or bridge_of(record.id),
            dns=spec.dns,
            labels=spec.labels,
            ports=used,
            free=max(0, capacity(spec) - used),
            version=record.version,
            created_at=record.created_at,
            problem=self.problems.get(record.id),
            bubbles=len({each.port.site for each in self.ports_in(record.id)} - {""}),
        )

    def show_group(self, record: GroupRecord) -> Group:
        """Return what is shown of a security group: the groups in its rules by name."""
        names = {each.id: each.spec.name for each in self.groups.values()}
        return Group(
            name=record.spec.name,
            id=record.id,
            rules=shown_rules(record.spec.rules, names),
            note=record.spec.note,
            ports=len(self.ports_with(record.id)),
            version=record.version,
            created_at=record.created_at,
        )

    def show_forward(self, record: ForwardRecord, guest: str) -> Forward:
        """Return what is shown of a forward; ``guest`` is the name of its guest."""
        held = self._held.get(record.port)
        port = held.port if held else None
        return Forward(
            id=record.id,
            guest=guest,
            port=port.name if port else "",
            protocol=record.protocol,
            host_address=record.host_address,
            host_port=record.host_port,
            guest_port=record.guest_port,
            address=port.address if port else "",
            problem=self.forward_problems.get(record.id),
        )


def _free_name(taken: set[str]) -> str:
    number = 0
    while f"net{number}" in taken:
        number += 1
    return f"net{number}"
