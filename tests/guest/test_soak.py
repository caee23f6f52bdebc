"""The soak in small, so that it works when it is needed; ``make soak`` is the long one."""

import os
import random
from pathlib import Path

import pytest
from bench import soak
from bench.soak import PATIENCE, fresh_daemon, small_home
from nursery import Nursery

SEED = 11


def test_cycles_leak_nothing(serai_home: Path) -> None:
    with fresh_daemon(serai_home) as daemon:
        soak.soak_cycles(daemon, 40)


def test_killed_daemons_lose_nothing(serai_home: Path, nursery: Nursery) -> None:
    with fresh_daemon(serai_home, nursery) as daemon:
        soak.soak_kills(daemon, 3, random.Random(SEED))


def test_a_hurt_guest_hurts_no_other(serai_home: Path) -> None:
    with fresh_daemon(serai_home, **PATIENCE) as daemon:
        soak.soak_hurts(daemon, 4, random.Random(SEED))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_holds_guests_and_loses_nothing() -> None:
    with (
        small_home("116m") as home,
        fresh_daemon(home, disk_reserve="16MiB", heartbeat="1s") as daemon,
    ):
        soak.soak_full_disk(daemon, 48 << 20)
