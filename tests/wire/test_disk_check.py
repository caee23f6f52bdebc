"""`serai check`: each kind of defect is found, only what nobody may want is deleted."""

import os
from pathlib import Path

import pytest
from memory_samples import SIZE, STATE, a_page_set, a_ram, page
from store_samples import a_guest, a_snapshot
from test_disk_layers import write_layer

from serai.disk.check import (
    Defect,
    Fault,
    Folders,
    Kind,
    Known,
    broken_snapshots,
    find_damage,
    find_dangling,
    find_strays,
    mend,
)
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.qcow2 import create_head
from serai.model.guest import Accel, Firmware, Volume
from serai.model.machine import Machine
from serai.model.snapshot import FrozenMemory, FrozenVolume, Layer
from serai.units import MIB

MACHINE = Machine(
    id="x", name="x", machine_type="q", accel=Accel.TCG, cpus=1, max_cpus=1, memory=SIZE,
    firmware=Firmware.BIOS, genid="g", drives=(), nics=(),
)  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    (tmp_path / "guests").mkdir()
    return Folders(
        guests=tmp_path / "guests",
        layers=LayerFolder(tmp_path / "layers"),
        memory=MemoryFolder(tmp_path / "memory"),
    )


async def sound(folders: Folders) -> Known:
    """Make a guest over two layers, and a snapshot with memory of each; return what is known."""
    layers = {}
    for name, parent in (("one", ""), ("two", "one")):
        write_layer(folders.layers.path(name), {0: 1})
        digest = await folders.layers.hash(name)
        layers[name] = Layer(
            id=name, parent=parent, virtual_size=8 * MIB, created_at=0.0, digest=digest
        )
    guest = a_guest(
        1, volumes=(Volume(name="root", head="root-2.qcow2", layer="two", size=8 * MIB),)
    )
    (folders.guests / guest.id).mkdir()
    create_head(folders.guests / guest.id / "root-2.qcow2", virtual_size=8 * MIB)
    await folders.memory.store_base("base", a_ram({0: page("a")}), SIZE, STATE)
    await folders.memory.store("memory", "base", a_page_set({5: page("x")}), STATE)
    snapshots = []
    for number, (layer, memory) in enumerate((("one", "base"), ("two", "memory"))):
        frozen = FrozenMemory(
            id=memory, base="base", machine=MACHINE, qemu_version="7.2", accel=Accel.TCG, size=SIZE
        )
        volumes = (FrozenVolume(name="root", layer=layer, size=8 * MIB),)
        snapshots.append(a_snapshot(number, volumes=volumes, memory=frozen))
    return Known(guests=[guest], snapshots=snapshots, layers=layers)


async def find(known: Known, folders: Folders, **options: object) -> list[Defect]:
    idle = {guest.id for guest in known.guests}
    found = find_dangling(known) + find_strays(known, folders, idle=idle)
    return found + await find_damage(known, folders)


def short(defects: list[Defect]) -> list[tuple[Fault, Kind, str, bool]]:
    return [(each.fault, each.kind, each.id, each.mendable) for each in defects]


async def test_nothing_is_found_where_nothing_is_wrong(folders: Folders):
    known = await sound(folders)
    assert await find(known, folders) == []
    told: list[tuple[int, int]] = []
    await find_damage(known, folders, report=lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    ("path", "kind", "name", "broken"),
    [
        ("layers/one.qcow2", Kind.LAYER, "one", {0, 1}),
        ("layers/two.qcow2", Kind.LAYER, "two", {1}),
        ("memory/base/ram", Kind.MEMORY, "base", {0, 1}),
        ("memory/memory/memory.pages", Kind.MEMORY, "memory", {1}),
    ],
)
async def test_damage_is_found_and_breaks_what_stands_on_it(
    folders: Folders, gone: bool, path: str, kind: Kind, name: str, broken: set[int]
):
    known = await sound(folders)
    file = folders.guests.parent / path
    file.chmod(0o600)
    if gone:
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[300] ^= 4
        file.write_bytes(content)
    (defect,) = await find(known, folders)
    assert (defect.kind, defect.id, defect.mendable) == (kind, name, False)
    assert (defect.fault is Fault.MISSING) is (gone and kind is Kind.LAYER)
    assert name in defect.message
    assert broken_snapshots(known, [defect]) == {known.snapshots[n].id: defect for n in broken}
    assert mend([defect], folders) == []


async def test_a_folder_of_memory_that_is_gone(folders: Folders):
    known = await sound(folders)
    (folders.memory.path / "memory").rename(folders.guests.parent / "away")
    assert short(await find(known, folders)) == [(Fault.MISSING, Kind.MEMORY, "memory", False)]


async def test_records_that_name_what_is_not_known(folders: Folders):
    known = await sound(folders)
    one, two = known.layers.values()
    less = Known(guests=known.guests, snapshots=known.snapshots, layers={"two": two})
    found = find_dangling(less)
    assert short(found) == [
        (Fault.DANGLING, Kind.SNAPSHOT, known.snapshots[0].id, False),
        (Fault.DANGLING, Kind.LAYER, "two", False),
    ]
    assert set(broken_snapshots(less, found)) == {each.id for each in known.snapshots}
    none = Known(guests=known.guests, snapshots=[], layers={})
    assert short(find_dangling(none)) == [(Fault.DANGLING, Kind.GUEST, known.guests[0].id, False)]
    round_ = Known(
        guests=[],
        snapshots=[],
        layers={
            "one": Layer(id="one", parent="two", virtual_size=512, created_at=0.0), "two": two,
            "three": Layer(id="three", parent="one", virtual_size=512, created_at=0.0),
        },
    )  # fmt: skip
    assert [each.id for each in find_dangling(round_)] == ["one"]
    assert one.parent == ""


async def test_what_no_record_names_is_deleted(folders: Folders):
    known = await sound(folders)
    write_layer(folders.layers.path("stranger"), {0: 1})
    await folders.memory.store_base("other", a_ram({}), SIZE, STATE)
    await folders.memory.store("another", "other", None, STATE)
    found = await find(known, folders)
    assert sorted(short(found)) == [
        (Fault.ORPHAN, Kind.LAYER, "stranger", True),
        (Fault.ORPHAN, Kind.MEMORY, "another", True),
        (Fault.ORPHAN, Kind.MEMORY, "other", True),
    ]
    assert len(mend(found, folders)) == 3
    assert await find(known, folders) == []


async def test_nothing_is_deleted_while_records_can_not_be_read(folders: Folders):
    known = await sound(folders)
    less = Known(guests=known.guests, snapshots=[], layers={}, complete=False)
    found = find_strays(less, folders, idle=())
    assert {each.id for each in found} == {"one", "two", "base", "memory"}
    assert mend(found, folders) == []
    assert await find(known, folders) == []


async def test_stray_disks_go_only_when_they_hold_nothing(folders: Folders):
    known = await sound(folders)
    guest = known.guests[0]
    folder = folders.guests / guest.id
    create_head(folder / "root-3.qcow2", virtual_size=8 * MIB)
    os.link(folders.layers.path("two"), folder / "root.qcow2")
    write_layer(folder / "root-4.qcow2", {0: 1})
    (folder / "root-5.qcow2").write_bytes(b"what is this")
    found = find_strays(known, folders, idle={guest.id})
    assert {each.name: each.mendable for each in found} == {
        "root-3.qcow2": True, "root.qcow2": True, "root-4.qcow2": False, "root-5.qcow2": False,
    }  # fmt: skip
    assert find_strays(known, folders, idle=()) == []
    assert len(mend(found, folders)) == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        "root-2.qcow2", "root-4.qcow2", "root-5.qcow2",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [None, b"", b"QFI\xfb" + bytes(600)])
async def test_a_guest_whose_disk_is_not_sound(folders: Folders, content: bytes | None):
    known = await sound(folders)
    guest = known.guests[0]
    head = folders.guests / guest.id / "root-2.qcow2"
    head.unlink()
    if content is not None:
        head.write_bytes(content)
    fault = Fault.MISSING if content is None else Fault.DAMAGED
    assert short(await find(known, folders)) == [(fault, Kind.GUEST, guest.id, False)]
