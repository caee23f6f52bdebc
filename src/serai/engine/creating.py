"""New guests: what is asked for is checked, its names are claimed, and it is stored with its job."""

from contextlib import ExitStack
from functools import partial

import msgspec

from serai.disk.files import check_room as check_disk_room
from serai.engine.driver import GuestDriver
from serai.engine.guests import Guests
from serai.engine.house import House
from serai.engine.images import ImageKeeper
from serai.engine.jobs import LiveJob
from serai.engine.ports import PortKeeper
from serai.engine.procedures import CREATE_PHASES, create, launch, launch_phases
from serai.engine.volumes import VolumeKeeper
from serai.host.tools import available_memory
from serai.model.actions import CreateGuest, LaunchGuest
from serai.model.event import Event, EventKind
from serai.model.guest import GuestRecord, GuestSpec
from serai.model.image import Image
from serai.model.job import Job
from serai.model.lifecycle import GuestState
from serai.model.network import Port
from serai.model.volume import VolumeRecord
from serai.plan.admission import check_launch, check_room
from serai.plan.firstboot import check_told
from serai.plan.machine import check_fit
from serai.plan.volume import attach_all
from serai.store.changes import Change, PutGuest, PutVolume
from serai.units import check_guest_name


class GuestCreator:
    """Carries out LaunchGuest and CreateGuest, where the guest is not made by forking."""

    def __init__(
        self,
        house: House,
        guests: Guests,
        images: ImageKeeper,
        ports: PortKeeper,
        volumes: VolumeKeeper,
    ) -> None:
        self._house = house
        self._guests = guests
        self._images = images
        self._ports = ports
        self._volumes = volumes

    async def create(
        self,
        action: LaunchGuest | CreateGuest,
        key: str,
        *,
        guest_id: str = "",
        mac: str = "",
        volumes: tuple[VolumeRecord, ...] = (),
        changes: tuple[Change, ...] = (),
        events: tuple[Event, ...] = (),
    ) -> Job:
        """Define a guest, stored together with ``changes``; an imported one has its ``mac``, and new
        ``volumes``, whose files are there.
        """
        house, guest_id = self._house, guest_id or self._house.new_id()
        name = action.spec.name or house.names.pick(int(guest_id[:8], 16))
        spec = msgspec.structs.replace(action.spec, name=check_guest_name(name))
        image = self._check_new(action, spec)
        with ExitStack() as undo:
            house.names.claim(name, guest_id)
            undo.callback(house.names.release, name, guest_id)
            ports = self._ports.claim(guest_id, name, action.ports)
            undo.callback(house.fabric.release, ports)
            number = house.names.claim_number()
            undo.callback(house.names.release_number, number)
            record = self._record(action, spec, image, guest_id, number, ports, mac)
            record = attach_all(record, volumes)
            self._volumes.check_wishes(action.volumes, record)
            driver = self._guests.make(record, image, GuestState.CREATING)
            puts = (*changes, *map(PutVolume, volumes))
            job = await self._store(driver, action, key, puts, events)
            undo.pop_all()
        self._guests.own(driver)
        procedure = launch if isinstance(action, LaunchGuest) else create
        driver.begin(job, partial(procedure, furnish=self._volumes.furnish))
        return job.job

    async def _store(
        self,
        driver: GuestDriver,
        action: LaunchGuest | CreateGuest,
        key: str,
        changes: tuple[Change, ...],
        events: tuple[Event, ...],
    ) -> LiveJob:
        """Store a guest and its job as one; until then nobody deletes the image that it is of."""
        house, image = self._house, driver.image
        created = house.journal.event(
            EventKind.GUEST_CREATED, driver.name, driver.record.id, image=image.name
        )
        phases: tuple[str, ...] = CREATE_PHASES
        if isinstance(action, LaunchGuest):
            phases = launch_phases(action, image)
        self._guests.coming.add(driver)
        try:
            return await house.jobs.open(
                action,
                driver.name,
                phases,
                key=key,
                changes=(*changes, PutGuest(driver.record)),
                events=(*events, created),
            )
        finally:
            self._guests.coming.discard(driver)

    def _check_new(self, action: LaunchGuest | CreateGuest, spec: GuestSpec) -> Image:
        self._house.check_fit()
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
