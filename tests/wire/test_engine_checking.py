"""A check beside other work, on real files and a real store: nothing false is found or deleted."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from memory_samples import SIZE, STATE, a_page_set, a_ram, page
from store_samples import a_guest, a_snapshot
from test_disk_layers import write_layer

from serai.disk.firmware import FirmwareFolder
from serai.disk.images import ImageFolder
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.seeds import SeedFolder
from serai.engine.ballast import Ballast
from serai.engine.bus import Bus
from serai.engine.checking import PHASES, SUBJECT, Checker
from serai.engine.collecting import collect
from serai.engine.house import House
from serai.engine.jobs import Jobs, LiveJob
from serai.engine.journal import Journal
from serai.engine.layer_keeper import LayerKeeper
from serai.engine.shelf import Shelf
from serai.errors import HostFailure
from serai.host.supervise import wait_until
from serai.model.actions import CheckStorage
from serai.model.check import CheckReport, Fault, FindingKind
from serai.model.guest import Accel, Firmware, GuestRecord
from serai.model.job import Job
from serai.model.machine import Machine
from serai.model.snapshot import FrozenMemory, FrozenVolume, Layer, SnapshotState
from serai.model.volume import DEFAULT_POOL, VolumeRecord
from serai.plan.layers import chain
from serai.settings import find_places
from serai.store.changes import DropSnapshot, PutLayer, PutSnapshot
from serai.store.database import open_store
from serai.units import MIB

MACHINE = Machine(
    id="x", name="x", machine_type="q", accel=Accel.TCG, cpus=1, max_cpus=1, memory=SIZE,
    firmware=Firmware.BIOS, genid="g", drives=(), nics=(),
)  # fmt: skip


def memory_over(memory: str, base: str) -> FrozenMemory:
    return FrozenMemory(
        id=memory, base=base, machine=MACHINE, qemu_version="7.2", accel=Accel.TCG, size=SIZE
    )


class Peer:
    """A house with a guest that has two snapshots: of ``one``, and of ``two`` with memory."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.shelf = house.shelf
        self.layers = LayerKeeper(house)
        self.guests: list[GuestRecord] = [a_guest(1)]
        self.shelf.guests = lambda: self.guests
        self.checker = Checker(house, self.layers, [], set)

    async def fill(self) -> None:
        """Write the files, and store what is of them."""
        layers = []
        for name, parent in (("one", ""), ("two", "one")):
            write_layer(self.house.layers.path(name), {0: 1})
            layers.append(Layer(id=name, parent=parent, virtual_size=8 * MIB, created_at=0.0))
        await self.house.memory.store_base("base", a_ram({0: page("a")}), SIZE, STATE)
        await self.house.memory.store("memory", "base", a_page_set({5: page("x")}), STATE)
        memory = memory_over("memory", "base")
        snapshots = [
            a_snapshot(number, state=SnapshotState.READY, memory=memory if layer == "two" else None,
                       volumes=(FrozenVolume(name="root", layer=layer, size=8 * MIB),))
            for number, layer in enumerate(("one", "two"))
        ]  # fmt: skip
        await self.house.journal.commit(*map(PutLayer, layers), *map(PutSnapshot, snapshots))
        self.shelf.fill(layers, snapshots)
        self.shelf.bases = self.house.memory.bases()

    async def begin(self, *, repair: bool = False) -> tuple[LiveJob, Coroutine[Any, Any, None]]:
        action = CheckStorage(repair=repair)
        job = await self.house.jobs.open(action, SUBJECT, PHASES)
        return job, self.checker.work(action)(job)

    async def check(self, *, repair: bool = False) -> CheckReport:
        job, work = await self.begin(repair=repair)
        await work
        return self.report(job.job)

    @staticmethod
    def report(job: Job) -> CheckReport:
        assert job.report is not None
        return job.report

    def states(self) -> list[SnapshotState]:
        return [each.state for each in self.shelf.snapshots.values()]


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    places = find_places({"SERAI_HOME": str(tmp_path)}, is_root=False)
    for folder in (places.guests, places.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    async with open_store(tmp_path / "serai.db") as store:
        journal = Journal(store, Bus(), lambda: 1000.0, Ballast(tmp_path / "ballast", 0))
        numbers = iter(range(10_000))
        layers = LayerFolder(tmp_path / "layers")
        house = SimpleNamespace(
            places=places,
            journal=journal,
            jobs=Jobs(journal, lambda: f"job-{next(numbers):05}"),
            layers=layers,
            pools=PoolFolders(tmp_path / "volumes", layers),
            seeds=SeedFolder(tmp_path / "seeds"),
            memory=MemoryFolder(tmp_path / "memory"),
            firmware=FirmwareFolder(tmp_path / "firmware"),
            images=ImageFolder(tmp_path / "images"),
            shelf=Shelf(),
        )
        made = Peer(cast(House, house))
        await made.fill()
        yield made


def flip(path: Path, where: int = -300) -> None:
    """Flip a bit in a file that says nothing about it."""
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, folder: object, each: str, do: Callable[[], None]
) -> list[str]:
    """Have something done when ``each`` is about to be read for the first time; list what is read."""
    real, calls = folder.verify, list[str]()  # type: ignore[attr-defined]

    async def verify(thing: Any, **options: Any) -> None:
        calls.append(str(getattr(thing, "id", thing)))
        if calls.count(each) == 1 and calls[-1] == each:
            do()
        await real(thing, **options)

    monkeypatch.setattr(folder, "verify", verify)
    return calls


async def test_the_first_check_seals_layers_and_the_next_finds_a_flipped_bit(peer: Peer) -> None:
    first = await peer.check()
    assert (first.is_sound, first.layers, first.memories, first.snapshots) == (True, 2, 2, 2)
    assert all(each.digest for each in peer.shelf.layers.values())
    assert {each.digest for each in await peer.house.journal.store.layers()} == {
        each.digest for each in peer.shelf.layers.values()
    }
    flip(peer.house.layers.path("two"))
    [finding] = (await peer.check()).findings
    assert (finding.fault, finding.kind, finding.id) == (Fault.DAMAGED, FindingKind.LAYER, "two")
    assert (finding.snapshots, finding.guests) == (("g1@s1",), ())
    assert peer.states() == [SnapshotState.READY, SnapshotState.BROKEN]
    stored = await peer.house.journal.store.snapshots()
    assert [each.state for each in stored] == peer.states()
    assert stored[1].problem is not None and "two" in stored[1].problem.message


async def test_what_is_brought_back_is_ready_again(peer: Peer) -> None:
    await peer.check()
    path = peer.house.memory.path / "base" / "ram"
    flip(path, 0)
    [finding] = (await peer.check()).findings
    assert (finding.kind, finding.id, finding.snapshots) == (FindingKind.MEMORY, "base", ("g1@s1",))
    flip(path, 0)
    assert (await peer.check()).is_sound
    assert peer.states() == [SnapshotState.READY, SnapshotState.READY]
    assert [each.problem for each in await peer.house.journal.store.snapshots()] == [None, None]


async def test_a_layer_that_is_a_head_still_gets_no_digest(peer: Peer, tmp_path: Path) -> None:
    os.link(peer.house.layers.path("two"), tmp_path / "root.qcow2")
    assert (await peer.check()).is_sound
    assert [bool(each.digest) for each in peer.shelf.layers.values()] == [True, False]
    (tmp_path / "root.qcow2").unlink()
    with peer.shelf.under_way.on("two"):
        assert not await peer.layers.seal("two")
    assert await peer.layers.turn() == "the layer two has a digest now"
    assert await peer.layers.turn() == ""


async def test_a_layer_with_broken_tables_gets_no_digest(peer: Peer) -> None:
    path = peer.house.layers.path("two")
    content = bytearray(path.read_bytes())
    content[3 << 17] = 0x7F  # an L1 entry that leads beyond the end
    path.chmod(0o600)
    path.write_bytes(content)
    [finding] = (await peer.check()).findings
    assert (finding.fault, finding.id) == (Fault.DAMAGED, "two")
    assert not peer.shelf.layers["two"].digest
    with pytest.raises(HostFailure):
        await peer.layers.turn()
    assert await peer.layers.turn() == ""  # it was told of


async def test_a_pair_that_can_not_be_merged_keeps_no_other_layer_waiting(peer: Peer) -> None:
    peer.shelf.drop(next(iter(peer.shelf.snapshots.values())))
    write_layer(peer.house.layers.path("three"), {0: 1})
    peer.shelf.layers["three"] = Layer(id="three", virtual_size=8 * MIB, created_at=0.0)
    peer.house.layers.path("one").write_bytes(b"what is this")
    with pytest.raises(HostFailure):
        await peer.layers.turn()
    assert await peer.layers.turn() == "the layer three has a digest now"


async def test_a_merge_keeps_the_digest_that_it_made(peer: Peer) -> None:
    peer.shelf.drop(next(iter(peer.shelf.snapshots.values())))
    assert await peer.layers.turn() == "the layers two and one are one now"
    [layer] = peer.shelf.layers.values()
    assert (layer.id, layer.digest) == ("two", await peer.house.layers.hash("two"))
    assert (await peer.check()).is_sound


async def test_a_merged_layer_stays_until_who_has_looked_it_up_has_opened_it(peer: Peer) -> None:
    peer.shelf.drop(next(iter(peer.shelf.snapshots.values())))
    with peer.shelf.openers.opening():
        looked_up = chain(peer.shelf.layers, "two")
        turn = asyncio.create_task(peer.layers.turn())
        await wait_until(
            "it is merged", lambda: "one" not in peer.shelf.layers, timeout=5, every=0.01
        )
        assert all(peer.house.layers.path(each.id).exists() for each in looked_up)
        with peer.shelf.openers.opening():  # who comes later is not waited for
            pass
        assert not turn.done()
    assert await turn == "the layers two and one are one now"
    assert peer.house.layers.stored() == {"two"}


async def test_nothing_is_merged_or_collected_while_records_can_not_be_read(peer: Peer) -> None:
    peer.shelf.is_whole = False
    for snapshot in list(peer.shelf.snapshots.values()):
        peer.shelf.drop(snapshot)
    assert await peer.layers.merge_one() == ""
    assert await collect(peer.house) == []
    assert peer.house.layers.stored() == {"one", "two"}


async def test_a_merge_of_what_is_deleted_meanwhile_brings_nothing_back(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for snapshot in list(peer.shelf.snapshots.values()):
        peer.shelf.drop(snapshot)
    real = peer.house.layers.merge

    async def merge(child: str, parent: str) -> str:
        await collect(peer.house)
        write_layer(peer.house.layers.path(child), {0: 1})
        write_layer(peer.house.layers.path(parent), {0: 1})
        return await real(child, parent)

    monkeypatch.setattr(peer.house.layers, "merge", merge)
    assert await peer.layers.merge_one() == ""
    assert (peer.shelf.layers, peer.house.layers.stored()) == ({}, set())


async def test_what_is_deleted_under_the_check_is_no_finding(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await peer.check()
    two = list(peer.shelf.snapshots.values())[1]

    def go() -> None:
        peer.shelf.drop(two)
        del peer.shelf.layers["two"]
        for each in ("memory", "base"):
            peer.house.memory.delete(each)
        peer.house.layers.delete("two")

    calls = meanwhile(monkeypatch, peer.house.layers, "two", go)
    report = await peer.check(repair=True)
    assert (report.findings, calls) == ((), ["one", "two"])
    assert len(peer.shelf.snapshots) == 1


async def test_what_is_being_worked_on_is_looked_at_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is exchanged under the check is read again when that is over."""
    await peer.check()
    path, aside = peer.house.layers.path("one"), peer.house.layers.path_of_all / "aside"
    path.rename(aside)
    work = peer.shelf.under_way.on("one")
    work.__enter__()

    over = peer.shelf.under_way.over

    async def end_and_over(each: str) -> None:
        aside.rename(path)
        work.__exit__(None, None, None)
        await over(each)

    monkeypatch.setattr(peer.shelf.under_way, "over", end_and_over)
    calls = meanwhile(monkeypatch, peer.house.layers, "", lambda: None)
    assert (await peer.check()).findings == ()
    assert calls == ["one", "one", "two"]


async def test_orphans_are_deleted_and_what_became_somebodys_meanwhile_is_not(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stranger", "coming"):
        write_layer(peer.house.layers.path(name), {0: 1})
    await peer.house.memory.store_base("other", a_ram({}), SIZE, STATE)
    for name in ("another", "third"):
        await peer.house.memory.store(name, "other", None, STATE)
    peer.shelf.bases = peer.house.memory.bases()
    assert (await peer.check()).orphans == 5

    def come() -> None:
        layer = Layer(id="coming", virtual_size=8 * MIB, created_at=0.0)
        peer.shelf.layers["coming"] = layer
        peer.shelf.put(a_snapshot(9, memory=memory_over("third", "other"), volumes=()))

    meanwhile(monkeypatch, peer.house.layers, "one", come)
    report = await peer.check(repair=True)
    assert (report.mended, report.orphans, report.unsound) == (2, 3, 0)
    assert peer.house.layers.stored() == {"one", "two", "coming"}
    assert peer.house.memory.memories() == {"memory", "third"}
    peer.shelf.drop(next(each for each in peer.shelf.snapshots.values() if each.name == "s9"))
    assert (await peer.check(repair=True)).mended == 2
    assert (peer.house.memory.memories(), set(peer.shelf.bases)) == ({"memory"}, {"base"})


async def test_disks_of_nobody_are_told_of_and_stay(peer: Peer) -> None:
    guests, heads = peer.house.places.guests, peer.house.pools.heads(DEFAULT_POOL)
    for folder in (peer.guests[0].id, "gone"):
        (guests / folder).mkdir()
    (guests / "gone" / "root.qcow2").write_bytes(b"x" * 5000)
    volume = VolumeRecord(
        id="v",
        name="data",
        pool=DEFAULT_POOL,
        created_at=0.0,
        size=MIB,
        head="v1.qcow2",
        serial="s",
    )
    peer.shelf.volumes["v"] = volume
    for name in ("v1.qcow2", ".v2.new"):
        write_layer(heads / name, {0: 1})
    (heads / os.fsdecode(b"old\xff.img")).write_bytes(b"x")
    report = await peer.check(repair=True)
    assert (report.is_sound, report.orphans, report.mended) == (True, 2, 0)
    assert {(each.kind, each.id) for each in report.findings} == {
        (FindingKind.GUEST, "gone"), (FindingKind.VOLUME, "old\ufffd.img"),
    }  # fmt: skip
    assert all("--repair leaves it" in each.message for each in report.findings)
    [told] = [each.message for each in report.findings if each.id == "gone"]
    assert int(told.partition("(")[2].partition(" ")[0]) >= 5000
    assert (guests / "gone" / "root.qcow2").exists() and len(list(heads.iterdir())) == 3
    peer.shelf.is_whole = False
    assert (await peer.check()).findings == ()


async def test_a_volume_on_its_way_is_nobodys_stray(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is there before its record, as long as the job that makes it."""
    await peer.check()
    path = peer.house.pools.heads(DEFAULT_POOL) / "v0123456789ab.qcow2"
    write_layer(path, {0: 1})
    making = await peer.house.jobs.open(CheckStorage(), "volume", ("create",))
    assert (await peer.check()).findings == ()
    job, work = await peer.begin()
    meanwhile(monkeypatch, peer.house.layers, "one", lambda: peer.house.jobs._drop(making.id))
    await work
    [finding] = peer.report(job.job).findings
    assert finding.id == path.name and "when it starts anew" in finding.message
    job, work = await peer.begin()
    meanwhile(monkeypatch, peer.house.layers, "one", path.unlink)
    await work
    assert peer.report(job.job).findings == ()


async def test_a_base_on_which_a_memory_is_stored_just_now_stays(peer: Peer) -> None:
    await peer.house.memory.store_base("other", a_ram({}), SIZE, STATE)
    peer.shelf.bases = peer.house.memory.bases()
    async with peer.shelf.storing:
        job, work = await peer.begin(repair=True)
        task = asyncio.ensure_future(work)
        while job.job.phase != "mend":
            await asyncio.sleep(0.001)
        await peer.house.memory.store("newer", "other", None, STATE)
        peer.shelf.put(a_snapshot(9, memory=memory_over("newer", "other"), volumes=()))
    await task
    assert (peer.report(job.job).mended, set(peer.shelf.bases)) == (0, {"base", "other"})


async def test_a_check_that_is_cancelled_changes_nothing(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(peer.house.memory.path / "base" / "ram", 0)
    _, work = await peer.begin(repair=True)
    task = asyncio.ensure_future(work)
    meanwhile(monkeypatch, peer.house.memory, "base", task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert peer.states() == [SnapshotState.READY, SnapshotState.READY]


async def test_progress_counts_what_is_read(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    job, work = await peer.begin()
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        job, "progress", lambda done, total, message="": told.append((message, done, total))
    )
    await work
    assert told == [
        ("layer one", 0, 4), ("layer two", 1, 4), ("memory base", 2, 4), ("memory memory", 3, 4),
        ("", 4, 4),
    ]  # fmt: skip


async def test_a_snapshot_that_goes_while_it_is_marked_does_not_come_back(peer: Peer) -> None:
    await peer.check()
    flip(peer.house.layers.path("two"))
    two = list(peer.shelf.snapshots.values())[1]
    store = peer.house.journal.store
    await peer.house.journal.commit(DropSnapshot(two.id))  # the shelf will be told a moment later
    await peer.check()
    assert two.id not in {each.id for each in await store.snapshots()}
