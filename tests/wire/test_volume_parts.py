"""Volumes and pools: in the store, in folders, through REST and command line, at a fake QEMU."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from api_peer import Inn, served
from cli_stage import Stage, staged
from fake_qemu import FakeQemu, fake_qemu
from fake_volumes import make_volume
from store_samples import a_guest, an_id
from test_disk_check import folders as folders  # a fixture
from test_disk_check import short, sound

import serai
from serai.client.words import parse_wish
from serai.disk.check import Folders, find_dangling, look_at_heads, look_at_volume
from serai.disk.pools import MARK, PoolFolders, check_pool_path, create_pool, remove_pool
from serai.disk.qcow2 import create_head
from serai.errors import Code, Conflict, HostFailure, Invalid, SeraiError
from serai.model.actions import (
    AttachVolume,
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    DetachVolume,
    ExportVolume,
    LaunchGuest,
)
from serai.model.check import Fault, FindingKind
from serai.model.guest import GuestSpec, Volume
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Media
from serai.model.volume import Limits, PoolRecord, VolumeRecord, VolumeWish
from serai.plan.volume import PORTS
from serai.qemu import drives
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor
from serai.store.changes import DropPool, DropVolume, PutPool, PutVolume
from serai.store.database import open_store
from serai.units import GIB, MIB


def a_volume(number: int, **changes: object) -> VolumeRecord:
    """Return a volume; its id follows from ``number``."""
    fields: dict[str, object] = {
        "id": an_id(f"volume {number}"),
        "name": f"v{number}",
        "created_at": 1.0,
        "size": 8 * MIB,
        "head": f"v{number:012x}.qcow2",
        "serial": f"S{number}",
        **changes,
    }
    return VolumeRecord(**fields)  # type: ignore[arg-type]


# -- the store -------------------------------------------------------------------------------------


async def test_volumes_and_pools_are_kept_by_unique_names(tmp_path: Path) -> None:
    pool = PoolRecord(name="fast", id="p", path="/fast", created_at=1.0)
    async with open_store(tmp_path / "serai.db") as store:
        await store.commit(PutVolume(a_volume(2)), PutVolume(a_volume(1)), PutPool(pool))
        await store.commit(PutVolume(a_volume(1, note="täg")))
        with pytest.raises(Conflict) as caught:
            await store.commit(PutVolume(a_volume(3, name="v1")))
        assert caught.value.code is Code.VOLUME_EXISTS
        with pytest.raises(Conflict) as caught:
            await store.commit(PutPool(msgspec.structs.replace(pool, id="q")))
        assert caught.value.code is Code.POOL_EXISTS
    async with open_store(tmp_path / "serai.db") as store:
        assert await store.volumes() == [a_volume(1, note="täg"), a_volume(2)]
        assert await store.pools() == [pool]
        await store.commit(DropVolume(a_volume(1).id), DropVolume("none"), DropPool("fast"))
        assert (await store.volumes(), await store.pools()) == ([a_volume(2)], [])


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def pools(folders: Folders) -> PoolFolders:
    return folders.pools


def test_a_pool_is_a_marked_folder_and_goes_without_trace(
    tmp_path: Path, pools: PoolFolders
) -> None:
    record = PoolRecord(name="fast", id="p", path=str(tmp_path / "fast"), created_at=1.0)
    create_pool(record, ())
    pools.know(record)
    assert pools.heads("fast") == tmp_path / "fast" / "volumes"
    assert pools.layers("fast").path_of_all == tmp_path / "fast" / "layers"
    assert pools.room("fast", 0)[1] > 0
    other = PoolRecord(name="other", id="q", path=record.path, created_at=1.0)
    with pytest.raises(Conflict) as caught:
        create_pool(other, ("p",))
    assert caught.value.code is Code.POOL_EXISTS
    remove_pool(record)
    assert os.listdir(record.path) == []


def test_what_a_dead_daemon_left_of_a_pool_is_taken_up(tmp_path: Path) -> None:
    left = PoolRecord(name="fast", id="p", path=str(tmp_path / "fast"), created_at=1.0)
    create_pool(left, ())
    again = msgspec.structs.replace(left, id="q")
    with pytest.raises(Conflict):
        create_pool(again, ("p",))
    create_pool(again, ())


def test_a_pool_that_is_not_mounted_is_left_alone(tmp_path: Path, pools: PoolFolders) -> None:
    record = PoolRecord(name="fast", id="p", path=str(tmp_path / "fast"), created_at=1.0)
    create_pool(record, ())
    pools.know(record)
    stray = pools.heads("fast") / "v00000000000a.qcow2"
    create_head(stray, virtual_size=MIB)
    mark = Path(record.path) / MARK
    mark.rename(tmp_path / "away")
    assert not pools.is_available("fast") and pools.room("fast", 0) == (0, 0)
    with pytest.raises(HostFailure) as caught:
        pools.heads("fast")
    assert caught.value.code is Code.POOL_UNAVAILABLE and caught.value.hint
    assert pools.sweep((), ()) == [] and stray.exists()
    (tmp_path / "away").rename(mark)
    assert pools.sweep({("fast", stray.name)}, ()) == [] and stray.exists()
    assert pools.sweep((), ()) == [stray.name] and not stray.exists()


def test_sweeping_takes_only_what_looks_like_ours(tmp_path: Path, pools: PoolFolders) -> None:
    for name in ("mine.qcow2", "v1.txt", ".v00000000000a.qcow2.new"):
        (tmp_path / "volumes" / name).touch()
    assert pools.sweep((), ()) == [".v00000000000a.qcow2.new"]


@pytest.mark.parametrize("wrong", ["", "/", "srv", "/a/../b", "/a\0b", "/a\nb", "/" + "x" * 600])
def test_paths_that_no_pool_can_have(wrong: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_pool_path(wrong)
    assert caught.value.code is Code.VALUE_INVALID


# -- check -----------------------------------------------------------------------------------------


async def test_check_knows_volumes(tmp_path: Path, folders: Folders, pools: PoolFolders) -> None:
    known = await sound(folders)
    free, lost = a_volume(1), a_volume(2, layer="none")
    taken, forgotten = a_volume(3, attached_to=known.guests[0].id), a_volume(4, attached_to="gone")
    create_head(pools.heads("default") / free.head, virtual_size=8 * MIB)
    entry = Volume(
        name="v3", head=taken.head, size=8 * MIB, id=taken.id, pool="default", port="spare7"
    )
    guest = a_guest(1, volumes=(*known.guests[0].volumes, entry))
    known = dataclasses.replace(known, guests=[guest], volumes=[free, lost, taken, forgotten])
    assert short(find_dangling(known)) == [
        (Fault.DANGLING, FindingKind.VOLUME, lost.id, False),
        (Fault.DANGLING, FindingKind.VOLUME, forgotten.id, False),
    ]
    looked = look_at_heads(guest, folders)
    looked += [each for one in known.volumes for each in look_at_volume(one, folders)]
    assert short(looked) == [
        (Fault.MISSING, FindingKind.GUEST, guest.id, False),
        (Fault.MISSING, FindingKind.VOLUME, lost.id, False),
    ]
    stolen = dataclasses.replace(known, volumes=[a_volume(3)])
    assert short(find_dangling(stolen)) == [(Fault.DANGLING, FindingKind.VOLUME, taken.id, False)]


# -- a fake QEMU -----------------------------------------------------------------------------------


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qmp.sock") as fake:
        fake.answers["add-fd"] = {"fdset-id": 7, "fd": 20}
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQemu) -> AsyncIterator[Monitor]:
    connected = await Monitor.connect(qemu.path, lambda _: None, timeout=5.0)
    yield connected
    await connected.close()


def a_drive(folder: Path) -> Drive:
    for name in ("head", "layer"):
        (folder / name).touch()
    chain = (
        LayerFile(path=str(folder / "head"), format=DiskFormat.QCOW2, read_only=False, node="v1"),
        LayerFile(path=str(folder / "layer"), format=DiskFormat.QCOW2, read_only=True, node="l1"),
    )
    return Drive(
        name="vol-data", media=Media.DISK, chain=chain, boot_index=1, port="spare7", serial="S",
        limits=Limits(iops=10),
    )  # fmt: skip


async def test_a_disk_is_plugged_into_its_port_with_its_limits(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    await drives.plug(monitor, Lent(), a_drive(tmp_path), 1, 5.0)
    assert qemu.names() == [*["add-fd"] * 3, "blockdev-add", "device_add", "block_set_io_throttle"]
    device = qemu.told[-2].arguments
    assert (device["bus"], device["serial"], device["drive"]) == ("spare7", "S", "v1")
    assert "bootindex" not in device and "addr" not in device
    node = qemu.told[-3].arguments
    assert node["backing"]["node-name"] == "l1"  # type: ignore[index]
    assert qemu.told[-1].arguments["id"] == "/machine/peripheral/vol-data-device/virtio-backend"


@pytest.mark.parametrize("refused", ["blockdev-add", "device_add"])
async def test_nothing_is_left_of_a_disk_that_qemu_refuses(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path, refused: str
) -> None:
    qemu.errors[refused] = "no"
    entry = {"fd": 20, "opaque": "vol-data/0"}
    qemu.answers["query-fdsets"] = [{"fdset-id": 7, "fds": [entry]}]
    with pytest.raises(HostFailure) as caught:
        await drives.plug(monitor, Lent(), a_drive(tmp_path), 1, 5.0)
    assert caught.value.code is Code.QMP_FAILED
    assert "remove-fd" in qemu.names()
    if refused == "device_add":
        assert qemu.names().count("blockdev-del") == 2


async def test_a_disk_whose_file_is_gone_is_refused(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    drive = a_drive(tmp_path)
    (tmp_path / "layer").unlink()
    with pytest.raises(HostFailure) as caught:
        await drives.plug(monitor, Lent(), drive, 1, 5.0)
    assert caught.value.code is Code.FILE_FAILED
    assert "blockdev-add" not in qemu.names() and "remove-fd" in qemu.names()


async def test_the_ports_that_something_is_in(qemu: FakeQemu, monitor: Monitor) -> None:
    qemu.answers["qom-list"] = [{"name": "spare3"}, {"name": "vga"}, {"name": "child[0]"}]
    assert await drives.busy_ports(monitor, 5.0) == set(PORTS)  # the others are not there
    qemu.answers["qom-list"] = [{"name": name} for name in PORTS]
    assert await drives.busy_ports(monitor, 5.0) == set()


async def test_a_locked_drive_is_told_apart(
    qemu: FakeQemu, monitor: Monitor, tmp_path: Path
) -> None:
    """QEMU calls asking the guest for it a success; that the tray is shut shows at the next command."""
    qemu.errors["blockdev-remove-medium"] = "Tray of device 'cd0-device' is not open"
    old = Drive(name="cd0", media=Media.CDROM, chain=(), boot_index=1)
    with pytest.raises(Conflict) as caught:
        await drives.change_medium(monitor, Lent(), old, old, 5.0, force=False)
    assert caught.value.code is Code.VOLUME_HELD and caught.value.hint
    assert qemu.names() == ["blockdev-open-tray", "blockdev-remove-medium"]


# -- doors -----------------------------------------------------------------------------------------


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(2)
        each.engine.rack.volumes["data"] = make_volume("data")
        yield each


async def test_bodies_become_actions(inn: Inn) -> None:
    data = "/v1/volumes/data"
    asked = [
        ("POST", "/v1/volumes", {"name": "n", "size": GIB, "limits": {"iops": 5}, "serial": "x"}),
        ("POST", f"{data}/attach", {"guest": "g1", "read_only": True, "boot": 2}),
        ("POST", f"{data}/detach", {"guest": "g1"}),
        ("PATCH", data, {"size": 2 * GIB}),
        ("POST", f"{data}/clone", {"name": "c", "snapshot": ""}),
        ("POST", f"{data}/export", {"path": "/x", "format": "vmdk"}),
    ]
    for method, path, body in asked:
        assert (await inn.ask(method, path, body)).status_code == 202
    assert inn.engine.actions == [
        CreateVolume(name="n", size=GIB, limits=Limits(iops=5), serial="x"),
        AttachVolume(volume="data", guest="g1", read_only=True, boot=2),
        DetachVolume(volume="data", guest="g1"),
        ChangeVolume(volume="data", size=2 * GIB),
        CloneVolume(volume="data", name="c"),
        ExportVolume(volume="data", path="/x", format="vmdk"),  # type: ignore[arg-type]
    ]


async def test_lists_are_filtered_and_refusals_told(inn: Inn) -> None:
    await inn.ask("POST", "/v1/volumes", {"name": "other", "size": GIB})
    await inn.ask("POST", "/v1/volumes/other/attach", {"guest": "g1"})
    shown = (await inn.ask("GET", "/v1/volumes?guest=g1")).json()["items"]
    assert [each["name"] for each in shown] == ["other"]
    assert (await inn.ask("GET", "/v1/volumes?pool=none")).json()["items"] == []
    assert [each["name"] for each in (await inn.ask("GET", "/v1/pools")).json()["items"]] == [
        "default"
    ]
    assert await inn.refused("GET", "/v1/volumes/none") == "404 volume-not-found"
    assert (
        await inn.refused("POST", "/v1/volumes", {"name": "root", "size": GIB})
        == "400 name-invalid"
    )
    assert await inn.refused("DELETE", "/v1/pools/default") == "409 pool-in-use"


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(2)
        yield made


def test_the_commands(stage: Stage) -> None:
    done = stage.serai("volume", "create", "data", "10GiB", "--bps", "1MiB", "--note", "n")
    assert (done.code, done.text) == (0, "data is there: 10 GiB in the pool default\n")
    assert stage.serai("volume", "attach", "data", "g0", "--boot", "1").code == 0
    listed = stage.serai("volume", "list").text.splitlines()
    assert listed[1].split()[:6] == ["data", "default", "10", "GiB", "1", "MiB"]
    shown = stage.serai("volume", "show", "data").text
    assert "g0, boots from it at place 1" in shown and "1 MiB/s" in shown
    assert stage.serai("volume", "snapshot", "data@one").code == 0
    assert "SNAPSHOT" in stage.serai("volume", "show", "data").text
    assert stage.serai("volume", "resize", "data", "1GiB").code == 4
    assert stage.serai("volume", "set", "data").code == 0
    assert stage.serai("volume", "export", "data").code == 2
    assert stage.serai("volume", "snapshot", "data", "--delete").code == 2
    assert (
        stage.serai("volume", "export", "data", "/x/y.raw", "--as", "raw").text
        == "sha256:00  /x/y.raw\n"
    )
    assert stage.serai("volume", "detach", "data").code == 0
    assert stage.serai("volume", "delete", "data").text == "data is deleted\n"
    assert "directory" in stage.serai("pool", "list").text
    assert "snapshots" in stage.serai("pool", "show", "default").text


def test_launch_asks_for_volumes(stage: Stage) -> None:
    words = ("--volume", "data,read-only,boot=2", "--volume", "size=1GiB")
    assert stage.serai("launch", "tiny", "new", "--no-wait", *words).code == 0
    wishes = (VolumeWish(name="data", read_only=True, boot=2), VolumeWish(size=GIB))
    assert stage.engine.actions == [
        LaunchGuest(spec=GuestSpec(image="tiny", name="new"), wait=False, volumes=wishes)
    ]


@pytest.mark.parametrize(
    "wrong", ["", "a,b", "size=", "size=x", "a,boot=x", "a,a", "a,boot=1,boot=2", "read-only=x"]
)
def test_wishes_that_nobody_can_read(wrong: str) -> None:
    with pytest.raises(SeraiError) as caught:
        parse_wish(wrong)
    assert caught.value.code in (Code.VALUE_INVALID, Code.SIZE_INVALID)


def test_both_sdks_do_the_same(stage: Stage) -> None:
    with serai.connect(stage.socket) as inn:
        data = inn.create_volume("data", "1GiB", note="n").attach("g0").resize("2GiB")
        assert (data.info.size, inn.volumes(guest="g0")[0].id) == (2 * GIB, data.id)
        data.limit(bps="1MiB").snapshot("s").delete_snapshot("s").detach()
        copy = data.clone("copy")
        assert copy.export("/x/y") == "sha256:00"
        for volume in (data, copy, inn.import_volume("/x/y", "back")):
            volume.delete()
        inn.create_pool("fast", "/fast")
        assert [each.name for each in inn.pools()] == ["default", "fast"]
        inn.delete_pool("fast")
    said = list(stage.engine.actions)
    stage.engine.actions.clear()

    async def again() -> None:
        async with serai.aio.connect(stage.socket) as inn:
            data = await inn.create_volume("data", "1GiB", note="n")
            await (await data.attach("g0")).resize("2GiB")
            assert (data.info.size, (await inn.volumes(guest="g0"))[0].id) == (2 * GIB, data.id)
            await data.limit(bps="1MiB")
            await (await (await data.snapshot("s")).delete_snapshot("s")).detach()
            copy = await data.clone("copy")
            assert await copy.export("/x/y") == "sha256:00"
            for volume in (data, copy, await inn.import_volume("/x/y", "back")):
                await volume.delete()
            await inn.create_pool("fast", "/fast")
            assert [each.name for each in await inn.pools()] == ["default", "fast"]
            await inn.delete_pool("fast")

    asyncio.run(again())
    assert stage.engine.actions == said
