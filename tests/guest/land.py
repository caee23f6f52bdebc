"""A small land of network namespaces: a host with our networks, guests, and a world outside.

    guest ── st… ┐                                    (a guest is a namespace, its tap a veth)
    guest ── st… ┴ bridge (host) ═══ 192.0.2.0/24 ═══ outside

All of it is made of what the program makes, inside namespaces, so that the network of the machine that
runs the tests is never touched. Sockets are opened in a namespace and used from anywhere.
"""

import os
import socket
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from serai.host.namespaces import (
    inside,
    list_namespaces,
    make_namespace,
    path_of,
    remove_namespace,
)
from serai.host.supervise import wait_until
from serai.model.network import (
    ForwardRecord,
    GroupRecord,
    GroupSpec,
    NetworkMode,
    NetworkRecord,
    NetworkSpec,
    Port,
    PortCounters,
    PortSpec,
    Protocol,
    Rule,
)
from serai.net.firewall import Firewall
from serai.net.links import Bridge, Links, Pair, open_links, write_sysctl
from serai.plan.bubbles import leads_in_bubble, leads_on_host
from serai.plan.firewall import build_ruleset
from serai.plan.network import (
    bridge_of,
    check_network,
    gateway6_of,
    gateway_of,
    make_port,
    own_addresses6,
)
from serai.plan.nftables import Ruleset
from serai.plan.rules import check_group

HOST4, OUT4 = "192.0.2.1", "192.0.2.2"
HOST6, OUT6 = "2001:db8::1", "2001:db8::2"
PATIENCE = 5.0
FORWARDING = 3  # BR_STATE_FORWARDING of linux/if_bridge.h


def run_in(namespace: str, *argv: str) -> str:
    """Run a program in a namespace; return what it prints."""
    words = ["nsenter", f"--net={path_of(namespace)}", "--", *argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def open_socket(namespace: str, family: int, kind: int) -> socket.socket:
    """Open a socket that belongs to a namespace."""
    found = inside(namespace, lambda: socket.socket(family, kind))
    found.settimeout(PATIENCE)
    return found


def raw_socket(namespace: str, interface: str = "eth0") -> socket.socket:
    """Open a socket for whole frames of an interface; what it sends itself it does not hear."""

    def work() -> socket.socket:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        found.bind((interface, 3))
        return found

    found = inside(namespace, work)
    found.setblocking(False)
    return found


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(namespace: str, address: str, port: int) -> socket.socket:
    """Listen for TCP."""
    found = open_socket(namespace, _family(address), socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((address, port))
    found.listen()
    return found


def dial(
    namespace: str, address: str, port: int, *, source: str = "", patience: float = PATIENCE
) -> socket.socket:
    """Connect by TCP."""
    found = open_socket(namespace, _family(address), socket.SOCK_STREAM)
    found.settimeout(patience)
    if source:
        found.bind((source, 0))
    found.connect((address, port))
    return found


def meet(server: socket.socket, client: socket.socket) -> tuple[str, bytes]:
    """Accept who has connected, say a word each way; return his address and what he heard."""
    there, address = server.accept()
    with there, client:
        client.sendall(b"ping")
        assert there.recv(4) == b"ping"
        there.sendall(b"pong")
        return address[0], client.recv(4)


def udp(namespace: str, address: str, port: int = 0) -> socket.socket:
    """Open a UDP socket."""
    found = open_socket(namespace, _family(address), socket.SOCK_DGRAM)
    found.bind((address, port))
    return found


@dataclass
class Guest:
    """A namespace that takes a guest's part; ``port`` as it was made."""

    name: str
    namespace: str
    port: Port


@dataclass
class Land:
    """The host's hands, and the records that they are told of."""

    owner: str
    host: str
    outside: str
    links: Links
    firewall: Firewall
    folder: Path
    stack: AsyncExitStack
    networks: dict[str, NetworkRecord] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)
    groups: dict[str, GroupRecord] = field(default_factory=dict)
    forwards: list[ForwardRecord] = field(default_factory=list)
    bubbles: dict[str, str] = field(default_factory=dict)
    bubbled: list[Port] = field(default_factory=list)
    prefix: str = ""

    async def network(self, name: str, **spec: object) -> NetworkRecord:
        """Make a network with its bridge."""
        others = [each.spec for each in self.networks.values()]
        wished = NetworkSpec(name=name, **spec)  # type: ignore[arg-type]
        whole = check_network(wished, others=others, routes=await self.links.routes())
        record = NetworkRecord(id=str(uuid.uuid4()), version=1, created_at=0.0, spec=whole)
        self.networks[name] = record
        if whole.mode is not NetworkMode.BRIDGE:
            await self.links.ensure_bridge(self.bridge(name))
        return record

    def bridge(self, name: str) -> Bridge:
        """Return the bridge of a network, as it should be."""
        record = self.networks[name]
        spec = record.spec
        addresses = [f"{gateway_of(spec)}/{IPv4Network(spec.subnet).prefixlen}"]
        if spec.subnet6:
            addresses.append(f"{gateway6_of(spec)}/64")
        return Bridge(
            name=bridge_of(record.id), label=name, addresses=tuple(addresses), reach_localhost=True
        )

    def foreign_bridge(self, name: str) -> Bridge:
        """Return a bridge that is none of a network's."""
        return Bridge(name=name, label=name)

    async def bring_up(self, guest: Guest) -> None:
        """Let a guest's interface go up, without an address; what it sends then reaches the others."""
        async with open_links("inmate", namespace=guest.namespace) as inner:
            await inner.ensure_address("eth0", ())

        async def passes_on() -> bool:  # the bridge hears of it later
            return (
                await self.links.do("look at a port", lambda: self._port_state(guest)) == FORWARDING
            )

        await wait_until("its port passes on", passes_on, timeout=20, every=0.02)

    def _port_state(self, guest: Guest) -> int | None:
        [link] = self.links.route.link("get", ifname=guest.port.tap)
        info = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA")
        return info.get_attr("IFLA_BRPORT_STATE") if info is not None else None

    def group(self, name: str, *rules: Rule) -> GroupRecord:
        """Make a security group, or change it."""
        ids = {each.spec.name: each.id for each in self.groups.values()}
        group_id = ids.setdefault(name, str(uuid.uuid4()))
        spec = check_group(GroupSpec(name=name, rules=rules), ids)
        record = GroupRecord(id=group_id, version=1, created_at=0.0, spec=spec)
        self.groups[name] = record
        return record

    def make_port(self, network: str, **spec: object) -> Port:
        """Make a port's record."""
        record = self.networks[network]
        taken = [each.port for each in self.guests.values() if each.port.network == record.id]
        return make_port(
            PortSpec(network=network, **spec),  # type: ignore[arg-type]
            port_id=str(uuid.uuid4()),
            name="net0",
            network_id=record.id,
            network=record.spec,
            groups={each.spec.name: each.id for each in self.groups.values()},
            taken=taken,
        )

    def record(self, name: str, network: str, **spec: object) -> Guest:
        """Make the record of a guest, and nothing of it on the host."""
        port = self.make_port(network, **spec)
        self.guests[name] = Guest(name, f"{self.host}-{self.prefix}{name}", port)
        return self.guests[name]

    async def guest(
        self,
        name: str,
        network: str,
        *,
        configured: bool = True,
        as_port: Port | None = None,
        **spec: object,
    ) -> Guest:
        """Make a guest: a namespace whose ``eth0`` has the port's MAC address, and its addresses.

        ``as_port``: it is a copy of the one that has that port.
        """
        guest = self.record(name, network, **spec)
        guest.port = port = as_port or guest.port
        record = self.networks[network]
        await self.namespace(guest.namespace)
        end = os.open(path_of(guest.namespace), os.O_RDONLY)
        try:
            await self.links.ensure_pair(
                Pair(name=port.tap, label=name, peer="eth0", peer_namespace=end,
                     bridge=record.spec.bridge or bridge_of(record.id))
            )  # fmt: skip
        finally:
            os.close(end)
        run_in(guest.namespace, "ip", "link", "set", "eth0", "address", port.mac)
        if configured:
            await self._configure(guest, record.spec)
        return guest

    def within(self, namespace: str, prefix: str) -> "Land":
        """Return the land inside a bubble: the same networks and forwards, other hands."""
        firewall = Firewall(self.owner, namespace=namespace)
        self.stack.push_async_callback(firewall.close)
        return replace(
            self,
            firewall=firewall,
            prefix=f"{prefix}-",
            guests={},
            bubbles={},
            bubbled=[],
        )

    async def _configure(self, guest: Guest, spec: NetworkSpec) -> None:
        port = guest.port
        addresses, gateways = [], []
        if port.address:
            addresses.append(f"{port.address}/{IPv4Network(spec.subnet).prefixlen}")
            gateways.append(gateway_of(spec))
        if port.address6:
            addresses.append(f"{port.address6}/{IPv6Network(spec.subnet6).prefixlen}")
            gateways.append(gateway6_of(spec))
        async with open_links("inmate", namespace=guest.namespace) as inner:
            await inner.ensure_address("lo", ("127.0.0.1/8",))
            await inner.ensure_address("eth0", tuple(addresses), gateways=tuple(gateways))

    async def namespace(self, name: str) -> None:
        """Make a namespace that goes with the land."""
        make_namespace(name)
        self.stack.callback(remove_namespace, name)

    def forward(self, host_port: int, guest: Guest, guest_port: int, **more: object) -> None:
        """Let a port of the host lead to a guest."""
        self.forwards.append(
            ForwardRecord(
                id=str(uuid.uuid4()), guest_id=guest.name, port=guest.port.id,
                protocol=more.get("protocol", Protocol.TCP),  # type: ignore[arg-type]
                host_address=str(more.get("host_address", "")), host_port=host_port,
                guest_port=guest_port, created_at=0.0,
            )
        )  # fmt: skip

    def ruleset(self) -> Ruleset:
        """Return the rules of all that there is."""
        own = [each.port for each in self.guests.values()]
        leads_of = leads_in_bubble if self.prefix else leads_on_host
        return build_ruleset(
            self.owner,
            networks=self.networks.values(),
            ports=own,
            groups=self.groups.values(),
            leads=leads_of(self.forwards, [*own, *self.bubbled]),
            bubbles=self.bubbles,
        )

    async def apply(self) -> int:
        """Bring the firewall to what there is."""
        return await self.firewall.apply(self.ruleset())

    async def counters(self, guest: Guest) -> PortCounters:
        """Return what has been counted at a guest's port."""
        port = guest.port
        spec = next(each.spec for each in self.networks.values() if each.id == port.network)
        own = (port.address, *own_addresses6(port, spec))
        return (await self.firewall.read_counters({port.tap: own})).ports[port.tap]

    async def wait_counted(self, guest: Guest, check: Callable[[PortCounters], bool]) -> None:
        """Wait until a guest's counters are as expected."""

        async def is_so() -> bool:
            return check(await self.counters(guest))

        await wait_until(f"counters of {guest.name}", is_so, timeout=PATIENCE, every=0.02)


@asynccontextmanager
async def open_land(
    folder: Path, *, owner: str = "0123abcd", within: Land | None = None
) -> AsyncIterator[Land]:
    """Make the host and the world outside; all of it is gone afterwards.

    ``within``: another daemon on the host of that land.
    """
    name = f"st{os.getpid()}"
    _tidy_up()
    async with AsyncExitStack() as stack:
        for each in () if within else (name, f"{name}-out"):
            make_namespace(each)
            stack.callback(remove_namespace, each)
        links = await stack.enter_async_context(open_links(owner, namespace=name))
        firewall = Firewall(owner, namespace=name)
        stack.push_async_callback(firewall.close)
        land = Land(owner, name, f"{name}-out", links, firewall, folder, stack)
        if not within:
            await _join_outside(land)
        yield land


def _tidy_up() -> None:
    """Remove what test runs left that were killed."""
    for namespace in list_namespaces("st"):
        pid = namespace.removeprefix("st").partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            remove_namespace(namespace)


async def _join_outside(land: Land) -> None:
    end = os.open(path_of(land.outside), os.O_RDONLY)
    try:
        async with open_links("machine", namespace=land.host) as machine:
            await machine.ensure_address("lo", ("127.0.0.1/8",))
            await machine.ensure_pair(
                Pair(name="eth9", label="wire", peer="wire", peer_namespace=end,
                     addresses=(f"{HOST4}/24", f"{HOST6}/64"))
            )  # fmt: skip
    finally:
        os.close(end)
    async with open_links("world", namespace=land.outside) as world:
        await world.ensure_address("lo", ("127.0.0.1/8",))
        await world.ensure_address("wire", (f"{OUT4}/24", f"{OUT6}/64"))
    for each in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        inside(land.host, lambda each=each: write_sysctl(each, 1))  # type: ignore[misc]


# -- frames ----------------------------------------------------------------------------------------

BROADCAST = "ff:ff:ff:ff:ff:ff"


def mac_bytes(mac: str) -> bytes:
    """Return a MAC address as it is sent."""
    return bytes.fromhex(mac.replace(":", ""))


def address_bytes(address: str) -> bytes:
    """Return an address as it is sent."""
    return socket.inet_pton(_family(address), address)


def frame(source: str, target: str, kind: int, body: bytes) -> bytes:
    """Return a frame."""
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", kind) + body


def arp(operation: int, mac: str, address: str, target: str, target_mac: str = BROADCAST) -> bytes:
    """Return an ARP packet."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    mine = mac_bytes(mac) + address_bytes(address)
    return head + mine + mac_bytes(target_mac) + address_bytes(target)


def checksum(data: bytes) -> int:
    """Return the checksum of the Internet (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: str, target: str, protocol: int, body: bytes, *, fragment: int = 0) -> bytes:
    """Return an IPv4 packet; ``fragment`` is the whole field of flags and offset."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, fragment, 64, protocol, 0)
    head += address_bytes(source) + address_bytes(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def ip6(source: str, target: str, next_header: int, body: bytes, *, hops: int = 255) -> bytes:
    """Return an IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28, len(body), next_header, hops)
    return head + address_bytes(source) + address_bytes(target) + body


def udp_packet(source: int, target: int, body: bytes = b"x" * 8) -> bytes:
    """Return a UDP packet without a checksum."""
    return struct.pack("!HHHH", source, target, 8 + len(body), 0) + body


def icmp6(kind: int, body: bytes) -> bytes:
    """Return an ICMPv6 packet; its checksum is wrong, which no filter looks at."""
    return struct.pack("!BBH", kind, 0, 0) + body


def neighbour(kind: int, target: str, option: int = 0, mac: str = BROADCAST) -> bytes:
    """Return a solicitation (135) or advertisement (136), with the option that names a MAC address."""
    body = struct.pack("!I", 0x60000000 if kind == 136 else 0) + address_bytes(target)
    if option:
        body += bytes([option, 1]) + mac_bytes(mac)
    return icmp6(kind, body)


def hear(listener: socket.socket, marks: Sequence[bytes]) -> set[bytes]:
    """Return which of ``marks`` are in frames that have arrived."""
    heard = set()
    while True:
        try:
            data = listener.recv(4096)
        except BlockingIOError:
            return heard
        heard |= {mark for mark in marks if mark in data}
