"""A power cut before each single step: the old state or the new one, and nothing in between."""

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from memory_samples import SIZE, STATE, a_page_set, a_ram, page, take_all, take_pages, two_files
from powercut import Cut, PowerCut, inodes
from test_disk_layers import read_disk, write_layer

from serai.disk.layers import LayerFolder
from serai.disk.memory import MemoryFolder
from serai.disk.qcow2 import CLUSTER, create_head, read_head
from serai.disk.volumes import new_head
from serai.model.guest import Volume
from serai.model.snapshot import Layer
from serai.units import MIB

MOST_STEPS = 400
BASE = {0: page("a"), 300: (b"text " * 1000)[:4096]}
ONE = {5: page("x"), 6: page("y"), **{n: (b"%d " % n * 2000)[:4096] for n in range(40, 60)}}
TWO = {**ONE, 9: page("z")}

Work = Callable[[Path], Awaitable[object]]
Check = Callable[[Path], Awaitable[bool]]


async def cut_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Work, work: Work, check: Check
) -> None:
    """Begin anew for each step of ``work`` and cut the power before it.

    ``check`` looks at what is there afterwards and tells whether it is the new state.
    """
    began = tmp_path / "began"
    began.mkdir()
    await start(began)
    ends: list[bool] = []
    for at in range(1, MOST_STEPS):
        place = tmp_path / f"cut-{at}"
        copy_all(began, place)
        before = inodes(place)
        cut = PowerCut(monkeypatch, at)
        try:
            await work(place)
        except Cut:
            pass
        cut.come_back(monkeypatch, place, before)
        ends.append(await check(place))
        shutil.rmtree(place)
        if cut.count < at:
            break
    assert len(ends) > 3
    assert ends[-1]
    assert not ends[0]
    assert ends == sorted(ends)  # once it is new it stays so


def copy_all(source: Path, target: Path) -> None:
    """Copy a folder with its hard links and holes."""
    os.spawnlp(os.P_WAIT, "cp", "cp", "-a", "--sparse=always", str(source), str(target))


async def put(path: Path, name: str, pages: dict[int, bytes]) -> MemoryFolder:
    folder = MemoryFolder(path / "memory")
    made = a_page_set(pages)
    try:
        await folder.store(name, "base", made, STATE + name.encode())
    finally:
        os.close(made)
    return folder


async def check_memory(path: Path, name: str, pages: dict[int, bytes]) -> bool:
    folder = MemoryFolder(path / "memory")
    folder.sweep()
    assert not list((path / "memory").rglob(".*"))
    if name not in folder.memories():
        return False
    with two_files() as (pages_fd, state_fd):
        await folder.load(name, pages_fd, state_fd)
        assert take_pages(os.dup(pages_fd)) == pages
        assert take_all(os.dup(state_fd)) == STATE + name.encode()
    os.close(await folder.load_base("base"))
    return True


async def put_base(path: Path) -> None:
    await MemoryFolder(path / "memory").store_base("base", a_ram(BASE), SIZE, STATE)


async def put_base_and_one(path: Path) -> None:
    await put_base(path)
    await put(path, "m1", ONE)


async def test_storing_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(path: Path) -> None:
        MemoryFolder(path / "memory")

    async def check(path: Path) -> bool:
        folder = MemoryFolder(path / "memory")
        folder.sweep()
        if "base" not in folder.bases():
            assert list((path / "memory").iterdir()) == []
            return False
        await folder.verify("base")
        return True

    await cut_everywhere(tmp_path, monkeypatch, start, put_base, check)


async def test_storing_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(path: Path) -> bool:
        assert await check_memory(path, "m1", ONE)
        return await check_memory(path, "m2", TWO)

    await cut_everywhere(
        tmp_path, monkeypatch, put_base_and_one, lambda path: put(path, "m2", TWO), check
    )


async def test_deleting_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(path: Path) -> None:
        await put_base_and_one(path)
        await put(path, "m2", TWO)

    async def work(path: Path) -> None:
        MemoryFolder(path / "memory").delete("m1")

    async def check(path: Path) -> bool:
        assert await check_memory(path, "m2", TWO)
        return not await check_memory(path, "m1", ONE)

    await cut_everywhere(tmp_path, monkeypatch, start, work, check)


@pytest.mark.parametrize("name", ["base", "m1"])
async def test_compressing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def start(path: Path) -> None:
        await put_base_and_one(path)
        await put(path, "m2", TWO)

    async def work(path: Path) -> None:
        await MemoryFolder(path / "memory").compress(name)

    async def check(path: Path) -> bool:
        assert await check_memory(path, "m1", ONE)
        assert await check_memory(path, "m2", TWO)
        plain = "ram" if name == "base" else "m1.pages"
        return not (path / "memory" / name / plain).exists()

    await cut_everywhere(tmp_path, monkeypatch, start, work, check)


async def test_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(id="c", virtual_size=8 * MIB, created_at=0.0)
    digests: list[str] = []

    async def start(path: Path) -> None:
        folder = LayerFolder(path / "layers")
        write_layer(folder.path("p"), {0: 1, 1: 1})
        write_layer(folder.path("c"), {1: 2, 3: "zeros"})
        digests.append(await folder.hash("c"))

    async def work(path: Path) -> None:
        await LayerFolder(path / "layers").merge("c", "p")

    async def check(path: Path) -> bool:
        folder = LayerFolder(path / "layers")
        folder.sweep()
        known = Layer(id="c", virtual_size=8 * MIB, created_at=0.0, digest=digests[0])
        await folder.verify(known)
        folder.file(layer)
        disk = read_disk(folder.path("c"))
        assert disk[CLUSTER] == 2
        assert read_disk(folder.path("p"))[0] == 1
        return disk[0] == 1

    await cut_everywhere(tmp_path, monkeypatch, start, work, check)


async def test_freezing_a_head_and_putting_a_new_one_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(name="root", head="root.qcow2", size=8 * MIB)

    async def start(path: Path) -> None:
        (path / "guest").mkdir()
        create_head(path / "guest" / "root.qcow2", virtual_size=8 * MIB)
        LayerFolder(path / "layers")

    async def work(path: Path) -> None:
        LayerFolder(path / "layers").freeze_head(path / "guest" / "root.qcow2", "one")
        new_head(path / "guest", volume, "one")

    async def check(path: Path) -> bool:
        folder = LayerFolder(path / "layers")
        new = path / "guest" / "root-one.qcow2"
        assert read_head(path / "guest" / "root.qcow2").virtual_size == 8 * MIB
        if not new.exists():
            folder.sweep(set())
            assert (path / "guest" / "root.qcow2").stat().st_mode & 0o777 == 0o600
            return False
        assert read_head(new).virtual_size == 8 * MIB
        folder.file(Layer(id="one", virtual_size=8 * MIB, created_at=0.0))
        return True

    await cut_everywhere(tmp_path, monkeypatch, start, work, check)
