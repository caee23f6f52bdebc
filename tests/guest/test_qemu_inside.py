"""Inside a booted guest: commands and files through the agent, the console, CPUs, memory, disks."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from instances import (
    SOON,
    Host,
    find_host,
    memory_file,
    ping,
    tiny_machine,
    wait_event,
    wait_inside,
)

from serai.errors import Busy, Code, Interrupted, Invalid, NotFound
from serai.host.supervise import wait_until
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Media
from serai.model.talk import ExecRequest, ExecResult
from serai.qemu.instance import Instance, InstanceEventKind, RunState
from serai.units import MIB

pytestmark = pytest.mark.asyncio(loop_scope="module")

NASTY_FILE = "/root/a,b=c \"d\" 'e'\n-x é😀\\"
LOWERED = 160 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_host(tiny_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return await find_host(tiny_state, tmp_path_factory.mktemp("shared"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inside(shared_host: Host, tiny_state: Path) -> AsyncIterator[Instance]:
    """A guest for tests that leave it as it was."""
    machine = tiny_machine(shared_host, tiny_state, memory=256 * MIB)
    async with shared_host.started(machine) as instance:
        yield await wait_inside(instance)


@pytest_asyncio.fixture(loop_scope="module")
async def host(tiny_state: Path, tmp_path: Path) -> Host:
    return await find_host(tiny_state, tmp_path)


async def sh(instance: Instance, script: str, **more: object) -> ExecResult:
    return await instance.agent.execute(
        ExecRequest(argv=["sh", "-c", script], **more)  # type: ignore[arg-type]
    )


async def says(instance: Instance, script: str) -> str:
    result = await sh(instance, script)
    assert result.code == 0, result
    return result.stdout.decode().strip()


# -- commands --------------------------------------------------------------------------------------


async def test_what_a_command_gets_and_gives(inside: Instance) -> None:
    result = await sh(inside, "cat; echo err >&2; exit 7", stdin=b"in\0\xff\n")
    assert (result.code, result.stdout, result.stderr) == (7, b"in\0\xff\n", b"err\n")
    assert not result.truncated


async def test_arguments_arrive_as_they_are(inside: Instance) -> None:
    words = ["", " ", "a b", "$HOME", "*", "'", '"', "\\", "\n", "é😀", "--", "-x"]
    argv = ["sh", "-c", 'for word; do printf "%s\\0" "$word"; done', "sh", *words]
    result = await inside.agent.execute(ExecRequest(argv=argv))
    assert result.stdout.decode().split("\0") == [*words, ""]


async def test_a_signal(inside: Instance) -> None:
    assert (await sh(inside, "kill -9 $$")).code == 137


async def test_variables(inside: Instance) -> None:
    result = await sh(inside, 'echo "$A|$PATH"', env={"A": "b=c,d"})
    assert result.stdout.startswith(b"b=c,d|/usr/local/sbin:")


async def test_what_is_not_there(inside: Instance) -> None:
    with pytest.raises(Invalid, match="No such file") as caught:
        await inside.agent.execute(ExecRequest(argv=["/nowhere"]))
    assert caught.value.code is Code.EXEC_FAILED


async def test_a_command_longer_than_a_guest_takes(inside: Instance) -> None:
    with pytest.raises(Invalid) as caught:
        await inside.agent.execute(ExecRequest(argv=["echo", "x" * 200_000]))
    assert caught.value.code is Code.EXEC_FAILED


async def test_a_command_that_takes_too_long(inside: Instance) -> None:
    with pytest.raises(Interrupted) as caught:
        await sh(inside, "exec sleep 30", timeout=0.5)
    assert caught.value.code is Code.AGENT_TIMEOUT
    assert await says(inside, "pidof sleep && kill $(pidof sleep)")


@pytest.mark.parametrize("size", [262_144, 262_145, 3 * MIB])
async def test_input_of_any_size(inside: Instance, size: int) -> None:
    data = random.Random(size).randbytes(size)
    result = await sh(inside, "sha256sum", stdin=data)
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert await says(inside, "ls -A /tmp") == ""


async def test_output_is_whole_up_to_the_agents_limit(inside: Instance) -> None:
    result = await sh(inside, "head -c 3000000 /dev/zero; head -c 1000000 /dev/zero >&2")
    assert (len(result.stdout), len(result.stderr)) == (3_000_000, 1_000_000)
    assert not result.truncated


async def test_output_beyond_the_agents_limit_is_cut_and_said_so(inside: Instance) -> None:
    result = await sh(inside, "head -c 17000000 /dev/zero")
    assert len(result.stdout) == 16 * MIB
    assert result.truncated


async def test_many_commands_at_once(inside: Instance) -> None:
    results = await asyncio.gather(*(says(inside, f"echo {number}") for number in range(10)))
    assert results == [str(number) for number in range(10)]


# -- files -----------------------------------------------------------------------------------------


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_file_with_a_nasty_name_there_and_back(inside: Instance) -> None:
    data = random.Random(1).randbytes(700_000)
    await inside.agent.write_file(NASTY_FILE, one(data), mode=0o640)
    listed = await inside.agent.execute(ExecRequest(argv=["stat", "-c", "%a %s", NASTY_FILE]))
    assert listed.stdout == b"640 700000\n"
    got = b"".join([chunk async for chunk in inside.agent.read_file(NASTY_FILE)])
    assert got == data
    await inside.agent.execute(ExecRequest(argv=["rm", NASTY_FILE]))


@pytest.mark.parametrize("path", ["/nowhere/file", "/", "/proc/self/nothing"])
async def test_a_place_where_no_file_can_be(inside: Instance, path: str) -> None:
    with pytest.raises(NotFound) as caught:
        await inside.agent.write_file(path, one(b"x"), mode=None)
    assert caught.value.code is Code.FILE_FAILED
    with pytest.raises(NotFound):
        [chunk async for chunk in inside.agent.read_file(path)]


async def test_a_full_file_system_is_an_error(inside: Instance) -> None:
    await says(inside, "mkdir -p /mnt/small && mount -t tmpfs -o size=64k small /mnt/small")
    with pytest.raises(NotFound, match="space") as caught:
        await inside.agent.write_file("/mnt/small/f", one(b"x" * 300_000), mode=None)
    assert caught.value.code is Code.FILE_FAILED
    await says(inside, "umount /mnt/small")


# -- around it -------------------------------------------------------------------------------------


async def test_network_addresses(inside: Instance) -> None:
    async def has_lease() -> bool:
        found = await inside.agent.interfaces(timeout=SOON)
        by_mac = {each.hardware_address: each.ip_addresses for each in found}
        return "10.0.2.15" in {each.ip_address for each in by_mac["52:54:00:00:00:01"]}

    await wait_until("the lease", has_lease, timeout=30.0, every=0.2)


async def test_the_console_is_written_and_read_and_logged(
    inside: Instance, shared_host: Host
) -> None:
    reader, writer = await inside.open_console()
    async with asyncio.timeout(SOON):
        writer.write(b"\n")
        await reader.readuntil(b"# ")
        writer.write(b"echo $((6 * 7))!\n")
        await reader.readuntil(b"42!")
    writer.close()
    # QEMU writes the log after it has written to whoever reads the console.
    await wait_until("the log", lambda: "42!" in shared_host.serial_log(), timeout=SOON, every=0.01)


async def test_a_shortened_log_has_no_hole(inside: Instance, shared_host: Host) -> None:
    os.truncate(shared_host.state_dir / "serial.log", 0)
    await says(inside, "echo after > /dev/ttyS0")
    await wait_until(
        "the log", lambda: "after" in shared_host.serial_log(), timeout=SOON, every=0.05
    )
    assert "\0" not in shared_host.serial_log()


async def test_a_held_guest_does_not_answer_and_goes_on(inside: Instance) -> None:
    await inside.hold()
    with pytest.raises(Interrupted) as caught:
        await ping(inside, 0.3)
    assert caught.value.code is Code.AGENT_TIMEOUT
    await inside.go_on()
    assert await says(inside, "echo still here") == "still here"


async def test_an_agent_that_died_is_found_again(inside: Instance) -> None:
    """Init starts it anew; QEMU tells of its port at most once a second."""
    first = await says(inside, "pidof qemu-ga")
    later = "(sleep 0.2; kill -9 $(pidof qemu-ga)) < /dev/null > /dev/null 2>&1 &"
    await sh(inside, later)

    async def is_another() -> bool:
        with contextlib.suppress(Interrupted, Busy):
            return (await says(inside, "pidof qemu-ga")) != first
        return False

    await wait_until("another agent", is_another, timeout=SOON, every=0.1)
    await wait_event(inside, InstanceEventKind.AGENT_OPENED)
    assert await says(inside, "echo back") == "back"


async def test_the_screen(inside: Instance) -> None:
    pictures = await asyncio.gather(*(inside.screenshot() for _ in range(4)))
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


async def test_viewers_come_while_pictures_are_taken(inside: Instance) -> None:
    """Descriptors of both kinds travel at once, and none goes to the wrong command."""
    pairs = [socket.socketpair() for _ in range(5)]
    await asyncio.gather(
        *(inside.add_vnc_client(theirs) for _, theirs in pairs),
        *(inside.screenshot() for _ in range(5)),
    )
    for ours, theirs in pairs:
        theirs.close()
        ours.settimeout(SOON)
        assert ours.recv(12) == b"RFB 003.008\n"
        ours.close()


# -- size ------------------------------------------------------------------------------------------


async def test_memory_shrinks_and_grows(inside: Instance) -> None:
    """What the balloon takes from the guest goes back to the host."""
    machine = inside.machine
    assert await inside.memory() == machine.memory
    await says(inside, "head -c 60000000 /dev/zero > /tmp/f; rm /tmp/f")  # so that the host has it
    free, held = await free_inside(inside), held_by_host(inside)
    await inside.set_balloon(LOWERED)
    await wait_until("less", lambda: has_memory(inside, LOWERED), timeout=SOON, every=0.05)
    assert free - await free_inside(inside) > (machine.memory - LOWERED) * 3 // 4
    assert held - held_by_host(inside) > 16 * MIB
    await inside.set_balloon(machine.memory)
    await wait_until("more", lambda: has_memory(inside, machine.memory), timeout=SOON, every=0.05)
    assert free - await free_inside(inside) < 16 * MIB


async def has_memory(instance: Instance, size: int) -> bool:
    return await instance.memory() == size


async def free_inside(instance: Instance) -> int:
    return 1024 * int(await says(instance, "awk '/MemFree/ {print $2}' /proc/meminfo"))


def held_by_host(instance: Instance) -> int:
    """Return how much of the guest's memory file is there."""
    return memory_file(instance.process.pid).st_blocks * 512


async def test_cpus_are_plugged_in(host: Host, tiny_state: Path) -> None:
    async with host.started(tiny_machine(host, tiny_state), cpus=1, max_cpus=4) as instance:
        await wait_inside(instance)
        await instance.plug_cpus(3)
        await instance.agent.online_cpus(3, timeout=SOON)
        assert await says(instance, "nproc") == "3"
        await instance.plug_cpus(2)  # there are more already
        await instance.plug_cpus(9)  # there are no more places
        await instance.agent.online_cpus(4, timeout=SOON)
        assert await says(instance, "nproc") == "4"


# -- its end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["agent", "button", "itself"])
async def test_a_power_off_is_seen_and_qemu_is_still_there(
    host: Host, tiny_state: Path, way: str
) -> None:
    async with host.started(tiny_machine(host, tiny_state)) as instance:
        await wait_inside(instance)
        if way == "agent":
            await instance.agent.shutdown("powerdown", timeout=SOON)
        elif way == "button":
            await wait_until(
                "who listens to the button",
                lambda: button_is_listened_to(instance),
                timeout=SOON,
                every=0.1,
            )
            await instance.press_power()
        else:
            later = "(sleep 0.2; poweroff -f) < /dev/null > /dev/null 2>&1 &"
            await sh(instance, later)
        event = await wait_event(instance, InstanceEventKind.POWERED_OFF)
        assert event.detail == "guest-shutdown"
        assert await instance.status() is RunState.POWERED_OFF
        assert not instance.process.has_ended
        await instance.end(5.0)
        assert (await wait_event(instance, InstanceEventKind.EXITED)).detail == "code 0"


async def button_is_listened_to(instance: Instance) -> bool:
    script = "pidof acpid && ls /proc/$(pidof acpid)/fd -l | grep -q /dev/input"
    return (await sh(instance, script)).code == 0


async def test_a_reset_from_inside(host: Host, tiny_state: Path) -> None:
    async with host.started(tiny_machine(host, tiny_state)) as instance:
        await wait_inside(instance)
        await says(instance, "touch /run/before")
        await instance.agent.shutdown("reboot", timeout=SOON)
        assert (await wait_event(instance, InstanceEventKind.RESET)).detail == "guest"
        await wait_inside(instance)
        assert (await sh(instance, "[ -e /run/before ]")).code == 1
        assert await instance.status() is RunState.RUNNING


async def test_a_panic(host: Host, tiny_state: Path) -> None:
    async with host.started(tiny_machine(host, tiny_state)) as instance:
        await wait_inside(instance)
        await wait_until(
            "the driver that tells of panics",
            lambda: has_module(instance, "pvpanic"),
            timeout=SOON,
            every=0.1,
        )
        with pytest.raises(Interrupted):
            await sh(instance, "echo c > /proc/sysrq-trigger", timeout=SOON)
        await wait_event(instance, InstanceEventKind.PANICKED)
        assert await instance.status() is RunState.PANICKED


async def has_module(instance: Instance, name: str) -> bool:
    return (await sh(instance, f"grep -q {name} /proc/modules")).code == 0


# -- disks -----------------------------------------------------------------------------------------


def a_head(folder: Path, size: int) -> Drive:
    """Make a raw layer that says LAYER at its beginning, and a head over it."""
    layer, head = folder / "layer.raw", folder / "head.qcow2"
    layer.write_bytes(b"LAYER".ljust(MIB, b"."))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", head, str(size)], check=True)
    chain = (
        LayerFile(path=str(head), format=DiskFormat.QCOW2, read_only=False),
        LayerFile(path=str(layer), format=DiskFormat.RAW, read_only=True),
    )
    return Drive(name="root", media=Media.DISK, chain=chain, boot_index=1, serial="s-1")


async def with_disk(instance: Instance) -> None:
    """Wait until the guest has its disk."""
    await wait_inside(instance)
    await wait_until("the disk", lambda: disk_is_there(instance), timeout=SOON, every=0.1)


async def disk_is_there(instance: Instance) -> bool:
    return (await sh(instance, "[ -b /dev/vda ]")).code == 0


async def test_a_head_over_its_layer(host: Host, tiny_state: Path) -> None:
    drive = a_head(host.folder, 64 * MIB)
    machine = tiny_machine(host, tiny_state, drives=(drive,))
    async with host.started(machine) as instance:
        await with_disk(instance)
        assert await says(instance, "head -c 5 /dev/vda") == "LAYER"
        assert await says(instance, "cat /sys/block/vda/serial") == "s-1"
        assert await says(instance, "blockdev --getsize64 /dev/vda") == str(64 * MIB)
        await instance.resize_drive("root", 96 * MIB)
        assert await says(instance, "blockdev --getsize64 /dev/vda") == str(96 * MIB)
        await says(instance, "printf HEAD. | dd of=/dev/vda conv=notrunc,fsync")
        await instance.end(5.0)
    assert Path(drive.chain[1].path).read_bytes().startswith(b"LAYER")
    async with host.started(machine) as instance:
        await with_disk(instance)
        assert await says(instance, "head -c 5 /dev/vda") == "HEAD."
        assert await says(instance, "blockdev --getsize64 /dev/vda") == str(96 * MIB)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "small", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_host_disk_holds_the_guest_until_there_is_room(
    host: Host, tiny_state: Path, small: Path
) -> None:
    filler = small / "filler"
    filler.write_bytes(b"x" * (5 * MIB))
    drive = a_head(small, 64 * MIB)
    async with host.started(tiny_machine(host, tiny_state, drives=(drive,))) as instance:
        await with_disk(instance)
        script = "head -c 4194304 /dev/urandom > /tmp/f; sha256sum < /tmp/f; dd if=/tmp/f of=/dev/vda bs=64k conv=fsync; echo 3 > /proc/sys/vm/drop_caches; head -c 4194304 /dev/vda | sha256sum"
        writing = asyncio.ensure_future(sh(instance, script))
        event = await wait_event(instance, InstanceEventKind.DISK_FULL, 30.0)
        assert event.detail == "root"
        assert await instance.status() is RunState.IO_ERROR
        await instance.go_on()  # there is still no room
        await wait_event(instance, InstanceEventKind.DISK_FULL)
        filler.unlink()
        await instance.go_on()
        result = await asyncio.wait_for(writing, 30.0)
        assert result.code == 0
        before, after = result.stdout.split(b"\n")[:2]
        assert before == after, "not a byte was lost"
        assert await instance.status() is RunState.RUNNING


async def test_other_write_errors_are_the_guests_to_see(host: Host, tiny_state: Path) -> None:
    """A sealed memfd refuses writes with EPERM (fcntl(2), F_SEAL_WRITE)."""
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 16 * MIB)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        layer = LayerFile(
            path=f"/proc/{os.getpid()}/fd/{fd}", format=DiskFormat.RAW, read_only=False
        )
        drive = Drive(name="root", media=Media.DISK, chain=(layer,), boot_index=1)
        async with host.started(tiny_machine(host, tiny_state, drives=(drive,))) as instance:
            await with_disk(instance)
            result = await sh(instance, "dd if=/dev/urandom of=/dev/vda bs=4k count=1 conv=fsync")
            assert b"Input/output error" in result.stderr
            assert await instance.status() is RunState.RUNNING
    finally:
        os.close(fd)
