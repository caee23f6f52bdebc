"""`serai check`: each kind of finding is found, only what nobody may want is deleted."""

import os
from pathlib import Path

import msgspec
import pytest
from memory_samples import SIZE, STATE, a_page_set, a_ram, page
from store_samples import a_guest, a_snapshot
from test_disk_layers import write_layer

from serai.disk.check import (
    Folders,
    Known,
    broken_snapshots,
    delete,
    find_dangling,
    find_orphans,
    find_stray_heads,
    look_at_firmware,
    look_at_heads,
    look_at_image,
    look_at_layer,
    look_at_memory,
    memories_of,
    name_users,
)
from serai.disk.firmware import FirmwareFolder
from serai.disk.images import ImageFolder
from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.pools import PoolFolders
from serai.disk.qcow2 import create_head
from serai.errors import Code, HostFailure
from serai.model.check import Fault, Finding, FindingKind
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
    layers = LayerFolder(tmp_path / "layers")
    return Folders(
        guests=tmp_path / "guests",
        layers=layers,
        memory=MemoryFolder(tmp_path / "memory"),
        firmware=FirmwareFolder(tmp_path / "firmware"),
        images=ImageFolder(tmp_path / "images"),
        pools=PoolFolders(tmp_path / "volumes", layers),
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


async def find(known: Known, folders: Folders) -> list[Finding]:
    """Find what is wrong with anything but the image, with no guest that has a process."""
    found = find_dangling(known) + find_strays(known, folders)
    found += [f for each in known.layers.values() if (f := await look_at_layer(each, folders))]
    memories = {each for snapshot in known.snapshots for each in memories_of(snapshot)}
    found += [f for each in sorted(memories) if (f := await look_at_memory(each, folders))]
    return found + [f for guest in known.guests for f in look_at_heads(guest, folders)]


def find_strays(known: Known, folders: Folders) -> list[Finding]:
    strays = [f for guest in known.guests for f in find_stray_heads(guest, folders)]
    return find_orphans(known, folders) + strays


def mend(found: list[Finding], folders: Folders) -> int:
    """Delete what may go, what is over a base first; return how much that was."""
    bases = folders.memory.bases()
    mendable = [each for each in found if each.mendable]
    for each in sorted(mendable, key=lambda each: each.id in bases):
        delete(each, folders)
    return len(mendable)


def short(findings: list[Finding]) -> list[tuple[Fault, FindingKind, str, bool]]:
    return [(each.fault, each.kind, each.id, each.mendable) for each in findings]


async def test_nothing_is_found_where_nothing_is_wrong(folders: Folders):
    known = await sound(folders)
    assert await find(known, folders) == []


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    ("path", "kind", "name", "broken"),
    [
        ("layers/one.qcow2", FindingKind.LAYER, "one", {0, 1}),
        ("layers/two.qcow2", FindingKind.LAYER, "two", {1}),
        ("memory/base/ram", FindingKind.MEMORY, "base", {0, 1}),
        ("memory/memory/memory.pages", FindingKind.MEMORY, "memory", {1}),
    ],
)
async def test_damage_is_found_and_breaks_what_stands_on_it(
    folders: Folders, gone: bool, path: str, kind: FindingKind, name: str, broken: set[int]
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
    (finding,) = await find(known, folders)
    assert (finding.kind, finding.id, finding.mendable) == (kind, name, False)
    assert (finding.fault is Fault.MISSING) is (gone and kind is FindingKind.LAYER)
    assert name in finding.message
    assert broken_snapshots(known, [finding]) == {known.snapshots[n].id: finding for n in broken}
    assert mend([finding], folders) == 0
    [named] = name_users(known, [finding])
    assert named.snapshots == tuple(f"g1@s{n}" for n in sorted(broken))
    assert named.guests == (("g1",) if kind is FindingKind.LAYER else ())


async def test_a_folder_of_memory_that_is_gone(folders: Folders):
    known = await sound(folders)
    (folders.memory.path / "memory").rename(folders.guests.parent / "away")
    assert short(await find(known, folders)) == [
        (Fault.MISSING, FindingKind.MEMORY, "memory", False)
    ]


async def test_records_that_name_what_is_not_known(folders: Folders):
    known = await sound(folders)
    one, two = known.layers.values()
    less = Known(guests=known.guests, snapshots=known.snapshots, layers={"two": two})
    found = find_dangling(less)
    assert short(found) == [
        (Fault.DANGLING, FindingKind.SNAPSHOT, known.snapshots[0].id, False),
        (Fault.DANGLING, FindingKind.LAYER, "two", False),
    ]
    assert set(broken_snapshots(less, found)) == {each.id for each in known.snapshots}
    none = Known(guests=known.guests, snapshots=[], layers={})
    assert short(find_dangling(none)) == [
        (Fault.DANGLING, FindingKind.GUEST, known.guests[0].id, False)
    ]
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
        (Fault.ORPHAN, FindingKind.LAYER, "stranger", True),
        (Fault.ORPHAN, FindingKind.MEMORY, "another", True),
        (Fault.ORPHAN, FindingKind.MEMORY, "other", True),
    ]
    assert mend(found, folders) == 3
    assert await find(known, folders) == []


async def test_nothing_is_deleted_while_records_can_not_be_read(folders: Folders):
    known = await sound(folders)
    less = Known(guests=known.guests, snapshots=[], layers={}, is_whole=False)
    found = find_strays(less, folders)
    assert {each.id for each in found} == {"one", "two", "base", "memory"}
    assert mend(found, folders) == 0
    assert await find(known, folders) == []


async def test_stray_disks_go_only_when_they_hold_nothing(folders: Folders):
    known = await sound(folders)
    guest = known.guests[0]
    folder = folders.guests / guest.id
    create_head(folder / "root-3.qcow2", virtual_size=8 * MIB)
    os.link(folders.layers.path("two"), folder / "root.qcow2")
    write_layer(folder / "root-4.qcow2", {0: 1})
    (folder / "root-5.qcow2").write_bytes(b"what is this")
    found = find_strays(known, folders)
    assert {each.name: each.mendable for each in found} == {
        "root-3.qcow2": True, "root.qcow2": True, "root-4.qcow2": False, "root-5.qcow2": False,
    }  # fmt: skip
    assert mend(found, folders) == 2
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
    assert short(await find(known, folders)) == [(fault, FindingKind.GUEST, guest.id, False)]


async def test_a_layer_whose_record_is_lost_is_not_deleted_while_another_stands_on_it(
    folders: Folders,
):
    known = await sound(folders)
    lost = Known(
        guests=known.guests, snapshots=known.snapshots, layers={"two": known.layers["two"]}
    )
    [orphan] = find_orphans(lost, folders)
    assert (orphan.id, orphan.mendable) == ("one", False)
    assert "others stand on it" in orphan.message


async def test_what_somebody_is_at_work_on_is_not_judged(folders: Folders):
    known = await sound(folders)
    write_layer(folders.layers.path("coming"), {0: 1})
    await folders.memory.store_base("arriving", a_ram({}), SIZE, STATE)
    later = Known(
        guests=known.guests,
        snapshots=known.snapshots,
        layers={"two": known.layers["two"]},
        under_way={"one", "coming", "arriving"},
    )
    assert find_dangling(later) == []
    assert find_orphans(later, folders) == []


async def test_damage_is_found_in_what_was_read_before_and_seems_unchanged(folders: Folders):
    """Bits rot without a change of any time: a check reads all of it again."""
    known = await sound(folders)
    layer, path = known.layers["one"], folders.layers.path("one")
    await folders.layers.verify(layer)
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content)
    facts = path.stat()
    stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    folders.layers._found[layer.id] = (stamp, layer.digest)
    await folders.layers.verify(layer)
    found = await look_at_layer(layer, folders)
    assert found is not None and found.fault is Fault.DAMAGED


async def test_damaged_uefi_variables_are_found(folders: Folders):
    known = await sound(folders)
    name = folders.firmware.put(b"variables")
    snapshot = msgspec.structs.replace(known.snapshots[0], firmware=name)
    assert look_at_firmware(snapshot, folders) == []
    path = folders.firmware.path(name)
    path.write_bytes(b"variablez")
    (found,) = look_at_firmware(snapshot, folders)
    assert (found.fault, found.kind, found.id) == (Fault.DAMAGED, FindingKind.SNAPSHOT, snapshot.id)
    path.unlink()
    (found,) = look_at_firmware(snapshot, folders)
    assert found.fault is Fault.MISSING


async def test_an_image_that_is_gone_is_found(folders: Folders):
    digest = "sha256:" + "0" * 64
    found = await look_at_image(digest, folders)
    assert found is not None
    assert (found.fault, found.kind, found.id) == (Fault.MISSING, FindingKind.IMAGE, digest)


async def test_a_host_that_is_short_of_memory_is_no_damage(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
):
    async def verify(_: str) -> None:
        raise HostFailure(Code.MEMORY_SHORT, "there is not enough memory")

    monkeypatch.setattr(folders.memory, "verify", verify)
    with pytest.raises(HostFailure):
        await look_at_memory("base", folders)
