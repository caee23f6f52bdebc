"""The first boot: what a guest is told then, and what may be waited for.

``FirstBoot`` is what somebody asks for. It may hold secrets, so it is kept apart from everything that
is shown (``disk.seeds``); a guest's record has only the name under which it is kept.
"""

from enum import StrEnum

import msgspec


class WaitFor(StrEnum):
    """What a launch waits for."""

    AGENT = "agent"  # the guest's agent answers
    SSH = "ssh"  # its ssh server answers
    CLOUD_INIT = "cloud-init"  # cloud-init has done all that it was told


class FirstBoot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What cloud-init in the guest is told. ``hostname`` "" means the guest's name.

    ``ssh_keys`` are lines as in a ``.pub`` file; ``user_data`` is what cloud-init takes under this
    name, passed on as it is. With none of the three the guest gets no seed, and its cloud-init
    nothing to do.
    """

    hostname: str = ""
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""

    @property
    def is_wanted(self) -> bool:
        """True when there is anything to tell."""
        return bool(self.hostname or self.ssh_keys or self.user_data)
