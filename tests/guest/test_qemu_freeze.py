"""Freezing and forking with real QEMUs: whose pages are whose, and what is left when it fails."""

import asyncio
import dataclasses
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from freezing import (
    DISK,
    Family,
    Frozen,
    Moment,
    a_family,
    freeze_once,
    says,
    wait_for_disk,
)
from instances import SOON, UID, lasting_descriptors, own_descriptors, wait_event

from serai.errors import Code, HostFailure, SeraiError
from serai.host.pages import PAGE, numbers_of, pages_offset, read_numbers, runs_of
from serai.host.vm import read_memory_of, write_memory_of
from serai.qemu.instance import Instance, InstanceEventKind, RunState
from serai.qemu.memory import IS_WRITTEN, Ram, open_ram

FIRST = "head -c 6 /dev/vda"
WRITER = """i=0; while :; do i=$((i+1)); head -c 300000 /dev/urandom > /tmp/d$i
md5sum /tmp/d$i > /tmp/s; cat /tmp/s >> /tmp/sums; done"""
NOISE = "head -c 20000000 /dev/urandom > /tmp/noise"
# The one that runs the tests may stand where no other user can read it.
ANYBODYS_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable


def put(text: str, at: int = 0) -> str:
    """Return the script that writes a text to the disk, past every cache."""
    return f"printf {text} | dd of=/dev/vda bs=1 seek={at} conv=notrunc,fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches"


@pytest.fixture(scope="session")
def frozen(tiny_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frozen]:
    """A tiny guest as it was when it was frozen, for all tests: booting takes its time."""
    folder = tmp_path_factory.mktemp("frozen")
    with asyncio.Runner() as runner:
        kept = runner.run(freeze_once(tiny_state, folder))
    yield kept
    kept.close()


@pytest.fixture
async def family(tiny_state: Path, tmp_path: Path) -> AsyncIterator[Family]:
    before = own_descriptors()
    async with a_family(tiny_state, tmp_path) as made:
        yield made
    assert own_descriptors() == before
    assert not list(tmp_path.rglob("*.sock"))


def ram_of(instance: Instance) -> AbstractContextManager[Ram]:
    name = f"serai-ram-{instance.machine.ram}"
    return open_ram(instance.process.pid, name, instance.machine.memory)


def peek(ram: Ram, number: int) -> bytes:
    page = bytearray(PAGE)
    read_memory_of(ram.pid, array("Q", [ram.start + number * PAGE, PAGE]), page, PAGE)
    return bytes(page)


def poke(ram: Ram, number: int) -> None:
    pieces = array("Q", [ram.start + number * PAGE, PAGE])
    write_memory_of(ram.pid, pieces, bytearray(b"\xa5" * PAGE), PAGE)


# -- memory ----------------------------------------------------------------------------------------


async def test_neither_side_sees_what_the_other_writes(family: Family) -> None:
    source = await family.boot()
    await says(source, "echo before > /mark")
    source = await family.freeze_shared(source)
    assert await says(source, "cat /mark; echo source > /mark") == "before"
    one, two = await asyncio.gather(family.fork(None, 1), family.fork(None, 2))
    assert await says(one, "cat /mark; echo one > /mark") == "before"
    assert await says(two, "cat /mark; echo two > /mark") == "before"
    three = await family.fork(None, 3)
    assert await says(three, "cat /mark") == "before"
    assert [await says(each, "cat /mark") for each in (source, one, two)] == [
        "source",
        "one",
        "two",
    ]


async def test_a_fork_of_a_fork_of_a_fork(frozen: Frozen, family: Family) -> None:
    guest = await family.take_up(frozen)
    for depth in range(4):
        script = f"echo {depth} >> /marks; sha256sum /bin/busybox > /tmp/{depth}; cat /marks"
        told = await says(guest, script)
        assert told.split() == [str(each) for each in range(depth + 1)]
        moment = await family.freeze_private(guest)
        guest = await family.fork(moment, depth + 1)
        assert await says(guest, "cat /tmp/* | sort -u | wc -l") == "1"
    assert not guest.last_words()


async def test_a_burst_in_the_guest_survives_many_moments(frozen: Frozen, family: Family) -> None:
    """Something computes and writes all the time; each moment of it goes on by itself."""
    guest = await family.take_up(frozen)
    await says(
        guest,
        "i=0; (while :; do i=$((i+1)); echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; done) >/dev/null 2>&1 &",
    )
    forks = []
    for number in range(3):
        moment = await family.freeze_private(guest)
        forks.append(await family.fork(moment, number + 1))
    for each in (guest, *forks):
        before = int(await says(each, "cat /tmp/n"))
        await asyncio.sleep(0.3)
        assert int(await says(each, "cat /tmp/n")) > before


async def test_changed_pages_are_found_exactly(frozen: Frozen, family: Family) -> None:
    source = await family.take_up(frozen)
    await source.hold()
    with ram_of(source) as ram:
        before = set(numbers_of(ram.changed()))
        wanted = {7, 8, 9, 4096, 30_000, ram.pages - 1} - before
        for number in wanted:
            poke(ram, number)
        assert set(numbers_of(ram.changed())) == before | wanted
        assert list(ram._read_pagemap()) == ram.changed() == runs_of(numbers_of(ram.changed()))
        untouched = set(range(ram.pages)) - before - wanted
        for number in [*sorted(untouched)[::977], *before]:
            mine = peek(ram, number)
            differs = mine != os.pread(family.base, PAGE, number * PAGE)
            assert not differs or number in before


async def test_a_page_set_holds_what_the_memory_holds(frozen: Frozen, family: Family) -> None:
    source = await family.take_up(frozen)
    await says(source, "head -c 8000000 /dev/urandom > /tmp/noise")
    moment = await family.freeze_private(source)
    fork = await family.prepare(
        dataclasses.replace(family.machine, id="0a1b2c3d-0000-4000-8000-00000000000f"),
        family.base,
        1,
    )
    await fork.take_state(moment.state_fd, moment.pages_fd, SOON)
    assert moment.pages_fd is not None
    numbers = read_numbers(moment.pages_fd, pages=family.machine.memory // PAGE)
    assert len(numbers) > 8_000_000 // PAGE
    same = 0
    with ram_of(fork) as ram:
        for index, number in enumerate(numbers):
            stored = os.pread(moment.pages_fd, PAGE, pages_offset(len(numbers)) + index * PAGE)
            same += stored == peek(ram, number)
    assert same > len(numbers) - 20  # loading the devices tells the guest of its new id


async def test_what_is_written_while_it_is_saved_is_not_lost(
    frozen: Frozen, family: Family
) -> None:
    """A guest writes files, and what must be in each, all the time; a moment of it has all of it."""
    source = await family.take_up(frozen)
    await says(source, NOISE)
    await says(source, f"({WRITER}) >/dev/null 2>&1 & echo $! > /tmp/writer")
    for number in range(1, 4):
        await says(source, f"until [ $(cat /tmp/sums | wc -l) -ge {number} ]; do sleep 0.1; done")
        moment = await family.freeze_private(source)
        fork = await family.fork(moment, number)
        await says(fork, "kill $(cat /tmp/writer)")
        assert await says(fork, "md5sum -c /tmp/sums | grep -vc OK || true") == "0"
        assert await says(fork, "md5sum /tmp/noise") == await says(source, "md5sum /tmp/noise")
        assert int(await says(fork, "wc -l < /tmp/sums")) >= number
        await family.end(fork)


async def test_few_pages_are_left_for_when_it_is_held(frozen: Frozen, family: Family) -> None:
    source = await family.take_up(frozen)
    await says(source, NOISE)
    async with source.saving(SOON) as saving:
        await saving.catch_up()
        await source.hold()
        assert saving._ahead.begun
        with ram_of(source) as ram:
            rest = set(numbers_of(list(ram._scan(also=IS_WRITTEN))))
            wanted = {7, 8, 9, 4096, 30_000, ram.pages - 1}
            for number in wanted:
                poke(ram, number)
            assert set(numbers_of(list(ram._scan(also=IS_WRITTEN)))) == rest | wanted
            assert len(rest) < len(numbers_of(ram.changed())) / 2
            pages_fd = family.memfd("pages")
            await saving.take(pages_fd)
            held = {number: peek(ram, number) for number in numbers_of(ram.changed())}
        await saving.finish(family.base_state, family.memfd("state"), pages_fd)
    numbers = read_numbers(pages_fd, pages=family.machine.memory // PAGE)
    assert list(numbers) == sorted(held)
    for index, number in enumerate(numbers):
        stored = os.pread(pages_fd, PAGE, pages_offset(len(numbers)) + index * PAGE)
        assert stored == held[number], number


async def test_freezing_often_leaves_nothing_open(frozen: Frozen, family: Family) -> None:
    source = await family.take_up(frozen)

    def opened() -> list[str]:
        return lasting_descriptors(source.process.pid)

    await family.freeze_private(source)
    before = opened(), len(own_descriptors())
    for _ in range(3):
        moment = await family.freeze_private(source)
        os.close(moment.state_fd)
        os.close(moment.pages_fd or -1)
        family._fds = family._fds[:-2]
    assert (opened(), len(own_descriptors())) == before
    await source.hold()
    for _ in range(3):
        await source.screenshot()
    await source.go_on()
    assert opened() == before[0]


async def test_many_forks_from_one_descriptor_at_once(frozen: Frozen, family: Family) -> None:
    source = await family.take_up(frozen)
    await says(source, "echo shared > /mark")
    moment = await family.freeze_private(source)
    forks = await asyncio.gather(*(family.fork(moment, number) for number in range(1, 9)))
    told = await asyncio.gather(*(says(each, "cat /mark") for each in forks))
    assert told == ["shared"] * 8


async def test_a_sealed_base_can_be_mapped_but_not_written_by_another_user(
    frozen: Frozen, family: Family
) -> None:
    if not family.host.capabilities.privileged:
        pytest.skip("needs another user")
    await family.take_up(frozen)
    before = os.pread(family.base, 1 << 20, 0)
    script = """
import mmap, os, sys
fd = os.open(f"/proc/self/fd/{sys.argv[1]}", os.O_RDWR)
private = mmap.mmap(fd, 1 << 20, flags=mmap.MAP_PRIVATE)
private[:4] = b"mine"
refused = 0
for attempt in (
    lambda: mmap.mmap(fd, 1 << 20, flags=mmap.MAP_SHARED),
    lambda: os.pwrite(fd, b"x", 0),
    lambda: os.truncate(fd, 1),
    lambda: os.posix_fallocate(fd, 0, 1 << 40),
    lambda: os.fchmod(fd, 0o600),
):
    try:
        attempt()
    except OSError:
        refused += 1
print(os.geteuid(), refused)
"""
    done = subprocess.run(
        [ANYBODYS_PYTHON, "-c", script, str(family.base)],
        pass_fds=(family.base,),
        user=UID + 9,
        group=UID + 9,
        extra_groups=(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(UID + 9), "5"], done.stderr
    assert os.pread(family.base, 1 << 20, 0) == before


async def test_a_fork_can_give_no_memory_back_to_the_base(frozen: Frozen, family: Family) -> None:
    """The guest's balloon punches holes into its memory's file; into a base it must not."""
    source = await family.take_up(frozen)
    fork = await family.fork(None)
    await says(fork, "mount -t tmpfs x /mnt; head -c 40000000 /dev/urandom > /mnt/a; rm /mnt/a")
    blocks = os.fstat(family.base).st_blocks
    await fork.set_balloon(family.machine.memory // 2)
    await asyncio.sleep(2.5)  # the guest reports free pages every 2 s (mm/page_reporting.c)
    assert os.fstat(family.base).st_blocks >= blocks
    assert await says(source, "sha256sum /bin/busybox") == await says(
        await family.fork(None, 2), "sha256sum /bin/busybox"
    )


# -- disks -----------------------------------------------------------------------------------------


async def test_disks_on_both_sides_of_the_moment(family: Family) -> None:
    """The second QEMU is prepared while the first one still writes; a third reads the layer."""
    disk = family.disk()
    source = await wait_for_disk(await family.boot(drives=(disk,)))
    await says(source, put("first."))
    old = dataclasses.replace(disk.chain[0], read_only=True)
    upcoming = dataclasses.replace(disk, chain=(family.head("root"), old))
    family.base = source.memory_fd()
    family._fds.append(family.base)
    family.base_state = family.memfd("base state")
    second = await family.prepare(
        dataclasses.replace(source.machine, drives=(upcoming,)), family.base
    )
    await says(source, put("second"))
    await says(
        source,
        "head -c 3000000 /dev/urandom > /tmp/n; dd if=/tmp/n of=/dev/vda bs=64k seek=64 conv=fsync 2>/dev/null",
    )
    digest = (
        "echo 3 > /proc/sys/vm/drop_caches; tail -c +4194305 /dev/vda | head -c 3000000 | sha256sum"
    )
    noise = await says(source, digest)
    await source.freeze_shared(family.base_state, SOON)
    await second.take_state(family.base_state, None, SOON)
    await second.go_on()
    await family.end(source)
    assert await says(second, FIRST) == "second"
    assert await says(second, digest) == noise
    await says(second, put("third."))
    fork = await family.fork(None, drives=(family.disk(old),))
    assert await says(fork, digest) == noise
    assert await says(fork, FIRST) == "second"
    await says(fork, put("fourth"))
    assert await says(second, FIRST) == "third."
    assert not second.last_words() + fork.last_words()


async def test_heads_are_switched_at_one_moment(family: Family) -> None:
    disks = (family.disk(), family.disk(name="data1"))
    source = await family.freeze_shared(await wait_for_disk(await family.boot(drives=disks)))
    await says(source, put("before"))
    heads = {"root": family.head("root"), "data1": family.head("data1")}
    olds = [drive.chain[0] for drive in source.machine.drives]
    moment = await family.freeze_private(source, heads)
    assert await source.active_nodes() == {name: head.node for name, head in heads.items()}
    assert [drive.chain[0] for drive in source.machine.drives] == list(heads.values())
    assert [drive.chain[1].node for drive in source.machine.drives] == [old.node for old in olds]
    assert all(drive.chain[1].read_only for drive in source.machine.drives)
    frozen = [Path(old.path).read_bytes() for old in olds]
    await says(source, put("after."))
    layers = [dataclasses.replace(old, read_only=True) for old in olds]
    fork = await family.fork(
        moment, drives=(family.disk(layers[0]), family.disk(layers[1], name="data1"))
    )
    assert await says(fork, FIRST) == "before"
    await says(fork, put("forked"))
    assert await says(source, FIRST) == "after."
    assert [Path(old.path).read_bytes() for old in olds] == frozen
    locked = subprocess.run(["qemu-img", "info", olds[0].path], capture_output=True)
    assert locked.returncode == 0, "QEMU has let go of the old head"
    await source.resize_drive("root", 2 * DISK)
    assert await says(source, "blockdev --getsize64 /dev/vda") == str(2 * DISK)


async def test_heads_are_switched_many_times_under_load(family: Family) -> None:
    guest = await wait_for_disk(await family.boot(drives=(family.disk(),)))
    await says(
        guest,
        "(i=0; while :; do i=$((i+1)); printf '%06d' $i | dd of=/dev/vda bs=1 conv=notrunc,fsync 2>/dev/null; done) >/dev/null 2>&1 &",
    )
    for _ in range(5):
        before = int(await says(guest, "echo 3 > /proc/sys/vm/drop_caches; " + FIRST))
        await guest.switch_heads({"root": family.head("root")})
        after = int(await says(guest, "echo 3 > /proc/sys/vm/drop_caches; " + FIRST))
        assert after >= before > 0
    assert len(guest.machine.drives[0].chain) == 6


@pytest.mark.parametrize(
    "damage", ["a second head is none", "a second head is missing", "a name is taken"]
)
async def test_a_switch_that_fails_changes_nothing(family: Family, damage: str) -> None:
    disks = (family.disk(), family.disk(name="data1"))
    guest = await wait_for_disk(await family.boot(drives=disks))
    await says(guest, put("before"))
    before = (
        guest.machine,
        await guest.active_nodes(),
        lasting_descriptors(guest.process.pid),
    )
    heads = {"root": family.head("root"), "data1": family.head("data1")}
    broken = Path(heads["data1"].path)
    if damage == "a second head is none":
        broken.write_bytes(b"no image" * 1000)
    elif damage == "a second head is missing":
        broken.unlink()
    else:
        heads["root"] = dataclasses.replace(
            heads["root"], node=guest.machine.drives[0].chain[0].node
        )
    with pytest.raises(HostFailure):
        await guest.switch_heads(heads)
    assert (guest.machine, await guest.active_nodes()) == before[:2]
    assert lasting_descriptors(guest.process.pid) == before[2]
    await says(guest, put("still."))
    assert await says(guest, FIRST) == "still."
    good = {"root": family.head("root"), "data1": family.head("data1")}
    await guest.switch_heads(good)
    assert await says(guest, FIRST) == "still."


# -- what goes wrong -------------------------------------------------------------------------------


async def test_the_first_goes_on_when_the_second_fails(family: Family) -> None:
    disk = family.disk()
    source = await wait_for_disk(await family.boot(drives=(disk,)))
    state_fd = family.memfd("state")
    await source.freeze_shared(state_fd, SOON)
    assert await source.status() is RunState.PAUSED
    await source.go_on()
    await says(source, put("going."))
    assert await says(source, FIRST) == "going."
    source = await family.freeze_shared(source)
    assert await says(source, FIRST) == "going."
    fork = await family.fork(None, drives=(family.disk(),))
    assert await says(fork, "echo there") == "there"


@pytest.mark.parametrize("cut", [0, 100, 400_000, -3])
async def test_a_state_that_is_none_is_refused_with_qemus_words(
    frozen: Frozen, family: Family, cut: int
) -> None:
    await family.take_up(frozen)
    state = os.pread(family.base_state, 1 << 22, 0)
    state_fd = family.memfd("cut")
    os.write(state_fd, state[:cut])
    with pytest.raises(HostFailure) as caught:
        await family.fork(Moment(state_fd, None))
    assert caught.value.code is Code.SNAPSHOT_UNFIT
    assert caught.value.details["stderr"]


async def test_a_state_of_another_machine_is_refused(family: Family) -> None:
    await family.freeze_shared(await family.boot(drives=(family.disk(),)))
    with pytest.raises(HostFailure, match="can't take the guest's state up") as caught:
        await family.fork(None)
    assert caught.value.code is Code.SNAPSHOT_UNFIT


async def test_damaged_pages_are_refused_before_anything_is_written(
    frozen: Frozen, family: Family
) -> None:
    source = await family.take_up(frozen)
    moment = await family.freeze_private(source)
    assert moment.pages_fd is not None
    os.pwrite(moment.pages_fd, b"\xff\xff\xff\xff", 20)
    with pytest.raises(HostFailure) as caught:
        await family.fork(moment)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT


@pytest.mark.parametrize("step", ["ahead", "begun", "held", "taken"])
async def test_one_that_dies_while_it_is_saved(frozen: Frozen, family: Family, step: str) -> None:
    source = await family.take_up(frozen)
    await says(source, NOISE)

    async def save() -> None:
        if step == "ahead":
            os.kill(source.process.pid, 9)
        async with source.saving(SOON) as saving:
            if step == "begun":
                os.kill(source.process.pid, 9)
            await saving.catch_up()
            await source.hold()
            if step == "held":
                os.kill(source.process.pid, 9)
            await saving.take(family.memfd("pages"))
            os.kill(source.process.pid, 9)
            await saving.finish(family.base_state, family.memfd("state"), family._fds[-2])

    if step == "taken":
        await save()
    else:
        with pytest.raises(SeraiError):
            await save()
    assert await says(await family.fork(None), "echo there") == "there"


@pytest.mark.parametrize("step", range(4))
async def test_killed_at_each_step_the_rest_is_well(family: Family, step: int) -> None:
    """The second QEMU dies: before, while or after it takes the state up; the first goes on."""
    source = await family.boot()
    base, state_fd = source.memory_fd(), family.memfd("state")
    family._fds.append(base)
    second = await family.prepare(source.machine, base)
    if step == 0:
        os.kill(second.process.pid, 9)
    await source.freeze_shared(state_fd, SOON)
    if step == 1:
        os.kill(second.process.pid, 9)
    if step < 3:
        taking = asyncio.ensure_future(second.take_state(state_fd, None, SOON))
        if step == 2:
            await asyncio.sleep(0.001)
            os.kill(second.process.pid, 9)
        done = await asyncio.gather(taking, return_exceptions=True)
        assert step == 2 or isinstance(done[0], Exception)
    await family.end(second)
    await source.go_on()
    assert await says(source, "echo on") == "on"


async def test_a_fork_that_resets_itself_asks_to_be_started(frozen: Frozen, family: Family) -> None:
    await family.take_up(frozen)
    fork = await family.fork(None)
    await says(fork, "setsid sh -c 'sleep 0.2; reboot -f' < /dev/null > /dev/null 2>&1 &")
    await wait_event(fork, InstanceEventKind.RESTART_WANTED)
    assert await fork.status() is RunState.POWERED_OFF


async def test_a_waiting_one_says_so(family: Family) -> None:
    source = await family.boot()
    base = source.memory_fd()
    family._fds.append(base)
    second = await family.prepare(source.machine, base)
    assert await second.status() is RunState.WAITING
    assert second.agent.wire.is_prepared()


async def test_an_exec_goes_on_across_the_change_of_qemus(family: Family) -> None:
    source = await family.boot()
    slow = asyncio.ensure_future(says(source, "sleep 1; echo done"))
    await asyncio.sleep(0.3)
    source = await family.freeze_shared(source)
    assert await slow == "done"
    assert await says(source, "echo on") == "on"
