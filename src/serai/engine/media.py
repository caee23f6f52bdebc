"""Media in guests' CD drives: inserted and ejected in the guest's own task."""

import asyncio
from collections.abc import Callable

from serai.engine.driver import GuestDriver
from serai.engine.jobs import LiveJob
from serai.engine.running import machine_of, write_running
from serai.engine.snapshots import SnapshotKeeper, check_admitted
from serai.errors import Code, Conflict, SeraiError
from serai.model.actions import EjectMedium, InsertMedium
from serai.model.event import EventKind
from serai.model.guest import Medium
from serai.model.image import Image, ImageKind
from serai.model.job import Job
from serai.model.lifecycle import Verb
from serai.plan.machine import CD

MEDIUM_TIMEOUT = 10.0

FindImage = Callable[[str], Image]


class MediumChanger:
    """What is done with media. ``find`` gives a guest, ``find_image`` an image; both may raise."""

    def __init__(
        self,
        snapshots: SnapshotKeeper,
        find: Callable[[str], GuestDriver],
        find_image: FindImage,
    ) -> None:
        self._snapshots = snapshots
        self._find = find
        self._find_image = find_image

    async def insert(self, action: InsertMedium, key: str) -> Job:
        """Put a medium into a guest's drive, as a job."""
        driver, image = self._find(action.guest), self._find_image(action.image)
        if image.kind is not ImageKind.CDROM or image.disk is None:
            raise Conflict(
                Code.IMAGE_UNFIT,
                f"the image {image.name} is no medium, but a {image.kind}",
                hint="Import one: serai image import FILE.iso",
            )
        medium = Medium(image=image.name, digest=image.digest, file=image.disk.name)
        return await self._change(driver, action, medium, key, force=action.force)

    async def eject(self, action: EjectMedium, key: str) -> Job:
        """Take what is in a guest's drive out, as a job."""
        driver = self._find(action.guest)
        if not _has_drive(driver):
            raise _no_drive(driver)
        return await self._change(driver, action, Medium(), key, force=action.force)

    async def _change(
        self,
        driver: GuestDriver,
        action: InsertMedium | EjectMedium,
        medium: Medium,
        key: str,
        *,
        force: bool,
    ) -> Job:
        check_admitted(driver, Verb.SET)
        if driver.instance is not None and not _has_drive(driver):
            raise _no_drive(driver)

        async def work(job: LiveJob) -> None:
            job.hold()
            await driver.do(Verb.SET, lambda: change_medium(driver, medium, force=force))
            data = {"medium": medium.image}
            event = driver.house.journal.event(
                EventKind.GUEST_CHANGED, driver.name, driver.record.id, **data
            )
            said = f"{medium.image} is in the drive" if medium.file else "the drive is empty"
            await job.finish(events=(event,), message=said)

        return await self._snapshots.begin(action, driver.name, ("change",), work, key)


def _has_drive(driver: GuestDriver) -> bool:
    if driver.instance is not None:
        return any(each.name == CD for each in driver.instance.machine.drives)
    return driver.record.medium is not None or driver.image.kind is ImageKind.CDROM


def _no_drive(driver: GuestDriver) -> Conflict:
    return Conflict(
        Code.NO_CD_DRIVE,
        f"{driver.name} has no CD drive",
        hint=f"Stop it and insert the medium then: it gets a drive. serai stop {driver.name}",
    )


async def change_medium(driver: GuestDriver, medium: Medium, *, force: bool) -> None:
    """Store what is in the drive, then have it so in the running machine.

    On failure the record is as before, and so is the drive unless its tray is open.
    """
    before = driver.record.medium
    await driver.house.journal.commit(driver.revise(medium=medium))
    instance = driver.instance
    if instance is None:
        return
    try:
        machine = await asyncio.to_thread(machine_of, driver)
        drive = next(each for each in machine.drives if each.name == CD)
        await instance.change_medium(drive, MEDIUM_TIMEOUT, force=force)
    except SeraiError:
        await driver.house.journal.commit(driver.revise(medium=before))
        raise
    write_running(driver, instance)
