"""The fixtures of this ring do what they say: a daemon, a ladder of guests, nothing left behind."""

from pathlib import Path

from keeper import Daemon
from warm import KINDS, WARM

from serai import Guest


def test_a_daemon_has_tiny_and_ends_without_leftovers(daemon: Daemon) -> None:
    assert [image.name for image in daemon.inn.images()] == ["tiny"]
    assert daemon.inn.guests() == []
    daemon.stop()
    assert daemon.leftovers() == []


def test_the_ladder_ends_at_a_guest_that_answers(daemon: Daemon, guest_reached: Guest) -> None:
    assert guest_reached.run("echo $((6*7))").stdout == "42\n"
    assert daemon.qemu_pids() == {guest_reached.id: guest_reached.info.pid}


def test_one_that_was_there_at_once_leaves_no_more_behind(daemon: Daemon, guest: Guest) -> None:
    assert guest.info.image == WARM
    assert guest.run("echo $((6*7))").stdout == "42\n"
    guest.snapshot("s")
    daemon.delete_all()
    given = [path for path in daemon.leftovers() if "/memory/" in path]
    assert len(given) == 2 * len(KINDS), "each image has a base and what is over it"
    for each in KINDS:
        daemon.inn.delete_image(each)
    daemon.stop()
    assert daemon.leftovers() == []


def test_leftovers_are_seen(daemon: Daemon, guest_started: Guest) -> None:
    daemon.kill()
    left = " ".join(daemon.leftovers())
    assert f"process {guest_started.info.pid} of guest {guest_started.id}" in left
    daemon.kill_all()
    assert daemon.qemu_pids() == {}


def test_what_failed_can_be_saved(daemon: Daemon, guest_started: Guest, tmp_path: Path) -> None:
    daemon.save(tmp_path / "saved")
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"daemon.log", "events.json", "list.json", "job-list.json"} < saved
    assert {f"{guest_started.id}-serial.log", f"{guest_started.id}-argv"} < saved
