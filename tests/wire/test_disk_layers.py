"""The folder of layers: frozen heads, digests, hostile files, interrupted merges."""

import asyncio
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from serai.disk import layers as layers_module
from serai.disk.layers import LayerFolder, layer_node
from serai.disk.qcow2 import CLUSTER, create_head
from serai.errors import Bug, Code, HostFailure
from serai.model.image import DiskFormat
from serai.model.snapshot import Layer
from serai.units import GIB, KIB, MIB

SIZE = 8 * MIB


def a_layer(name: str, size: int = SIZE, digest: str = "") -> Layer:
    return Layer(id=name, virtual_size=size, created_at=0.0, digest=digest)


@pytest.fixture
def folder(tmp_path: Path) -> LayerFolder:
    return LayerFolder(tmp_path / "layers")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    (tmp_path / "guest").mkdir()
    return tmp_path / "guest"


def write_layer(path: Path, clusters: dict[int, object], size: int = SIZE) -> None:
    """Write a layer by hand: cluster -> its content, 1 to 32 for whole subclusters of one byte,
    or "zeros"."""
    path.unlink(missing_ok=True)
    create_head(path, virtual_size=size)
    path.chmod(0o600)
    l2 = bytearray(CLUSTER)
    with path.open("r+b") as file:
        for place, (number, content) in enumerate(clusters.items()):
            if content == "zeros":
                struct.pack_into(">QQ", l2, number * 16, 0, 0xFFFF_FFFF << 32)
                continue
            offset = (5 + place) * CLUSTER
            struct.pack_into(">QQ", l2, number * 16, offset | 1 << 63, 0xFFFF_FFFF)
            file.seek(offset)
            file.write(
                bytes(content) if isinstance(content, bytes) else bytes([int(content)]) * CLUSTER
            )  # type: ignore[call-overload]
        file.seek(4 * CLUSTER)
        file.write(l2)
        file.seek(3 * CLUSTER)
        file.write(struct.pack(">Q", 4 * CLUSTER | 1 << 63))
    path.chmod(0o400)


def read_disk(path: Path) -> bytes:
    """Return what a layer shows over nothing, read by the format's own rules."""
    content = path.read_bytes()
    size, l1_entries = (
        struct.unpack_from(">Q", content, 24)[0],
        struct.unpack_from(">I", content, 36)[0],
    )
    (l1_offset,) = struct.unpack_from(">Q", content, 40)
    disk = bytearray(size)
    for index in range(l1_entries):
        table = struct.unpack_from(">Q", content, l1_offset + 8 * index)[0] & ~(1 << 63)
        for number in range(CLUSTER // 16) if table else ():
            entry, bits = struct.unpack_from(">QQ", content, table + 16 * number)
            for sub in range(32):
                start = (index * (CLUSTER // 16) + number) * CLUSTER + sub * 4096
                if bits >> sub & 1 and start < size:
                    source = (entry & ~(1 << 63)) + sub * 4096
                    piece = content[source : source + min(4096, size - start)]
                    disk[start : start + len(piece)] = piece
    return bytes(disk)


# -- freezing --------------------------------------------------------------------------------------


def test_a_head_gets_a_second_name_and_loses_the_first(folder: LayerFolder, guest: Path) -> None:
    head = guest / "root.qcow2"
    create_head(head, virtual_size=SIZE)
    for _ in range(2):
        folder.freeze_head(head, "one")
    assert folder.path("one").samefile(head)
    assert folder.path("one").stat().st_mode & 0o777 == 0o400
    assert folder.size("one") > 0
    for _ in range(2):
        folder.drop_head(head)
    assert folder.path("one").stat().st_nlink == 1
    file = folder.file(a_layer("one"))
    assert (file.path, file.format, file.read_only) == (
        str(folder.path("one")), DiskFormat.QCOW2, True,
    )  # fmt: skip
    assert folder.path_of_all.stat().st_mode & 0o777 == 0o700


def test_deleting_undoes_freezing(folder: LayerFolder, guest: Path) -> None:
    head = guest / "root.qcow2"
    create_head(head, virtual_size=SIZE)
    folder.freeze_head(head, "one")
    for _ in range(2):
        folder.delete("one")
    assert head.stat().st_mode & 0o777 == 0o600
    assert list(folder.path_of_all.iterdir()) == []
    assert folder.size("one") == 0


def test_a_link_is_not_followed(folder: LayerFolder, guest: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (guest / "root.qcow2").symlink_to(tmp_path / "secret")
    with pytest.raises(HostFailure):
        folder.freeze_head(guest / "root.qcow2", "one")
    assert list(folder.path_of_all.iterdir()) == []


@pytest.mark.parametrize("untrusted", ["", "..", "a/b", ".x", "x" * 65, "a\n"])
def test_names_that_lead_elsewhere_are_refused(folder: LayerFolder, untrusted: str) -> None:
    with pytest.raises(Bug):
        folder.path(untrusted)


def test_names_of_nodes_are_what_qemu_takes() -> None:
    name = layer_node("l", "0f8fad5b-d9cb-469f-a165-70867728950e")
    assert name == "l0f8fad5bd9cb469f"
    assert len(name) <= 31


@pytest.mark.parametrize(
    "harm", ["gone", "backing", "external", "corrupt", "short", "other size", "text", "folder"]
)
def test_a_layer_that_is_not_sound_is_told(folder: LayerFolder, harm: str) -> None:
    path = folder.path("one")
    create_head(path, virtual_size=SIZE)
    start = bytearray(path.read_bytes())
    match harm:
        case "backing":
            struct.pack_into(">QI", start, 8, 600, 11)
        case "external":
            start[79] |= 4
        case "corrupt":
            start[79] |= 2
        case "short":
            del start[390_000:]
        case "other size":
            struct.pack_into(">Q", start, 24, SIZE - 512)
        case "text":
            start[:] = b"#!/bin/sh\n"
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "gone":
        path.write_bytes(start)
    with pytest.raises(HostFailure) as caught:
        folder.file(a_layer("one"))
    assert caught.value.code is Code.SNAPSHOT_CORRUPT
    assert caught.value.details == {"layer": "one"}


def test_sweeping(folder: LayerFolder) -> None:
    for name in ("one", "two"):
        create_head(folder.path(name), virtual_size=SIZE)
    for name in (".one.new", ".two.digest", "gone.digest", "one.digest"):
        (folder.path_of_all / name).write_bytes(b"x")
    assert folder.orphans({"one"}) == ["two"]
    assert folder.sweep() == [".one.new", ".two.digest", "gone.digest"]
    assert folder.sweep({"one"}) == ["two"]
    assert sorted(path.name for path in folder.path_of_all.iterdir()) == [
        "one.digest", "one.qcow2",
    ]  # fmt: skip


# -- digests ---------------------------------------------------------------------------------------


async def test_one_flipped_bit_anywhere_is_found(folder: LayerFolder) -> None:
    rng = random.Random(1)
    write_layer(folder.path("one"), {0: 1, 3: rng.randbytes(CLUSTER), 60: 7})
    layer = a_layer("one", digest=await folder.hash("one"))
    await folder.verify(layer)
    path = folder.path("one")
    path.chmod(0o600)
    size = path.stat().st_size
    for place in [0, size - 1, CLUSTER, *(rng.randrange(size) for _ in range(60))]:
        with path.open("r+b") as file:
            byte = os.pread(file.fileno(), 1, place)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 16]), place)
            with pytest.raises(HostFailure) as caught:
                await folder.verify(layer)
            assert caught.value.code is Code.SNAPSHOT_CORRUPT
            os.pwrite(file.fileno(), bytes([byte]), place)
    await folder.verify(layer)
    os.truncate(path, size + 1)
    with pytest.raises(HostFailure):
        await folder.verify(layer)


async def test_a_digest_does_not_depend_on_holes(folder: LayerFolder) -> None:
    write_layer(folder.path("one"), {0: 1, 40: 2})
    folder.path("two").write_bytes(folder.path("one").read_bytes())
    assert folder.size("two") > folder.size("one")
    assert await folder.hash("one") == await folder.hash("two")


async def test_a_file_is_read_once(folder: LayerFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layer(folder.path("one"), {0: 1})
    layer = a_layer("one", digest=await folder.hash("one"))
    hashed: list[str] = []
    real = layers_module._hash
    monkeypatch.setattr(
        layers_module, "_hash", lambda path, pulse: hashed.append(path.name) or real(path, pulse)
    )
    for _ in range(3):
        await folder.verify(layer)
    assert hashed == []  # its digest was taken a moment ago
    folder.path("one").touch()
    for _ in range(3):
        await folder.verify(layer)
    assert hashed == ["one.qcow2"]
    with pytest.raises(HostFailure):
        await LayerFolder(folder.path_of_all).verify(replace(layer, digest="blake3-tree:00"))


async def test_hashing_what_is_gone_is_told(folder: LayerFolder) -> None:
    with pytest.raises(HostFailure) as caught:
        await folder.hash("none")
    assert caught.value.code is Code.SNAPSHOT_CORRUPT


# -- merging (what QEMU thinks of it: tests/guest/test_disk_merging.py) ----------------------------


async def test_merged_content_and_digest(folder: LayerFolder) -> None:
    write_layer(folder.path("p"), {0: 1, 1: 1, 2: 1, 5: 1})
    write_layer(folder.path("c"), {1: 2, 2: "zeros", 9: 3})
    old = a_layer("c", digest=await folder.hash("c"))
    digest = await folder.merge("c", "p")
    disk = read_disk(folder.path("c"))
    found = {n: disk[n * CLUSTER] for n in range(SIZE // CLUSTER) if disk[n * CLUSTER]}
    assert found == {0: 1, 1: 2, 5: 1, 9: 3}
    assert all(len(set(disk[n * CLUSTER : (n + 1) * CLUSTER])) == 1 for n in range(12))
    assert folder.path("c").stat().st_mode & 0o777 == 0o400
    await LayerFolder(folder.path_of_all).verify(old)  # the store was not told yet
    await folder.verify(replace(old, digest=digest))
    folder.delete("p")
    folder.delete("c")
    assert list(folder.path_of_all.iterdir()) == []


async def test_a_merged_file_that_is_damaged_before_the_store_knows(folder: LayerFolder) -> None:
    write_layer(folder.path("p"), {0: 1})
    write_layer(folder.path("c"), {1: 2})
    old = a_layer("c", digest=await folder.hash("c"))
    await folder.merge("c", "p")
    folder.path("c").chmod(0o600)
    with folder.path("c").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(HostFailure):
        await folder.verify(old)


async def test_what_a_parent_has_behind_its_end_never_shows(folder: LayerFolder) -> None:
    """Neither whole clusters nor the rest of the last sector's."""
    write_layer(folder.path("p"), {0: 1, 1: 1, 5: 1})
    end = CLUSTER + 4096 + 512
    folder.path("p").chmod(0o600)
    with folder.path("p").open("r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", end))
    write_layer(folder.path("c"), {9: 3})
    await folder.merge("c", "p")
    disk = read_disk(folder.path("c"))
    assert disk[:end] == b"\1" * end
    assert not any(disk[end : 9 * CLUSTER])


async def test_zeros_in_data_become_holes(folder: LayerFolder) -> None:
    mixed = b"\7" * 4096 + bytes(CLUSTER - 8192) + b"\7" * 4096
    write_layer(folder.path("p"), {number: bytes(CLUSTER) for number in range(40)})
    write_layer(folder.path("c"), {50: mixed})
    await folder.merge("c", "p")
    assert folder.size("c") < 64 * KIB
    assert read_disk(folder.path("c"))[50 * CLUSTER : 51 * CLUSTER] == mixed


HOSTILE = ["shape", "compressed", "outside", "twice", "gone", "backing", "contradiction"]


@pytest.mark.parametrize("harm", HOSTILE)
@pytest.mark.parametrize("which", ["c", "p"])
async def test_a_hostile_layer_is_refused_and_both_stay(
    folder: LayerFolder, which: str, harm: str
) -> None:
    write_layer(folder.path("p"), {0: 1, 1: 1})
    write_layer(folder.path("c"), {1: 2})
    path = folder.path(which)
    content = bytearray(path.read_bytes())
    match harm:
        case "shape":
            create_head(path.with_name("x"), virtual_size=SIZE)
            content = bytearray(path.with_name("x").read_bytes())
            path.with_name("x").unlink()
            struct.pack_into(">I", content, 20, 16)
        case "compressed":
            struct.pack_into(">QQ", content, 4 * CLUSTER, 1 << 62 | 5 * CLUSTER, 0)
        case "outside":
            struct.pack_into(">QQ", content, 4 * CLUSTER, 900 * CLUSTER | 1 << 63, 1)
        case "twice":
            for number in range(60):
                struct.pack_into(
                    ">QQ", content, 4 * CLUSTER + 16 * number, 5 * CLUSTER | 1 << 63, 0xFFFF_FFFF
                )
        case "backing":
            struct.pack_into(">QI", content, 8, 600, 11)
        case "contradiction":
            struct.pack_into(">QQ", content, 4 * CLUSTER, 5 * CLUSTER, 1 << 32 | 1)
    path.unlink()
    if harm != "gone":
        path.write_bytes(content)
    before = {each.name: each.read_bytes() for each in folder.path_of_all.iterdir()}
    with pytest.raises(HostFailure):
        await folder.merge("c", "p")
    assert {each.name: each.read_bytes() for each in folder.path_of_all.iterdir()} == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


async def test_a_full_disk_leaves_both(small_disk: Path) -> None:
    folder = LayerFolder(small_disk / "layers")
    write_layer(folder.path("p"), dict.fromkeys(range(14), 1))
    write_layer(folder.path("c"), {20: 2})
    before = {path.name: path.read_bytes() for path in folder.path_of_all.iterdir()}
    with pytest.raises(HostFailure) as caught:
        await folder.merge("c", "p")
    assert caught.value.code is Code.DISK_FULL
    assert {path.name: path.read_bytes() for path in folder.path_of_all.iterdir()} == before


async def test_cancelling_leaves_nothing(folder: LayerFolder) -> None:
    write_layer(folder.path("p"), dict.fromkeys(range(60), 1))
    write_layer(folder.path("c"), {3: 2})

    for turn in range(12):
        task = asyncio.create_task(folder.merge("c", "p"))
        for _ in range(turn):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert not [path for path in folder.path_of_all.iterdir() if path.name[0] == "."]
    await folder.merge("c", "p")
    wanted = read_disk(folder.path("c"))
    assert wanted[3 * CLUSTER] == 2
    assert wanted[59 * CLUSTER] == 1


async def test_a_huge_empty_disk_is_merged_quickly(folder: LayerFolder) -> None:
    for name in ("p", "c"):
        create_head(folder.path(name), virtual_size=16 * 1024 * GIB)
    async with asyncio.timeout(5):
        await folder.merge("c", "p")
    assert folder.size("c") < MIB
