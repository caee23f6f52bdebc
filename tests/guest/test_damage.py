"""Files and rows that are not what they were: the daemon starts, says so, and keeps the others."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from keeper import Daemon

from serai import SeraiError

SMALL = "96MiB"


def damage(home: Path, statement: str) -> None:
    with closing(sqlite3.connect(home / "state" / "serai.db")) as database:
        database.execute(statement)
        database.commit()


def test_running_guests_are_kept_whatever_stands_beside_them(daemon: Daemon) -> None:
    names = ("garbage", "folder", "both")
    guests = {
        name: daemon.inn.launch("tiny", name=name, memory=SMALL, disk="8MiB", wait=False)
        for name in names
    }
    pids = {name: guest.refresh().info.pid for name, guest in guests.items()}
    beside = {
        name: daemon.home / "run" / "guests" / guest.id / "running.json"
        for name, guest in guests.items()
    }
    daemon.kill()
    beside["garbage"].write_bytes(b"[" * 100_000)
    beside["folder"].unlink()
    beside["folder"].mkdir()
    beside["both"].write_bytes(b"")
    head = daemon.home / "state" / "guests" / guests["both"].id / "root.qcow2"
    head.write_bytes(b"\xff" * 512 + head.read_bytes()[512:])
    (daemon.home / "state" / "capabilities.json").write_bytes(b"{")
    daemon.start()
    for name in names:
        guest = daemon.inn.guest(name)
        assert (str(guest.info.state), guest.info.pid) == ("running", pids[name])
        assert guest.stop(force=True).info.state == "stopped"
    with pytest.raises(SeraiError) as caught:
        daemon.inn.guest("both").start()
    assert caught.value.code == "file-failed"
    beside["folder"].rmdir()


def test_a_guest_whose_disk_is_gone_is_not_started_without_it(daemon: Daemon) -> None:
    guest = daemon.inn.create("tiny", name="web1", memory=SMALL, disk="8MiB")
    (daemon.home / "state" / "guests" / guest.id / "root.qcow2").unlink()
    with pytest.raises(SeraiError) as caught:
        guest.start()
    assert caught.value.code == "file-failed"
    assert guest.state == "stopped"


def test_a_guest_that_the_database_has_lost_is_said_to_be(daemon: Daemon) -> None:
    for name in ("lost", "kept"):
        daemon.inn.create("tiny", name=name, memory=SMALL)
    daemon.kill()
    damage(daemon.home, "update guests set body = cast(x'7b92' as text) where name = 'lost'")
    daemon.start()
    assert [guest.name for guest in daemon.inn.guests()] == ["kept"]
    with pytest.raises(SeraiError) as caught:
        daemon.inn.guest("lost")
    assert caught.value.code == "database-failed"
    with pytest.raises(SeraiError) as caught:
        daemon.inn.create("tiny", name="lost", memory=SMALL)
    assert caught.value.code == "guest-exists"
    damage(daemon.home, "delete from guests where name = 'lost'")
    for folder in (daemon.home / "state" / "guests").iterdir():
        if folder.name != daemon.inn.guest("kept").id:
            folder.rmdir()


def test_jobs_that_cannot_be_read_end_and_rubbish_goes(daemon: Daemon) -> None:
    daemon.inn.create("tiny", name="web1", memory=SMALL)
    daemon.kill()
    for kind in ("create", "image-build"):
        damage(
            daemon.home,
            "update jobs set state = 'running', body = replace(replace(body, "
            f"""'"state":"done"', '"state":"running"'), '"action":"{{', '"action":"{{{{') """
            f"""where body like '%"kind":"{kind}"%'""",
        )
    scratch = daemon.home / "state" / "scratch"
    (scratch / "left").mkdir()
    (scratch / "left" / "file").write_text("of a build that was killed")
    (scratch / "file").write_text("rubbish")
    daemon.start()
    assert list(scratch.iterdir()) == []
    assert daemon.inn.jobs("running") == []
    assert {str(job.problem.code) for job in daemon.inn.jobs() if job.problem} == {
        "job-interrupted"
    }
    assert daemon.inn.guest("web1").state == "stopped"
