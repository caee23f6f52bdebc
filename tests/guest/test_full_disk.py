"""The host's disk is full: guests wait, serai goes on, and what it is asked to end ends."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import look, put, wait_tidy
from keeper import Daemon, running, wait_for
from nursery import Nursery
from tiny import copy_state

from serai import SeraiError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")

WRITTEN = 48_000_000


@pytest.fixture
def daemon(serai_home: Path, tiny_state: Path, nursery: Nursery) -> Iterator[Daemon]:
    """A daemon whose home has 64 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=116m", "small", serai_home], check=True)
    copy_state(tiny_state, serai_home)
    keeper = Daemon(serai_home, disk_reserve="16MiB", heartbeat="1s")
    keeper.nursery = nursery
    try:
        with running(keeper):
            yield keeper
    finally:
        subprocess.run(["umount", "--lazy", serai_home], check=True)


def fill(home: Path) -> None:
    """Take all room that is left, as others on the same disk may do."""
    with (home / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(SeraiError) as caught:
        work()
    return str(caught.value.code)


@pytest.mark.timeout(240)
def test_a_full_disk_holds_guests_and_keeps_nobody_from_ending_them(daemon: Daemon) -> None:
    inn, home = daemon.inn, daemon.home
    writer = inn.launch("tiny", name="writer", memory="128MiB", disk="1GiB")
    other = inn.launch("tiny", name="other", memory="128MiB")
    cold = inn.create("tiny", name="cold", memory="128MiB", disk="64MiB")
    writer.run("head -c 1000000 /dev/urandom > /tmp/r")
    writer.run(f"echo 'for i in $(seq {WRITTEN // 1_000_000}); do cat /tmp/r; done' > /tmp/all")
    writer.run("sh -c 'sh /tmp/all > /dev/vda; sync; touch /tmp/done' > /dev/null 2>&1 &")
    wait_for("it is held", lambda: writer.state == "io-error")
    assert writer.info.problem is not None
    assert writer.info.problem.code == "disk-full"
    fill(home)

    assert other.run("echo well").stdout == "well\n"
    assert code_of(lambda: writer.run("true")) == "guest-state"
    assert code_of(lambda: inn.launch("tiny", name="more", memory="128MiB")) == "disk-full"
    assert code_of(lambda: inn.build_image("tiny", name="more")) == "disk-full"
    other.stop(force=True)
    cold.delete()
    fill(home)
    other.start()
    daemon.kill()
    fill(home)
    daemon.start()
    assert {g.name: str(g.info.state) for g in daemon.inn.guests()} == {
        "other": "running",
        "writer": "io-error",
    }
    daemon.inn.guest("other").delete(force=True)

    (home / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=352m", str(home)], check=True)
    writer = daemon.inn.guest("writer")
    wait_for("it goes on", lambda: writer.state == "running")
    wait_for("it has written all", lambda: writer.run("cat /tmp/done").ok)
    wanted = writer.run("sh /tmp/all | md5sum").stdout
    writer.run("echo 3 > /proc/sys/vm/drop_caches")
    assert writer.run(f"head -c {WRITTEN} /dev/vda | md5sum").stdout == wanted
    assert daemon.inn.jobs("running") + daemon.inn.jobs("queued") == []


def test_what_a_full_disk_refuses_has_changed_nothing(daemon: Daemon) -> None:
    subprocess.run(["mount", "-o", "remount,size=452m", str(daemon.home)], check=True)
    guest = daemon.inn.launch("tiny", name="web1", memory="96MiB", disk="16MiB")
    old = put(guest, "a")
    guest.snapshot("first")
    new = put(guest, "b")
    asked: list[Callable[[], object]] = [
        lambda: guest.snapshot("second"),
        lambda: guest.fork(name="child"),
        lambda: daemon.inn.snapshot("web1@first").fork(name="child"),
        lambda: guest.restore("first", force=True),
        lambda: guest.publish("warm"),
    ]
    codes = []
    for ask in asked:
        fill(daemon.home)
        codes.append(outcome(ask))
        restored = ask is asked[3] and not codes[-1]
        assert look(guest) == (old if restored else new)
        (daemon.home / "filler").unlink()
        wait_tidy(daemon)
        names = {each.name for each in daemon.inn.guests()} - {"web1"}
        made = names | ({each.name for each in guest.snapshots()} - {"first"})
        assert not (codes[-1] and made), "it was refused, and something is there"
        put(guest, "b")
        for name in names:
            daemon.inn.guest(name).delete(force=True)
        for name in made - names:
            daemon.inn.snapshot(f"web1@{name}").delete()
    # what is so small that the room kept back for the database does may be done all the same
    assert set(codes) <= {"", "disk-full"}
    assert "disk-full" in codes
    fork = guest.fork(name="child")
    guest.restore("first", force=True)
    assert (look(guest), look(fork)) == (old, new)


def outcome(work: Callable[[], object]) -> str:
    """Return the code of the problem that it ends with, "" for none."""
    try:
        work()
    except SeraiError as error:
        return str(error.code)
    return ""
