"""DHCP, names and router advertisements for a network; see ``serai.net``."""

from dataclasses import dataclass
from pathlib import Path

from serai.model.network import NetworkSpec, Port


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A port and the name of its guest, by which others find it."""

    port: Port
    guest: str


class Resolver:
    """The dnsmasq of one network. ``folder`` is its own, made and removed by it."""

    def __init__(
        self, folder: Path, *, bridge: str, spec: NetworkSpec, uid: int, namespace: str = ""
    ) -> None:
        raise NotImplementedError

    async def ensure(self, leases: tuple[Lease, ...]) -> str:
        """Have it running with these leases: adopt, start or tell it; say what was done, "" if nothing."""
        raise NotImplementedError

    async def wait_ended(self) -> None:
        """Wait until the running one ends; for whoever calls ``ensure`` again then."""
        raise NotImplementedError

    async def remove(self) -> None:
        """End it and remove its folder."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of it; it goes on, and the next daemon's ``ensure`` adopts it."""
        raise NotImplementedError
