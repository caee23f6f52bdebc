"""What a fork is told about itself before anybody talks to it: pure.

The kernel inside notices by itself that it was copied and seeds its random numbers anew (VM
generation id, Linux 5.18 and newer). The rest is a shell script that the guest's agent runs: the
clock first, then host name, machine id and MAC address. Everything in it is ours: names and
addresses were checked when the guest was made.
"""

from collections.abc import Iterable, Mapping

from serai.model.guest import GuestRecord

SCRIPT = """
set -u
date -u -s "@$NOW" >/dev/null 2>&1
echo "$NAME" >/proc/sys/kernel/hostname
[ -s /etc/hostname ] && echo "$NAME" >/etc/hostname
[ -s /etc/machine-id ] && echo "$MACHINE_ID" >/etc/machine-id
for port in /sys/class/net/*; do
    read -r mac <"$port/address"
    for pair in $MACS; do
        [ "$mac" = "${pair%=*}" ] || continue
        # down and up: the IPv6 addresses that the old one made go, the new one makes its own
        ip link set dev "${port##*/}" down
        ip link set dev "${port##*/}" address "${pair#*=}"
        ip link set dev "${port##*/}" up
        break
    done
done
:
"""

RENEWAL = """
set -u
for port in /sys/class/net/*; do
    read -r mac <"$port/address"
    case " $MACS " in *" $mac "*) ;; *) continue ;; esac
    nic=${port##*/}
    left=100
    while [ "$(cat "$port/carrier")" != 1 ] && [ $((left -= 1)) -gt 0 ]; do sleep 0.01; done
    if networkctl reconfigure "$nic" >/dev/null 2>&1; then continue; fi
    if nmcli device reapply "$nic" >/dev/null 2>&1; then continue; fi
    if command -v dhclient >/dev/null 2>&1 && pidof dhclient >/dev/null; then
        ip -4 address flush dev "$nic"
        dhclient -r "$nic" >/dev/null 2>&1
        dhclient -nw "$nic" >/dev/null 2>&1
        continue
    fi
    for pid in $(pidof udhcpc); do
        tr '\\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "-i $nic " || continue
        cp "/proc/$pid/cmdline" "/run/renewal.$pid"
        kill "$pid"
        ip -4 address flush dev "$nic"
        xargs -0 setsid <"/run/renewal.$pid" >/dev/null 2>&1 &
    done
done
:
"""
"""Has whatever asks for addresses in the guest do so again, as somebody new."""


def macs_of(parent: GuestRecord, child: GuestRecord) -> dict[str, str]:
    """Return which MAC address of a guest becomes which in its fork."""
    own = {port.name: port.mac for port in child.ports}
    macs = {port.mac: own[port.name] for port in parent.ports if port.name in own}
    return {**macs, parent.mac: child.mac}


def birth_words(
    *, name: str, machine_id: str, macs: Mapping[str, str], now: float
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and its environment that make a forked guest somebody new.

    ``machine_id`` is a UUID, ``macs`` says which MAC address becomes which; ``now`` is seconds since
    the epoch.
    """
    environment = {
        "NAME": name,
        "MACHINE_ID": machine_id.replace("-", ""),
        "MACS": " ".join(f"{old}={new}" for old, new in macs.items()),
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return ["/bin/sh", "-c", SCRIPT], environment


def renewal_words(macs: Iterable[str]) -> tuple[list[str], Mapping[str, str]]:
    """Return the command that has a guest ask for the addresses of these NICs anew."""
    return ["/bin/sh", "-c", RENEWAL], {
        "MACS": " ".join(macs),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }


def clock_words(now: float) -> tuple[list[str], Mapping[str, str]]:
    """Return the command that puts the clock of a guest right that was held or restored."""
    return ["/bin/sh", "-c", 'date -u -s "@$NOW" >/dev/null'], {
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
