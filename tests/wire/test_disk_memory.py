"""Stored memory: what comes out is what went in, and nothing else ever does."""

import asyncio
import errno
import fcntl
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_samples import (
    SIZE,
    STATE,
    a_page_set,
    a_ram,
    files_in,
    page,
    ram_bytes,
    take_all,
    take_pages,
    two_files,
)

from serai.disk.memory import MemoryFolder
from serai.errors import Bug, Code, Conflict, HostFailure
from serai.host.pages import PAGE
from serai.units import KIB, MIB

BASE = {0: page("a"), 1: page("b"), 7: page("c"), 300: page("d"), SIZE // PAGE - 1: page("e")}


@pytest.fixture
def folder(tmp_path: Path) -> MemoryFolder:
    return MemoryFolder(tmp_path / "memory")


async def put_base(folder: MemoryFolder, name: str = "base") -> int:
    ram = a_ram(BASE)
    try:
        return await folder.store_base(name, ram, SIZE, STATE)
    finally:
        os.close(ram)


async def put(
    folder: MemoryFolder, name: str, pages: dict[int, bytes], state: bytes = STATE
) -> int:
    made = a_page_set(pages)
    try:
        return await folder.store(name, "base", made, state)
    finally:
        os.close(made)


async def get(folder: MemoryFolder, name: str) -> tuple[dict[int, bytes], bytes]:
    with two_files() as (pages_fd, state_fd):
        await folder.load(name, pages_fd, state_fd)
        return take_pages(os.dup(pages_fd)), take_all(os.dup(state_fd))


async def whole(folder: MemoryFolder, name: str) -> bytes:
    """Return the RAM that a memory is: its base with its pages."""
    pages, _ = await get(folder, name)
    found = bytearray(take_all(await folder.load_base("base")))
    for number, content in pages.items():
        found[number * PAGE : (number + 1) * PAGE] = content
    return bytes(found)


# -- bases -----------------------------------------------------------------------------------------


async def test_a_base_comes_back_sealed_and_sparse(folder: MemoryFolder):
    own = await put_base(folder)
    assert own == folder.sizes("base").own == folder.bases()["base"]
    assert own < 5 * PAGE + len(STATE) + 64 * KIB
    assert (folder.path / "base" / "ram").stat().st_size == SIZE
    fd = await folder.load_base("base")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:serai-ram-base")
    facts = os.fstat(fd)
    assert facts.st_mode & 0o777 == 0o666
    assert facts.st_blocks * 512 == len(BASE) * PAGE
    for change in (
        lambda: os.pwrite(fd, b"x", 0), lambda: os.truncate(fd, 0), lambda: os.truncate(fd, 2 * SIZE)
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EPERM
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    assert take_all(fd) == ram_bytes(BASE)
    assert take_all(await folder.load_base_state("base")) == STATE
    await folder.verify("base")


async def test_a_base_is_a_memory_with_no_pages(folder: MemoryFolder):
    await put_base(folder)
    assert await get(folder, "base") == ({}, STATE)


async def test_storing_again_leaves_what_is_there(folder: MemoryFolder):
    own = await put_base(folder)
    inode = (folder.path / "base" / "ram").stat().st_ino
    assert await folder.store_base("base", a_ram({}), SIZE, b"") == own
    assert (folder.path / "base" / "ram").stat().st_ino == inode


async def test_storing_again_mends_a_damaged_description(folder: MemoryFolder):
    await put_base(folder)
    (folder.path / "base" / "about").unlink()
    await put_base(folder)
    assert take_all(await folder.load_base("base")) == ram_bytes(BASE)
    assert files_in(folder.path) == ["base", "base/about", "base/ram"]


async def test_the_stream_may_be_a_descriptor(folder: MemoryFolder):
    state = os.memfd_create("state")
    os.write(state, STATE)
    await folder.store_base("base", a_ram(BASE), SIZE, state)
    await folder.store("m", "base", None, state)
    assert take_all(await folder.load_base_state("base")) == STATE
    assert await get(folder, "m") == ({}, STATE)
    assert folder.sizes("m").own <= 8 * KIB  # the stream is the base's


@pytest.mark.parametrize("size", [0, -PAGE, PAGE - 1, SIZE + PAGE])
async def test_no_ram_is_a_mistake_of_ours(folder: MemoryFolder, size: int):
    with pytest.raises(Bug):
        await folder.store_base("base", a_ram({}), size, b"")
    assert files_in(folder.path) == []


@pytest.mark.parametrize("untrusted", ["", ".", "..", "a/b", ".new-1", "x" * 65, "a\0b", "é"])
async def test_names_that_lead_elsewhere_are_refused(folder: MemoryFolder, untrusted: str):
    with pytest.raises(Bug), two_files() as files:
        await folder.load(untrusted, *files)
    with pytest.raises(Bug):
        folder.delete(untrusted)


# -- pages -----------------------------------------------------------------------------------------

SOME_PAGES = st.dictionaries(
    st.integers(0, SIZE // PAGE - 1), st.sampled_from([0, 0, "a", "b", "x", "y", "z"]), max_size=30
)


@given(sets=st.lists(SOME_PAGES, min_size=1, max_size=5), gone=st.randoms(use_true_random=False))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_what_comes_out_is_what_went_in(
    tmp_path: Path, sets: list[dict[int, object]], gone: random.Random
):
    """Whatever is shared between them, compressed, deleted or found again by a new daemon."""
    folder = MemoryFolder(tmp_path / os.urandom(8).hex())
    await put_base(folder)
    wanted: dict[str, bytes] = {}
    for index, each in enumerate(sets):
        pages = {number: page(seed) for number, seed in each.items()}
        await put(folder, f"m{index}", pages, STATE[: 1000 * index] + b"%d" % index)
        wanted[f"m{index}"] = ram_bytes({**BASE, **pages})
        step = gone.randrange(4)
        if step == 0:
            folder.delete(victim := gone.choice(sorted(wanted)))
            del wanted[victim]
        elif step == 1:
            await folder.compress(gone.choice(sorted(wanted)))
        elif step == 2:
            folder = MemoryFolder(folder.path)
    for name, content in wanted.items():
        assert await whole(folder, name) == content
        assert (await get(folder, name))[1] == STATE[: 1000 * int(name[1:])] + name[1:].encode()
    assert folder.memories() == set(wanted)
    assert not [name for name in files_in(folder.path) if "/." in name or name[0] == "."]


async def test_each_page_is_kept_once(folder: MemoryFolder):
    await put_base(folder)
    mine = {number: page(f"mine {number}") for number in range(100, 164)}
    first = await put(folder, "m1", mine)
    assert first >= 64 * PAGE
    second = await put(folder, "m2", {**mine, 5: page("new")})
    assert PAGE <= second <= 6 * PAGE
    assert folder.sizes("m2").shared >= 64 * PAGE
    moved = {number + 200: content for number, content in mine.items()}
    assert await put(folder, "m3", moved) <= 5 * PAGE
    assert await put(folder, "m4", {9: page("new"), 10: page("x"), 11: page("x")}) <= 6 * PAGE
    folder.delete("m1")
    folder.delete("m2")
    assert await whole(folder, "m3") == ram_bytes({**BASE, **moved})
    assert folder.sizes("m3").own >= 64 * PAGE  # the last one that has them


async def test_what_the_base_has_and_zeros_take_nothing(folder: MemoryFolder):
    await put_base(folder)
    pages = {0: page("a"), 1: page(0), 7: page("c"), 8: page(0), 300: page(0)}
    assert await put(folder, "m", pages) <= 8 * KIB
    found, _ = await get(folder, "m")
    assert found == {1: page(0), 300: page(0)}


async def test_a_page_that_was_damaged_is_not_built_upon(folder: MemoryFolder):
    await put_base(folder)
    await put(folder, "m1", {5: page("x"), 6: page("y")})
    flip(folder.path / "m1" / "m1.pages", 10)
    await put(folder, "m2", {5: page("x"), 6: page("y")})
    assert (await get(folder, "m2"))[0] == {5: page("x"), 6: page("y")}
    with pytest.raises(HostFailure), two_files() as files:
        await folder.load("m1", *files)


async def test_other_bases_are_other_families(folder: MemoryFolder):
    await put_base(folder)
    await put_base(folder, "other")
    await put(folder, "m1", {5: page("x")})
    made = a_page_set({5: page("x")})
    assert await folder.store("m2", "other", made, STATE) >= PAGE


@pytest.mark.parametrize("harm", ["short", "long", "magic", "order", "beyond"])
async def test_a_page_set_that_is_none_is_refused(folder: MemoryFolder, harm: str):
    await put_base(folder)
    made = a_page_set({5: page("x"), 6: page("y")})
    size = os.fstat(made).st_size
    match harm:
        case "short":
            os.truncate(made, size - 1)
        case "long":
            os.truncate(made, size + 1)
        case "magic":
            os.pwrite(made, b"X", 0)
        case "order":
            os.pwrite(made, (7).to_bytes(4, "little"), 16)
        case _:
            os.pwrite(made, (SIZE // PAGE).to_bytes(4, "little"), 20)
    with pytest.raises(HostFailure) as caught:
        await folder.store("m", "base", made, STATE)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT
    assert files_in(folder.path) == ["base", "base/about", "base/ram"]


# -- damage ----------------------------------------------------------------------------------------


def flip(path: Path, place: int, bit: int = 0) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    path.chmod(mode)


async def code_of(folder: MemoryFolder, name: str) -> Code | None:
    """Load everything of a memory; return how that failed."""
    try:
        await get(folder, name)
        if name == "base":
            os.close(await folder.load_base(name))
            os.close(await folder.load_base_state(name))
    except HostFailure as error:
        return error.code
    return None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["base", "m1", "m2"])
async def test_one_flipped_bit_anywhere_is_found(folder: MemoryFolder, compressed: bool, name: str):
    """In every file of it: at the beginning, at the end, and at many places between."""
    rng = random.Random(f"{name} {compressed}")
    await put_base(folder)
    half = bytes(2048) + rng.randbytes(100) + bytes(1948)
    shared = {number: half[number:] + half[:number] for number in range(60, 75)}
    await put(folder, "m1", shared, STATE[:30_000] + b"one")
    await put(folder, "m2", {**shared, 9: half[50:] + half[:50]}, STATE[:40_000] + b"two")
    if compressed:
        assert await folder.compress("base") >= 0
        for each in ("m1", "m2"):
            await folder.compress(each)
    files = sorted(path for path in (folder.path / name).iterdir())
    assert any(path.name.endswith(".zst") for path in files) is (compressed and name != "base")
    for path in files:
        size = path.stat().st_size
        places = {0, 7, 8, 40, 44, size // 2, size - 1, *(rng.randrange(size) for _ in range(60))}
        for place in sorted(places):
            bit = rng.randrange(8)
            flip(path, place, bit)
            assert await code_of(folder, name) is Code.SNAPSHOT_CORRUPT, f"{path} {place}.{bit}"
            flip(path, place, bit)
    assert await code_of(folder, name) is None


async def test_a_compressed_base_is_as_good(folder: MemoryFolder):
    rng = random.Random(3)
    text = {number: (b"page %d " % number * 1000)[:PAGE] for number in range(600)}
    await folder.store_base("base", a_ram(text), SIZE, STATE)
    assert await folder.compress("base") > 500 * PAGE
    assert await folder.compress("base") == 0
    assert files_in(folder.path) == ["base", "base/about", "base/ram.zst"]
    assert take_all(await folder.load_base("base")) == ram_bytes(text)
    await folder.verify("base")
    await put(folder, "m", {4: text[4], 5: page("x")})
    assert (await get(folder, "m"))[0] == {5: page("x")}
    path = folder.path / "base" / "ram.zst"
    for _ in range(80):
        place = rng.randrange(path.stat().st_size)
        flip(path, place)
        assert await code_of(folder, "base") is Code.SNAPSHOT_CORRUPT, place
        flip(path, place)


async def test_compressing_shared_pages_frees_them_everywhere(folder: MemoryFolder):
    await put_base(folder)
    pages = {number: (b"text %d " % number * 1000)[:PAGE] for number in range(100, 164)}
    await put(folder, "m1", pages)
    await put(folder, "m2", {**pages, 9: page("x")})
    assert await folder.compress("m1") > 50 * PAGE
    assert sorted(path.name for path in (folder.path / "m2").iterdir()) == [
        "about", "m1.pages.zst", "m2.pages",
    ]  # fmt: skip
    folder.delete("m1")
    assert (await get(folder, "m2"))[0] == {**pages, 9: page("x")}
    assert folder.sizes("m2") == (folder.sizes("m2").own, 0)


@pytest.mark.parametrize("name", ["base", "m"])
@pytest.mark.parametrize("harm", ["gone", "short", "long", "empty", "link", "folder"])
async def test_files_that_are_not_whole_are_told(folder: MemoryFolder, name: str, harm: str):
    await put_base(folder)
    await put(folder, "m", {5: page("x")})
    for path in sorted((folder.path / name).iterdir()):
        kept = path.rename(folder.path.parent / "kept")
        content = kept.read_bytes()
        match harm:
            case "short":
                path.write_bytes(content[:-1])
            case "long":
                path.write_bytes(content + b"\0")
            case "empty":
                path.write_bytes(b"")
            case "link":
                path.symlink_to(kept)
            case "folder":
                path.mkdir()
        assert await code_of(folder, name) is Code.SNAPSHOT_CORRUPT, path
        path.rmdir() if harm == "folder" else path.unlink(missing_ok=True)
        kept.rename(path)
    assert await code_of(folder, name) is None


async def test_files_of_another_memory_are_told(folder: MemoryFolder):
    """Each is sound by itself, but they don't belong together."""
    await put_base(folder)
    await put(folder, "m1", {5: page("x")})
    await put(folder, "m2", {5: page("y")})
    os.replace(folder.path / "m2" / "m2.pages", folder.path / "m1" / "m1.pages")
    assert await code_of(folder, "m1") is Code.SNAPSHOT_CORRUPT


async def test_another_base_under_a_memory_is_told(folder: MemoryFolder):
    await put_base(folder)
    await put(folder, "m", {5: page("x")})
    await folder.store_base("other", a_ram(BASE), SIZE, bytes(len(STATE)))
    (folder.path / "base").rename(folder.path / "away")
    (folder.path / "other").rename(folder.path / "base")
    assert await code_of(folder, "m") is Code.SNAPSHOT_CORRUPT


async def test_a_memory_without_its_base_is_told(folder: MemoryFolder):
    await put_base(folder)
    await put(folder, "m", {5: page("x")})
    (folder.path / "base").rename(folder.path / "elsewhere")
    assert await code_of(folder, "m") is Code.SNAPSHOT_CORRUPT
    with pytest.raises(HostFailure):
        await put(folder, "m2", {})


@pytest.mark.parametrize("name", ["base", "m"])
async def test_random_rubbish_never_loads(folder: MemoryFolder, name: str):
    rng = random.Random(5)
    await put_base(folder)
    await put(folder, "m", {5: page("x"), 6: page(0)})
    for path in sorted((folder.path / name).iterdir()):
        content = path.read_bytes()
        path.chmod(0o600)
        for _ in range(30):
            hostile = bytearray(content)
            for _ in range(rng.randrange(1, 20)):
                place = rng.randrange(len(hostile))
                hostile[place] = (hostile[place] + rng.randrange(1, 256)) % 256
            path.write_bytes(hostile)
            if bytes(hostile) != content:
                assert await code_of(folder, name) is Code.SNAPSHOT_CORRUPT
        path.write_bytes(content)


# -- deleting, sweeping, sizes ---------------------------------------------------------------------


async def test_a_base_goes_last(folder: MemoryFolder):
    await put_base(folder)
    await put(folder, "m", {5: page("x")})
    for known in (folder, MemoryFolder(folder.path)):
        with pytest.raises(Conflict) as caught:
            known.delete_base("base")
        assert caught.value.code is Code.SNAPSHOT_STATE
    for _ in range(2):
        folder.delete("m")
        folder.delete_base("base")
    assert files_in(folder.path) == []


async def test_sweeping_takes_rubbish_and_strangers(folder: MemoryFolder):
    await put_base(folder)
    await put_base(folder, "base2")
    for name in ("m1", "m2"):
        await put(folder, name, {5: page(name)})
    for rubbish in (".new-1", ".gone-2"):
        (folder.path / rubbish).mkdir()
        (folder.path / rubbish / "ram").write_bytes(b"x")
    (folder.path / "m1" / ".m1.pages.new").write_bytes(b"half")
    (folder.path / "m1" / "m1.pages.zst").write_bytes(b"the plain one counts")
    assert folder.orphans({"m1"}) == ["base2", "m2"]
    again = MemoryFolder(folder.path)
    assert sorted(again.sweep()) == [".gone-2", ".new-1", "m1/.m1.pages.new", "m1/m1.pages.zst"]
    assert again.sweep({"m1"}, set()) == ["base2", "m2"]
    assert again.memories() | set(again.bases()) == {"m1", "base"}
    assert again.sweep(set(), set()) == ["base", "m1"]
    assert files_in(folder.path) == []


async def test_two_at_once_both_hold(folder: MemoryFolder):
    await asyncio.gather(*(put_base(folder) for _ in range(3)))
    pages = {number: page(number) for number in range(40)}
    await asyncio.gather(
        *(put(folder, f"m{index}", {**pages, index: page("own")}) for index in range(8)),
        *(get(folder, "base") for _ in range(4)),
    )
    for index in range(8):
        expected = ram_bytes({**BASE, **pages, index: page("own")})
        assert await whole(folder, f"m{index}") == expected
    assert sum(folder.sizes(f"m{index}").own for index in range(8)) < 100 * PAGE


# -- failing on the way ----------------------------------------------------------------------------


async def test_cancelling_leaves_nothing(folder: MemoryFolder):
    ram = a_ram({number: page(number) for number in range(600)})
    for turn in range(20):
        task = asyncio.create_task(folder.store_base("base", ram, SIZE, STATE))
        for _ in range(turn):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.wait([task])
        left = files_in(folder.path)
        assert left in ([], ["base", "base/about", "base/ram"])
        folder.delete("base")
    descriptors = len(os.listdir("/proc/self/fd"))
    await put_base(folder)
    for turn in range(20):
        loading = asyncio.create_task(folder.load_base("base"))
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        loading.cancel()
        await asyncio.wait([loading])
        if not loading.cancelled():
            os.close(loading.result())
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


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


@pytest.mark.parametrize("looks", [True, False])
async def test_a_full_disk_leaves_nothing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, looks: bool
):
    """Told beforehand, and also when it becomes full only on the way."""
    if not looks:
        monkeypatch.setattr("serai.disk.memory.check_room", lambda *_, **__: 0)
    folder = MemoryFolder(small_disk / "memory")
    await put_base(folder)
    before = files_in(folder.path)
    many = {number: page(number) for number in range(SIZE // PAGE)}
    (small_disk / "filler").write_bytes(bytes(2 * MIB))
    for work in (
        folder.store_base("b", a_ram(many), SIZE, STATE),
        put(folder, "m", many),
    ):
        with pytest.raises(HostFailure) as caught:
            await work
        assert caught.value.code is Code.DISK_FULL
        assert files_in(folder.path) == before
    (small_disk / "filler").unlink()
    await put(folder, "m", {5: page("x")})
    assert (await get(folder, "m"))[0] == {5: page("x")}


async def test_the_reserve_stays_free(tmp_path: Path):
    folder = MemoryFolder(tmp_path / "memory", reserve=1 << 60)
    with pytest.raises(HostFailure) as caught:
        await put_base(folder)
    assert caught.value.code is Code.DISK_FULL
    assert caught.value.details["reserve"] == str(1 << 60)
