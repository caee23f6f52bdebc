"""What a network's dnsmasq is told: its configuration, leases and names, as text. Pure.

Guests get their addresses from us alone, so it hands out reservations and nothing else, and no name
that a guest claims for itself is believed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import PurePath

from serai.model.network import NetworkMode, NetworkSpec, Port
from serai.plan.network import gateway6_of, gateway_of

DOMAIN = "internal"
"""Reserved for private use; a guest is ``web1`` and ``web1.NETWORK.internal`` to its neighbours."""
LEASE = "12h"
LEASES = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A port and the name of its guest, by which others find it."""

    port: Port
    guest: str


def domain_of(network: str) -> str:
    """Return the domain of a network's names."""
    return f"{network}.{DOMAIN}"


def configuration(
    spec: NetworkSpec, *, bridge: str, bridge_index: int, hosts: PurePath, names: PurePath,
    leases: PurePath,
) -> str:  # fmt: skip
    """Return the configuration file. The bridge's number is in it: another bridge needs another dnsmasq."""
    domain = domain_of(spec.name)
    lines = [
        f"# {bridge} is interface {bridge_index}",
        "keep-in-foreground", "log-facility=-", "quiet-dhcp", "quiet-dhcp6", "quiet-ra",
        f"interface={bridge}", "bind-dynamic", "except-interface=lo",
        "no-hosts", f"addn-hosts={names}", f"dhcp-hostsfile={hosts}", f"dhcp-leasefile={leases}",
        f"dhcp-lease-max={LEASES}", "dhcp-authoritative", "dhcp-ignore-names", "no-ping",
        f"domain={domain}", f"local=/{domain}/", "domain-needed", "bogus-priv",
        *_upstream(spec), *_ranges(spec),
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def _upstream(spec: NetworkSpec) -> list[str]:
    """Ask those that were named, else the host's own; from an isolated network nobody outside."""
    if spec.mode is NetworkMode.ISOLATED:
        return ["no-resolv"]
    if spec.dns:
        return ["no-resolv", *(f"server={each}" for each in spec.dns)]
    return []


def _ranges(spec: NetworkSpec) -> list[str]:
    subnet = IPv4Network(spec.subnet)
    lines = [f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE}"]
    if spec.subnet6:
        start = spec.subnet6.partition("/")[0]
        # a guest without DHCPv6 gives itself the very address that is its own: of its MAC address
        lines += [f"dhcp-range={start},static,slaac,64,{LEASE}", "enable-ra"]
    if spec.mode is NetworkMode.ISOLATED:
        lines.append("dhcp-option=option:router")  # none: there is no way out
        if spec.subnet6:
            lines.append("ra-param=*,0,0")
    return lines


def reservations(leases: Iterable[Lease]) -> str:
    """Return the file that says which MAC address has which addresses and is called what."""
    lines = []
    named: set[str] = set()
    for lease in leases:
        port = lease.port
        parts = [port.mac, *([port.address] if port.address else [])]
        if port.address6:
            parts.append(f"[{port.address6}]")
        if lease.guest not in named:
            parts.append(lease.guest)
            named.add(lease.guest)
        lines.append(",".join(parts) + "\n")
    return "".join(lines)


def names(leases: Iterable[Lease], spec: NetworkSpec) -> str:
    """Return the file of names: each guest's addresses, and the host's as ``gateway``."""
    domain = domain_of(spec.name)
    pairs = [(gateway_of(spec), "gateway"), (gateway6_of(spec), "gateway")]
    for lease in leases:
        pairs += [(lease.port.address, lease.guest), (lease.port.address6, lease.guest)]
    return "".join(f"{address} {name}.{domain} {name}\n" for address, name in pairs if address)


def kept_leases(untrusted: str, leases: Iterable[Lease]) -> str:
    """Return the lease file without what belongs to nobody any more.

    dnsmasq gives an address to nobody else while a lease of it lasts, whatever the reservations say.
    A line is: its end, MAC address or IAID, address, name, client (dnsmasq's lease.c).
    """
    ports = [lease.port for lease in leases]
    own = {(port.mac, port.address) for port in ports}
    own6 = {port.address6 for port in ports}
    lines = []
    for line in untrusted.splitlines(keepends=True):
        words = line.split()
        if words[:1] == ["duid"] or (words[1:3] and (tuple(words[1:3]) in own or words[2] in own6)):
            lines.append(line)
    return "".join(lines)
