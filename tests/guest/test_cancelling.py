"""Jobs that are broken off, once or four times, at any moment: undone or done, never between."""

import threading
import time
from contextlib import suppress

import pytest
from keeper import Daemon, wait_for

from serai import Guest, SeraiError
from serai.client import guest_calls, image_calls, job_calls, snapshot_calls
from serai.client.blocking import Connection
from serai.client.calls import Call
from serai.model.guest import GuestSpec
from serai.model.job import Job, JobState

SMALL = 96 << 20
AT_REST = {"running", "stopped"}
NAMES = {f"try-{number}" for number in range(1, 5)}


def launch(daemon: Daemon, name: str, *, wait: bool = True) -> Job:
    spec = GuestSpec(image="tiny", name=name, memory=SMALL)
    return Connection(daemon.socket).ask(guest_calls.launch_guest(spec, wait_agent=wait))


def cancel_often(daemon: Daemon, job: Job) -> None:
    def cancel() -> None:
        try:
            Connection(daemon.socket).ask(job_calls.cancel_job(job.id))
        except SeraiError as error:
            assert error.code == "job-not-cancellable"

    threads = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.003)
    for thread in threads:
        thread.join()


def check_at_rest(daemon: Daemon) -> None:
    """All jobs have ended, all guests are in a state that can last, none is half there."""
    wait_for(
        "all jobs end", lambda: not daemon.inn.jobs("running") and not daemon.inn.jobs("queued")
    )
    guests = {guest.id: guest.info for guest in daemon.inn.guests()}
    assert {str(info.state) for info in guests.values()} <= AT_REST
    assert daemon.qemu_pids() == {key: info.pid for key, info in guests.items() if info.pid}
    folders = {path.name for path in (daemon.home / "state" / "guests").iterdir()}
    assert folders == set(guests)


def test_a_launch_that_is_cancelled_often_is_undone_or_runs(daemon: Daemon) -> None:
    for turn in range(12):
        job = launch(daemon, f"g{turn}")
        time.sleep(0.01 * turn)
        cancel_often(daemon, job)
        ended = Connection(daemon.socket).ask(job_calls.show_job(job.id))
        assert ended.state is JobState.CANCELLED
    check_at_rest(daemon)


def test_what_is_cancelled_at_any_moment_of_a_freeze_leaves_nothing(
    daemon: Daemon, disky: Guest
) -> None:
    """No number, name, layer, node in QEMU or head is left, and nobody doubts what is written to."""
    guest = disky
    guest.fork().delete(force=True)
    asking = Connection(daemon.socket)

    def cancel_each(call: Call[Job], times: int) -> None:
        for turn in range(times):
            job = asking.ask(call)
            time.sleep(0.001 * turn)
            with suppress(SeraiError):  # it is done
                asking.ask(job_calls.cancel_job(job.id))
            wait_for("it ends", lambda: not daemon.inn.jobs("running"))
            ended = asking.ask(job_calls.show_job(job.id))
            assert ended.state in (JobState.CANCELLED, JobState.DONE), ended.problem
            for made in [each for each in daemon.inn.guests() if each.name != "disky"]:
                made.delete(force=True)
            for snapshot in guest.snapshots():
                snapshot.delete()
            for image in [each for each in daemon.inn.images() if each.name == "try"]:
                daemon.inn.delete_image(image.name)

    cancel_each(guest_calls.fork_guest("disky", name="try", count=4), 40)
    cancel_each(snapshot_calls.create_snapshot("disky", name="try"), 40)
    cancel_each(snapshot_calls.create_snapshot("disky", name="try", memory=False), 20)
    cancel_each(image_calls.publish_image("disky", "try"), 40)
    guest.run("echo whole | dd of=/dev/vda conv=fsync")
    guest.snapshot("try")
    forks = guest.fork(4, name="try")
    assert {each.run("hostname").stdout.strip() for each in forks} == NAMES
    assert {each.run("head -c 5 /dev/vda").stdout for each in forks} == {"whole"}
    guest.stop(force=True)
    guest.start()
    wait_for("its agent answers", lambda: guest.refresh().info.agent == "answering")
    assert guest.run("head -c 5 /dev/vda").stdout == "whole"
    checked = daemon.run("check")
    assert checked.returncode == 0 and b"orphan" not in checked.stdout, checked


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_stop_that_is_cancelled_leaves_the_guest_as_it_is(
    daemon: Daemon, guest: Guest, verb: str
) -> None:
    pid = guest.refresh().info.pid
    guest.run("rm -f $(which poweroff) $(which shutdown)")  # it can't go
    call = guest_calls.stop_guest if verb == "stop" else guest_calls.restart_guest
    job = Connection(daemon.socket).ask(call("web1", timeout=30.0))
    time.sleep(0.1)
    cancel_often(daemon, job)
    check_at_rest(daemon)
    info = guest.refresh().info
    assert (str(info.state), info.pid) == ("running", pid)


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_guest_that_goes_after_its_stop_was_cancelled_is_seen_to_go(
    daemon: Daemon, guest: Guest, verb: str
) -> None:
    """It was asked to power off, and does so; the job does not wait for it any more."""
    call = guest_calls.stop_guest if verb == "stop" else guest_calls.restart_guest
    job = Connection(daemon.socket).ask(call("web1", timeout=30.0))
    time.sleep(0.05)
    cancel_often(daemon, job)
    wait_for("it is stopped", lambda: guest.state == "stopped")
    check_at_rest(daemon)


def test_a_forced_stop_of_a_guest_on_its_way_leaves_nothing_between(daemon: Daemon) -> None:
    for turn in range(10):
        launch(daemon, f"g{turn}", wait=False)
        time.sleep(0.006 * turn)
        try:
            Connection(daemon.socket).ask(guest_calls.stop_guest(f"g{turn}", force=True))
        except SeraiError as error:
            assert error.code in {"guest-state", "guest-not-found"}
    check_at_rest(daemon)
    daemon.stop()
    daemon.start()  # what was undone does not come back
    check_at_rest(daemon)


def test_a_deletion_is_not_broken_off(daemon: Daemon, guest: Guest) -> None:
    job = Connection(daemon.socket).ask(guest_calls.delete_guest("web1", force=True))
    cancel_often(daemon, job)
    wait_for("it is gone", lambda: daemon.inn.guests() == [])
    check_at_rest(daemon)


def test_a_build_that_is_cancelled_often_leaves_nothing(daemon: Daemon) -> None:
    for turn in range(4):
        job = Connection(daemon.socket).ask(image_calls.build_image("tiny", name="another"))
        time.sleep(0.3 * turn)
        cancel_often(daemon, job)
        ended = Connection(daemon.socket).ask(job_calls.show_job(job.id))
        assert ended.state is JobState.CANCELLED
    check_at_rest(daemon)
    assert list((daemon.home / "state" / "scratch").iterdir()) == []
    assert [image.name for image in daemon.inn.images()] == ["tiny"]
