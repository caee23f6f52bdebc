"""Figures: medians, ratios, and the table that ``docs/benchmarks.md`` holds."""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


def p50(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """Return the value that 99 of 100 do not exceed (the largest, of fewer than 100)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def show_time(seconds: float) -> str:
    """Print a time with three digits: ``812 µs``, ``24.1 ms``, ``1.31 s``."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        value = seconds * factor
        if value >= 1 or unit == "µs":
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError


def show_times(values: Sequence[float]) -> str:
    """Print the median and p99 of some times."""
    return f"{show_time(p50(values))} ({show_time(p99(values))})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``reached`` is compared with ``limit``; ``most`` says which way."""

    what: str
    ours: str
    bare: str = "–"
    libvirt: str = "–"
    reached: float
    limit: float
    unit: str = "×"
    most: bool = True
    show: Callable[[float], str] = lambda value: f"{value:.2f}"

    @property
    def is_met(self) -> bool:
        """True when the limit is kept."""
        return self.reached <= self.limit if self.most else self.reached >= self.limit

    def cells(self) -> list[str]:
        """Return the cells of the line."""
        bound = f"{'≤' if self.most else '≥'} {self.show(self.limit)}{self.unit}"
        reached = f"{self.show(self.reached)}{self.unit}"
        return [self.what, self.ours, self.bare, self.libvirt, reached, bound,
                "met" if self.is_met else "**missed**"]  # fmt: skip


HEAD = ["what", "serai", "bare QEMU", "libvirt", "reached", "wanted", ""]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


async def timed(work: Awaitable[object]) -> float:
    """Return how long ``work`` took, in seconds."""
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


def clocked(work: Callable[[], object]) -> float:
    """Return how long a call took, in seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
