"""Starting a blank QEMU: what it is given, what it may, what is left, how many at once."""

import asyncio
import dataclasses
import os
import stat
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import (
    Host,
    descriptors_of,
    find_host,
    lasting_descriptors,
    memory_file,
    own_children,
    own_descriptors,
    wait_event,
)

from serai.errors import Code, HostFailure
from serai.host.supervise import wait_until
from serai.model.guest import Firmware
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Machine, Media
from serai.qemu.instance import Instance, InstanceEventKind, RunState
from serai.units import MIB

NASTY = "a,b=c,,d \"e\" 'f' \n \\ é \u2028 😀 -x"
AT_ONCE = 40
CYCLES = 100


@pytest.fixture
async def host(tiny_state: Path, tmp_path: Path) -> Host:
    return await find_host(tiny_state, tmp_path)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def a_disk(path: Path, size: int = 16 * MIB) -> Drive:
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
    subprocess.run(argv, check=True)
    layer = LayerFile(path=str(path), format=DiskFormat.QCOW2, read_only=False)
    return Drive(name="root", media=Media.DISK, chain=(layer,), boot_index=1, serial=NASTY[:15])


# -- what it is given and what it may --------------------------------------------------------------


async def test_it_runs_when_start_returns(host: Host) -> None:
    async with host.started() as instance:
        assert await instance.status() is RunState.RUNNING
        await instance.hold()
        assert await instance.status() is RunState.PAUSED
        assert (await wait_event(instance, InstanceEventKind.STOPPED)).detail == ""
        await instance.go_on()
        assert await instance.status() is RunState.RUNNING
        await wait_event(instance, InstanceEventKind.RESUMED)


async def test_it_has_no_rights(host: Host) -> None:
    async with host.started() as instance:
        status = status_of(instance.process.pid)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        if host.uid is not None:
            assert status["Uid"].split() == [str(host.uid)] * 4
            assert status["Gid"].split() == [str(host.uid)] * 4
            assert status["Groups"].strip() == ""
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, name


async def test_it_has_only_what_was_opened_for_it(host: Host) -> None:
    drive = a_disk(host.folder / "disks" / "root.qcow2")
    async with host.started(drives=(drive,)) as instance:
        files = {name for name in lasting_descriptors(instance.process.pid) if name.startswith("/")}
        ours = {name for name in files if name.startswith(str(host.folder))}
        assert ours == {
            drive.chain[0].path,
            f"{host.state_dir}/serial.log",
            f"{host.state_dir}/qemu.log",
        }
        memory = f"/memfd:serai-ram-{host.machine.id} (deleted)"
        badge = f"/memfd:serai-{host.machine.id} (deleted)"
        assert files - ours <= {memory, badge, "/dev/null", "/dev/urandom", "/dev/kvm"}
        assert {memory, badge} <= files


async def test_our_folders_stay_closed(host: Host) -> None:
    async with host.started():
        for folder in (host.folder, host.run_dir, host.state_dir):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in [*host.run_dir.iterdir(), *host.state_dir.iterdir()]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_memory_is_one_shared_file_of_its_own(host: Host) -> None:
    async with host.started() as instance:
        pid = instance.process.pid
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        (line,) = [line for line in maps if "/memfd:serai-ram-" in line]
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        assert end - begin == host.machine.memory
        assert line.split()[1] == "rw-s", "shared, not private"
        facts = memory_file(pid)
        assert (stat.S_IMODE(facts.st_mode), facts.st_size) == (0o600, host.machine.memory)
        assert facts.st_uid == (os.geteuid() if host.uid is None else host.uid)


async def test_firmware_runs_and_the_screen_shows_it(host: Host) -> None:
    async with host.started() as instance:
        pictures: list[bytes] = []

        async def shows_text() -> bool:
            pictures.append(await instance.screenshot())
            return lit_pixels(pictures[-1]) > 500

        await wait_until("text of SeaBIOS", shows_text, timeout=20.0, every=0.2)
        before = lasting_descriptors(instance.process.pid)
        for _ in range(5):
            await instance.screenshot()
        assert lasting_descriptors(instance.process.pid) == before


def lit_pixels(png: bytes) -> int:
    """Count the pixels of a PNG that are not black (8-bit RGB, as QEMU writes it; RFC 2083)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks = dict[bytes, bytes]()
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name = png[at + 4 : at + 8]
        chunks[name] = chunks.get(name, b"") + png[at + 8 : at + 8 + size]
        at += size + 12
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 2)
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (1 + 3 * width)
    return len(raw) - raw.count(0)


async def test_uefi_finds_its_variables_and_writes_them(host: Host) -> None:
    capabilities = host.capabilities
    if not capabilities.uefi_code:
        pytest.skip("this host has no UEFI firmware")
    variables = host.folder / "uefi-vars.fd"
    variables.write_bytes(Path(capabilities.uefi_vars).read_bytes())
    before = variables.read_bytes()
    async with host.started(
        firmware=Firmware.UEFI, uefi_code=capabilities.uefi_code, uefi_vars=str(variables)
    ):
        await wait_until(
            "the firmware's first write",
            lambda: variables.read_bytes() != before,
            timeout=60.0,
            every=0.2,
        )


async def test_nasty_strings_arrive_as_they_are(host: Host) -> None:
    drive = a_disk(host.folder / NASTY.replace("/", "") / "a,b=c.qcow2")
    nested = dataclasses.replace(host, folder=host.folder / NASTY)
    nested.run_dir.mkdir(mode=0o700, parents=True)
    nested.state_dir.mkdir(mode=0o700)
    async with nested.started(name=NASTY, drives=(drive,)) as instance:
        monitor = await instance._connected(5.0)
        assert await monitor.execute("query-name", timeout=5) == {"name": NASTY}
        blocks = await monitor.execute("query-named-block-nodes", timeout=5)
        assert isinstance(blocks, list)
        assert {"root"} <= {block["node-name"] for block in blocks}
        assert await instance.status() is RunState.RUNNING


async def test_a_path_longer_than_a_socket_address(host: Host) -> None:
    deep = dataclasses.replace(host, folder=host.folder / ("x" * 120))
    deep.run_dir.mkdir(mode=0o700, parents=True)
    deep.state_dir.mkdir(mode=0o700)
    async with deep.started() as instance:
        assert await instance.status() is RunState.RUNNING
        _, writer = await instance.open_console()
        writer.close()


async def test_a_drive_grows_while_it_runs(host: Host) -> None:
    drive = a_disk(host.folder / "root.qcow2", 16 * MIB)
    async with host.started(drives=(drive,)) as instance:
        await instance.resize_drive("root", 64 * MIB)
    told = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", drive.chain[0].path], capture_output=True, check=True
    )
    assert b"64 MiB" in told.stdout


# -- failing ---------------------------------------------------------------------------------------


@pytest.fixture
def nothing_left(host: Host) -> Iterator[None]:
    before = own_descriptors()
    yield
    assert own_descriptors() == before
    assert list(host.run_dir.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
async def test_qemus_own_words_tell_why_it_did_not_start(host: Host) -> None:
    with pytest.raises(HostFailure, match="unsupported machine type") as caught:
        await host.start(dataclasses.replace(host.machine, machine_type="pc-q35-99.9"))
    assert caught.value.code is Code.GUEST_START_FAILED
    assert "machine help" in caught.value.details["stderr"]


@pytest.mark.usefixtures("nothing_left")
async def test_a_head_that_is_none_is_refused(host: Host) -> None:
    drive = a_disk(host.folder / "root.qcow2")
    Path(drive.chain[0].path).write_bytes(b"no image" * 1000)
    with pytest.raises(HostFailure, match="not in qcow2 format"):
        await host.start(dataclasses.replace(host.machine, drives=(drive,)))


@pytest.mark.usefixtures("nothing_left")
async def test_a_backing_file_that_an_image_names_is_not_opened(host: Host) -> None:
    secret = host.folder / "secret.raw"
    secret.write_bytes(b"s" * MIB)
    head = host.folder / "head.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", head], check=True
    )
    layer = LayerFile(path=str(head), format=DiskFormat.QCOW2, read_only=False)
    drive = Drive(name="root", media=Media.DISK, chain=(layer,), boot_index=1)
    async with host.started(drives=(drive,)) as instance:
        assert str(secret) not in descriptors_of(instance.process.pid).values()
        monitor = await instance._connected(5.0)
        nodes = await monitor.execute("query-named-block-nodes", timeout=5)
        assert isinstance(nodes, list)
        assert [node["node-name"] for node in nodes if node["drv"] == "raw"] == []


# -- many ------------------------------------------------------------------------------------------


def number(machine: Machine, index: int) -> Machine:
    return dataclasses.replace(machine, id=f"0a1b2c3d-0000-4000-8000-{index:012}", name=f"g{index}")


async def test_forty_at_once(host: Host) -> None:
    hosts = [dataclasses.replace(host, folder=host.folder / str(index)) for index in range(AT_ONCE)]
    for each in hosts:
        each.run_dir.mkdir(mode=0o700, parents=True)
        each.state_dir.mkdir(mode=0o700)
    before = own_descriptors()
    instances: list[Instance] = []
    try:
        instances += await asyncio.gather(
            *(each.start(number(each.machine, index)) for index, each in enumerate(hosts))
        )
        states = await asyncio.gather(*(instance.status() for instance in instances))
        assert set(states) == {RunState.RUNNING}
        assert len({instance.process.pid for instance in instances}) == AT_ONCE
    finally:
        await asyncio.gather(*(instance.end(10.0) for instance in instances))
        await asyncio.gather(*(instance.close() for instance in instances))
    assert own_descriptors() == before


async def test_a_hundred_cycles_leak_nothing(host: Host) -> None:
    async def cycle() -> None:
        instance = await host.start()
        await instance.end(5.0)
        await instance.close()

    await cycle()
    before = (own_descriptors(), asyncio.all_tasks(), threading.active_count())
    children, files = own_children(), sorted(host.folder.rglob("*"))
    for _ in range(CYCLES):
        await cycle()
    assert (own_descriptors(), asyncio.all_tasks(), threading.active_count()) == before
    assert sorted(host.folder.rglob("*")) == files
    assert (host.state_dir / "qemu.log").stat().st_size < 10_000
    assert own_children() == children
