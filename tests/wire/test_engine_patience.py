"""How long a guest is waited for on a host that has no processor for it: real processes, a guest that is none."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import cast

from serai.engine.driver import GuestDriver
from serai.engine.patience import LONGEST, Patience
from serai.host.procfs import kept_waiting

LIMIT = 0.4
BURN = "import os; os.sched_setaffinity(0, {%d}); print(flush=True)\nwhile True: pass"


@contextmanager
def burners(count: int) -> Iterator[int]:
    """Processes that want the same processor all the time; the pid of one of them."""
    script = BURN % min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for _ in range(count):
            child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
            stack.callback(child.wait)
            stack.callback(child.kill)
            assert child.stdout is not None
            stack.enter_context(child.stdout)
            child.stdout.readline()
        yield child.pid


def driver_of(pid: int) -> GuestDriver:
    made = SimpleNamespace(instance=SimpleNamespace(process=SimpleNamespace(pid=pid)))
    return cast(GuestDriver, made)


async def measure(pid: int) -> float:
    begun = time.monotonic()
    await Patience(driver_of(pid), LIMIT).until(asyncio.Event())
    return time.monotonic() - begun


async def test_time_without_a_processor_does_not_count() -> None:
    with burners(3) as pid:
        assert 2 * LIMIT < await measure(pid) < LONGEST * LIMIT + 5
        assert kept_waiting(pid) > LIMIT


async def test_who_wants_none_is_given_up_in_time() -> None:
    with subprocess.Popen(["sleep", "5"]) as idle:
        assert LIMIT <= await measure(idle.pid) < 3


async def test_it_ends_at_once_when_there_is_an_answer() -> None:
    answered, begun = asyncio.Event(), time.monotonic()
    asyncio.get_running_loop().call_later(0.05, answered.set)
    await Patience(driver_of(os.getpid()), 60.0).until(asyncio.Event(), answered)
    assert time.monotonic() - begun < 30


async def test_there_is_an_end_to_it(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("serai.engine.patience.LONGEST", 2)
    with burners(8) as pid:
        assert 1.9 * LIMIT < await measure(pid) < 2 * LIMIT + 5


def test_a_process_that_is_gone_waits_for_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert kept_waiting(gone.pid) == 0
