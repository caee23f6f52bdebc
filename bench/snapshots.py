"""What snapshots cost: how long a guest is silent, when one is durable, how soon one is back."""

import asyncio
import bisect
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bench.api_latency import RawClient
from bench.figures import Row, clocked, p50, show_time, show_times, timed
from bench.forking import GIB, SETTLE, fork, remove
from bench.scene import MEMORY, Scene
from serai.model.event import Event, EventKind

PAUSES = 15
DURABLE = 5
SMALL_CHANGES = 15
LISTED = 1000
LISTINGS = 100
LOOK_EVERY = 0.0003

TICK = "(while :; do printf .; done >/dev/ttyS0) >/dev/null 2>&1 &"
FILL = "head -c 67108864 /dev/urandom >/p; for i in $(seq 32); do cat /p; done >/f; sync"
WRITE = """(while :; do for i in $(seq 32); do cat /p; done | dd of=/f bs=1M conv=notrunc; done) \
>/dev/null 2>&1 &"""


class Ticker:
    """Looks at a console that never rests, and knows how long it was silent."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Ticker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        size = -1
        while not self._over.wait(LOOK_EVERY):
            now = self._log.stat().st_size
            if now != size:
                size = now
                self._seen.append(time.perf_counter())

    def silence(self, begun: float, ended: float) -> float:
        """Return the longest time without a sign between two moments."""
        seen = list(self._seen)
        first = max(0, bisect.bisect(seen, begun) - 1)
        last = bisect.bisect(seen, ended) + 1
        part = seen[first:last]
        return max((later - sooner for sooner, later in itertools.pairwise(part)), default=0)


async def _sh(scene: Scene, guest: str, script: str) -> None:
    body = {"argv": ["sh", "-c", script], "timeout": 120}
    answer = await scene.post(f"/v1/guests/{guest}/exec", body)
    if answer["code"] != 0:
        raise RuntimeError(f"{guest}: {answer}")


async def _silences(
    scene: Scene, guest: str, act: Callable[[int], Awaitable[object]], between: float = 0.3
) -> list[float]:
    """Do something again and again; returns the longest silence of the guest's console each time."""
    found = []
    identity = scene.daemon.inn.guest(guest).id
    with Ticker(scene.daemon.home / "state" / "guests" / identity / "serial.log") as ticker:
        await asyncio.sleep(SETTLE)
        for number in range(PAUSES):
            begun = time.perf_counter()
            await act(number)
            await asyncio.sleep(between)
            found.append(ticker.silence(begun, time.perf_counter()))
    return found


@asynccontextmanager
async def _busy(scene: Scene, name: str, memory: int, script: str = "") -> AsyncIterator[None]:
    """A guest whose console never rests."""
    await scene.launch(name, memory=memory, cpus=2)
    if script:
        await _sh(scene, name, script)
    await _sh(scene, name, TICK)
    await asyncio.sleep(SETTLE)
    yield
    await remove(scene, name)


async def measure_pauses(scene: Scene) -> list[Row]:
    """Measure how long a guest is silent while it is forked and while snapshots are made of it."""
    async with _busy(scene, "busy", MEMORY):
        quiet = await _silences(scene, "busy", lambda _: asyncio.sleep(0.1))
        forked = await _silences(scene, "busy", lambda _: _fork_and_forget(scene, "busy"))
        bare = await _silences(scene, "busy", lambda n: _snap(scene, "busy", f"d{n}", memory=False))
    async with _busy(scene, "writer", 4 * GIB, f"{FILL}; {WRITE}"):
        written = await _silences(scene, "writer", lambda n: _snap(scene, "writer", f"s{n}"))
    note = f" (the console alone: {show_time(p50(quiet))})"
    return [
        _pause_row(f"silence of a guest while it is forked{note}", forked, 25),
        _pause_row("silence while a snapshot without memory is made", bare, 15),
        _pause_row("silence while one with memory is made, 2 GiB being written", written, 20),
    ]


async def _fork_and_forget(scene: Scene, guest: str) -> None:
    await fork(scene, guest, "passing")
    await remove(scene, "passing")


async def _snap(scene: Scene, guest: str, name: str, *, memory: bool = True) -> None:
    """Make a snapshot; returns when it is durable."""
    await scene.post(f"/v1/guests/{guest}/snapshots?wait=300", {"name": name, "memory": memory})


def _pause_row(what: str, times: list[float], limit: float) -> Row:
    return Row(
        what=what,
        ours=show_times(times),
        reached=p50(times) * 1e3,
        limit=limit,
        unit=" ms",
        show=lambda value: f"{value:.0f}",
    )


async def measure_durable(scene: Scene) -> list[Row]:
    """Measure when a snapshot is durable, and how soon a guest is back at one."""
    ours, bare = await _durable_whole(scene)
    saved, restored_by_virsh = _libvirt_saves(scene)
    small, restored, whole = await _durable_small(scene)
    return [
        Row(
            what="live snapshot with memory, 1 GiB in use → durable; the others stop and save",
            ours=show_times(ours),
            bare=show_times(bare),
            libvirt=show_times(saved) if saved else "–",
            reached=p50(ours) / p50(bare),
            limit=2.5,
        ),
        _pause_row("snapshot of a fork that changed little → durable", small, 100),
        Row(
            what=f"restore → it runs (its clock is right after {show_time(p50(whole))}); libvirt: `virsh restore`",
            ours=show_times(restored),
            libvirt=show_times(restored_by_virsh) if restored_by_virsh else "–",
            reached=p50(restored) * 1e3,
            limit=80,
            unit=" ms",
            show=lambda value: f"{value:.0f}",
        ),
    ]


GIB_IN_USE = "head -c 67108864 /dev/urandom >/p; for i in $(seq 16); do cat /p; done >/f; rm /p"


async def _durable_whole(scene: Scene) -> tuple[list[float], list[float]]:
    ours, bare = [], []
    for number in range(DURABLE):
        await scene.launch("whole", memory=4 * GIB)
        await _sh(scene, "whole", GIB_IN_USE)
        ours.append(await timed(_snap(scene, "whole", f"s{number}")))
        await remove(scene, "whole")
        state = scene.folder / "saved"
        async with scene.bare("whole", memory=4 * GIB, state=state) as guest:
            await guest.start()
            await guest.execute(GIB_IN_USE)
            bare.append(await timed(_save_durably(guest.save(), state)))
            await guest.quit()
        state.unlink()
    return ours, bare


async def _save_durably(save: Awaitable[None], file: Path) -> None:
    await save
    await (await asyncio.create_subprocess_exec("sync", str(file))).wait()


def _libvirt_saves(scene: Scene) -> tuple[list[float], list[float]]:
    saved: list[float] = []
    restored: list[float] = []
    if libvirt := scene.libvirt:
        libvirt.define("saved", scene.machine)
        libvirt.virsh("start", "saved")
        time.sleep(5 * SETTLE)
        file = str(scene.folder / "libvirt.save")
        for _ in range(DURABLE):
            saved.append(clocked(lambda: libvirt.virsh("save", "saved", file)))
            restored.append(clocked(lambda: libvirt.virsh("restore", file)))
        libvirt.virsh("destroy", "saved")
    return saved, restored


async def _durable_small(scene: Scene) -> tuple[list[float], list[float], list[float]]:
    """A fork that has changed a MiB between its snapshots, and is put back again and again.

    The latter: until it runs, and until that has been answered, with its clock and its random numbers right.
    """
    small, restored, whole, seen = [], [], [], 0
    await scene.launch("mother")
    await fork(scene, "mother", "little")
    for number in range(SMALL_CHANGES):
        await _sh(scene, "little", "head -c 1048576 /dev/urandom >/small")
        small.append(await timed(_snap(scene, "little", f"s{number}")))
        restore = f"/v1/guests/little/snapshots/s{number}/restore?wait=60"
        before, begun = (await asyncio.to_thread(_since, scene, seen))[-1].seq, time.time()
        whole.append(await timed(scene.post(restore, {"force": True})))
        told = await asyncio.to_thread(_since, scene, before)
        restored += [each.at - begun for each in told if _says_it_runs(each)]
        seen = before
    await remove(scene, "little", "mother")
    return small, restored, whole


def _says_it_runs(event: Event) -> bool:
    return event.kind is EventKind.GUEST_STATE and event.data.get("state") == "running"


def _since(scene: Scene, seq: int) -> list[Event]:
    """Return all events after that one."""
    found: list[Event] = []
    while more := scene.daemon.inn.events(found[-1].seq if found else seq):
        found += more
    return found


async def measure_listing(scene: Scene) -> list[Row]:
    """List the 1,000 snapshots of a guest."""
    await scene.create("archive")
    for number in range(LISTED):
        await _snap(scene, "archive", f"s{number}", memory=False)
    client = RawClient(scene.daemon.socket)
    try:
        times = client.time(f"/v1/guests/archive/snapshots?limit={LISTED}", LISTINGS)
    finally:
        client.close()
    await remove(scene, "archive")
    return [_pause_row(f"API: the {LISTED:,} snapshots of a guest listed", times, 20)]
