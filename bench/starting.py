"""How fast guests start and stop, turn by turn with bare QEMU and libvirt."""

import asyncio
import subprocess
from contextlib import AsyncExitStack

from bench.bare import BareGuest
from bench.figures import Row, clocked, p50, show_time, show_times, timed
from bench.scene import Scene

ROUNDS = 20
AT_ONCE = 40
AT_ONCE_ROUNDS = 5
LIBVIRT_AT_ONCE = 8
LAUNCHES = 7


async def measure_one(scene: Scene) -> list[Row]:
    """Start and pull the plug, one guest at a time."""
    started: dict[str, list[float]] = {"serai": [], "bare": [], "libvirt": []}
    stopped: dict[str, list[float]] = {"serai": [], "bare": [], "libvirt": []}
    await scene.create("one")
    if scene.libvirt:
        scene.libvirt.define("one", scene.machine)
    for _ in range(ROUNDS):
        started["serai"].append(await timed(scene.start("one")))
        stopped["serai"].append(await timed(scene.pull_plug("one")))
        async with scene.bare("one") as guest:
            started["bare"].append(await timed(guest.start()))
            stopped["bare"].append(await timed(guest.quit()))
        if libvirt := scene.libvirt:
            started["libvirt"].append(clocked(lambda: libvirt.virsh("start", "one")))
            stopped["libvirt"].append(clocked(lambda: libvirt.virsh("destroy", "one")))
    return [
        _row("start → QEMU answers its monitor", started, limit=1.3),
        _row("forced stop → the process is gone", stopped, limit=2.5),
    ]


def _row(what: str, times: dict[str, list[float]], limit: float) -> Row:
    return Row(
        what=what,
        ours=show_times(times["serai"]),
        bare=show_times(times["bare"]),
        libvirt=show_times(times["libvirt"]) if times["libvirt"] else "–",
        reached=p50(times["serai"]) / p50(times["bare"]),
        limit=limit,
    )


async def measure_many(scene: Scene) -> list[Row]:
    """Start many guests at the same moment; the rate counts until the last one answers."""
    names = [f"many{number}" for number in range(AT_ONCE)]
    for name in names:
        await scene.create(name)
    ours, bare, libvirt = [], [], []
    for _ in range(AT_ONCE_ROUNDS):
        ours.append(AT_ONCE / await timed(_all_of(scene, names)))
        await asyncio.gather(*(scene.pull_plug(name) for name in names))
        bare.append(AT_ONCE / await _bare_at_once(scene, names))
    if scene.libvirt:
        few = names[:LIBVIRT_AT_ONCE]  # of 40 at once it starts one in two seconds
        for name in few:
            scene.libvirt.define(name, scene.machine)
        libvirt.append(len(few) / clocked(lambda: _libvirt_at_once(scene, few)))
    return [
        Row(
            what=f"{AT_ONCE} starts at once, guests per second",
            ours=f"{p50(ours):.1f}/s",
            bare=f"{p50(bare):.1f}/s",
            libvirt=f"{p50(libvirt):.1f}/s" if libvirt else "–",
            reached=p50(ours) / p50(bare),
            limit=0.8,
            most=False,
        )
    ]


async def _all_of(scene: Scene, names: list[str]) -> None:
    await asyncio.gather(*(scene.start(name) for name in names))


async def _bare_at_once(scene: Scene, names: list[str]) -> float:
    async with AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(scene.bare(name)) for name in names]
        taken = await timed(asyncio.gather(*(guest.start() for guest in guests)))
        await asyncio.gather(*(guest.quit() for guest in guests))
    return taken


def _libvirt_at_once(scene: Scene, names: list[str]) -> None:
    assert scene.libvirt is not None
    begun: list[subprocess.Popen[bytes]] = [scene.libvirt.begin("start", name) for name in names]
    codes = [process.wait() for process in begun]
    if any(codes):
        raise RuntimeError("libvirt did not start them all")
    for name in names:
        scene.libvirt.virsh("destroy", name)


async def measure_launch(scene: Scene) -> list[Row]:
    """From nothing to an agent that answers, against the same machine booted bare."""
    ours, bare = [], []
    for _ in range(LAUNCHES):
        ours.append(await timed(scene.launch("fresh")))
        await scene.post("/v1/guests/fresh/stop?wait=60", {"force": True})
        scene.daemon.inn.guest("fresh").delete()
        async with scene.bare("fresh") as guest:
            bare.append(await timed(_boot(guest)))
            await guest.quit()
    return [
        Row(
            what="`launch tiny` → the agent inside answers",
            ours=show_times(ours),
            bare=show_times(bare),
            reached=p50(ours) / p50(bare),
            limit=1.1,
        ),
        Row(
            what="the same, in seconds",
            ours=show_times(ours),
            reached=p50(ours),
            limit=3.0,
            unit=" s",
            show=lambda value: f"{value:.2f}",
        ),
    ]


async def _boot(guest: BareGuest) -> None:
    await guest.start()
    await guest.wait_agent()


def show_note(scene: Scene) -> str:
    """Say what of libvirt's times is virsh itself."""
    if scene.libvirt is None:
        return f"libvirt was not measured: {scene.no_libvirt}."
    libvirt = scene.libvirt
    own = p50([clocked(lambda: libvirt.virsh("version", "--daemon")) for _ in range(10)])
    return f"libvirt is driven by `virsh`, whose own start and connection take {show_time(own)} of each."
