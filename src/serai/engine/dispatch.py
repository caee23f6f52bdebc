"""How every action is taken on, whoever asks for it, and how its job is cancelled.

    submit ─▶ what is told a guest is put away ─▶ asked before (key)? ─▶ keeper or guest's task ─▶ durable job

What refuses an action is raised here; then nothing was changed.
"""

import asyncio
from typing import Protocol
from weakref import WeakValueDictionary

from serai.engine import checking
from serai.engine.adopt import verb_of
from serai.engine.driver import CancelJob, GuestDriver
from serai.engine.house import House
from serai.engine.keepers import Keepers, build_keepers
from serai.engine.schedules import OfSchedule
from serai.engine.seeding import sealed
from serai.errors import Code, Conflict
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
    CreateSnapshot,
    CreateVolume,
    DeleteGroup,
    DeleteGuest,
    DeleteImage,
    DeleteNetwork,
    DeletePool,
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
    ServeVolume,
    SetGuest,
    SetNetwork,
    SetPort,
    SnapshotVolume,
    StartGuest,
)
from serai.model.job import Job
from serai.model.lifecycle import ON_STATES
from serai.plan.admission import check_room
from serai.plan.firstboot import check_told
from serai.plan.machine import check_fit
from serai.plan.snapshot import check_as_frozen, check_not_itself, fork_names
from serai.units import check_guest_name

OfNewGuest = LaunchGuest | CreateGuest | ImportGuest | ForkGuest
OfImage = BuildImage | ImportImage | PullImage | PublishImage | DeleteImage
OfSnapshot = CreateSnapshot | RestoreSnapshot | ChangeSnapshot | DeleteSnapshot
OfVolume = (
    CreateVolume | AttachVolume | DetachVolume | ChangeVolume | DeleteVolume | CloneVolume
    | SnapshotVolume | DeleteVolumeSnapshot | ImportVolume | ExportVolume | ServeVolume
    | CreatePool | DeletePool | InsertMedium | EjectMedium
)  # fmt: skip
OfNetwork = (
    CreateNetwork | SetNetwork | DeleteNetwork | AddPort | SetPort | RemovePort
    | CreateGroup | ChangeGroup | DeleteGroup | AddForward | RemoveForward
)  # fmt: skip

WHOLE = (DeleteGuest, RenameGuest, SetGuest)
"""Done in full or not at all, and quick: what can't be cancelled."""
CANCEL_TIMEOUT = 10.0


class Cancelling(Protocol):
    """Whoever has jobs of its own on their way."""

    def cancel(self, job_id: str) -> bool:
        """Ask a job to end early; False if there is none of that id here."""


class Dispatcher:
    """The way of every action to whoever carries it out; one per daemon."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.keepers = build_keepers(house, self.submit)

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

    async def _take(self, action: AnyAction, key: str) -> Job:
        keepers = self.keepers
        if isinstance(action, OfNewGuest):
            return await self._make_guest(action, key)
        if isinstance(action, OfImage):
            return await _of_image(keepers, action, key)
        if isinstance(action, OfSnapshot):
            return await _of_snapshot(keepers, action, key)
        if isinstance(action, OfSchedule):
            return await keepers.schedules.take(keepers.guests.find(action.guest), action, key)
        if isinstance(action, OfVolume):
            return await _of_volume(keepers, action, key)
        if isinstance(action, OfNetwork):
            return await _of_network(keepers, action, key)
        if isinstance(action, CheckStorage):
            work = keepers.checker.work(action)
            return await keepers.snapshots.begin(
                action, checking.SUBJECT, checking.PHASES, work, key
            )
        driver = keepers.guests.find(action.guest)
        self._check_before(driver, action)
        return await driver.ask(verb_of(action), action, key)

    async def _make_guest(self, action: OfNewGuest, key: str) -> Job:
        keepers = self.keepers
        match action:
            case LaunchGuest(spec=spec) if (image := keepers.images.find(spec.image)).snapshot:
                self._house.check_fit()
                _check_no_volumes(action)
                check_told(action, image)
                check_as_frozen(spec, image.name, keepers.snapshots.published(image))
                return await keepers.forker.launch(image, action, key)
            case LaunchGuest() | CreateGuest():
                return await keepers.creator.create(action, key)
            case ImportGuest():
                self._house.check_fit()
                return await keepers.importer.begin(action, key)
            case ForkGuest():
                self._house.check_fit()
                source = keepers.guests.find(action.guest)
                if action.name and not action.together:
                    check_not_itself(fork_names(action.name, action.count), source.name)
                return await keepers.forker.fork(source, action, key)

    def _check_before(self, driver: GuestDriver, action: AnyAction) -> None:
        """Refuse what can be seen to be wrong before the guest's task is asked."""
        match action:
            case RenameGuest(name=name):
                check_guest_name(name)
                owner = self._house.names.owner(name)
                if owner not in (None, driver.record.id):
                    raise Conflict(Code.GUEST_EXISTS, f"there is a guest {name} already")
            case StartGuest() if driver.state not in ON_STATES:
                self._house.check_fit()
                check_room(driver.record.spec.memory, available_memory())
                check_fit(
                    driver.image,
                    driver.record.spec.firmware,
                    driver.record.spec.memory,
                    self._house.capabilities,
                )
            case _:
                pass

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early and return it; Conflict (``job-not-cancellable``) if it can't."""
        live = self._house.jobs.live(job_id)
        if live is None:
            job = await self._house.jobs.find(job_id)
            raise Conflict(Code.JOB_NOT_CANCELLABLE, f"job {job.id} has ended: it is {job.state}")
        if any(each.cancel(job_id) for each in self._cancelling()):
            return await self._house.jobs.wait(job_id, CANCEL_TIMEOUT)
        for driver in self.keepers.guests.by_id.values():
            if driver.job is live and not isinstance(live.action, WHOLE):
                driver.mailbox.tell(CancelJob(job_id))
                return await self._house.jobs.wait(job_id, CANCEL_TIMEOUT)
        raise Conflict(Code.JOB_NOT_CANCELLABLE, f"job {job_id} can't be cancelled now")

    def _cancelling(self) -> tuple[Cancelling, ...]:
        keepers = self.keepers
        return (
            keepers.images, keepers.snapshots, keepers.forker, keepers.carrier, keepers.importer,
        )  # fmt: skip


async def _of_image(keepers: Keepers, action: OfImage, key: str) -> Job:
    images = keepers.images
    match action:
        case BuildImage():
            return await images.build(action, key)
        case ImportImage():
            return await images.import_(action, key)
        case PullImage():
            return await images.pull(action, key)
        case PublishImage():
            driver = keepers.guests.find(action.guest)
            return await keepers.publisher.publish(driver, action, key)
        case DeleteImage():
            await keepers.forker.pool.drop_of(images.find(action.image).snapshot)
            return await images.delete(action, key)


async def _of_snapshot(keepers: Keepers, action: OfSnapshot, key: str) -> Job:
    driver, snapshots = keepers.guests.find(action.guest), keepers.snapshots
    match action:
        case CreateSnapshot():
            return await snapshots.create(driver, action, key)
        case RestoreSnapshot():
            return await snapshots.restore(driver, action, key)
        case ChangeSnapshot():
            return await snapshots.change(driver, action, key)
        case DeleteSnapshot():
            return await snapshots.delete(driver, action, key)


async def _of_volume(keepers: Keepers, action: OfVolume, key: str) -> Job:
    volumes, moments, copier = keepers.volumes, keepers.moments, keepers.copier
    match action:
        case CreateVolume():
            return await volumes.create(action, key)
        case AttachVolume():
            return await volumes.attach(action, key)
        case DetachVolume():
            return await volumes.detach(action, key)
        case ChangeVolume():
            return await volumes.change(action, key)
        case DeleteVolume():
            return await volumes.delete(action, key)
        case SnapshotVolume():
            return await moments.snapshot(action, key)
        case DeleteVolumeSnapshot():
            return await moments.delete(action, key)
        case CloneVolume():
            return await copier.clone(action, key)
        case ImportVolume():
            return await copier.import_(action, key)
        case ExportVolume():
            return await copier.export(action, key)
        case ServeVolume():
            return await copier.serve(action, key)
        case CreatePool():
            return await keepers.pools.create(action, key)
        case DeletePool():
            return await keepers.pools.delete(action, key)
        case InsertMedium():
            return await keepers.media.insert(action, key)
        case EjectMedium():
            return await keepers.media.eject(action, key)


async def _of_network(keepers: Keepers, action: OfNetwork, key: str) -> Job:
    find, networks, ports = keepers.guests.find, keepers.networks, keepers.ports
    match action:
        case CreateNetwork():
            return await networks.create(action, key)
        case SetNetwork():
            return await networks.change(action, key)
        case DeleteNetwork():
            return await networks.delete(action, key)
        case AddPort():
            return await ports.add(find(action.guest), action, key)
        case SetPort():
            return await ports.change(find(action.guest), action, key)
        case RemovePort():
            return await ports.remove(find(action.guest), action, key)
        case CreateGroup():
            return await keepers.groups.create(action, key)
        case ChangeGroup():
            return await keepers.groups.change(action, key)
        case DeleteGroup():
            return await keepers.groups.delete(action, key)
        case AddForward():
            return await keepers.forwards.add(find(action.spec.guest), action, key)
        case RemoveForward():
            owner = keepers.forwards.guest_of(action.forward)
            return await keepers.forwards.remove(find(owner), action, key)


def _check_no_volumes(action: LaunchGuest) -> None:
    if action.volumes:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"a guest of the image {action.spec.image} begins as it was frozen, without more volumes",
            hint="Launch it without, then attach them: serai volume attach",
        )
