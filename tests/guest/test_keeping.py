"""The fixtures of this ring do what they say: a daemon, a ladder of guests, nothing left behind."""

from pathlib import Path

from keeper import Daemon

from serai import Guest


def test_a_daemon_has_tiny_and_ends_without_leftovers(daemon: Daemon) -> None:
    assert [image.name for image in daemon.inn.images()] == ["tiny"]
    assert daemon.inn.guests() == []
    daemon.stop()
    assert daemon.leftovers() == []


def test_the_ladder_ends_at_a_guest_that_answers(daemon: Daemon, guest: Guest) -> None:
    assert guest.run("echo $((6*7))").stdout == "42\n"
    assert daemon.qemu_pids() == {guest.id: guest.info.pid}


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
