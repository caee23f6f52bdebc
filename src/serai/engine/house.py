"""What every part of the engine is given: built once by the daemon, never changed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serai.disk.firmware import FirmwareFolder
from serai.disk.images import ImageFolder
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.seeds import SeedFolder
from serai.engine.bases import Bases
from serai.engine.cabling import Cabling
from serai.engine.fabric import Fabric
from serai.engine.jobs import Jobs
from serai.engine.journal import Journal
from serai.engine.names import Names
from serai.engine.shelf import Shelf
from serai.engine.timetable import Timetable
from serai.errors import Problem, error_from_problem
from serai.host.cgroup import Cgroups
from serai.host.supervise import Supervisor
from serai.model.node import Capabilities
from serai.settings import Places, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The daemon's own things, shared by drivers and keepers.

    ``new_id`` gives unguessable ids; ``boot_id`` names this boot of the host.
    ``unfit`` is what keeps this host from running guests, if anything does. ``closing`` is set
    when the daemon stops: work that is cancelled after that is left for the next one, not undone.
    """

    settings: Settings
    places: Places
    capabilities: Capabilities
    unfit: Problem | None
    journal: Journal
    jobs: Jobs
    names: Names
    images: ImageFolder
    layers: LayerFolder
    pools: PoolFolders
    memory: MemoryFolder
    firmware: FirmwareFolder
    seeds: SeedFolder
    bases: Bases
    shelf: Shelf
    timetable: Timetable
    cgroups: Cgroups
    fabric: Fabric
    cabling: Cabling
    supervisor: Supervisor
    new_id: Callable[[], str]
    boot_id: str
    closing: asyncio.Event

    def check_fit(self) -> None:
        """Raise what keeps this host from running guests, if anything does."""
        if self.unfit is not None:
            raise error_from_problem(self.unfit)
