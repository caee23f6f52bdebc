"""How fast running guests multiply: forks cold, from the pool and many at once, and what one costs.

The bare recipe is what a user of QEMU would do by hand: a memory frozen once, then QEMU on a private
mapping of it, the saved devices loaded, go on, ping (docs/design/0030).
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Row, p50, p99, show_time, show_times, timed
from bench.scene import MEMORY, Scene

ROUNDS = 30
SETTLE = 1.0
MANY = 40
ALIVE = 200
SUSTAINED_FOR = 20.0
AT_A_TIME = 4
POOL_LEAD = 12
GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class BareFrozen:
    """A bare guest, frozen: what bare forks are made from."""

    memory: int
    state: Path


@asynccontextmanager
async def bare_frozen(scene: Scene, memory: int) -> AsyncIterator[BareFrozen]:
    """Boot a bare guest and freeze it."""
    state = scene.folder / f"state-{memory >> 20}"
    async with scene.bare("source", memory=memory, state=state) as source:
        await source.start()
        await source.wait_agent()
        await asyncio.sleep(SETTLE)
        fd = source.keep_memory()
        try:
            await source.freeze()
            await source.quit()
            yield BareFrozen(fd, state)
        finally:
            os.close(fd)
            state.unlink(missing_ok=True)


async def bare_fork(scene: Scene, frozen: BareFrozen, memory: int, *, ahead: bool = False) -> float:
    """Fork it once; returns how long it took until the new guest's agent answered.

    ``ahead``: its QEMU was started before, and waits.
    """
    async with scene.bare("fork", memory=memory, share=frozen.memory, state=frozen.state) as guest:
        begun = time.perf_counter()
        await guest.start()
        if ahead:
            begun = time.perf_counter()
        await guest.take_up()
        await guest.wait_agent()
        taken = time.perf_counter() - begun
        await guest.quit()
    return taken


async def fork(scene: Scene, source: str, name: str, **wish: object) -> None:
    """Fork a guest; returns when the agents of the new ones have answered and that is durable."""
    await scene.post(f"/v1/guests/{source}/fork?wait=300", {"name": name, **wish})


async def remove(scene: Scene, *names: str) -> None:
    """Throw guests away."""
    await asyncio.gather(*(scene.delete(name) for name in names))


async def measure_forks(scene: Scene) -> list[Row]:
    """Fork one guest: of a running guest, and of a snapshot, cold and out of the pool."""
    rows = []
    for memory in (MEMORY, 4 * GIB):
        rows += await _forks_of(scene, memory)
    return rows


async def _forks_of(scene: Scene, memory: int) -> list[Row]:
    size = f"{memory // GIB} GiB" if memory >= GIB else f"{memory // MIB} MiB"
    with scene.without_pool() as alone:
        cold, bare, bare_ahead = await _cold(alone, memory)
    source = f"source{memory // MIB}"
    await _launch_source(scene, source, memory)
    started = await _at_a_testers_pace(scene, source)
    await scene.post(f"/v1/guests/{source}/snapshots?wait=60", {"name": "pooled"})
    ready = await _at_a_testers_pace(scene, source, snapshot="pooled")
    await remove(scene, source)
    return [
        Row(
            what=f"fork of a running guest of {size} → the fork's agent answers",
            ours=show_times(cold),
            bare=show_times(bare),
            reached=p50(cold) / p50(bare),
            limit=1.15,
        ),
        *_rows_of_pool(f"the same, its QEMU from the pool ({size})", started, bare_ahead, 60),
        *_rows_of_pool(f"fork of its snapshot, ready in the pool ({size})", ready, bare, 15),
    ]


def _rows_of_pool(what: str, taken: list[float], bare: list[float], limit: float) -> list[Row]:
    return [
        Row(
            what=what,
            ours=show_times(taken),
            bare=show_times(bare),
            reached=p50(taken) * 1e3,
            limit=limit,
            unit=" ms",
            show=lambda value: f"{value:.0f}",
        ),
        Row(
            what=f"{what}: p99 to p50",
            ours=show_time(p99(taken)),
            reached=p99(taken) / p50(taken),
            limit=3,
        ),
    ]


async def _launch_source(scene: Scene, source: str, memory: int) -> None:
    """Launch a guest, and fork it once: the first time its memory has to become a base's."""
    await scene.launch(source, memory=memory)
    await asyncio.sleep(SETTLE)
    await fork(scene, source, "first")
    await remove(scene, "first")


async def _cold(scene: Scene, memory: int) -> tuple[list[float], list[float], list[float]]:
    """Fork a running guest and a bare one, turn by turn, the bare one also into a QEMU that waits."""
    await _launch_source(scene, "source", memory)
    cold, bare, ahead = [], [], []
    async with bare_frozen(scene, memory) as frozen:
        for _ in range(ROUNDS):
            cold.append(await timed(fork(scene, "source", "child")))
            await remove(scene, "child")
            bare.append(await bare_fork(scene, frozen, memory))
            ahead.append(await bare_fork(scene, frozen, memory, ahead=True))
    return cold, bare, ahead


async def _at_a_testers_pace(scene: Scene, source: str, **wish: object) -> list[float]:
    """Fork until the pool has found that out, then on and on, with time for it in between."""
    times = []
    for number in range(POOL_LEAD + ROUNDS):
        taken = await timed(fork(scene, source, "child", **wish))
        await remove(scene, "child")
        await asyncio.sleep(SETTLE)
        if number >= POOL_LEAD:
            times.append(taken)
    return times


async def measure_rate(scene: Scene) -> list[Row]:
    """Fork for 20 seconds, four at a time, throwing each away when it has answered."""
    await scene.launch("mother")
    await fork(scene, "mother", "first")
    await scene.post("/v1/guests/mother/snapshots?wait=60", {"name": "now"})
    until = time.perf_counter() + SUSTAINED_FOR

    async def keep_forking(worker: int) -> int:
        made = 0
        while time.perf_counter() < until:
            await fork(scene, "mother", f"worker{worker}", snapshot="now")
            await remove(scene, f"worker{worker}")
            made += 1
        return made

    begun = time.perf_counter()
    made = sum(await asyncio.gather(*map(keep_forking, range(AT_A_TIME))))
    rate = made / (time.perf_counter() - begun)
    once = MANY / await timed(fork(scene, "mother", "many", count=MANY))
    await remove(scene, "first", "mother", *(f"many-{number}" for number in range(1, MANY + 1)))
    return [
        _rate_row(f"forks a second, {AT_A_TIME} at a time, each thrown away when it answers", rate),
        _rate_row(f"forks a second, {MANY} of one job, all stay", once),
    ]


def _rate_row(what: str, rate: float) -> Row:
    return Row(
        what=what,
        ours=f"{rate:.1f}/s",
        reached=rate,
        limit=20,
        unit="/s",
        most=False,
        show=lambda value: f"{value:.1f}",
    )


async def measure_alive(scene: Scene) -> list[Row]:
    """Have 200 forks alive at once, ask each of them something, and look what an idle one costs."""
    await scene.launch("mother")
    await asyncio.sleep(SETTLE)
    taken = await timed(fork(scene, "mother", "alive", count=ALIVE))
    names = [f"alive-{number}" for number in range(1, ALIVE + 1)]
    await asyncio.sleep(5 * SETTLE)
    private = [_private(pid) for name, pid in scene.daemon.qemu_pids().items() if name != "mother"]
    asked = await timed(asyncio.gather(*(_ask(scene, name) for name in names)))
    await remove(scene, "mother", *names)
    return [
        Row(
            what=f"{ALIVE} forks of one guest: made in {show_time(taken)}; all of them asked at once",
            ours=show_time(asked),
            reached=len(private),
            limit=ALIVE,
            unit=" alive",
            most=False,
            show=lambda value: f"{value:.0f}",
        ),
        Row(
            what="private memory of an idle fork",
            ours=f"{p50(private):.1f} MiB",
            reached=p50(private),
            limit=18,
            unit=" MiB",
            show=lambda value: f"{value:.1f}",
        ),
    ]


async def _ask(scene: Scene, name: str) -> None:
    answer = await scene.post(f"/v1/guests/{name}/exec", {"argv": ["hostname"]})
    if answer["code"] != 0:
        raise RuntimeError(f"{name}: {answer}")


def _private(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Private_Dirty:\s+(\d+) kB$", rollup, re.M)
    return int(found[1]) / 1024 if found else 0.0
