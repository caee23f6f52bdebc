"""Checking the storage: a job that reads everything while the house goes on with its work.

It holds nothing up. What it compares with the records, it compares at one moment, without what
somebody is at work on (``under_way``). What it reads takes time, so whatever seems wrong is looked at
again until nobody was at work on it meanwhile and its record has not changed; then it is so. Deleting
looks once more, at the moment before (docs/design/0033).
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from serai.disk.check import (
    Folders,
    Known,
    broken_snapshots,
    damage_of,
    delete,
    find_dangling,
    find_orphans,
    find_stray_heads,
    look_at_firmware,
    look_at_heads,
    look_at_image,
    look_at_layer,
    look_at_memory,
    look_at_volume,
    name_users,
)
from serai.engine.collecting import drop_base
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.jobs import LiveJob
from serai.engine.layer_keeper import LayerKeeper
from serai.engine.strays import find_stray_files, find_stray_folders
from serai.errors import Code, Family, HostFailure, Problem
from serai.model.actions import CheckStorage
from serai.model.check import CheckReport, Fault, Finding, FindingKind
from serai.model.event import EventKind
from serai.model.lifecycle import ON_STATES, GuestState
from serai.model.snapshot import SnapshotRecord, SnapshotState
from serai.store.changes import PutSnapshot

SUBJECT = "storage"
PHASES = ("read", "mend")
MOST_FINDINGS = 100
"""How many findings are kept with a job: a house that is lost altogether must still be told of."""

KINDS = {
    "guests": FindingKind.GUEST,
    "snapshots": FindingKind.SNAPSHOT,
    "layers": FindingKind.LAYER,
    "images": FindingKind.IMAGE,
    "volumes": FindingKind.VOLUME,
}
"""What the rows are of that can't be read."""
ORDER = (
    FindingKind.IMAGE,
    FindingKind.LAYER,
    FindingKind.MEMORY,
    FindingKind.SNAPSHOT,
    FindingKind.VOLUME,
    FindingKind.GUEST,
)
COMING = (GuestState.CREATING, GuestState.DELETING)


class Checker:
    """Checks the storage, one check at a time. ``digests`` gives those of all images in use."""

    def __init__(
        self,
        house: House,
        layers: LayerKeeper,
        drivers: Iterable[GuestDriver],
        digests: Callable[[], set[str]],
    ) -> None:
        self._house = house
        self._layers = layers
        self._drivers = drivers
        self._digests = digests
        self._one = asyncio.Lock()
        self._folders = Folders(
            guests=house.places.guests,
            layers=house.layers,
            memory=house.memory,
            firmware=house.firmware,
            images=house.images,
            pools=house.pools,
        )

    def work(self, action: CheckStorage) -> Callable[[LiveJob], Coroutine[Any, Any, None]]:
        """Return the work of a job that checks."""

        async def work(job: LiveJob) -> None:
            async with self._one:
                await self._check(job, repair=action.repair)

        return work

    async def _check(self, job: LiveJob, *, repair: bool) -> None:
        await job.enter("read")
        unreadable = await self._find_unreadable()
        await asyncio.to_thread(self._house.memory.orphans, ())  # what is remembered makes it quick
        began = self._known()
        strays, at_work = self._find_strays(began), self._at_work(job)
        digests = self._digests()
        memories = sorted(self._house.shelf.memory_ids())
        found = [*unreadable, *find_dangling(began), *find_orphans(began, self._folders)]
        found += self._look_at_guests()
        for volume in began.volumes:
            found += look_at_volume(volume, self._folders)
        for snapshot in began.snapshots:
            found += look_at_firmware(snapshot, self._folders)
        found += await self._read(job, began, memories, sorted(digests))
        await job.enter("mend")
        known = self._known()
        found += self._still_strays(known, strays, at_work & self._at_work(job))
        await self._mark(known, {each.id for each in began.snapshots}, found)
        found = name_users(known, found)
        if repair:
            found = await self._mend(job, found)
        report = report_of(
            found,
            layers=len(began.layers),
            memories=len(memories),
            images=len(digests),
            snapshots=len(began.snapshots),
        )
        await job.finish(report=report, message=report.sentence())

    def _known(self) -> Known:
        """Return all records as they are at this moment."""
        shelf = self._house.shelf
        return Known(
            guests=list(shelf.guests()),
            snapshots=list(shelf.snapshots.values()),
            layers=dict(shelf.layers),
            volumes=list(shelf.volumes.values()),
            is_whole=shelf.is_whole,
            under_way=shelf.under_way.ids(),
        )

    # -- looking -----------------------------------------------------------------------------------

    async def _find_unreadable(self) -> list[Finding]:
        rows = await self._house.journal.store.damaged()
        return [
            Finding(
                fault=Fault.DAMAGED,
                kind=KINDS[row.table],
                id=row.key,
                message=f"what the database has of the {KINDS[row.table]} {row.name or row.key} "
                f"can't be read: {row.reason}",
            )
            for row in rows
            if row.table in KINDS
        ]

    def _look_at_guests(self) -> list[Finding]:
        """Look at the disks of guests that nothing is done to; of those without a process, at all."""
        found: list[Finding] = []
        for driver in self._drivers:
            if driver.is_busy or driver.state in COMING:
                continue
            found += look_at_heads(driver.record, self._folders)
            if _is_off(driver):
                found += find_stray_heads(driver.record, self._folders)
        return found

    def _find_strays(self, known: Known) -> list[Finding]:
        folders = self._folders
        return [
            *find_stray_folders(known, folders.guests),
            *find_stray_files(known, folders.pools, list(self._house.shelf.pools)),
        ]

    def _at_work(self, job: LiveJob) -> frozenset[str]:
        """Return the ids of all that may make files of volumes just now, before anybody knows of them.

        A spare's are known before they are made.
        """
        busy = {
            each.record.id
            for each in self._drivers
            if (each.is_busy or each.state in COMING) and not each.record.is_spare
        }
        return (self._house.jobs.live_ids() - {job.id}) | busy | self._house.shelf.under_way.ids()

    def _still_strays(
        self, known: Known, before: Sequence[Finding], at_work: Collection[str]
    ) -> list[Finding]:
        """Return what was nobody's before, and is so still; of volumes only if nobody can be making it.

        ``at_work`` are those who have been at work all the time. A guest's folder is made after its record
        was stored, and goes before that does.
        """
        now = {(each.kind, each.id) for each in self._find_strays(known)}
        return [
            each
            for each in before
            if (each.kind, each.id) in now and (each.kind is FindingKind.GUEST or not at_work)
        ]

    async def _read(
        self, job: LiveJob, began: Known, memories: Sequence[str], digests: Sequence[str]
    ) -> list[Finding]:
        looks: list[tuple[str, Callable[[], Awaitable[Finding | None]]]] = []
        looks += [(f"image {each}", partial(self._image, each)) for each in digests]
        looks += [(f"layer {each}", partial(self._layer, each)) for each in began.layers]
        looks += [(f"memory {each}", partial(self._memory, each)) for each in memories]
        found = []
        for done, (what, look) in enumerate(looks):
            job.progress(done, len(looks), what)
            finding = await look()
            if finding is not None:
                found.append(finding)
        job.progress(len(looks), len(looks))
        return found

    async def _image(self, digest: str) -> Finding | None:
        return await self._certain(
            digest,
            lambda: digest if digest in self._digests() else None,
            lambda: look_at_image(digest, self._folders),
        )

    async def _memory(self, memory_id: str) -> Finding | None:
        shelf = self._house.shelf
        return await self._certain(
            memory_id,
            lambda: memory_id if memory_id in shelf.memory_ids() else None,
            lambda: look_at_memory(memory_id, self._folders),
        )

    async def _layer(self, layer_id: str) -> Finding | None:
        layers = self._house.shelf.layers
        return await self._certain(
            layer_id, lambda: layers.get(layer_id), lambda: self._look_at_layer(layer_id)
        )

    async def _look_at_layer(self, layer_id: str) -> Finding | None:
        """Read a layer; one that has no digest yet gets it."""
        layer = self._house.shelf.layers[layer_id]
        if layer.digest:
            return await look_at_layer(layer, self._folders)
        try:
            await self._layers.seal(layer_id)
        except HostFailure as error:
            is_gone = not self._house.pools.layers_of(layer).path(layer_id).exists()
            return damage_of(FindingKind.LAYER, layer_id, error, is_gone=is_gone)
        return None

    async def _certain(
        self,
        each: str,
        record: Callable[[], object | None],
        look: Callable[[], Awaitable[Finding | None]],
    ) -> Finding | None:
        """Return what is wrong with a thing that is still known, and that nobody was at work on.

        A record that has gone went before its files, and one that has changed may be of other files.
        """
        while (before := record()) is not None:
            finding = await look()
            under_way = each in self._house.shelf.under_way.ids()
            if finding is None or (record() is before and not under_way):
                return finding
            await self._house.shelf.under_way.over(each)
        return None

    # -- snapshots ---------------------------------------------------------------------------------

    async def _mark(self, known: Known, looked_at: set[str], found: Iterable[Finding]) -> None:
        """Store which snapshots are broken, and which no longer are."""
        broken = broken_snapshots(known, found)
        for snapshot in known.snapshots:
            if snapshot.id not in looked_at or snapshot.state is SnapshotState.CREATING:
                continue
            changed = judged(snapshot, broken.get(snapshot.id))
            if changed is not snapshot:
                await self._put(snapshot, changed)

    async def _put(self, before: SnapshotRecord, changed: SnapshotRecord) -> None:
        """Store a changed snapshot, unless it has gone or become another meanwhile."""
        shelf, journal = self._house.shelf, self._house.journal
        if shelf.snapshots.get(before.id) is not before:
            return
        names = {guest.id: guest.spec.name for guest in shelf.guests()}
        event = journal.event(
            EventKind.SNAPSHOT_CHANGED,
            names.get(changed.guest_id, changed.name),
            changed.guest_id,
            snapshot=changed.name,
            state=str(changed.state),
        )
        shelf.put(changed)
        try:
            await journal.commit(PutSnapshot(changed, if_there=True), events=(event,))
        except BaseException:
            if shelf.snapshots.get(before.id) is changed:
                shelf.put(before)
            raise

    # -- mending -----------------------------------------------------------------------------------

    async def _mend(self, job: LiveJob, found: Sequence[Finding]) -> list[Finding]:
        """Delete the orphans that may go; return all findings, with what was mended marked so."""
        bases = self._house.memory.bases()
        ended: list[Finding] = []
        for each in sorted(found, key=lambda each: each.id in bases):  # what is over a base first
            job.progress(len(ended), len(found), each.id)
            if each.mendable:
                with job.held():
                    mended = await self._delete(each)
                each = msgspec.structs.replace(each, mended=mended)
            ended.append(each)
        return ended

    async def _delete(self, finding: Finding) -> bool:
        """Delete an orphan if it is one still; False when it stays."""
        shelf = self._house.shelf
        match finding.kind:
            case FindingKind.MEMORY:
                async with shelf.storing:
                    return self._is_orphan(finding) and await self._delete_memory(finding)
            case FindingKind.LAYER if self._is_orphan(finding):
                with shelf.under_way.on(finding.id):
                    await asyncio.to_thread(delete, finding, self._folders)
                return True
            case FindingKind.GUEST if self._is_stray(finding):
                delete(finding, self._folders)  # at this moment: nobody can begin anything with it
                return True
            case _:
                return False

    async def _delete_memory(self, finding: Finding) -> bool:
        with self._house.shelf.under_way.on(finding.id):
            if finding.id in self._house.memory.bases():
                return await drop_base(self._house, finding.id)
            await asyncio.to_thread(delete, finding, self._folders)
            return True

    def _is_orphan(self, finding: Finding) -> bool:
        return any(
            (each.kind, each.id) == (finding.kind, finding.id) and each.mendable
            for each in find_orphans(self._known(), self._folders)
        )

    def _is_stray(self, finding: Finding) -> bool:
        for driver in self._drivers:
            if driver.record.id == finding.id and not driver.is_busy and _is_off(driver):
                strays = find_stray_heads(driver.record, self._folders)
                return any(each.name == finding.name and each.mendable for each in strays)
        return False


def _is_off(driver: GuestDriver) -> bool:
    return driver.instance is None and driver.state not in (*ON_STATES, *COMING)


def judged(snapshot: SnapshotRecord, reason: Finding | None) -> SnapshotRecord:
    """Return a snapshot as it is with what was found: broken for a reason, or ready. Pure."""
    if reason is None:
        if snapshot.state is not SnapshotState.BROKEN:
            return snapshot
        return msgspec.structs.replace(snapshot, state=SnapshotState.READY, problem=None)
    problem = Problem(
        family=Family.HOST_FAILURE,
        code=Code.SNAPSHOT_CORRUPT,
        message=reason.message,
        hint="Bring the file back from a backup and check again (serai check), or delete the snapshot.",
        details={"fault": str(reason.fault), str(reason.kind): reason.id},
    )
    if snapshot.state is SnapshotState.BROKEN and snapshot.problem == problem:
        return snapshot
    return msgspec.structs.replace(snapshot, state=SnapshotState.BROKEN, problem=problem)


def report_of(found: Iterable[Finding], **counts: int) -> CheckReport:
    """Return the report of a check: the worst first, and no more than ``MOST_FINDINGS``. Pure."""
    ordered = sorted(
        found, key=lambda each: (not each.is_unsound, each.mended, ORDER.index(each.kind))
    )
    orphans = [each for each in ordered if not each.is_unsound]
    return CheckReport(
        findings=tuple(ordered[:MOST_FINDINGS]),
        left_out=len(ordered[MOST_FINDINGS:]),
        unsound=len(ordered) - len(orphans),
        orphans=sum(not each.mended for each in orphans),
        mended=sum(each.mended for each in orphans),
        **counts,
    )
