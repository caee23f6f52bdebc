"""How fast the daemon and the command line answer with 1,000 guests, and what the daemon costs."""

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.api_latency import RawClient
from bench.figures import Row, clocked, p50, show_time, show_times
from bench.host import cpu_seconds, resident
from bench.scene import Scene

GUESTS = 1000
SINGLE_REQUESTS = 5000
LIST_REQUESTS = 100
COMMANDS = 30
IDLE_FOR = 30.0
SETTLE = 5.0
MIB = 1 << 20


async def define_guests(scene: Scene) -> None:
    """Define guests until there are 1,000."""
    for number in range(GUESTS - len(scene.daemon.inn.guests())):
        await scene.create(f"guest{number}")


def measure_api(scene: Scene) -> list[Row]:
    """GET one guest and all of them, on one connection, the client's own time included."""
    client = RawClient(scene.daemon.socket)
    try:
        one = client.time("/v1/guests/guest7", SINGLE_REQUESTS)
        every = client.time(f"/v1/guests?limit={GUESTS}", LIST_REQUESTS)
    finally:
        client.close()
    return [
        Row(
            what="API: GET one guest, of 1,000",
            ours=show_times(one),
            reached=p50(one) * 1e6,
            limit=150,
            unit=" µs",
            show=lambda value: f"{value:.0f}",
        ),
        Row(
            what="API: GET all 1,000",
            ours=show_times(every),
            reached=p50(every) * 1e3,
            limit=15,
            unit=" ms",
            show=lambda value: f"{value:.1f}",
        ),
    ]


def measure_command(scene: Scene) -> list[Row]:
    """`serai list` as a process, turn by turn with a Python that does nothing."""
    serai = str(Path(sys.executable).with_name("serai"))
    environ = {**os.environ, "SERAI_HOME": str(scene.daemon.home)}
    ours, nothing = [], []
    for _ in range(COMMANDS):
        ours.append(clocked(lambda: _run([serai, "list"], environ)))
        nothing.append(clocked(lambda: _run([sys.executable, "-c", "pass"], environ)))
    return [
        Row(
            what=f"`serai list`, 1,000 guests; `python3 -c pass` takes {show_time(p50(nothing))}",
            ours=show_times(ours),
            reached=p50(ours) / p50(nothing),
            limit=4,
        )
    ]


def _run(argv: list[str], environ: dict[str, str]) -> None:
    subprocess.run(argv, env=environ, stdout=subprocess.DEVNULL, check=True)


def measure_cost(scene: Scene) -> list[Row]:
    """What the daemon holds and uses when nobody asks it anything."""
    time.sleep(SETTLE)
    before, begun = cpu_seconds(scene.daemon.pid), time.monotonic()
    time.sleep(IDLE_FOR)
    used = (cpu_seconds(scene.daemon.pid) - before) / (time.monotonic() - begun) * 100
    held = resident(scene.daemon.pid) / MIB
    return [
        Row(
            what="daemon with 1,000 defined guests: resident memory",
            ours=f"{held:.0f} MiB",
            reached=held,
            limit=100,
            unit=" MiB",
            show=lambda value: f"{value:.0f}",
        ),
        Row(
            what="the same daemon, idle: share of one core",
            ours=f"{used:.2f} %",
            reached=used,
            limit=0.5,
            unit=" %",
        ),
    ]
