"""Measure everything that is promised about speed and write ``docs/benchmarks.md``.

``python -m bench``        all of it (some minutes), and the page
``python -m bench NAME …`` only these measurements, and no page; a wrong name shows them
"""

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import adopting, asking, forking, networks, snapshots, starting, traffic
from bench.figures import Row, table
from bench.host import describe, free_memory, warm_up
from bench.scene import Scene, open_scene

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
WARM = 6 << 30

TEXT = """\
<!-- Made by `make bench`; edit bench/, not this page. -->

# Benchmarks

Measured by `make bench` in one run, turn by turn where two things are compared, after the memory was
touched once. A time is a median, with the 99th percentile (or the slowest of fewer than 100) in brackets. "Reached"
is the ratio of serai to bare QEMU where there is one, else the figure itself. Bare QEMU is the same command line started by
a minimal asyncio script (`bench/bare.py`): no confinement, no database, nobody who could ask it anything.

{table}

{missing}The host: {host}. Other machines give other times; the ratios travel better.

{note}
"""


async def _one(scene: Scene) -> list[Row]:
    return await starting.measure_one(scene)


async def _api(scene: Scene) -> list[Row]:
    await asking.define_guests(scene)
    return asking.measure_api(scene)


async def _list(scene: Scene) -> list[Row]:
    await asking.define_guests(scene)
    return asking.measure_command(scene)


async def _cost(scene: Scene) -> list[Row]:
    await asking.define_guests(scene)
    return asking.measure_cost(scene)


MEASUREMENTS: dict[str, Callable[[Scene], Awaitable[list[Row]]]] = {
    "one": _one,
    "many": starting.measure_many,
    "launch": starting.measure_launch,
    "fork": forking.measure_forks,
    "rate": forking.measure_rate,
    "alive": forking.measure_alive,
    "pause": snapshots.measure_pauses,
    "durable": snapshots.measure_durable,
    "listing": snapshots.measure_listing,
    "api": _api,
    "list": _list,
    "cost": _cost,
    "adopt": adopting.measure_adoption,
    "networks": networks.measure_networks,
    "traffic": traffic.measure_traffic,
    "disk": traffic.measure_disk,
}


async def _measure(scene: Scene, names: list[str]) -> tuple[list[Row], list[str]]:
    """Return the figures, and the names of what failed: the others are measured all the same."""
    rows, failed = list[Row](), list[str]()
    for name in names:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        try:
            found = await MEASUREMENTS[name](scene)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            await asyncio.to_thread(scene.daemon.delete_all)
            continue
        for row in found:
            print(f"  {' | '.join(row.cells())}", file=sys.stderr, flush=True)
        rows += found
    return rows, failed


def main() -> int:
    """Measure; exit code 0 whether or not every limit is kept: the page says which are not.

    Exit code 1 when something could not be measured at all; the page says that too.
    """
    wanted = sys.argv[1:]
    if unknown := set(wanted) - MEASUREMENTS.keys():
        sys.exit(f"bench: {', '.join(sorted(unknown))} is none of: {' '.join(MEASUREMENTS)}")
    warm_up(min(WARM, free_memory() // 2))
    with open_scene() as scene:
        rows, failed = asyncio.run(_measure(scene, wanted or list(MEASUREMENTS)))
        can = scene.daemon.inn.status().capabilities
        version = scene.libvirt.version() if scene.libvirt else ""
        host = describe(can.qemu_version, can.accel, version)
        note = starting.show_note(scene)
    if not wanted:
        missing = f"Could not be measured: {', '.join(failed)}.\n\n" if failed else ""
        PAGE.write_text(TEXT.format(table=table(rows), missing=missing, host=host, note=note))
        print(f"bench: {PAGE.relative_to(Path.cwd())} is written", file=sys.stderr)
    missed = sum(not row.is_met for row in rows)
    print(f"bench: {len(rows)} figures, {missed} of them over their limit", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
