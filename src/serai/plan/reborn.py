"""What a fork is told about itself before anybody talks to it: pure.

The kernel inside notices by itself that it was copied and seeds its random numbers anew (VM
generation id, Linux 5.18 and newer). The rest is a shell script that the guest's agent runs: the
clock first, then host name, machine id and MAC address. Everything in it is ours: names and
addresses were checked when the guest was made.
"""

from collections.abc import Mapping

SCRIPT = """
set -u
date -u -s "@$NOW" >/dev/null 2>&1
echo "$NAME" >/proc/sys/kernel/hostname
[ -s /etc/hostname ] && echo "$NAME" >/etc/hostname
[ -s /etc/machine-id ] && echo "$MACHINE_ID" >/etc/machine-id
for port in /sys/class/net/*; do
    read -r mac <"$port/address"
    if [ "$mac" = "$OLD_MAC" ]; then ip link set dev "${port##*/}" address "$MAC"; fi
done
:
"""


def birth_words(
    *, name: str, machine_id: str, old_mac: str, mac: str, now: float
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and its environment that make a forked guest somebody new.

    ``machine_id`` is a UUID; ``now`` is seconds since the epoch.
    """
    environment = {
        "NAME": name,
        "MACHINE_ID": machine_id.replace("-", ""),
        "OLD_MAC": old_mac,
        "MAC": mac,
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return ["/bin/sh", "-c", SCRIPT], environment


def clock_words(now: float) -> tuple[list[str], Mapping[str, str]]:
    """Return the command that puts the clock of a guest right that was held or restored."""
    return ["/bin/sh", "-c", 'date -u -s "@$NOW" >/dev/null'], {
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
