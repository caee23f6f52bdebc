"""Snapshots and forks in Python, blocking and async alike, against the real API."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_stage import Stage, staged

import serai
import serai.aio
from serai.aio import AsyncSnapshot
from serai.client.calls import Call
from serai.client.guests import Snapshot
from serai.errors import Code, Conflict, HostFailure, Invalid, NotFound, SeraiError
from serai.model.actions import ForkGuest, LaunchGuest, PublishImage
from serai.model.guest import GuestSpec
from serai.model.job import Job


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        yield made


def test_the_example_of_the_issue(stage: Stage) -> None:
    with serai.connect() as inn, inn.launch("tiny") as guest:
        guest.run("touch /ready")
        seen = []
        for fork in guest.fork(10):
            assert fork.run("test -e /ready").ok
            seen.append(fork.name)
        assert len(set(seen)) == 10
        assert len(inn.guests()) == 11
    assert stage.engine.all_guests == {}


async def test_the_example_of_the_issue_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn, await inn.launch("tiny") as guest:
        for fork in await guest.fork(10):
            assert (await fork.run("test -e /ready")).ok
        assert len(await inn.guests()) == 11
    assert stage.engine.all_guests == {}


def test_without_a_count_there_is_one_and_its_options_arrive(stage: Stage) -> None:
    guest = serai.connect().launch("tiny", name="web1")
    fork = guest.fork(name="web2", keep_identity=True, ttl="2h", wait=False)
    assert (fork.name, fork.info.expires_at > 0) == ("web2", True)
    assert [each.name for each in guest.fork(1, name="web3")] == ["web3"]
    assert stage.engine.actions[1] == ForkGuest(
        guest=guest.id, name="web2", keep_identity=True, ttl=7200, wait=False
    )
    group = guest.fork(1, name="all", keep_identity=True, together=["db"])
    assert [each.name for each in group] == ["all-web1", "all-db"]
    with pytest.raises(TypeError):
        guest.fork(nmae="web4")  # type: ignore[call-overload]
    with pytest.raises(Invalid):
        guest.fork(ttl="soon")


async def test_without_a_count_there_is_one_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1")
        assert (await guest.fork(name="web2", ttl=1.5)).name == "web2"
        assert [each.name for each in await guest.fork(2, name="x")] == ["x-1", "x-2"]
    assert stage.engine.actions[1] == ForkGuest(guest=guest.id, name="web2", ttl=1.5)


def test_forks_outside_of_a_block_stay(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny", name="web1")
    guest.fork(2, name="x")
    with guest:
        guest.fork(name="y")
    assert [each.name for each in inn.guests()] == ["x-1", "x-2"]


def test_forks_of_forks_and_of_snapshots_go_too(stage: Stage) -> None:
    inn = serai.connect()
    with inn.launch("tiny", name="web1") as guest:
        child = guest.fork(name="child")
        child.fork(name="grandchild").snapshot().fork(name="deep")
        guest.snapshot("ready").restore(force=True).fork(2, name="s")
        guest.snapshots()[0].fork(name="listed")
        child.delete(force=True)  # gone already: just what is wanted
        assert len(stage.engine.all_guests) == 6
    assert stage.engine.all_guests == {}


async def test_forks_of_forks_and_of_snapshots_go_too_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn, await inn.launch("tiny", name="web1") as guest:
        child = await guest.fork(name="child")
        await (await (await child.fork(name="grandchild")).snapshot()).fork(name="deep")
        back = await (await guest.snapshot("ready")).restore(force=True)
        await back.fork(2, name="s")
        await (await guest.snapshots())[0].fork(name="listed")
        assert len(stage.engine.all_guests) == 7
    assert stage.engine.all_guests == {}


def test_a_fork_in_a_block_of_its_own_takes_its_own_with_it(stage: Stage) -> None:
    with serai.connect().launch("tiny", name="web1") as guest:
        with guest.fork(name="a") as fork:
            fork.fork(3, name="b")
            guest.fork(name="c")
        assert set(stage.engine.all_guests) == {"web1", "c"}
    assert stage.engine.all_guests == {}


def test_many_forks_are_deleted_a_few_at_a_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.client.asking.AT_ONCE", 4)
    with serai.connect().launch("tiny") as guest:
        guest.fork(10)
    assert stage.engine.all_guests == {}


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(stage: Stage) -> None:
    with pytest.raises(Conflict, match="busy now"), serai.connect().launch("tiny") as guest:
        guest.fork(3)
        stage.engine.fail_next("submit", Conflict(Code.GUEST_STATE, "busy now"))
    assert len(stage.engine.all_guests) == 1


def test_cleaning_up_does_not_hide_what_went_wrong(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError) as raised, serai.connect().launch("tiny"):
        stage.engine.fail_next("submit", Conflict(Code.GUEST_STATE, "busy now"))
        _ = 1 / 0
    assert raised.value.__notes__ == ["and something is left: busy now"]


async def test_cleaning_up_does_not_hide_what_went_wrong_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        with pytest.raises(ZeroDivisionError) as raised:
            async with await inn.launch("tiny") as guest:
                await guest.fork(2)
                stage.engine.fail_next("submit", Conflict(Code.GUEST_STATE, "busy now"))
                _ = 1 / 0
    assert raised.value.__notes__ == ["and something is left: busy now"]
    assert len(stage.engine.all_guests) == 1


def test_a_daemon_that_is_gone_at_the_end_of_a_block_is_told(stage: Stage) -> None:
    guest = serai.connect().launch("tiny")
    with pytest.raises(NotFound) as raised, guest:
        gone = NotFound(Code.DAEMON_UNREACHABLE, "no daemon")
        stage.engine.fail_next("submit", gone)
    assert raised.value.code is Code.DAEMON_UNREACHABLE


# -- snapshots -------------------------------------------------------------------------------------


def test_life_of_a_snapshot(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny", name="web1")
    snapshot = guest.snapshot("ready", memory=False, quiesce=True, note="täg")
    assert repr(snapshot) == "<Snapshot web1@ready ready>"
    assert (snapshot.info.with_memory, snapshot.info.quiesced) == (False, True)
    assert snapshot.rename("steady").annotate("new").info.note == "new"
    assert guest.snapshot().info.parent == snapshot.id
    assert [each.name for each in guest.snapshots()] == ["steady", "snap-2"]
    with pytest.raises(Conflict) as raised:
        guest.restore(snapshot)
    assert raised.value.code is Code.UNSAVED_WORK
    assert guest.restore(snapshot, force=True).restore("steady", force=True).name == "web1"
    assert snapshot.restore(force=True).id == guest.id
    assert (snapshot.refresh().info.is_current, snapshot.name) == (True, "steady")
    assert inn.snapshot("web1@steady").id == snapshot.id
    snapshot.delete()
    with pytest.raises(NotFound):
        snapshot.refresh()
    for wrong in ("web1", "web1@", "@steady", "a@b@c"):
        with pytest.raises(Invalid):
            inn.snapshot(wrong)


async def test_life_of_a_snapshot_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1")
        snapshot = await guest.snapshot("ready", memory=False, quiesce=True, note="täg")
        assert repr(snapshot) == "<AsyncSnapshot web1@ready ready>"
        assert (snapshot.info.with_memory, snapshot.info.quiesced) == (False, True)
        assert (await (await snapshot.rename("steady")).annotate("new")).info.note == "new"
        await guest.snapshot()
        assert [each.name for each in await guest.snapshots()] == ["steady", "snap-2"]
        with pytest.raises(Conflict):
            await guest.restore(snapshot)
        await (await guest.restore(snapshot, force=True)).restore("steady", force=True)
        assert (await snapshot.restore(force=True)).id == guest.id
        assert ((await snapshot.refresh()).info.is_current, snapshot.name) == (True, "steady")
        assert (await inn.snapshot("web1@steady")).id == snapshot.id
        await snapshot.delete()
        with pytest.raises(NotFound):
            await snapshot.refresh()


def test_more_snapshots_than_a_page_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = serai.connect().launch("tiny")
    for _ in range(7):
        guest.snapshot()
    monkeypatch.setattr("serai.client.calls.PAGE", 3)
    assert [each.name for each in guest.snapshots()] == [f"snap-{n}" for n in range(1, 8)]


async def test_more_snapshots_than_a_page_holds_async(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny")
        for _ in range(7):
            await guest.snapshot()
        monkeypatch.setattr("serai.client.calls.PAGE", 3)
        assert len(await guest.snapshots()) == 7


def test_publishing_and_launching_with_a_time_to_live(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny", name="web1", ttl="2h")
    assert guest.publish("mine", memory=False).name == "mine"
    snapshot = guest.snapshot("ready")
    assert snapshot.publish("mine", replace=True).name == "mine"
    launched, cold, _, warm = stage.engine.actions
    assert launched == LaunchGuest(spec=GuestSpec(image="tiny", name="web1"), ttl=7200)
    assert cold == PublishImage(guest=guest.id, image="mine", memory=False)
    assert warm == PublishImage(guest=guest.id, image="mine", snapshot=snapshot.id, replace=True)


async def test_publishing_and_launching_with_a_time_to_live_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1", ttl=5)
        assert (await guest.publish("mine")).name == "mine"
        assert (await (await guest.snapshot()).publish("other", memory=False)).name == "other"
    assert isinstance(stage.engine.actions[0], LaunchGuest)
    assert stage.engine.actions[0].ttl == 5


def test_the_twins_are_alike() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Snapshot) == public(AsyncSnapshot)


def test_a_warm_image_that_is_called_as_a_guest(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny", name="web1")
    guest.publish("web1")
    with inn.launch("web1", name="web2") as fork:
        assert fork.name == "web2"
    _interrupt_at_first_wait(inn, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        inn.launch("web1", name="web3")
    assert set(stage.engine.all_guests) == {"web1"}


async def test_a_warm_image_that_is_called_as_a_guest_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        await (await inn.launch("tiny", name="web1")).publish("web1")
        async with await inn.launch("web1", name="web2") as fork:
            assert fork.name == "web2"
    assert set(stage.engine.all_guests) == {"web1"}


# -- interrupted -----------------------------------------------------------------------------------


class TimeIsUp(Exception):
    """As a test's own time limit raises it, out of a signal handler."""


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TimeIsUp])
def test_an_interrupted_fork_is_cancelled(stage: Stage, raised: type[BaseException]) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny")
    stage.engine.hold = True
    _interrupt_at_first_wait(inn, raised)
    with pytest.raises(raised):
        guest.fork(3)
    [job] = [each for each in stage.engine.all_jobs.values() if each.kind == "fork"]
    assert job.state == "cancelled"


@pytest.mark.parametrize("make", ["fork", "snapshot"])
def test_what_was_made_before_it_could_be_cancelled_is_deleted(stage: Stage, make: str) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny")
    _interrupt_at_first_wait(inn, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        getattr(guest, make)()
    assert [each.kind for each in stage.engine.all_jobs.values()][1:] == [
        {"fork": "fork", "snapshot": "snapshot-create"}[make],
        {"fork": "delete", "snapshot": "snapshot-delete"}[make],
    ]
    assert (len(stage.engine.all_guests), stage.engine.shelf.all) == (1, {})


def test_an_interrupted_launch_leaves_nothing(stage: Stage) -> None:
    inn = serai.connect()
    _interrupt_at_first_wait(inn, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        inn.launch("tiny", name="web1")
    assert stage.engine.all_guests == {}


def test_an_interrupt_that_cannot_be_cleaned_up_is_still_the_interrupt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inn = serai.connect()
    guest = inn.launch("tiny")

    def interrupt(*_: object) -> Job:
        stage.engine.fail_next("submit", HostFailure(Code.DATABASE_FAILED, "gone"))
        raise KeyboardInterrupt

    monkeypatch.setattr(inn.connection, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        guest.fork()


def _interrupt_at_first_wait(inn: serai.Inn, raised: type[BaseException]) -> None:
    """Let ctrl-C come when the request is sent and its answer is waited for."""
    finish = inn.connection.finish

    def interrupt(call: Call[Job], *_: object) -> Job:
        inn.connection.finish = finish  # type: ignore[method-assign]
        inn.connection.ask(call)
        raise raised

    inn.connection.finish = interrupt  # type: ignore[assignment, method-assign]


async def test_a_cancelled_fork_is_cancelled_there_too(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny")
        stage.engine.hold = True
        forking = asyncio.create_task(guest.fork(3))
        while len(stage.engine.all_jobs) < 2:
            await asyncio.sleep(0.01)
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
    assert [each.state for each in stage.engine.all_jobs.values()] == ["done", "cancelled"]


async def test_what_was_made_before_it_could_be_cancelled_is_deleted_async(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny")
        ask, asked = inn.connection.ask, asyncio.Event()

        async def ask_and_be_cancelled(call: object) -> object:
            answer = await ask(call)  # type: ignore[arg-type]
            monkeypatch.setattr(inn.connection, "ask", ask)
            asked.set()
            await asyncio.sleep(30)
            return answer

        monkeypatch.setattr(inn.connection, "ask", ask_and_be_cancelled)
        forking = asyncio.create_task(guest.fork(3))
        await asked.wait()
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
    assert len(stage.engine.all_guests) == 1


def test_a_refused_fork_is_no_interrupt(stage: Stage) -> None:
    guest = serai.connect().launch("tiny", name="web1")
    with pytest.raises(SeraiError):
        guest.fork(name="web1")
    assert len(stage.engine.all_jobs) == 1
