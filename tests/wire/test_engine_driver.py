"""A guest's task on a real journal: what is asked while the guest does something of its own."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from store_samples import a_guest, an_id, an_image

from serai.engine.ballast import Ballast
from serai.engine.bus import Bus
from serai.engine.driver import GuestDriver, Message, RestartDue, Script
from serai.engine.house import House
from serai.engine.jobs import Jobs
from serai.engine.journal import Journal
from serai.engine.running import follow_policy
from serai.host.supervise import Supervisor
from serai.model.actions import StopGuest
from serai.model.guest import ExitReason, GuestSpec, GuestState, RestartPolicy
from serai.model.job import JobState
from serai.model.lifecycle import Verb
from serai.store.changes import PutGuest
from serai.store.database import open_store

ALWAYS = a_guest(
    1, spec=GuestSpec(image="tiny", name="web1", restart=RestartPolicy.ALWAYS), wanted_on=True
)


class Stage:
    """One crashed guest, whose own clearing up goes on until ``cleared``."""

    def __init__(self, house: House) -> None:
        self.cleared = asyncio.Event()
        self.due: asyncio.Queue[RestartDue] = asyncio.Queue()
        phases = dict.fromkeys(Verb, ("stop",))
        script = Script(procedures={}, phases=phases, start_by_policy=_never, react=self.react)
        self.driver = GuestDriver(
            ALWAYS, an_image("tiny"), house, script, GuestState.CRASHED, lambda _: None
        )
        self.driver.follow_up(self.clear_up())

    async def clear_up(self) -> None:
        await self.cleared.wait()
        await follow_policy(self.driver, ExitReason.CRASHED, None)

    async def react(self, driver: GuestDriver, message: Message) -> None:
        if isinstance(message, RestartDue):
            self.due.put_nowait(message)


async def _never(*_: object) -> None:
    raise AssertionError("it was started")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    numbers = count()
    async with open_store(tmp_path / "serai.db") as store, Supervisor() as supervisor:
        journal = Journal(store, Bus(), lambda: 1000.0, Ballast(tmp_path / "ballast", 0))
        await journal.commit(PutGuest(ALWAYS))
        house = SimpleNamespace(
            journal=journal, jobs=Jobs(journal, lambda: an_id(next(numbers))),
            supervisor=supervisor, closing=asyncio.Event(),
        )  # fmt: skip
        made = Stage(cast(House, house))
        supervisor.start(made.driver.run(), name="web1")
        yield made


@pytest.mark.parametrize("verb", [Verb.STOP, Verb.KILL])
async def test_a_stop_while_a_crash_is_cleared_up_calls_off_the_restart(
    stage: Stage, verb: Verb
) -> None:
    stop = asyncio.create_task(stage.driver.ask(verb, StopGuest(guest="web1")))
    await asyncio.sleep(0)  # it is asked now
    asyncio.get_running_loop().call_later(0.1, stage.cleared.set)
    job = await stop
    assert job.state is JobState.DONE
    assert not stage.driver.record.wanted_on
    due = await asyncio.wait_for(stage.due.get(), 30)
    assert due.turn != stage.driver.turn
