"""How soon a new daemon has taken up the guests of one that was killed."""

import asyncio
import time

from bench.figures import Row, p50, show_times
from bench.scene import Scene, open_daemon

GUESTS = 50
ROUNDS = 5


async def measure_adoption(scene: Scene) -> list[Row]:
    """Kill the daemon of 50 running guests; the clock stops when the next answers for all."""
    times = []
    with open_daemon() as daemon:
        stage = Scene(daemon, scene.folder, scene.machine, scene.qemu, None, "")
        for first in range(0, GUESTS, 5):
            names = [f"guest{number}" for number in range(first, first + 5)]
            await asyncio.gather(*(stage.launch(name) for name in names))
        pids = daemon.qemu_pids()
        for _ in range(ROUNDS):
            daemon.kill()
            begun = time.perf_counter()
            daemon.start()
            running = [guest for guest in daemon.inn.guests() if guest.info.state == "running"]
            times.append(time.perf_counter() - begun)
            if len(running) != GUESTS or daemon.qemu_pids() != pids:
                raise RuntimeError(f"only {len(running)} of {GUESTS} guests were adopted")
    return [
        Row(
            what=f"daemon killed with {GUESTS} guests running → the next has adopted all",
            ours=show_times(times),
            reached=p50(times),
            limit=2.0,
            unit=" s",
        )
    ]
