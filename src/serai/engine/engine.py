"""The engine as the doors see it: show what there is, take actions on, talk to guests.

    Engine ──▶ Dispatcher (every action) ──▶ Keepers (each kind of thing) ──▶ Guests (a task each)

Reading is from memory. Here is one small method for each thing that a door may ask; what is done is
elsewhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from serai.disk.pulling import IndexRequest
from serai.engine import talk
from serai.engine.bus import Bus
from serai.engine.dispatch import Dispatcher
from serai.engine.first_boot import find_ssh
from serai.engine.house import House
from serai.engine.ports import find_port
from serai.engine.reach import SshStream, open_ssh
from serai.engine.taking_up import take_up
from serai.engine.upkeep import Upkeep
from serai.errors import SeraiError
from serai.model.actions import AnyAction
from serai.model.catalogue import Catalogue
from serai.model.event import Event
from serai.model.guest import Guest
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.lifecycle import ON_STATES
from serai.model.network import Forward, Group, Network, PortView
from serai.model.node import DaemonStatus
from serai.model.schedule import Judgement, Keep, Schedule
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import Pool, VolumeInfo
from serai.plan.pool import Kind
from serai.store.changes import PutUsage

SSH_TIMEOUT = 15.0


class Engine:
    """One per daemon. ``describe`` gives the daemon's own facts for ``status``."""

    def __init__(
        self,
        house: House,
        bus: Bus,
        describe: Callable[[int, int, Mapping[Kind, int]], DaemonStatus],
    ) -> None:
        self._house = house
        self._bus = bus
        self._describe = describe
        self._dispatcher = Dispatcher(house)
        self._keepers = self._dispatcher.keepers
        self._guests = self._keepers.guests

    # -- showing -----------------------------------------------------------------------------------

    def guests(self) -> list[Guest]:
        """Return all guests by name."""
        return sorted((each.view() for each in self._guests.all()), key=lambda g: g.name)

    def guest(self, name_or_id: str) -> Guest:
        """Return one guest; NotFound (``guest-not-found``)."""
        return self._guests.find(name_or_id).view()

    def images(self) -> list[Image]:
        """Return all images by name."""
        return self._keepers.images.all()

    def image(self, name: str) -> Image:
        """Return one image; NotFound (``image-not-found``)."""
        return self._keepers.images.find(name)

    def image_files(self, name: str) -> Path:
        """Return the folder with the files of an image."""
        return self._house.images.folder(self._keepers.images.find(name))

    def snapshots(self, guest: str) -> list[Snapshot]:
        """Return a guest's snapshots as a tree: each after its parent."""
        return self._keepers.snapshots.all(self._guests.find(guest).record)

    def snapshot(self, guest: str, name_or_id: str) -> Snapshot:
        """Return one snapshot of a guest; NotFound (``snapshot-not-found``)."""
        return self._keepers.snapshots.one(self._guests.find(guest).record, name_or_id)

    def networks(self) -> list[Network]:
        """Return all networks."""
        return self._keepers.networks.all()

    def network(self, name_or_id: str) -> Network:
        """Return one network; NotFound (``network-not-found``)."""
        return self._keepers.networks.one(name_or_id)

    async def ports(self, guest: str) -> list[PortView]:
        """Return the ports of a guest, with what has passed them until now."""
        return await self._keepers.ports.all(self._guests.find(guest).record)

    async def port(self, guest: str, name_or_id: str) -> PortView:
        """Return one port of a guest; NotFound (``port-not-found``)."""
        port = find_port(self._guests.find(guest).record, name_or_id)
        return next(each for each in await self.ports(guest) if each.id == port.id)

    def groups(self) -> list[Group]:
        """Return all security groups."""
        return self._keepers.groups.all()

    def group(self, name_or_id: str) -> Group:
        """Return one security group; NotFound (``group-not-found``)."""
        return self._keepers.groups.one(name_or_id)

    def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""
        return self._keepers.forwards.all(
            {each.record.id: each.name for each in self._guests.by_id.values()}
        )

    def schedules(self, guest: str = "") -> list[Schedule]:
        """Return a guest's schedules by name, or everybody's, by guest and name."""
        if guest:
            return self._keepers.schedules.all(self._guests.find(guest))
        found = [self._keepers.schedules.all(driver) for driver in self._guests.by_id.values()]
        return sorted((each for of in found for each in of), key=lambda s: (s.guest, s.name))

    def schedule(self, guest: str, name_or_id: str) -> Schedule:
        """Return one schedule of a guest; NotFound (``schedule-not-found``)."""
        return self._keepers.schedules.one(self._guests.find(guest), name_or_id)

    def judge_schedule(self, guest: str, name_or_id: str, keep: Keep | None) -> list[Judgement]:
        """Return which snapshots of a schedule would stay now, by its own rules or by ``keep``."""
        return self._keepers.schedules.judge(self._guests.find(guest), name_or_id, keep)

    def volumes(self) -> list[VolumeInfo]:
        """Return all volumes by name."""
        return self._keepers.volumes.all()

    def volume(self, name_or_id: str) -> VolumeInfo:
        """Return one volume; NotFound (``volume-not-found``)."""
        return self._keepers.volumes.one(name_or_id)

    def pools(self) -> list[Pool]:
        """Return all pools by name."""
        return self._keepers.pools.all()

    def pool(self, name: str) -> Pool:
        """Return one pool; NotFound (``pool-not-found``)."""
        return self._keepers.pools.one(name)

    def status(self) -> DaemonStatus:
        """Return how the daemon is."""
        shown = self._guests.all()
        running = sum(each.state in ON_STATES for each in shown)
        spares = self._keepers.forker.pool.counts
        return self._describe(len(shown), running, spares)

    def log_path(self, guest: str) -> Path:
        """Return the serial log of a guest, running or not."""
        return self._house.places.guests / self._guests.find(guest).record.id / "serial.log"

    async def jobs(self, *, state: JobState | None, limit: int, before: str) -> list[Job]:
        """Return jobs, the newest first."""
        return await self._house.jobs.list(state=state, limit=limit, before=before)

    async def job(self, job_id: str) -> Job:
        """Return a job as it is now; NotFound (``job-not-found``)."""
        return await self._house.jobs.find(job_id)

    async def wait_job(self, job_id: str, timeout: float) -> Job:
        """Return a job when it has ended, or as it is after ``timeout`` seconds."""
        return await self._house.jobs.wait(job_id, timeout)

    async def catalogue(self, index: str, sha256: str, key: str) -> Catalogue:
        """Return what an index of images offers; Invalid (``index-refused``) if it is not believed."""
        return await self._keepers.images.catalogue(
            IndexRequest(index=index, sha256=sha256, key=key)
        )

    async def events(self, *, after: int, limit: int) -> list[Event]:
        """Return stored events with a number above ``after``, the oldest first."""
        return await self._house.journal.store.events(after=after, limit=limit)

    def watch(self, *, after: int | None) -> AsyncIterator[Event]:
        """Follow events: those stored after ``after`` first (None: only new ones)."""
        store = self._house.journal.store
        return self._bus.follow(
            lambda last, limit: store.events(after=last, limit=limit), after=after
        )

    # -- doing -------------------------------------------------------------------------------------

    async def submit(self, action: AnyAction, *, key: str = "") -> Job:
        """Take an action on; its job is durable when this returns, also if the caller goes away.

        Raises what refuses it; then nothing was changed.
        """
        return await self._dispatcher.submit(action, key=key)

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early and return it; Conflict (``job-not-cancellable``) if it can't."""
        return await self._dispatcher.cancel_job(job_id)

    # -- talking -----------------------------------------------------------------------------------

    async def execute(self, guest: str, request: ExecRequest) -> ExecResult:
        """Run a command in a guest."""
        return await talk.execute(self._guests.find(guest), request)

    async def push(
        self, guest: str, path: str, chunks: AsyncIterator[bytes], *, mode: int, unpack: bool
    ) -> None:
        """Write a file, or unpack a tar, in a guest."""
        await talk.push(self._guests.find(guest), path, chunks, mode=mode, unpack=unpack)

    def pull(self, guest: str, path: str, *, pack: bool) -> AsyncIterator[bytes]:
        """Read a file, or a folder as a tar, from a guest."""
        return talk.pull(self._guests.find(guest), path, pack=pack)

    async def open_console(self, guest: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a guest's serial console; the newest connection is the one that is served."""
        driver = self._guests.look(guest)
        assert driver.instance is not None
        return await driver.instance.open_console()

    async def find_ssh(self, guest: str) -> SshAddress:
        """Return how ssh gets into a guest."""
        return await find_ssh(self._guests.find(guest))

    async def open_ssh(self, guest: str) -> SshStream:
        """Connect to the ssh server of a guest; Conflict (``ssh-unreachable``)."""
        return await open_ssh(self._guests.find(guest), SSH_TIMEOUT)

    async def screenshot(self, guest: str) -> bytes:
        """Return what the guest's screen shows, as PNG."""
        driver = self._guests.look(guest)
        assert driver.instance is not None
        return await driver.instance.screenshot()

    def vnc(self, guest: str) -> VncAddress:
        """Return where a VNC viewer connects."""
        driver = self._guests.look(guest)
        return VncAddress(socket=str(self._house.places.guests_run / driver.record.id / "vnc.sock"))

    # -- from the daemon's start to its end --------------------------------------------------------

    async def take_up(self) -> list[str]:
        """Find everything as an earlier daemon left it, and go on; return what was done."""
        return await take_up(self._house, self._keepers)

    def upkeep(self) -> Upkeep:
        """Return what keeps things small and in time."""
        drivers, keepers = self._guests.by_id.values(), self._keepers
        return Upkeep(self._house, drivers, keepers.layers, self.submit, keepers.ports)

    async def run_schedules(self) -> None:
        """Make snapshots when they are due, until cancelled."""
        await self._keepers.schedules.run()

    async def store_usage(self) -> None:
        """Count and store what has passed the ports until now; fine if that is not possible."""
        with contextlib.suppress(SeraiError):
            await self._house.cabling.count()
            unsaved = self._house.cabling.take_unsaved()
            if unsaved:
                await self._house.journal.commit(*map(PutUsage, unsaved))

    async def close(self) -> None:
        """Let go of what nobody was promised; guests run on."""
        await self._keepers.forker.pool.close()
