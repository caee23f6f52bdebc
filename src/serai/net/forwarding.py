"""Whether the host routes between its interfaces; see ``serai.net``."""

from pathlib import Path


async def ensure_forwarding(memory: Path, *, v4: bool, v6: bool, namespace: str = "") -> list[str]:
    """Have the host route IPv4, IPv6 as needed; return the settings that were changed.

    What was before is kept in the file ``memory`` and put back once neither is needed.
    """
    raise NotImplementedError
