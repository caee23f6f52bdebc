"""What a fork is told about itself before anybody talks to it: pure.

The random numbers first, then the clock, host name, machine id and MAC address. In one of two ways, to the
same end: a line for the program that waits for it in the guest (``disk/recipes/reborn.c``, docs/design/0047), or,
where none does, a shell script that the guest's agent runs. Everything in both is ours: names and
addresses were checked when the guest was made.

A kernel with a driver of the VM generation id notices by itself that it was copied and seeds its
random numbers anew, but when it gets round to it; Debian's cloud kernel has none. So it is given a
seed, and told to use it now (RNDRESEEDCRNG of random(4), Linux 5.18 and newer), by whatever in the guest
can call an ioctl. Where nothing can, the seed takes effect within a minute.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serai.model.guest import GuestRecord
from serai.model.network import NetworkMode, NetworkSpec, Port
from serai.plan.network import gateway_of

RESEED = """
if [ -x /sbin/reseed ]; then /sbin/reseed "$SEED"
elif command -v perl; then perl -e 'open(F, ">", "/dev/urandom") && syswrite(F, $ENV{SEED}) && ioctl(F, 0x5207, 0)'
elif command -v python3; then python3 -c 'import fcntl, os
with open("/dev/urandom", "wb", 0) as file:
    file.write(os.environb[b"SEED"])
    fcntl.ioctl(file, 0x5207)'
else echo "$SEED" >/dev/urandom
fi >/dev/null 2>&1
"""

CLOCK = """
date -u -s "@$NOW" >/dev/null 2>&1
:
"""

SCRIPT = """
set -u
echo "$NAME" >/proc/sys/kernel/hostname
[ -s /etc/hostname ] && echo "$NAME" >/etc/hostname
[ -s /etc/machine-id ] && echo "$MACHINE_ID" >/etc/machine-id
for port in /sys/class/net/*; do
    read -r mac <"$port/address"
    for pair in $MACS; do
        [ "$mac" = "${pair%=*}" ] || continue
        if [ -z "$ANEW" ]; then ip link set dev "${port##*/}" address "${pair#*=}"; break; fi
        # down and up: the IPv6 addresses that the old one made go, the new one makes its own
        ip link set dev "${port##*/}" down
        # at once: the host knows that nobody else has them (RENEWAL puts it back)
        echo 0 2>/dev/null >"/proc/sys/net/ipv6/conf/${port##*/}/accept_dad"
        ip link set dev "${port##*/}" address "${pair#*=}"
        ip link set dev "${port##*/}" up
        break
    done
done
:
"""

RENEWAL = """
set -u
ask_anew() {
    for pid in $asking; do
        cp "/proc/$pid/cmdline" "/run/renewal.$pid"
        case "$(cat "/proc/$pid/comm")" in
        # killed, so that it gives nothing back that is its source's; and it knows no lease any more
        dhclient)
            kill -KILL "$pid"
            rm -f "$(xargs -0 -n 1 <"/run/renewal.$pid" | grep -A 1 -x -e -lf | grep ^/ ||
                echo /var/lib/dhcp/dhclient.leases)"
            ;;
        *) kill "$pid" ;;
        esac
        left=100
        while [ -e "/proc/$pid" ] && [ $((left -= 1)) -gt 0 ]; do sleep 0.01; done
        xargs -0 setsid <"/run/renewal.$pid" &
    done
}
nics=
for port in /sys/class/net/*; do
    read -r mac <"$port/address"
    found=
    for new in $NICS; do
        if [ "${new%%=*}" = "$mac" ]; then found=${new#*=}; fi
    done
    [ -n "$found" ] || continue
    nic=${port##*/}
    nics="$nics $nic"
    left=100
    until read -r carrier <"$port/carrier" && [ "$carrier" = 1 ] || [ $((left -= 1)) -le 0 ]; do
        sleep 0.01
    done 2>/dev/null
    # asked by name only if it is there: the bus would start it
    if [ -d /run/systemd/netif ] && pidof systemd-networkd >/dev/null &&
        ! grep -qs ADMIN_STATE=unmanaged "/run/systemd/netif/links/$(cat "$port/ifindex")"; then
        networkctl reconfigure "$nic" >/dev/null 2>&1 && continue
    fi
    if [ -d /run/NetworkManager ] && pidof NetworkManager >/dev/null; then continue; fi
    asking=
    for pid in $(pidof udhcpc dhclient); do
        case "$(tr '\\0' ' ' <"/proc/$pid/cmdline")" in
        *" $nic "* | *dhclient" ") asking="$asking $pid" ;;
        esac
    done
    [ -n "$asking" ] || continue
    [ "$found" = = ] || : >"/run/renewal.$nic"
    case "$found $(ip -4 -o address show dev "$nic")" in
    "= "*) ip -4 address flush dev "$nic" ;;
    *" ${found%=*} "*) ;;
    *)
        ip -4 address flush dev "$nic"
        ip -4 address add "${found%=*}" dev "$nic"
        [ -z "${found#*=}" ] || ip -4 route add default via "${found#*=}" dev "$nic"
        ;;
    esac 2>/dev/null
    ask_anew </dev/null >/dev/null 2>&1 &
done
cd /proc/sys/net/ipv6/conf 2>/dev/null || exit 0
(sleep $SETTLE; for nic in $nics; do cat default/accept_dad >$nic/accept_dad; done) </dev/null >/dev/null 2>&1 &
"""
"""Has a guest use its new addresses, and whatever asks for addresses in it do so again, as somebody new.

networkd is asked to. NetworkManager has done so by itself when it saw the new MAC address; to connect again
would take it seconds and the address for a moment. udhcpc and dhclient, which remember who they were, are
started anew with the words that they had; until they are told the same, the guest has the address that we
know it will get, and /run/renewal.NIC says so. Its new IPv6 addresses are looked for on the link first again
``SETTLE`` seconds later (accept_dad, ip-sysctl in the kernel's documentation).
"""
SETTLE = 3


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPort:
    """A NIC with its new addresses: by MAC address; "10.0.0.7/24" and the way out, or ""."""

    mac: str
    address: str = ""
    router: str = ""

    @property
    def words(self) -> str:
        """All of it in one word."""
        return f"{self.mac}={self.address}={self.router}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSelf:
    """What a copied guest is to know of itself.

    ``seed`` is a text without blanks that nobody can guess, ``now`` seconds since the epoch. Without a
    ``name`` that is all: it was put back, and is who it was, but at another time. ``machine_id`` is a
    UUID, ``macs`` says which MAC address becomes which. With ``ports`` it is somebody else there, too: it
    will ask for addresses again (``renewal_words``), so it may lose those that it has; otherwise it keeps
    them, and its routes.
    """

    seed: str
    now: float
    name: str = ""
    machine_id: str = ""
    macs: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[NewPort, ...] = ()

    @property
    def pairs(self) -> list[str]:
        """Each old MAC address with its new one."""
        return [f"{old}={new}" for old, new in self.macs.items()]

    @property
    def moves(self) -> list[str]:
        """Each old MAC address with its new one, and the IPv4 address and way out that go with that."""
        new = {port.mac: port.words for port in self.ports if port.address}
        return [f"{old}={new.get(mac, mac)}" for old, mac in self.macs.items()]

    @property
    def plain_id(self) -> str:
        """The machine id as systemd writes it."""
        return self.machine_id.replace("-", "")


def macs_of(parent: GuestRecord, child: GuestRecord) -> dict[str, str]:
    """Return which MAC address of a guest becomes which in its fork."""
    own = {port.name: port.mac for port in child.ports}
    macs = {port.mac: own[port.name] for port in parent.ports if port.name in own}
    return {**macs, parent.mac: child.mac}


def as_line(new: NewSelf, nonce: str) -> str:
    """Return the line for what waits in the guest; its answer will have the ``nonce`` in it."""
    seconds, part = divmod(round(new.now * 1e6), 1_000_000)
    words = ["serai1", nonce, new.seed, str(seconds), str(part * 1000)]
    if new.name:
        words += [new.name, new.plain_id, "anew" if new.ports else "keep", *new.moves]
    return " ".join(words)


def as_name_line(name: str, nonce: str) -> str:
    """Return the line for a guest that is to change nothing but its host name."""
    return f"serai1-name {nonce} {name}"


def as_script(new: NewSelf) -> tuple[list[str], Mapping[str, str]]:
    """Return the command for the guest's agent, and its environment."""
    environment = {"SEED": new.seed, "NOW": str(round(new.now)), "PATH": PATH}
    if not new.name:
        return ["/bin/sh", "-c", RESEED + CLOCK], environment
    return ["/bin/sh", "-c", RESEED + CLOCK + SCRIPT], {
        **environment,
        "NAME": new.name,
        "MACHINE_ID": new.plain_id,
        "MACS": " ".join(new.pairs),
        "ANEW": "yes" if new.ports else "",
    }


def new_port(port: Port, network: NetworkSpec) -> NewPort:
    """Return how a guest is to use a port in that network."""
    if not port.address or not network.subnet:
        return NewPort(mac=port.mac)
    length = network.subnet.partition("/")[2]
    router = "" if network.mode is NetworkMode.ISOLATED else gateway_of(network)
    return NewPort(mac=port.mac, address=f"{port.address}/{length}", router=router)


def renewal_words(ports: Iterable[NewPort]) -> tuple[list[str], Mapping[str, str]]:
    """Return the command that has a guest use these NICs, with the addresses that they have now."""
    return ["/bin/sh", "-c", RENEWAL], {
        "NICS": " ".join(port.words for port in ports),
        "SETTLE": str(SETTLE),
        "PATH": PATH,
    }
