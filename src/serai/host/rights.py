"""Whether this process may do what guests need done: tried or looked up, not guessed.

Root in a container often lacks some of root's capabilities (capabilities(7)); what is missing is better
said beforehand than by the first guest that can't start, or can't be adopted.
"""

from collections.abc import Mapping
from pathlib import Path

from serai.errors import SeraiError
from serai.host.process import run

STATUS = Path("/proc/self/status")
DROP_TIMEOUT = 10.0

NEEDED: Mapping[int, str] = {
    0: "CAP_CHOWN: gives a guest its memory and files",
    5: "CAP_KILL: ends a guest that hangs",
    19: "CAP_SYS_PTRACE: tells its own guests from lookalikes after a restart",
}
"""Capabilities of root that no trial shows, and what for (numbers: linux/capability.h)."""


NEEDED_FOR_NETWORKS: Mapping[int, str] = {
    12: "CAP_NET_ADMIN: makes bridges, taps and rules",
    13: "CAP_NET_RAW: lets guests have their addresses by DHCP",
    21: "CAP_SYS_ADMIN: makes namespaces for bubbles",
}


def lacking_capabilities(status: str, needed: Mapping[int, str] = NEEDED) -> list[str]:
    """Return what of ``needed`` the text of ``/proc/PID/status`` does not have in effect."""
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    effective = int(line.split()[1], 16)
    return [name for bit, name in needed.items() if not effective >> bit & 1]


async def why_not_apart(uid: int) -> str:
    """Say why root can't run guests as users of their own; empty when it can.

    A program is really started as ``uid`` without any rights, as QEMU will be.
    """
    lacking = lacking_capabilities(STATUS.read_text())
    if lacking:
        return f"root lacks {', '.join(lacking)}"
    try:
        await run(["true"], timeout=DROP_TIMEOUT, uid=uid)
    except SeraiError as error:
        return f"no program can be started as user {uid}: {error.message}"
    return ""


def why_no_networks() -> str:
    """Say why this process can't make networks; empty when it can."""
    lacking = lacking_capabilities(STATUS.read_text(), NEEDED_FOR_NETWORKS)
    return f"this process lacks {', '.join(lacking)}" if lacking else ""
