"""At the daemon's start: everything is found as an earlier daemon left it, and goes on.

First all is read and put where it belongs, then guests are taken up (``adopt``), then unfinished jobs by
whoever began them; at last what belongs to nobody is removed.
"""

import asyncio
from typing import Protocol

from serai.engine import checking
from serai.engine.adopt import state_at_rest, take_up_all
from serai.engine.forks import PHASES as FORK_PHASES
from serai.engine.forks import remove_unfinished
from serai.engine.guests import Guests
from serai.engine.house import House
from serai.engine.keepers import Keepers
from serai.engine.snapshots import owner_of_image
from serai.host.process import find_processes
from serai.model.job import Job


class Resuming(Protocol):
    """Whoever has begun jobs of its own."""

    async def take_up(self, job: Job) -> str:
        """Finish or undo a job of an earlier daemon; return what was done."""


async def take_up(house: House, keepers: Keepers) -> list[str]:
    """Find everything as an earlier daemon left it, and go on; return what was done."""
    guests = keepers.guests
    unfinished = await house.journal.store.unfinished_jobs()
    await _read(house, keepers)
    damaged = await _reserve_damaged(house, guests)
    sentences = list(damaged)
    mended = await house.cabling.reconcile()
    sentences += mended.sentences
    sentences += await _take_up_guests(house, keepers, unfinished)
    sentences += await remove_unfinished(list(guests.by_id.values()))
    sentences += await keepers.volumes.tidy(complete=not damaged)
    sentences += await _take_up_jobs(keepers, unfinished)
    sentences += await keepers.schedules.take_up_all(set(guests.by_id) | guests.damaged)
    published = [owner_of_image(each.name) for each in keepers.images.all() if each.snapshot]
    sentences += await keepers.snapshots.tidy(published)
    await asyncio.to_thread(keepers.images.tidy)
    sentences += await house.cabling.sweep()
    if mended.taps:
        replug = keepers.ports.replug(list(guests.by_id.values()), mended.taps)
        house.supervisor.start(replug, name="replug")
    keepers.forker.pool.start()
    return sentences


async def _read(house: House, keepers: Keepers) -> None:
    """Read all that is stored; volumes and networks before the guests that have some."""
    store, fabric, guests = house.journal.store, house.fabric, keepers.guests
    keepers.images.fill(await store.images())
    house.shelf.fill(await store.layers(), await store.snapshots())
    for pool in await store.pools():
        house.shelf.pools[pool.name] = pool
        house.pools.know(pool)
    house.shelf.volumes = {each.id: each for each in await store.volumes()}
    fabric.fill(
        await store.networks(), await store.groups(), await store.forwards(), await store.usage()
    )
    for record in await store.guests():
        house.names.claim(record.spec.name, record.id)
        house.names.keep_number(record.number)
        fabric.hold(record.id, record.spec.name, record.ports)
        image = keepers.images.by_digest(record.image_digest)
        guests.own(guests.make(record, image, state_at_rest(record)))


async def _reserve_damaged(house: House, guests: Guests) -> list[str]:
    """Keep the names and numbers of guests whose records can't be read from being used again."""
    damaged = await house.journal.store.damaged()
    guests.damaged = {row.key for row in damaged if row.table == "guests"}
    house.shelf.is_whole = not any(row.table in checking.KINDS for row in damaged)
    for row in damaged:
        if row.name and row.table == "guests":
            house.names.claim(row.name, row.key)
        if row.number:
            house.names.keep_number(row.number)
    return [f"{row.table} {row.name or row.key} can't be read: {row.reason}" for row in damaged]


async def _take_up_guests(house: House, keepers: Keepers, unfinished: list[Job]) -> list[str]:
    drivers = keepers.guests.by_id
    pids = await asyncio.to_thread(find_processes, "-uuid", frozenset(drivers))
    about_guests = [job for job in unfinished if _keeper_of(keepers, job) is None]
    others = [job for job in unfinished if _keeper_of(keepers, job) is not None]
    return await take_up_all(list(drivers.values()), pids, about_guests, house.jobs, others)


async def _take_up_jobs(keepers: Keepers, unfinished: list[Job]) -> list[str]:
    sentences = []
    for job in unfinished:
        keeper = _keeper_of(keepers, job)
        if keeper is not None:
            sentences.append(await keeper.take_up(job))
    return sentences


def _keeper_of(keepers: Keepers, job: Job) -> Resuming | None:
    """Return whose job that is, None where it is a guest's own."""
    match job.kind.partition("-")[0]:
        case "image" if job.kind != "image-publish":
            return keepers.images
        case "image":
            return keepers.snapshots
        case "snapshot" | "check":
            return keepers.snapshots
        case "schedule":
            return keepers.schedules
        case "fork":
            return keepers.forker
        case "volume" | "pool" | "medium":
            return keepers.volumes
        case "launch" if job.phases == FORK_PHASES:
            return keepers.forker  # of a published image
        case "network" | "port" | "group" | "forward":
            return keepers.carrier
        case "guest":
            return keepers.importer
        case _:
            return None
