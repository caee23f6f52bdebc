"""The engine as the doors see it: show what there is, take actions, talk to guests.

Every action takes the same way: was it asked before (idempotency key), what does it name, may it
(the guest's task or the image keeper decides), one durable job. Reading is from memory. This file is
long because it has one small method for each thing that a door may ask.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from serai.disk.files import check_room as check_disk_room
from serai.disk.pulling import IndexRequest
from serai.engine import checking, talk
from serai.engine.adopt import state_at_rest, take_up_all, verb_of
from serai.engine.bus import Bus
from serai.engine.carrying import Carrier
from serai.engine.checking import Checker
from serai.engine.driver import CancelJob, GuestDriver, Script
from serai.engine.first_boot import find_ssh
from serai.engine.forks import PHASES as FORK_PHASES
from serai.engine.forks import Forker, remove_unfinished
from serai.engine.forwards import ForwardKeeper
from serai.engine.groups import GroupKeeper
from serai.engine.house import House
from serai.engine.images import ImageKeeper
from serai.engine.importing import GuestImporter
from serai.engine.layer_keeper import LayerKeeper
from serai.engine.media import MediumChanger
from serai.engine.networks import NetworkKeeper
from serai.engine.pools import PoolKeeper
from serai.engine.ports import PortKeeper, find_port
from serai.engine.procedures import (
    CREATE_PHASES,
    PHASES,
    PROCEDURES,
    create,
    launch,
    launch_phases,
    start_by_policy,
)
from serai.engine.publishing import Publisher
from serai.engine.reach import SshStream, open_ssh
from serai.engine.running import react
from serai.engine.schedules import ScheduleKeeper
from serai.engine.seeding import sealed
from serai.engine.snapshots import SnapshotKeeper, owner_of_image
from serai.engine.upkeep import Upkeep
from serai.engine.volume_copies import VolumeCopier
from serai.engine.volume_moments import VolumeMoments
from serai.engine.volumes import VolumeKeeper
from serai.errors import Code, Conflict, HostFailure, NotFound, SeraiError, error_from_problem
from serai.host.process import find_processes
from serai.host.tools import available_memory
from serai.model.actions import (
    AddForward,
    AddPort,
    AnyAction,
    AttachVolume,
    BuildImage,
    ChangeGroup,
    ChangeSnapshot,
    ChangeVolume,
    CheckStorage,
    CloneVolume,
    CreateGroup,
    CreateGuest,
    CreateNetwork,
    CreatePool,
    CreateSchedule,
    CreateSnapshot,
    CreateVolume,
    DeleteGroup,
    DeleteGuest,
    DeleteImage,
    DeleteNetwork,
    DeletePool,
    DeleteSchedule,
    DeleteSnapshot,
    DeleteVolume,
    DeleteVolumeSnapshot,
    DetachVolume,
    EjectMedium,
    ExportVolume,
    ForkGuest,
    ImportGuest,
    ImportImage,
    ImportVolume,
    InsertMedium,
    LaunchGuest,
    PublishImage,
    PullImage,
    RemoveForward,
    RemovePort,
    RenameGuest,
    RestoreSnapshot,
    RunSchedule,
    ServeVolume,
    SetGuest,
    SetNetwork,
    SetPort,
    SetSchedule,
    SnapshotVolume,
    StartGuest,
)
from serai.model.catalogue import Catalogue
from serai.model.event import Event, EventKind
from serai.model.guest import Guest, GuestRecord, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.job import Job, JobState
from serai.model.lifecycle import ON_STATES, Deny, GuestState, Verb, admit
from serai.model.network import Forward, Group, Network, Port, PortView
from serai.model.node import DaemonStatus
from serai.model.schedule import Judgement, Keep, Schedule
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import Pool, VolumeInfo
from serai.plan.admission import check_launch, check_room, refusal
from serai.plan.firstboot import check_told
from serai.plan.machine import check_fit
from serai.store.changes import Change, PutGuest, PutUsage
from serai.units import check_guest_name, shorten

log = logging.getLogger(__name__)

SSH_TIMEOUT = 15.0
WHOLE = (DeleteGuest, RenameGuest, SetGuest)
"""Done in full or not at all, and quick: what can't be cancelled."""

VM_SCRIPT = Script(
    procedures=PROCEDURES, phases=PHASES, start_by_policy=start_by_policy, react=react
)


class Engine:
    """One per daemon. ``describe`` gives the daemon's own facts for ``status``."""

    def __init__(
        self, house: House, bus: Bus, describe: Callable[[int, int, int], DaemonStatus]
    ) -> None:
        self._house = house
        self._bus = bus
        self._describe = describe
        self._drivers: dict[str, GuestDriver] = {}
        self._creating: set[GuestDriver] = set()
        self._damaged: set[str] = set()
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._snapshots = SnapshotKeeper(house, self._by_name)
        self._layers = LayerKeeper(house)
        self.schedule_keeper = ScheduleKeeper(
            house, self._drivers.get, self._snapshots, self.submit
        )
        self._volumes = VolumeKeeper(house, self._snapshots, self._find)
        self._moments = VolumeMoments(house, self._snapshots, self._find, self._volumes.lock)
        self._copier = VolumeCopier(house, self._snapshots, self._volumes, self._moments)
        self._pools = PoolKeeper(house, self._snapshots, self._volumes)
        self._media = MediumChanger(
            self._snapshots, self._find, lambda name: self._images.find(name)
        )
        self._images = self._image_keeper(())
        house.shelf.guests = self._records
        self._forker = Forker(house, self._snapshots, self._adopt)
        self._carrier = Carrier(house)
        self._networks = NetworkKeeper(house, self._carrier)
        self._ports = PortKeeper(house, self._carrier)
        self._groups = GroupKeeper(house, self._carrier)
        self._forwards = ForwardKeeper(house, self._carrier)
        self._importer = GuestImporter(house, lambda: self._images, self._create)
        self._checker = Checker(house, self._layers, self._drivers.values(), self._digests_named)

    # -- showing -----------------------------------------------------------------------------------

    def guests(self) -> list[Guest]:
        """Return all guests by name."""
        return sorted((each.view() for each in self._shown()), key=lambda g: g.name)

    def guest(self, name_or_id: str) -> Guest:
        """Return one guest; NotFound (``guest-not-found``)."""
        return self._find(name_or_id).view()

    def images(self) -> list[Image]:
        """Return all images by name."""
        return self._images.all()

    def image(self, name: str) -> Image:
        """Return one image; NotFound (``image-not-found``)."""
        return self._images.find(name)

    def image_files(self, name: str) -> Path:
        """Return the folder with the files of an image."""
        return self._house.images.folder(self._images.find(name))

    def snapshots(self, guest: str) -> list[Snapshot]:
        """Return a guest's snapshots as a tree: each after its parent."""
        return self._snapshots.all(self._find(guest).record)

    def snapshot(self, guest: str, name_or_id: str) -> Snapshot:
        """Return one snapshot of a guest; NotFound (``snapshot-not-found``)."""
        return self._snapshots.one(self._find(guest).record, name_or_id)

    def networks(self) -> list[Network]:
        """Return all networks."""
        return self._networks.all()

    def network(self, name_or_id: str) -> Network:
        """Return one network; NotFound (``network-not-found``)."""
        return self._networks.one(name_or_id)

    async def ports(self, guest: str) -> list[PortView]:
        """Return the ports of a guest, with what has passed them until now."""
        return await self._ports.all(self._find(guest).record)

    async def port(self, guest: str, name_or_id: str) -> PortView:
        """Return one port of a guest; NotFound (``port-not-found``)."""
        port = find_port(self._find(guest).record, name_or_id)
        return next(each for each in await self.ports(guest) if each.id == port.id)

    def groups(self) -> list[Group]:
        """Return all security groups."""
        return self._groups.all()

    def group(self, name_or_id: str) -> Group:
        """Return one security group; NotFound (``group-not-found``)."""
        return self._groups.one(name_or_id)

    def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""
        return self._forwards.all({each.record.id: each.name for each in self._drivers.values()})

    def schedules(self, guest: str = "") -> list[Schedule]:
        """Return a guest's schedules by name, or everybody's, by guest and name."""
        if guest:
            return self.schedule_keeper.all(self._find(guest))
        found = [self.schedule_keeper.all(driver) for driver in self._drivers.values()]
        return sorted((each for of in found for each in of), key=lambda s: (s.guest, s.name))

    def schedule(self, guest: str, name_or_id: str) -> Schedule:
        """Return one schedule of a guest; NotFound (``schedule-not-found``)."""
        return self.schedule_keeper.one(self._find(guest), name_or_id)

    def judge_schedule(self, guest: str, name_or_id: str, keep: Keep | None) -> list[Judgement]:
        """Return which snapshots of a schedule would stay now, by its own rules or by ``keep``."""
        return self.schedule_keeper.judge(self._find(guest), name_or_id, keep)

    def volumes(self) -> list[VolumeInfo]:
        """Return all volumes by name."""
        return self._volumes.all()

    def volume(self, name_or_id: str) -> VolumeInfo:
        """Return one volume; NotFound (``volume-not-found``)."""
        return self._volumes.one(name_or_id)

    def pools(self) -> list[Pool]:
        """Return all pools by name."""
        return self._pools.all()

    def pool(self, name: str) -> Pool:
        """Return one pool; NotFound (``pool-not-found``)."""
        return self._pools.one(name)

    def status(self) -> DaemonStatus:
        """Return how the daemon is."""
        shown = self._shown()
        running = sum(each.state in ON_STATES for each in shown)
        return self._describe(len(shown), running, self._forker.pool.count)

    def log_path(self, guest: str) -> Path:
        """Return the serial log of a guest, running or not."""
        return self._house.places.guests / self._find(guest).record.id / "serial.log"

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
        return await self._images.catalogue(IndexRequest(index=index, sha256=sha256, key=key))

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
        return await self._house.supervisor.shielded(self._take_sealed(action, key), name="submit")

    async def _take_sealed(self, action: AnyAction, key: str) -> Job:
        """Take an action on; what it tells a guest is put away first, so that no job shows it."""
        if not isinstance(action, LaunchGuest | CreateGuest):
            return await self._take_keyed(action, key)
        async with sealed(self._house, action) as shown:
            return await self._take_keyed(shown, key)

    async def _take_keyed(self, action: AnyAction, key: str) -> Job:
        return await (self._take_once(action, key) if key else self._take(action, ""))

    async def _take_once(self, action: AnyAction, key: str) -> Job:
        """Take an action on unless that was done with this key; of many at once one does it."""
        lock = self._keys.setdefault(key, asyncio.Lock())
        async with lock:
            known = await self._house.jobs.find_by_key(key, action)
            return known if known is not None else await self._take(action, key)

    def _image_keeper(self, images: Iterable[Image]) -> ImageKeeper:
        async def forget_snapshot(name: str) -> None:
            await self._snapshots.forget_owner(owner_of_image(name))

        return ImageKeeper(self._house, images, self._digests_in_use, forget_snapshot)

    async def _take(self, action: AnyAction, key: str) -> Job:
        match action:
            case LaunchGuest(spec=spec) if (image := self._images.find(spec.image)).snapshot:
                self._check_host()
                _check_no_volumes(action)
                check_told(action, image)
                return await self._forker.launch(image, action, key)
            case LaunchGuest() | CreateGuest():
                return await self._create(action, key)
            case BuildImage():
                return await self._images.build(action, key)
            case ImportImage():
                return await self._images.import_(action, key)
            case PullImage():
                return await self._images.pull(action, key)
            case ImportGuest():
                self._check_host()
                return await self._importer.begin(action, key)
            case DeleteImage():
                await self._forker.pool.drop_of(self._images.find(action.image).snapshot)
                return await self._images.delete(action, key)
            case CreateSnapshot():
                return await self._snapshots.create(self._find(action.guest), action, key)
            case RestoreSnapshot():
                return await self._snapshots.restore(self._find(action.guest), action, key)
            case ChangeSnapshot():
                return await self._snapshots.change(self._find(action.guest), action, key)
            case DeleteSnapshot():
                return await self._snapshots.delete(self._find(action.guest), action, key)
            case CreateSchedule() | SetSchedule() | RunSchedule() | DeleteSchedule():
                return await self.schedule_keeper.take(self._find(action.guest), action, key)
            case ForkGuest():
                self._check_host()
                return await self._forker.fork(self._find(action.guest), action, key)
            case CreateVolume():
                return await self._volumes.create(action, key)
            case AttachVolume():
                return await self._volumes.attach(action, key)
            case DetachVolume():
                return await self._volumes.detach(action, key)
            case ChangeVolume():
                return await self._volumes.change(action, key)
            case SnapshotVolume():
                return await self._moments.snapshot(action, key)
            case DeleteVolumeSnapshot():
                return await self._moments.delete(action, key)
            case DeleteVolume():
                return await self._volumes.delete(action, key)
            case CloneVolume():
                return await self._copier.clone(action, key)
            case ImportVolume():
                return await self._copier.import_(action, key)
            case ExportVolume():
                return await self._copier.export(action, key)
            case ServeVolume():
                return await self._copier.serve(action, key)
            case CreatePool():
                return await self._pools.create(action, key)
            case DeletePool():
                return await self._pools.delete(action, key)
            case InsertMedium():
                return await self._media.insert(action, key)
            case EjectMedium():
                return await self._media.eject(action, key)
            case PublishImage():
                publisher = Publisher(self._house, self._snapshots, self._images)
                return await publisher.publish(self._find(action.guest), action, key)
            case CreateNetwork():
                return await self._networks.create(action, key)
            case SetNetwork():
                return await self._networks.change(action, key)
            case DeleteNetwork():
                return await self._networks.delete(action, key)
            case AddPort():
                return await self._ports.add(self._find(action.guest), action, key)
            case SetPort():
                return await self._ports.change(self._find(action.guest), action, key)
            case RemovePort():
                return await self._ports.remove(self._find(action.guest), action, key)
            case CreateGroup():
                return await self._groups.create(action, key)
            case ChangeGroup():
                return await self._groups.change(action, key)
            case DeleteGroup():
                return await self._groups.delete(action, key)
            case AddForward():
                return await self._forwards.add(self._find(action.spec.guest), action, key)
            case RemoveForward():
                guest = self._house.fabric.forward(action.forward).guest_id
                return await self._forwards.remove(self._find(guest), action, key)
            case CheckStorage():
                return await self._snapshots.begin(
                    action, checking.SUBJECT, checking.PHASES, self._checker.work(action), key
                )
            case _:
                driver = self._find(action.guest)
                self._check_before(driver, action)
                return await driver.ask(verb_of(action), action, key)

    def _check_before(self, driver: GuestDriver, action: AnyAction) -> None:
        """Refuse what can be seen to be wrong before the guest's task is asked."""
        match action:
            case RenameGuest(name=name):
                check_guest_name(name)
                owner = self._house.names.owner(name)
                if owner not in (None, driver.record.id):
                    raise Conflict(Code.GUEST_EXISTS, f"there is a guest {name} already")
            case StartGuest() if driver.state not in ON_STATES:
                self._check_host()
                check_room(driver.record.spec.memory, available_memory())
                check_fit(
                    driver.image,
                    driver.record.spec.firmware,
                    driver.record.spec.memory,
                    self._house.capabilities,
                )
            case _:
                pass

    async def _create(
        self,
        action: LaunchGuest | CreateGuest,
        key: str,
        *,
        guest_id: str = "",
        mac: str = "",
        changes: tuple[Change, ...] = (),
        events: tuple[Event, ...] = (),
    ) -> Job:
        """Define a guest, stored together with ``changes``; an imported one has its ``mac``."""
        house, guest_id = self._house, guest_id or self._house.new_id()
        name = action.spec.name or house.names.pick(int(guest_id[:8], 16))
        spec = msgspec.structs.replace(action.spec, name=check_guest_name(name))
        image = self._check_new(action, spec)
        house.names.claim(name, guest_id)
        try:
            ports = self._ports.claim(guest_id, name, action.ports)
        except BaseException:
            house.names.release(name, guest_id)
            raise
        number = house.names.claim_number()
        record = self._record(action, spec, image, guest_id, number, ports, mac)
        try:
            self._volumes.check_wishes(action.volumes, record)
        except BaseException:
            house.fabric.release(ports)
            house.names.release(name, guest_id)
            house.names.release_number(number)
            raise
        driver = self._driver(record, image, GuestState.CREATING)
        created = house.journal.event(EventKind.GUEST_CREATED, name, guest_id, image=image.name)
        phases: tuple[str, ...] = CREATE_PHASES
        if isinstance(action, LaunchGuest):
            phases = launch_phases(action, image)
        self._creating.add(driver)
        try:
            job = await house.jobs.open(
                action,
                name,
                phases,
                key=key,
                changes=(*changes, PutGuest(record)),
                events=(*events, created),
            )
        except BaseException:
            self._free_names(driver)
            raise
        finally:
            self._creating.discard(driver)
        self._own(driver)
        procedure = launch if isinstance(action, LaunchGuest) else create
        driver.begin(job, partial(procedure, furnish=self._volumes.furnish))
        return job.job

    def _check_host(self) -> None:
        if self._house.unfit is not None:
            raise error_from_problem(self._house.unfit)

    def _check_new(self, action: LaunchGuest | CreateGuest, spec: GuestSpec) -> Image:
        self._check_host()
        reserve = self._house.settings.disk_reserve
        check_disk_room(self._house.places.guests, 0, reserve=reserve, what="creating a guest")
        image = self._images.find(spec.image)
        check_launch(spec, image, self._house.capabilities)
        check_fit(image, spec.firmware, spec.memory, self._house.capabilities)
        if isinstance(action, LaunchGuest):
            check_room(spec.memory, available_memory())
        check_told(action, image)
        return image

    def _record(
        self,
        action: LaunchGuest | CreateGuest,
        spec: GuestSpec,
        image: Image,
        guest_id: str,
        number: int,
        ports: tuple[Port, ...],
        mac: str,
    ) -> GuestRecord:
        random, now = self._house.new_id(), self._house.journal.now()
        ttl = action.ttl if isinstance(action, LaunchGuest) else 0.0
        return GuestRecord(
            id=guest_id,
            number=number,
            version=1,
            created_at=now,
            spec=spec,
            image_digest=image.digest,
            machine_type=self._house.capabilities.machine_type,
            mac=mac or "52:54:00:" + ":".join(random[i : i + 2] for i in (0, 2, 4)),
            genid=self._house.new_id(),
            wanted_on=isinstance(action, LaunchGuest),
            expires_at=now + ttl if ttl else 0.0,
            ports=ports,
            seed=action.seed,
            hostname=(action.first_boot.hostname or spec.name) if action.seed else "",
        )

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early and return it; Conflict (``job-not-cancellable``) if it can't."""
        live = self._house.jobs.live(job_id)
        if live is None:
            job = await self._house.jobs.find(job_id)
            raise Conflict(Code.JOB_NOT_CANCELLABLE, f"job {job.id} has ended: it is {job.state}")
        if any(each.cancel(job_id) for each in self._keepers()):
            return await self._house.jobs.wait(job_id, 10.0)
        for driver in self._drivers.values():
            if driver.job is live and not isinstance(live.action, WHOLE):
                driver.mailbox.tell(CancelJob(job_id))
                return await self._house.jobs.wait(job_id, 10.0)
        raise Conflict(Code.JOB_NOT_CANCELLABLE, f"job {job_id} can't be cancelled now")

    def _keepers(
        self,
    ) -> tuple[ImageKeeper | SnapshotKeeper | Forker | Carrier | GuestImporter, ...]:
        return self._images, self._snapshots, self._forker, self._carrier, self._importer

    # -- talking -----------------------------------------------------------------------------------

    async def execute(self, guest: str, request: ExecRequest) -> ExecResult:
        """Run a command in a guest."""
        return await talk.execute(self._find(guest), request)

    async def push(
        self, guest: str, path: str, chunks: AsyncIterator[bytes], *, mode: int, unpack: bool
    ) -> None:
        """Write a file, or unpack a tar, in a guest."""
        await talk.push(self._find(guest), path, chunks, mode=mode, unpack=unpack)

    def pull(self, guest: str, path: str, *, pack: bool) -> AsyncIterator[bytes]:
        """Read a file, or a folder as a tar, from a guest."""
        return talk.pull(self._find(guest), path, pack=pack)

    async def open_console(self, guest: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a guest's serial console; the newest connection is the one that is served."""
        driver = self._look(guest)
        assert driver.instance is not None
        return await driver.instance.open_console()

    async def find_ssh(self, guest: str) -> SshAddress:
        """Return how ssh gets into a guest."""
        return await find_ssh(self._find(guest))

    async def open_ssh(self, guest: str) -> SshStream:
        """Connect to the ssh server of a guest; Conflict (``ssh-unreachable``)."""
        return await open_ssh(self._find(guest), SSH_TIMEOUT)

    async def screenshot(self, guest: str) -> bytes:
        """Return what the guest's screen shows, as PNG."""
        driver = self._look(guest)
        assert driver.instance is not None
        return await driver.instance.screenshot()

    def vnc(self, guest: str) -> VncAddress:
        """Return where a VNC viewer connects."""
        driver = self._look(guest)
        return VncAddress(socket=str(self._house.places.guests_run / driver.record.id / "vnc.sock"))

    def _look(self, guest: str) -> GuestDriver:
        driver = self._find(guest)
        admission = admit(driver.state, Verb.LOOK)
        if isinstance(admission, Deny):
            raise refusal(driver.name, driver.state, Verb.LOOK, admission.reason)
        if driver.instance is None:
            raise Conflict(Code.GUEST_STATE, f"{driver.name} is {driver.state}, try again")
        return driver

    # -- who is here -------------------------------------------------------------------------------

    def _find(self, name_or_id: str) -> GuestDriver:
        guest_id = self._house.names.owner(name_or_id) or name_or_id
        driver = self._drivers.get(guest_id)
        if driver is not None and driver.record.is_spare:
            driver = None
        if driver is None and guest_id in self._damaged:
            raise HostFailure(
                Code.DATABASE_FAILED,
                f"what the database has of the guest {shorten(name_or_id)} can't be read",
                hint="Its volumes are untouched; the daemon's log says more: serai daemon status",
                details={"id": guest_id},
            )
        if driver is None:
            raise NotFound(
                Code.GUEST_NOT_FOUND,
                f"there is no guest {shorten(name_or_id)}",
                hint="See which there are: serai list",
            )
        return driver

    def _shown(self) -> list[GuestDriver]:
        """Return all guests that belong to somebody."""
        return [each for each in self._drivers.values() if not each.record.is_spare]

    def _driver(self, record: GuestRecord, image: Image, state: GuestState) -> GuestDriver:
        return GuestDriver(record, image, self._house, VM_SCRIPT, state, self._forget)

    def _adopt(self, record: GuestRecord) -> GuestDriver:
        """Take a new guest that was stored just now into the house."""
        image = self._images.by_digest(record.image_digest) or _lost_image(record)
        driver = self._driver(record, image, GuestState.CREATING)
        self._own(driver)
        return driver

    def _own(self, driver: GuestDriver) -> None:
        self._drivers[driver.record.id] = driver
        self._house.supervisor.start(driver.run(), name=f"guest {driver.name}")

    def _forget(self, driver: GuestDriver) -> None:
        self._drivers.pop(driver.record.id, None)
        self._free_names(driver)

    def _free_names(self, driver: GuestDriver) -> None:
        self._house.names.release(driver.name, driver.record.id)
        self._house.names.release_number(driver.record.number)
        self._house.fabric.release(driver.record.ports)
        self._house.fabric.forget_forwards(driver.record.id)

    def _by_name(self, name: str) -> GuestDriver | None:
        return self._drivers.get(self._house.names.owner(name) or "")

    def _records(self) -> list[GuestRecord]:
        return [each.record for each in self._drivers.values()]

    def _digests_in_use(self) -> set[str]:
        house = self._house
        drivers = (*self._drivers.values(), *self._creating)
        used = {each.record.image_digest for each in drivers}
        used |= {each.guest.image_digest for each in house.shelf.snapshots.values()}
        records = [each.record for each in drivers]
        records += [each.guest for each in house.shelf.snapshots.values()]
        used |= {each.medium.digest for each in records if each.medium is not None}
        return used | {each.image_digest for each in house.shelf.layers.values()}

    def _digests_named(self) -> set[str]:
        return (self._digests_in_use() | {each.digest for each in self._images.all()}) - {""}

    def upkeep(self) -> Upkeep:
        """Return what keeps things small and in time."""
        return Upkeep(self._house, self._drivers.values(), self._layers, self.submit, self._ports)

    async def store_usage(self) -> None:
        """Count and store what has passed the ports until now; fine if that is not possible."""
        with contextlib.suppress(SeraiError):
            await self._house.cabling.count()
            unsaved = self._house.cabling.take_unsaved()
            if unsaved:
                await self._house.journal.commit(*map(PutUsage, unsaved))

    # -- the daemon's start --------------------------------------------------------------------------

    async def take_up(self) -> list[str]:
        """Find everything as an earlier daemon left it, and go on; return what was done."""
        store = self._house.journal.store
        self._images = self._image_keeper(await store.images())
        unfinished = await store.unfinished_jobs()
        self._house.shelf.fill(await store.layers(), await store.snapshots())
        await self._know_volumes()
        self._house.fabric.fill(
            await store.networks(),
            await store.groups(),
            await store.forwards(),
            await store.usage(),
        )
        for record in await store.guests():
            self._house.names.claim(record.spec.name, record.id)
            self._house.names.keep_number(record.number)
            self._house.fabric.hold(record.id, record.spec.name, record.ports)
            image = self._images.by_digest(record.image_digest) or _lost_image(record)
            self._own(self._driver(record, image, state_at_rest(record)))
        damaged = await self._reserve_damaged()
        sentences = list(damaged)
        mended = await self._house.cabling.reconcile()
        sentences += mended.sentences
        sentences += await self._take_up_guests(unfinished)
        sentences += await remove_unfinished(list(self._drivers.values()))
        sentences += await self._volumes.tidy(complete=not damaged)
        sentences += await self._take_up_keepers(unfinished)
        sentences += await self.schedule_keeper.take_up_all(set(self._drivers) | self._damaged)
        published = [owner_of_image(each.name) for each in self._images.all() if each.snapshot]
        sentences += await self._snapshots.tidy(published)
        await asyncio.to_thread(self._images.tidy)
        sentences += await self._house.cabling.sweep()
        if mended.taps:
            replug = self._ports.replug(list(self._drivers.values()), mended.taps)
            self._house.supervisor.start(replug, name="replug")
        self._forker.pool.start()
        return sentences

    async def _know_volumes(self) -> None:
        """Put the volumes and pools on the shelf, before a guest is taken up that has some."""
        store, shelf = self._house.journal.store, self._house.shelf
        for pool in await store.pools():
            shelf.pools[pool.name] = pool
            self._house.pools.know(pool)
        shelf.volumes = {each.id: each for each in await store.volumes()}

    async def close(self) -> None:
        """Let go of what nobody was promised; guests run on."""
        await self._forker.pool.close()

    async def _reserve_damaged(self) -> list[str]:
        """Keep the names and numbers of guests whose records can't be read from being used again."""
        damaged = await self._house.journal.store.damaged()
        self._damaged = {row.key for row in damaged if row.table == "guests"}
        self._house.shelf.is_whole = not any(row.table in checking.KINDS for row in damaged)
        for row in damaged:
            if row.name and row.table == "guests":
                self._house.names.claim(row.name, row.key)
            if row.number:
                self._house.names.keep_number(row.number)
        return [f"{row.table} {row.name or row.key} can't be read: {row.reason}" for row in damaged]

    async def _take_up_guests(self, unfinished: list[Job]) -> list[str]:
        drivers = list(self._drivers.values())
        pids = await asyncio.to_thread(find_processes, "-uuid", frozenset(self._drivers))
        about_guests = [job for job in unfinished if self._keeper_of(job) is None]
        others = [job for job in unfinished if self._keeper_of(job) is not None]
        return await take_up_all(drivers, pids, about_guests, self._house.jobs, others)

    async def _take_up_keepers(self, unfinished: list[Job]) -> list[str]:
        sentences = []
        for job in unfinished:
            keeper = self._keeper_of(job)
            if keeper is not None:
                sentences.append(await keeper.take_up(job))
        return sentences

    def _keeper_of(
        self, job: Job
    ) -> (
        ImageKeeper
        | SnapshotKeeper
        | ScheduleKeeper
        | VolumeKeeper
        | Forker
        | Carrier
        | GuestImporter
        | None
    ):
        """Return whose job that is, None where it is a guest's own."""
        match job.kind.partition("-")[0]:
            case "image" if job.kind != "image-publish":
                return self._images
            case "image":
                return self._snapshots
            case "snapshot" | "check":
                return self._snapshots
            case "schedule":
                return self.schedule_keeper
            case "fork":
                return self._forker
            case "volume" | "pool" | "medium":
                return self._volumes
            case "launch" if job.phases == FORK_PHASES:
                return self._forker  # of a published image
            case "network" | "port" | "group" | "forward":
                return self._carrier
            case "guest":
                return self._importer
            case _:
                return None


def _check_no_volumes(action: LaunchGuest) -> None:
    if action.volumes:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"a guest of the image {action.spec.image} begins as it was frozen, without more volumes",
            hint="Launch it without, then attach them: serai volume attach",
        )


def _lost_image(record: GuestRecord) -> Image:
    """Stand in for an image whose files are gone: the guest is shown, and can be deleted."""
    return Image(
        name=record.spec.image,
        digest=record.image_digest,
        kind=ImageKind.DISK,
        created_at=record.created_at,
        size=0,
    )
