"""What a fork is told about itself before anybody talks to it: pure.

A shell script that the guest's agent runs: the random numbers first, then the clock, host name,
machine id and MAC address. Everything in it is ours: names and addresses were checked when the guest
was made.

A kernel with a driver of the VM generation id notices by itself that it was copied and seeds its
random numbers anew, but when it gets round to it; Debian's cloud kernel has none. So it is given a
seed, and told to use it now (RNDRESEEDCRNG of random(4), Linux 5.18 and newer), by whatever in the guest
can call an ioctl. Where nothing can, the seed takes effect within a minute.
"""

from collections.abc import Mapping

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
    if [ "$mac" = "$OLD_MAC" ]; then ip link set dev "${port##*/}" address "$MAC"; fi
done
:
"""


def birth_words(
    *, name: str, machine_id: str, old_mac: str, mac: str, seed: str, now: float
) -> tuple[list[str], Mapping[str, str]]:
    """Return the command and its environment that make a forked guest somebody new.

    ``machine_id`` is a UUID, ``seed`` a text that nobody can guess; ``now`` is seconds since the epoch.
    """
    environment = {
        "NAME": name,
        "MACHINE_ID": machine_id.replace("-", ""),
        "OLD_MAC": old_mac,
        "MAC": mac,
        "SEED": seed,
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return ["/bin/sh", "-c", RESEED + CLOCK + SCRIPT], environment


def back_words(*, seed: str, now: float) -> tuple[list[str], Mapping[str, str]]:
    """Return the command for a guest that was put back: it is who it was, but at another time."""
    return ["/bin/sh", "-c", RESEED + CLOCK], {
        "SEED": seed,
        "NOW": str(round(now)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
