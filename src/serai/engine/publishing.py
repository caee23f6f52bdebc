"""Publishing: a snapshot that lives on as an image, whatever becomes of its guest.

Nothing is copied: the image has a snapshot of its own over the same layers and the same memory. The
kernel, the firmware and the lowest disk are those of the image that the guest was made from.
"""

import msgspec

from serai.engine.collecting import collect, delete_files
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.images import ImageKeeper
from serai.engine.jobs import LiveJob
from serai.engine.snapshots import SnapshotKeeper, check_admitted, owner_of_image
from serai.errors import Code, Conflict
from serai.model.actions import CreateSnapshot, PublishImage
from serai.model.event import EventKind
from serai.model.image import Image
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.model.snapshot import SnapshotRecord
from serai.plan.volume import ROOT
from serai.store.changes import DropSnapshot, PutImage, PutSnapshot
from serai.units import check_image_name

PHASES = ("freeze", "store", "publish")


class Publisher:
    """Makes images of guests and their snapshots."""

    def __init__(self, house: House, snapshots: SnapshotKeeper, images: ImageKeeper) -> None:
        self._house = house
        self._snapshots = snapshots
        self._images = images

    async def publish(self, driver: GuestDriver, action: PublishImage, key: str) -> Job:
        """Make an image, as a job."""
        name = check_image_name(action.image)
        if self._images.has(name) and not action.replace:
            raise Conflict(
                Code.IMAGE_EXISTS,
                f"there is an image {name} already",
                hint="Choose another name, or use --replace.",
            )
        if action.snapshot:
            self._snapshots.check_usable(driver, action.snapshot)
        else:
            check_admitted(driver, Verb.SNAPSHOT)

        async def work(job: LiveJob) -> None:
            snapshot = await self._snapshot(job, driver, action, name)
            job.hold()  # nobody else would drop it now
            await job.enter("publish")
            image = self._describe(driver, snapshot, name)
            event = self._house.journal.event(EventKind.IMAGE_CREATED, name, image.digest)
            shelf = self._house.shelf
            before = [each for each in shelf.of(snapshot.guest_id) if each.id != snapshot.id]
            await job.finish(
                *(DropSnapshot(each.id) for each in before),
                PutSnapshot(snapshot),
                PutImage(image),
                events=(event,),
                message=name,
                then=lambda: self._keep(snapshot, image, before),
            )
            await delete_files(self._house, before)
            await collect(self._house)

        return await self._snapshots.begin(action, driver.name, PHASES, work, key)

    async def _snapshot(
        self, job: LiveJob, driver: GuestDriver, action: PublishImage, name: str
    ) -> SnapshotRecord:
        """Return a snapshot of the image's own: of the guest now, or like one that it has."""
        owner, unique = owner_of_image(name), f"{name}-{self._house.new_id()[:8]}"
        if not action.snapshot:
            wanted = CreateSnapshot(guest=driver.record.id, memory=action.memory)
            return await self._snapshots.freeze_for(job, driver, wanted, owner, unique)
        found = self._snapshots.check_usable(driver, action.snapshot)
        return msgspec.structs.replace(
            found,
            id=self._house.new_id(),
            name=unique,
            guest_id=owner,
            parent="",
            memory=found.memory if action.memory else None,
        )

    def _describe(self, driver: GuestDriver, snapshot: SnapshotRecord, name: str) -> Image:
        below = driver.image
        sizes = [volume.size for volume in snapshot.volumes if volume.name == ROOT]
        return msgspec.structs.replace(
            below,
            name=name,
            created_at=self._house.journal.now(),
            size=below.size + (snapshot.memory.stored if snapshot.memory else 0),
            virtual_size=max([below.virtual_size, *sizes]),
            min_memory=snapshot.memory.size if snapshot.memory else below.min_memory,
            source=f"published from {driver.name}",
            snapshot=snapshot.id,
            warm=snapshot.memory is not None,
        )

    def _keep(self, snapshot: SnapshotRecord, image: Image, before: list[SnapshotRecord]) -> None:
        for each in before:
            self._house.shelf.drop(each)
        self._house.shelf.put(snapshot)
        self._images.keep(image)
