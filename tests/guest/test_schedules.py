"""Schedules of a real guest: snapshots come and go by themselves, and only their own."""

import time
from itertools import islice

import pytest
from keeper import Daemon

from serai import Guest, Keep, SeraiError
from serai.errors import Code
from serai.model.event import EventKind
from serai.model.guest import AgentState
from serai.model.snapshot import SnapshotState

LIMIT = 60.0


def wait_turns(daemon: Daemon, count: int) -> list[str]:
    """Wait until schedules have run so often from now on; return what they said."""
    ran = (each for each in daemon.inn.watch() if each.kind is EventKind.SCHEDULE_RAN)
    return [each.data["said"] for each in islice(ran, count)]


def wait_agent(guest: Guest) -> None:
    until = time.monotonic() + LIMIT
    while guest.refresh().info.agent is not AgentState.ANSWERING:
        assert time.monotonic() < until
        time.sleep(0.05)


def names(guest: Guest) -> list[str]:
    assert all(each.info.state is SnapshotState.READY for each in guest.snapshots())
    return sorted(each.name for each in guest.snapshots())


def test_snapshots_come_and_go_by_themselves_and_only_their_own(
    daemon: Daemon, disky: Guest
) -> None:
    daemon.stop()
    daemon.environ["SERAI_SCHEDULE_INTERVAL"] = "1s"
    daemon.start()
    disky.snapshot("mine", memory=False)
    other = disky.schedule("daily", "03:30", keep=Keep(daily=1), memory=False)
    quick = disky.schedule("1s", name="quick", keep=Keep(last=2), memory=False)
    said = wait_turns(daemon, 4)
    assert all("quick of disky made the snapshot quick-" in each for each in said)
    assert "and deleted quick-" in said[-1]
    other.run()

    daemon.kill()
    daemon.start()
    disky = daemon.inn.guest("disky")
    wait_turns(daemon, 3)
    quick = quick.pause()
    quick.run()  # behind a turn that may be on its way
    found = names(daemon.inn.guest("disky"))
    assert [each.partition("-")[0] for each in found] == ["daily", "mine", "quick", "quick"]
    assert [each.name for each in disky.schedules()] == ["daily", "quick"]

    disky.stop()
    quick.run()
    other.run()  # an empty layer over the last one of quick
    before = names(disky)
    assert quick.run().startswith(
        "quick of disky made no snapshot: nothing has changed since quick-"
    )
    assert other.run().startswith("daily of disky made no snapshot: ")
    assert names(disky) == before
    disky.set(memory="160MiB")
    assert "made the snapshot" in quick.run()
    disky.start()
    quick.set(quiesce=True, name_as="{schedule}-{date}")
    wait_agent(disky)
    assert "made the snapshot quick-" in quick.run()
    disky.run("dd if=/dev/zero of=/dev/vda bs=64k count=1 conv=fsync 2>/dev/null")
    disky.stop(force=True)
    assert "made the snapshot quick-" in quick.run()
    with pytest.raises(SeraiError) as caught:
        disky.schedule("1s", name="quick")
    assert caught.value.code is Code.SCHEDULE_EXISTS

    assert "mine" in names(disky)
    other.delete()
    assert sum(each.startswith("daily-") for each in names(disky)) == 1  # the user's own now
    disky.delete(force=True)
    assert daemon.inn.schedules() == []
    daemon.kill()
    daemon.start()
    assert daemon.inn.schedules() == []
