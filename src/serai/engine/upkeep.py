"""What has to be done now and then: logs kept within bounds, old events and jobs let go, guests
deleted whose time is over, memory bases that nobody uses closed, layers made one or sealed, cold
memory compressed.

Each turn returns a sentence for each thing that it did; an idle turn returns none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from serai.engine.cooling import cool_one
from serai.engine.driver import GuestDriver
from serai.engine.house import House
from serai.engine.layer_keeper import LayerKeeper
from serai.errors import SeraiError
from serai.host.logs import trim_log
from serai.model.actions import AnyAction, DeleteGuest
from serai.model.event import EventKind
from serai.model.job import Job
from serai.model.lifecycle import GuestState
from serai.store.changes import Prune

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
PRUNE_EVERY = 300.0
MERGE_EVERY = 10.0
COOL_EVERY = 4.0

Submit = Callable[[AnyAction], Awaitable[Job]]


class Upkeep:
    """The task that keeps things small. ``drivers`` gives the guests of the moment."""

    def __init__(
        self,
        house: House,
        drivers: Iterable[GuestDriver],
        layers: LayerKeeper,
        submit: Submit,
    ) -> None:
        self._house = house
        self._drivers = drivers
        self._layers = layers
        self._submit = submit

    async def run(self) -> None:
        """Look after things until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_layers())
            await self._keep_house()

    async def _keep_layers(self) -> None:
        """Merge and seal layers, which may take long and keeps nothing else waiting."""
        await asyncio.sleep(LOOK_EVERY)  # a period, not a wait for something
        while True:
            await self._keep_a_layer()
            await asyncio.sleep(MERGE_EVERY)

    async def _keep_house(self) -> None:
        turns = 0
        while True:
            await asyncio.sleep(LOOK_EVERY)  # a period, not a wait for something
            for sentence in self.trim_logs():
                log.info("%s", sentence)
            self._house.journal.ballast.fill()
            await self._settle()
            await self._expire()
            self._tidy_bases()
            if turns % int(COOL_EVERY / LOOK_EVERY) == 0:
                await self._cool()
            if turns % int(PRUNE_EVERY / LOOK_EVERY) == 0:
                await self._prune()
            turns += 1

    async def _expire(self) -> None:
        """Delete the guests whose time is over."""
        now = self._house.journal.now()
        for driver in list(self._drivers):
            expires_at = driver.record.expires_at
            if not expires_at or expires_at > now or driver.state is GuestState.DELETING:
                continue
            try:
                await self._submit(DeleteGuest(guest=driver.record.id, force=True))
            except SeraiError as error:
                log.warning(
                    "%s, whose time is over, was not deleted: %s", driver.name, error.message
                )
            else:
                driver.tell(EventKind.GUEST_EXPIRED)

    def _tidy_bases(self) -> None:
        running = [each.instance.machine for each in self._drivers if each.instance is not None]
        self._house.bases.tidy({machine.ram for machine in running if machine.ram_private})

    async def _keep_a_layer(self) -> None:
        """Make two layers one, a pair a turn, so that no chain grows for ever; or seal one."""
        try:
            sentence = await self._layers.turn()
        except SeraiError as error:
            log.warning("a layer could not be looked after: %s", error.message)
        else:
            if sentence:
                log.info("%s", sentence)

    async def _cool(self) -> None:
        """Compress what was not used for long, one memory a turn."""
        try:
            sentence = await cool_one(self._house)
        except SeraiError as error:
            log.warning("cold memory was not compressed: %s", error.message)
        else:
            if sentence:
                log.info("%s", sentence)

    def trim_logs(self) -> list[str]:
        """Cut each running guest's log that has grown over the limit to its newer half."""
        said = []
        for driver in self._drivers:
            if driver.instance is None:
                continue
            for path in self._logs(driver):
                try:
                    if trim_log(path, self._house.settings.log_limit):
                        said.append(f"cut {path.name} of {driver.name} to its newer half")
                except OSError as error:
                    said.append(f"{path.name} of {driver.name} was not cut: {error.strerror}")
        return said

    def _logs(self, driver: GuestDriver) -> tuple[Path, ...]:
        folder = self._house.places.guests / driver.record.id
        return folder / "serial.log", folder / "qemu.log"

    async def _settle(self) -> None:
        with suppress(SeraiError):  # the disk is still full
            await self._house.journal.settle()

    async def _prune(self) -> None:
        settings = self._house.settings
        try:
            await self._house.journal.commit(
                Prune(events_kept=settings.events_kept, jobs_kept=settings.jobs_kept)
            )
        except SeraiError as error:
            log.warning("old events and jobs were not pruned: %s", error.message)
