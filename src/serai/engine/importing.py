"""Guests that come from elsewhere: an image of the root disk, volumes of the others, a guest of them.

Image, volumes and guest are stored in one commit: before it there are only files that belong to
nobody, which the next daemon removes; after it there is a guest, stopped, whose creation ends by itself.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from serai.disk.files import check_room
from serai.disk.machines import ImportedDisk, ImportedMachine, import_machine, import_of
from serai.disk.volumes import drop_head, move_head_in
from serai.engine.house import House
from serai.engine.images import ImageKeeper
from serai.engine.jobs import LiveJob, error_of
from serai.engine.volume_moments import bare
from serai.engine.volumes import VolumeKeeper
from serai.errors import Code, Invalid, SeraiError, error_from_problem
from serai.model.actions import CreateGuest, ImportGuest
from serai.model.event import Event, EventKind
from serai.model.guest import GuestSpec
from serai.model.image import Image
from serai.model.job import Job
from serai.model.volume import VolumeRecord
from serai.plan.foreign import first_mac, guest_name_from, plan_guest
from serai.store.changes import Change, PutImage
from serai.units import check_guest_name

PHASES = ("fetch", "inspect", "convert", "publish", "define")
AT_ONCE = 2
DEFINE_TIMEOUT = 600.0


class Create(Protocol):
    """Defines a guest of an image that is there, together with other changes; gives its job."""

    async def __call__(
        self,
        action: CreateGuest,
        key: str,
        *,
        guest_id: str,
        mac: str,
        volumes: tuple[VolumeRecord, ...],
        changes: tuple[Change, ...],
        events: tuple[Event, ...],
    ) -> Job:
        """Take the action on."""


class GuestImporter:
    """Carries out every ImportGuest."""

    def __init__(
        self, house: House, images: ImageKeeper, volumes: VolumeKeeper, create: Create
    ) -> None:
        self._house = house
        self._images = images
        self._volumes = volumes
        self._create = create
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._coming: dict[str, LiveJob] = {}

    async def begin(self, action: ImportGuest, key: str) -> Job:
        """Import a guest as a job; its result is the guest's id."""
        house, guest_id = self._house, self._house.new_id()
        name = _name_of(action)
        import_of(action, name)
        reserve = house.settings.disk_reserve
        check_room(house.places.scratch, 0, reserve=reserve, what="importing a guest")
        house.names.claim(name, guest_id)
        try:
            self._images.reserve(name, guest_id)
            job = await house.jobs.open(action, name, PHASES, key=key)
        except BaseException:
            self._let_go(name, guest_id)
            raise
        self._coming[job.id] = job
        run = self._carry_out(job, action, name, guest_id)
        job.belongs_to(house.supervisor.start(run, name=f"import {name}"))
        return job.job

    def _let_go(self, name: str, guest_id: str) -> None:
        self._house.names.release(name, guest_id)
        self._images.release(guest_id)

    def cancel(self, job_id: str) -> bool:
        """Cancel an import; False when it is not one that is on its way."""
        job = self._coming.get(job_id)
        if job is not None:
            job.break_off()
        return job is not None

    async def _carry_out(self, job: LiveJob, action: ImportGuest, name: str, guest_id: str) -> None:
        """Bring the disk in, define the guest, end the job; leave nothing on failure."""
        scratch = self._house.places.scratch / job.id
        try:
            async with self._slots:
                await job.enter("fetch")
                await self._import(job, action, name, guest_id, scratch)
        except asyncio.CancelledError as error:
            self._let_go(name, guest_id)
            if not self._house.closing.is_set():
                await job.fail(error_of(error))
        except Exception as error:  # the one place where a failed import becomes an answer
            self._let_go(name, guest_id)
            await job.fail(error_of(error))
        finally:
            self._coming.pop(job.id, None)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _import(
        self, job: LiveJob, action: ImportGuest, name: str, guest_id: str, scratch: Path
    ) -> None:
        def progress(phase: str, done: int, total: int, message: str) -> None:
            job.progress(done, total, message, phase=phase)

        house = self._house
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        imported = await import_machine(
            action,
            name,
            scratch=scratch,
            settings=house.settings,
            capabilities=house.capabilities,
            progress=progress,
        )
        await job.enter("publish")
        now = house.journal.now()
        image = await house.images.publish(imported.image, now=now, progress=progress)
        await job.enter("define")
        job.hold()
        notes = await self._define(action, imported, image, guest_id)
        self._images.release(guest_id)
        await job.finish(message="; ".join(notes) or f"{name} is defined", results=(guest_id,))

    async def _define(
        self, action: ImportGuest, imported: ImportedMachine, image: Image, guest_id: str
    ) -> tuple[str, ...]:
        """Store image, volumes and guest together; return what is different from before."""
        images, machine, disks = self._images, imported.machine, imported.disks
        images.keep(image)
        try:
            spec, notes = plan_guest(
                machine,
                image,
                name=image.name,
                cpus=action.cpus,
                memory=action.memory,
                taken=[each.name for each in disks],
            )
            mac = first_mac(machine)
            if mac in {each.mac for each in self._house.shelf.guests()}:
                mac, notes = "", (*notes, f"a guest here has the address {mac}: it gets another")
            async with self._volumes_of(disks, spec.name, guest_id) as records:
                await self._store(spec, image, records, guest_id=guest_id, mac=mac)
        except BaseException:
            if not self._house.closing.is_set():  # else the next daemon goes on with what is stored
                with suppress(SeraiError):
                    await images.take_back(image)
            raise
        became = [
            f"its disk {disk.name} became the volume {record.name}"
            for disk, record in zip(disks, records, strict=True)
        ]
        return (*became, *notes)

    async def _store(
        self,
        spec: GuestSpec,
        image: Image,
        records: tuple[VolumeRecord, ...],
        *,
        guest_id: str,
        mac: str,
    ) -> None:
        """Define the guest, and wait until it is whole; if it can't be, it is undone again."""
        journal = self._house.journal
        job = await self._create(
            CreateGuest(spec=spec),
            "",
            guest_id=guest_id,
            mac=mac,
            volumes=records,
            changes=(PutImage(image),),
            events=(
                journal.event(EventKind.IMAGE_CREATED, image.name, image.digest),
                *(journal.event(EventKind.VOLUME_CREATED, each.name, each.id) for each in records),
            ),
        )
        ended = await self._house.jobs.wait(job.id, DEFINE_TIMEOUT)
        if ended.problem is not None:
            raise error_from_problem(ended.problem)

    @asynccontextmanager
    async def _volumes_of(
        self, disks: tuple[ImportedDisk, ...], name: str, guest_id: str
    ) -> AsyncIterator[tuple[VolumeRecord, ...]]:
        """Put disks into the pool and yield their records, still to be stored with the guest's.

        Nothing is left of them when the block fails.
        """
        house, keeper = self._house, self._volumes
        records: list[VolumeRecord] = []
        with keeper.names_for(name, len(disks)) as names:
            try:
                for each, disk in zip(names, disks, strict=True):
                    record = keeper.record_for(guest_id, each, disk.size)
                    records.append(record)
                    folder = house.pools.heads(record.pool)
                    await asyncio.to_thread(move_head_in, disk.head, folder, bare(record))
                house.shelf.volumes.update((each.id, each) for each in records)
                yield tuple(records)
            except BaseException:
                if not house.closing.is_set():
                    for record in records:
                        house.shelf.volumes.pop(record.id, None)
                        drop_head(house.pools.heads(record.pool), bare(record))
                raise

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left; return a sentence that says how."""
        guest_id = self._house.names.owner(job.subject)
        live = self._house.jobs.resume(job) if guest_id else None
        if live is None:
            for image in self._images.all():
                if image.name == job.subject and job.phase == PHASES[-1]:  # no other had the name
                    await self._images.take_back(image)
            await self._house.jobs.give_up(job)
            return f"guest {job.subject}: its import was undone"
        await live.finish(message=f"{job.subject} is defined", results=(guest_id or "",))
        return f"guest {job.subject}: its import was finished"


def _name_of(action: ImportGuest) -> str:
    """Return the guest's name: as asked, else the machine's, else from the name of the file."""
    machine = action.machine.name if action.machine else ""
    file = action.source.rsplit("/", 1)[-1].split("?", 1)[0].rsplit(".", 1)[0]
    name = action.name or guest_name_from(machine) or guest_name_from(file)
    if not name:
        raise Invalid(
            Code.NAME_INVALID,
            "its name can't be a guest's",
            hint="Give one: serai import FILE NAME",
        )
    return check_guest_name(name)
