"""What guests get through: network and disk, beside a hand-started QEMU with the same devices.

The tiny image has busybox and nothing else, so the network is measured with `nc` and `dd`, and disks with
`dd` past the cache, one request at a time, in place of fio. Both sides in turn, the same guest on both.
"""

import asyncio
import dataclasses
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from namespaced import in_namespace

from bench.bare import BareGuest, another, read_machine
from bench.figures import Row, p50, show_time
from bench.networks import MEMORY, can_not, networked
from bench.scene import Scene
from serai import Guest
from serai.host.namespaces import inside
from serai.host.tap import make_tap, open_tap
from serai.model.machine import LayerFile, Machine

ROUNDS = 7
GUEST_MIB, HOST_MIB, DISK_MIB, READ_MIB, REQUESTS = 12, 48, 256, 2048, 4000
DISK = "1280MiB"
GIB = 1 << 30
PORT = 9000
SETTLE = 0.5
LIMIT, LOOK_EVERY = 60.0, 0.3
TIMED = """rm -f /tmp/took
(read before _ </proc/uptime; {{ {what}; }} >/dev/null 2>&1; read after _ </proc/uptime
echo $before $after >/tmp/new; mv /tmp/new /tmp/took) </dev/null >/dev/null 2>&1 &"""
"""Nobody waits for it inside: an agent that is asked takes its share of the processor, and we ask ours more often."""
MARGIN = 1.3
LISTEN = f"(sleep 1000 | nc -l -p {PORT} >/dev/null) >/dev/null 2>&1 &"
READY = f"until netstat -ltn | grep -q :{PORT}; do usleep 10000; done"
SEND = f"dd if=/dev/zero bs=64k count={GUEST_MIB * 16} | nc {{address}} {PORT}"
READ = f"dd if=/dev/vda of=/dev/null bs=1M count={DISK_MIB} iflag=direct"
DISK_WORK = {
    "disk written": f"dd if=/dev/zero of=/dev/vda bs=1M count={DISK_MIB} oflag=direct",
    "disk read": "; ".join([READ] * (READ_MIB // DISK_MIB)),
    "disk written, 4 KiB each": f"dd if=/dev/zero of=/dev/vda bs=4k count={REQUESTS} oflag=direct",
    "disk read, 4 KiB each": f"dd if=/dev/vda of=/dev/null bs=4k count={REQUESTS} iflag=direct",
}

Run = Callable[[str], Awaitable[str]]
"""Runs a script in a guest and returns what it printed."""


def _of(guest: Guest) -> Run:
    async def run(script: str) -> str:
        return await asyncio.to_thread(lambda: guest.run(script).stdout)

    return run


async def _timed(run: Run, what: str, quiet: float = 0.0) -> float:
    """Return how long it took inside; for ``quiet`` seconds, which it should take, nobody looks."""
    await run(TIMED.format(what=what))
    await asyncio.sleep(quiet * MARGIN)
    async with asyncio.timeout(LIMIT):
        while not (took := (await run("cat /tmp/took 2>/dev/null")).split()):
            await asyncio.sleep(LOOK_EVERY)
    return float(took[1]) - float(took[0])


def _machine(home: Path, guest: Guest) -> Machine:
    return read_machine(home / "run" / "guests" / guest.id / "running.json")


def _row(what: str, ours: Sequence[float], bare: Sequence[float], amount: float, unit: str) -> Row:
    def show(times: Sequence[float]) -> str:
        return f"{amount / p50(times):.0f} {unit}"

    return Row(
        what=what,
        ours=show(ours),
        bare=show(bare),
        reached=p50(bare) / p50(ours),
        limit=0.98,
        most=False,
    )


# -- network ---------------------------------------------------------------------------------------


async def measure_traffic(scene: Scene) -> list[Row]:
    """Send from guest to guest and from the host to a guest."""
    if can_not():
        return []
    with networked("-traffic") as (daemon, namespace):
        daemon.inn.create_network("web", subnet="10.20.0.0/24")
        pair = [
            daemon.inn.launch("tiny", name=name, memory=MEMORY, networks=["web"])
            for name in ("one", "two")
        ]
        machines = [_machine(daemon.home, guest) for guest in pair]
        async with _bare_pair(scene, namespace, machines) as bare:
            await asyncio.sleep(SETTLE)
            sides: dict[str, tuple[list[Run], str]] = {
                "ours": ([_of(guest) for guest in pair], pair[1].info.ports[0].address),
                "bare": ([guest.execute for guest in bare], "10.99.0.3"),
            }
            return await _send_all(namespace, sides)


@asynccontextmanager
async def _bare_pair(
    scene: Scene, namespace: str, machines: Sequence[Machine]
) -> AsyncIterator[list[BareGuest]]:
    """Start the same machines by hand, on a bridge made by hand."""
    for words in (
        "link add hand type bridge",
        "address add 10.99.0.1/24 dev hand",
        "link set hand up",
    ):
        in_namespace(namespace, "ip", *words.split())
    guests = []
    with ExitStack() as stack:
        stack.callback(in_namespace, namespace, "ip", "link", "delete", "hand")
        for number, machine in enumerate(machines):
            tap = f"hand{number}"
            make_tap(tap, uid=0, namespace=namespace)
            stack.callback(in_namespace, namespace, "ip", "link", "delete", tap)
            in_namespace(namespace, "ip", "link", "set", tap, "master", "hand", "up")
            fd = open_tap(tap, namespace=namespace)
            stack.callback(os.close, fd)
            nic = dataclasses.replace(machine.nics[0], tap=tap)
            folder = scene.folder / tap
            guest = BareGuest(
                dataclasses.replace(another(machine), nics=(nic,)),
                scene.qemu,
                folder,
                taps={tap: fd},
            )
            stack.callback(guest.kill)
            await guest.start()
            await guest.wait_agent()
            await guest.execute(
                f"killall udhcpc; ip address add 10.99.0.{number + 2}/24 dev eth0; ip link set eth0 up"
            )
            guests.append(guest)
        yield guests
        for guest in guests:
            await guest.quit()


async def _send_all(namespace: str, sides: dict[str, tuple[list[Run], str]]) -> list[Row]:
    between: dict[str, list[float]] = {side: [] for side in sides}
    inward: dict[str, list[float]] = {side: [] for side in sides}
    quiet = 0.0
    for number in range(ROUNDS + 1):
        for side in sorted(sides, reverse=bool(number % 2)):
            (sender, receiver), address = sides[side]
            await receiver(LISTEN + READY)
            between[side].append(await _timed(sender, SEND.format(address=address), quiet))
            await receiver(LISTEN + READY)
            inward[side].append(await asyncio.to_thread(_send, namespace, address))
        if not number:  # the first says how long it takes
            quiet = max(each.pop() for each in between.values())
    unit = "MiB/s"
    return [
        _row("guest → guest (nc)", between["ours"], between["bare"], GUEST_MIB, unit),
        _row("host → guest (nc)", inward["ours"], inward["bare"], HOST_MIB, unit),
    ]


def _send(namespace: str, address: str) -> float:
    """Send to a guest from the host; returns how long it took until the guest had it all."""
    with inside(namespace, lambda: socket.socket()) as connected:
        connected.settimeout(60)
        connected.connect((address, PORT))
        begun = time.perf_counter()
        block = bytes(1 << 20)
        for _ in range(HOST_MIB):
            connected.sendall(block)
        connected.shutdown(socket.SHUT_WR)
        connected.recv(1)
        return time.perf_counter() - begun


# -- disk ------------------------------------------------------------------------------------------


async def measure_disk(scene: Scene) -> list[Row]:
    """Read and write a disk past the cache; then give a GiB of it back."""
    daemon = scene.daemon
    with daemon.inn.launch("tiny", name="disky", memory=MEMORY, disk=DISK) as guest:
        machine = _machine(daemon.home, guest)
        copies = [
            dataclasses.replace(drive, chain=tuple(_copied(scene, drive.name, drive.chain)))
            if drive.name == "root"
            else drive
            for drive in machine.drives
        ]
        bare = BareGuest(
            dataclasses.replace(another(machine), drives=tuple(copies)),
            scene.qemu,
            scene.folder / "disk",
        )
        try:
            await bare.start()
            await bare.wait_agent()
            rows = await _work_all(_of(guest), bare.execute)
        finally:
            bare.kill()
        head = Path(next(d for d in machine.drives if d.name == "root").chain[0].path)
        return [*rows, await _give_back(_of(guest), head)]


def _copied(scene: Scene, name: str, chain: Sequence[LayerFile]) -> list[LayerFile]:
    """Copy the empty head of a drive; what is below is shared."""
    copies = list[LayerFile]()
    for layer in chain:
        if layer.read_only:
            copies.append(layer)
            continue
        target = scene.folder / f"{name}.qcow2"
        shutil.copyfile(layer.path, target)
        copies.append(dataclasses.replace(layer, path=str(target)))
    return copies


async def _work_all(ours: Run, bare: Run) -> list[Row]:
    rows = []
    for name, what in DISK_WORK.items():
        times: dict[Run, list[float]] = {ours: [], bare: []}
        # what is written for the first time takes longer
        quiet = max([await _timed(run, what) for run in times])
        for number in range(ROUNDS):
            for run in (ours, bare) if number % 2 else (bare, ours):
                times[run].append(await _timed(run, what, quiet))
        is_each = name.endswith("each")
        amount, unit = (REQUESTS, "IOPS") if is_each else (DISK_MIB, "MiB/s")
        amount = READ_MIB if name == "disk read" else amount
        rows.append(_row(f"{name} (dd, direct)", times[ours], times[bare], amount, unit))
    return rows


async def _give_back(run: Run, head: Path) -> Row:
    """Fill a GiB, discard it, and see how long the host's file takes to shrink."""
    await run("tr '\\0' x </dev/zero | dd of=/dev/vda bs=1M count=1024 iflag=fullblock; sync")
    full = head.stat().st_blocks * 512
    assert full >= GIB, f"{full} bytes were written"
    begun = time.perf_counter()
    await run(f"blkdiscard -o 0 -l {GIB} /dev/vda")
    while head.stat().st_blocks * 512 > full - GIB * 0.99:
        await asyncio.sleep(0.01)
        assert time.perf_counter() - begun < 60, "nothing was given back"
    taken = time.perf_counter() - begun
    return Row(
        what="1 GiB discarded in a guest → its file is smaller",
        ours=show_time(taken),
        reached=taken,
        limit=5.0,
        unit="",
        show=show_time,
    )
