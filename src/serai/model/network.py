"""Networks: what guests are attached to, at which addresses, and what may pass.

    NetworkSpec / NetworkRecord / Network    a link that guests share: asked for, stored, shown
    PortSpec / Port / PortView               a guest's attachment to one of them
    Rule, GroupSpec / GroupRecord / Group    security groups: what may pass at the ports in them
    ForwardSpec / ForwardRecord              a port of the host that leads into a guest
    InBubble                                 where a fork lives that has kept its addresses

Addresses are texts in their normal form (RFC 5952 for IPv6); rates are bytes a second. A guest
without any port has QEMU's own user-mode network: it reaches out, and nobody reaches in.
"""

from enum import StrEnum

import msgspec

from serai.errors import Problem


class NetworkMode(StrEnum):
    """How a network is joined to the world outside."""

    NAT = "nat"  # out through the host's own address; in only by a forward
    ROUTED = "routed"  # the host routes; somebody outside knows the way back
    ISOLATED = "isolated"  # its guests reach each other and the host's resolver, nothing else
    BRIDGE = "bridge"  # a bridge of the host's that somebody else looks after; no addresses of ours


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for. ``subnet`` "" means: pick a free one (but none for ``bridge``).

    ``subnet6`` "" means no IPv6. ``bridge`` is the host's interface for mode ``bridge``, "" else.
    ``dns`` are the resolvers that names from outside are asked of; none: the host's own.
    """

    name: str
    mode: NetworkMode = NetworkMode.NAT
    subnet: str = ""
    subnet6: str = ""
    bridge: str = ""
    dns: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class NetworkChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``network set`` may change; what is not named stays as it is."""

    dns: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    subnet6: str | msgspec.UnsetType = msgspec.UNSET
    labels: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps: ``spec`` is complete, a subnet was picked. ``version`` is the ETag."""

    id: str
    version: int
    created_at: float
    spec: NetworkSpec
    problem: Problem | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a network. ``interface`` is its bridge on the host; ``free`` counts addresses.

    ``ports`` are those on the host; in each of ``bubbles`` there is a copy of it with others.
    ``problem`` says what of it could not be put up on this host, if anything.
    """

    name: str
    id: str
    mode: NetworkMode
    subnet: str
    subnet6: str
    gateway: str
    gateway6: str
    interface: str
    dns: tuple[str, ...]
    labels: dict[str, str]
    ports: int
    free: int
    version: int
    created_at: float
    problem: Problem | None = None
    bubbles: int = 0


class PortLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast a port may be, in bytes a second and bytes at once; 0: no limit.

    ``rate_in`` is what the guest receives, ``rate_out`` what it sends. A burst of 0 is chosen.
    """

    rate_in: int = 0
    rate_out: int = 0
    burst_in: int = 0
    burst_out: int = 0


class PortSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An attachment that is asked for. Addresses and MAC that are "" are picked.

    ``groups`` are names of security groups; a port in none may send and receive everything that
    is its own.
    """

    network: str
    address: str = ""
    address6: str = ""
    mac: str = ""
    groups: tuple[str, ...] = ()
    limits: PortLimits = PortLimits()


class PortChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``port set`` may change, live; what is not named stays as it is."""

    groups: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    limits: PortLimits | msgspec.UnsetType = msgspec.UNSET


class InBubble(msgspec.Struct, frozen=True, kw_only=True):
    """The bubble that a port is in: there is one as long as a port says so (docs/design/0048).

    ``transfer`` is the subnet that joins it to the host, its own. ``known_as`` is the name by which the
    others in it find the port's guest: that of the guest which it was a fork of.
    """

    id: str
    transfer: str
    known_as: str


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment of a guest, kept in its record. ``name`` ("net0") is unique in the guest.

    ``network`` and ``groups`` are ids. ``tap`` is its interface on the host, the same for the whole
    life of the port. ``address`` and ``address6`` are "" where the network has none to give. With a
    ``bubble`` all of that is in there, and others may have the same addresses elsewhere.
    """

    id: str
    name: str
    network: str
    mac: str
    tap: str
    address: str = ""
    address6: str = ""
    groups: tuple[str, ...] = ()
    limits: PortLimits = PortLimits()
    bubble: InBubble | None = None

    @property
    def site(self) -> str:
        """Where it is: the id of its bubble, "" for the host itself."""
        return self.bubble.id if self.bubble else ""


class PortBrief(msgspec.Struct, frozen=True, kw_only=True):
    """A port in a few words, as it stands with its guest; the network by name.

    ``bubble`` is the id of the bubble that it is in ("": none), ``known_as`` its guest's name there.
    """

    name: str
    network: str
    mac: str
    address: str
    address6: str
    bubble: str = ""
    known_as: str = ""


class PortCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What has passed a port since it was made, also over restarts of guest, daemon and host.

    ``local`` is traffic within its network, the rest went through the host to elsewhere.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    packets_out: int = 0
    local_bytes_in: int = 0
    local_bytes_out: int = 0
    refused_in: int = 0
    refused_out: int = 0
    spoofed: int = 0


class PortView(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a port; networks and groups by name, ``bubble`` and ``known_as`` as in brief."""

    name: str
    id: str
    guest: str
    network: str
    mac: str
    address: str
    address6: str
    groups: tuple[str, ...]
    limits: PortLimits
    interface: str
    counters: PortCounters = PortCounters()
    bubble: str = ""
    known_as: str = ""


class PortUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a port's traffic: all of it, and what the host's counters said then.

    Those begin anew with the host; so what they say now is added to ``total``, less ``seen`` if they
    still go on from there: then their ``generation`` is the same.
    """

    port: str
    guest_id: str
    total: PortCounters = PortCounters()
    seen: PortCounters = PortCounters()
    generation: str = ""


class Direction(StrEnum):
    """Which way a rule looks, from the guest."""

    IN = "in"
    OUT = "out"


class Protocol(StrEnum):
    """What a rule is about."""

    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"  # of IPv4 and IPv6 alike


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that may pass; answers to it may too. What no rule of a direction allows is dropped.

    ``ports`` is "" (all), "80" or "8000-8100", for TCP and UDP only. ``remote`` is "" (anybody), an
    address or a prefix, or ``group:NAME``: the ports in that group.
    """

    direction: Direction
    protocol: Protocol = Protocol.ANY
    ports: str = ""
    remote: str = ""


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A security group. One that has no rule for a direction lets nothing in, and everything out."""

    name: str
    rules: tuple[Rule, ...] = ()
    note: str = ""


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a group. In rules of ``spec``, ``group:`` is followed by an id."""

    id: str
    version: int
    created_at: float
    spec: GroupSpec


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a group; ``ports`` counts the ports in it."""

    name: str
    id: str
    rules: tuple[Rule, ...]
    note: str
    ports: int
    version: int
    created_at: float


class GroupChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a group, in one step: rules that come and go, and the note.

    A rule that is there already is not added twice; one that is to go and is not there is an error.
    """

    add: tuple[Rule, ...] = ()
    remove: tuple[Rule, ...] = ()
    note: str | msgspec.UnsetType = msgspec.UNSET


class ForwardSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port of the host that leads to one of a guest.

    ``host_address`` "" means every address of the host; ``guest_port`` 0 the same number as outside;
    ``port`` "" the guest's first port. ``protocol`` is ``tcp`` or ``udp``.
    """

    guest: str
    host_port: int
    protocol: Protocol = Protocol.TCP
    host_address: str = ""
    guest_port: int = 0
    port: str = ""


class ForwardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a forward; ``guest_id`` says where it leads, ``port`` by which port.

    ``port`` is the id of a port of the guest, "" for a guest with QEMU's own network.
    """

    id: str
    guest_id: str
    port: str
    protocol: Protocol
    host_address: str
    host_port: int
    guest_port: int
    created_at: float


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a forward. ``problem`` says why it does not work, if so."""

    id: str
    guest: str
    port: str
    protocol: Protocol
    host_address: str
    host_port: int
    guest_port: int
    address: str
    problem: Problem | None = None
