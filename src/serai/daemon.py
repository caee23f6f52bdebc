"""The daemon: builds every object, wires them, runs until it is told to stop.

The only file that knows everybody; nobody imports it but the command that starts it. When it
ends, by whatever means, guests run on; the next daemon takes them up.
"""

import asyncio
import fcntl
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import uvloop

from serai.api.app import build_app, serve
from serai.disk.firmware import FirmwareFolder
from serai.disk.images import ImageFolder
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.seeds import SeedFolder
from serai.engine.ballast import Ballast
from serai.engine.bases import Bases
from serai.engine.bus import Bus
from serai.engine.cabling import Cabling, open_cabling
from serai.engine.engine import Engine
from serai.engine.fabric import Fabric
from serai.engine.house import House
from serai.engine.jobs import Jobs
from serai.engine.journal import Journal
from serai.engine.names import Names
from serai.engine.shelf import Shelf
from serai.engine.site import Ground
from serai.engine.timetable import Timetable
from serai.errors import Code, Conflict, HostFailure, Problem
from serai.host.cgroup import Cgroups
from serai.host.process import keep_descriptors
from serai.host.sockets import bind_unix
from serai.host.supervise import Supervisor
from serai.host.threads import share_heap
from serai.host.tools import find_capabilities
from serai.model.event import EventKind
from serai.model.guest import Accel
from serai.model.node import Capabilities, DaemonStatus
from serai.plan.network import owner_of
from serai.plan.pool import Kind
from serai.settings import Places, Settings
from serai.store.database import Store, open_store

log = logging.getLogger(__name__)

BACKLOG = 1024
"""How many clients may wait to be accepted; a full queue would refuse them."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What this host can do, and what keeps it from running guests, if anything does."""

    capabilities: Capabilities
    problem: Problem | None = None


def run_daemon(settings: Settings, places: Places, ready_fd: int | None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; return its exit code.

    A byte is written to ``ready_fd`` once requests are answered. Raises Conflict
    (``daemon-running``) when another daemon has these places.
    """
    keep_descriptors()
    share_heap()
    for folder in (places.state, places.run, places.guests, places.guests_run, places.scratch):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _hold_lock(places):
        uvloop.run(_run(settings, places, ready_fd))
    return 0


@contextmanager
def _hold_lock(places: Places) -> Iterator[None]:
    """Be the only daemon of these places; the kernel lets go of the lock however we end."""
    fd = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise Conflict(
            Code.DAEMON_RUNNING,
            f"a daemon runs here already, as process {pid}",
            hint="Stop it first: serai daemon stop",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    try:
        yield
    finally:
        os.close(fd)


async def _run(settings: Settings, places: Places, ready_fd: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    found = await _find_out(settings, places)
    async with (
        open_store(places.database) as store,
        _open_engine(settings, places, found, store) as engine,
    ):
        listener = bind_unix(places.socket, mode=0o600, backlog=BACKLOG)
        try:
            _say_ready(ready_fd)
            await serve(build_app(engine, settings=settings), listener, stop)
        finally:
            listener.close()
            places.socket.unlink(missing_ok=True)


def _say_ready(ready_fd: int | None) -> None:
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)


async def _find_out(settings: Settings, places: Places) -> Found:
    """Ask what this host can do; a host that can't run guests still gets a daemon that says so."""
    try:
        cache = places.state / "capabilities.json"
        return Found(capabilities=await find_capabilities(settings, cache))
    except HostFailure as error:
        log.warning("no guest can be started here: %s", error.message)
        nothing = Capabilities(
            qemu_path="",
            qemu_version="",
            machine_type="",
            accel=Accel.TCG,
            accel_reason=error.message,
            privileged=os.geteuid() == 0,
        )
        return Found(capabilities=nothing, problem=error.problem())


@asynccontextmanager
async def _open_engine(
    settings: Settings, places: Places, found: Found, store: Store
) -> AsyncIterator[Engine]:
    """Build the engine, let it take up what is there; at the end let go, and stop no guest."""
    bus = Bus()
    async with _open_house(settings, places, found, store, bus) as house:
        journal, supervisor = house.journal, house.supervisor
        engine = Engine(house, bus, _describe(places, found))
        supervisor.start(journal.run(), name="journal")
        try:
            await _take_up(engine, journal)
            supervisor.start(engine.upkeep().run(), name="upkeep")
            supervisor.start(engine.run_schedules(), name="schedules")
            yield engine
        finally:
            await engine.close()
            house.closing.set()
            await engine.store_usage()
            journal.tell(journal.event(EventKind.DAEMON_STOPPING, "", pid=str(os.getpid())))
            await journal.flush()
            bus.close()
            house.bases.close()


@asynccontextmanager
async def _open_house(
    settings: Settings, places: Places, found: Found, store: Store, bus: Bus
) -> AsyncIterator[House]:
    """Build what every part of the engine is given; at the end wait for all that runs in it."""
    ballast = Ballast(places.ballast, settings.disk_reserve)
    ballast.fill()
    journal = Journal(store, bus, time.time, ballast)
    fabric = Fabric()
    async with (
        Supervisor() as supervisor,
        _open_cabling(settings, places, found, fabric, supervisor) as cabling,
    ):
        memory = MemoryFolder(places.memory, reserve=settings.disk_reserve)
        layers = LayerFolder(places.layers)
        yield House(
            settings=settings,
            places=places,
            capabilities=found.capabilities,
            unfit=found.problem,
            journal=journal,
            jobs=Jobs(journal, _new_id),
            names=Names(),
            images=ImageFolder(places.images),
            layers=layers,
            pools=PoolFolders(places.volumes, layers),
            memory=memory,
            firmware=FirmwareFolder(places.firmware),
            seeds=SeedFolder(places.seeds),
            bases=Bases(places.run / "bases", memory),
            shelf=Shelf(),
            timetable=Timetable(),
            cgroups=Cgroups(),
            fabric=fabric,
            cabling=cabling,
            supervisor=supervisor,
            new_id=_new_id,
            boot_id=_boot_id(),
            closing=asyncio.Event(),
        )


def _open_cabling(
    settings: Settings, places: Places, found: Found, fabric: Fabric, supervisor: Supervisor
) -> AbstractAsyncContextManager[Cabling]:
    ground = Ground(
        owner=owner_of(str(places.state)),
        memory=places.state / "forwarding.json",
        uid=settings.uid_base,
        supervisor=supervisor,
    )
    return open_cabling(fabric, ground, privileged=found.capabilities.privileged)


async def _take_up(engine: Engine, journal: Journal) -> None:
    sentences = await engine.take_up()
    for sentence in sentences:
        log.info("%s", sentence)
    journal.tell(
        journal.event(
            EventKind.DAEMON_STARTED, "", pid=str(os.getpid()), guests=str(len(sentences))
        )
    )


def _describe(
    places: Places, found: Found
) -> Callable[[int, int, Mapping[Kind, int]], DaemonStatus]:
    started_at = time.time()

    def describe(guests: int, running: int, spares: Mapping[Kind, int]) -> DaemonStatus:
        return DaemonStatus(
            pid=os.getpid(),
            version=version("serai"),
            started_at=started_at,
            home=places.home,
            socket=str(places.socket),
            guests=guests,
            running=running,
            spares=spares.get(Kind.READY, 0),
            spares_started=spares.get(Kind.STARTED, 0),
            capabilities=found.capabilities,
            problem=found.problem.message if found.problem else "",
        )

    return describe


def _new_id() -> str:
    return str(uuid.uuid4())


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
