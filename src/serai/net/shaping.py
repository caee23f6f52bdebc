"""How fast a port may be; see ``serai.net``."""

from serai.model.network import PortLimits
from serai.net.links import Links


async def ensure_limits(links: Links, tap: str, limits: PortLimits) -> None:
    """Have a tap limited as wished, live; no limits remove what was there."""
    raise NotImplementedError
