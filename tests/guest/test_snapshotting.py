"""Snapshots of real guests: one moment, durable, restored in place, deleted without harm."""

import concurrent.futures
import time

import pytest
from faults import rows
from keeper import Daemon, wait_for

from serai import Guest, SeraiError
from serai.errors import Code
from serai.model.guest import AgentState
from serai.model.lifecycle import GuestState
from serai.model.snapshot import SnapshotState

LIMIT = 60.0
PUT = "tr '\\0' $BYTE < /dev/zero | head -c 1048576 | dd of=/dev/vda bs=64k seek=$AT conv=notrunc,fsync 2>/dev/null"
GET = """for at in 0 16 32 48; do
    dd if=/dev/vda bs=64k skip=$at count=16 iflag=direct 2>/dev/null | md5sum
done"""


def put(guest: Guest, byte: str, at: int) -> None:
    assert guest.run(PUT, env={"BYTE": byte, "AT": str(at * 16)}).ok


def sums(guest: Guest) -> list[str]:
    found = guest.run(GET).stdout.splitlines()
    assert len(found) == 4
    return found


def has(guest: Guest, path: str) -> bool:
    return guest.run(["test", "-e", path]).ok


def reach(daemon: Daemon, name: str) -> Guest:
    until = time.monotonic() + LIMIT
    while (guest := daemon.inn.guest(name)).info.agent is not AgentState.ANSWERING:
        assert time.monotonic() < until
        time.sleep(0.05)
    return guest


def test_a_guest_goes_back_and_forth(guest: Guest) -> None:
    guest.run("touch /one")
    first = guest.snapshot("first")
    guest.run("touch /two; rm /one")
    second = guest.snapshot("second", note="two is there")
    guest.run("touch /three")
    guest.restore(first, force=True)
    assert has(guest, "/one") and not has(guest, "/two")
    guest.restore("second", force=True)
    assert has(guest, "/two") and not has(guest, "/one") and not has(guest, "/three")
    guest.restore("first", force=True)
    guest.run("touch /branch")
    guest.snapshot("branch")
    told = [(each.name, each.info.depth, each.info.is_current) for each in guest.snapshots()]
    assert told == [("first", 0, False), ("second", 1, False), ("branch", 1, True)]
    assert second.info.note == "two is there"
    assert abs(float(guest.run("date +%s").stdout) - time.time()) < 5


def test_a_guest_may_write_all_its_memory_after_a_snapshot(daemon: Daemon) -> None:
    """Its base stays charged to its control group, and what it changes of it comes on top."""
    guest = daemon.inn.launch("tiny", name="full", memory="512MiB")
    fill = "dd if=/dev/zero of=/mnt/f bs=1M count=400 conv=notrunc"
    assert guest.run(f"mount -t tmpfs -o size=430m none /mnt && {fill}").ok
    guest.snapshot("full")
    assert guest.run(fill).ok
    assert guest.refresh().info.state == "running" and guest.info.problem is None


def test_disk_and_memory_are_one_moment(daemon: Daemon, disky: Guest) -> None:
    """A guest that counts in memory and on its disk: a fork of the moment finds both alike."""
    loop = (
        "i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /count; printf '%-511d\\n' $i | "
        "dd of=/dev/vda conv=notrunc,fsync bs=512 count=1 2>/dev/null; done"
    )
    disky.run(f"({loop}) >/dev/null 2>&1 &")
    for number in range(3):
        fork = disky.snapshot(f"s{number}").fork(name=f"f{number}")
        fork.run("killall sh; sleep 0.2")
        memory = int(fork.run("cat /count").stdout)
        disk = int(fork.run("dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null").stdout)
        assert memory - disk in (0, 1, 2), (memory, disk)  # it was stopped between the two writes
        fork.delete(force=True)


def test_a_disk_goes_back_too_and_cold(daemon: Daemon, disky: Guest) -> None:
    put(disky, "a", 0)
    seen = [sums(disky)]
    disky.snapshot("a")
    put(disky, "b", 1)
    seen.append(sums(disky))
    disky.snapshot("b", memory=False)
    put(disky, "c", 0)
    seen.append(sums(disky))
    disky.snapshot("c")
    put(disky, "d", 3)
    for name, expected in zip("acbacab", [seen["abc".index(n)] for n in "acbacab"], strict=True):
        disky.restore(name, force=True)
        assert sums(reach(daemon, "disky")) == expected, name
    guest = reach(daemon, "disky")
    guest.stop(force=True)
    guest.start()
    assert sums(reach(daemon, "disky")) == seen[1]


def test_deleting_is_free_of_harm_in_any_order(daemon: Daemon, disky: Guest) -> None:
    seen = {}
    for at, name in enumerate("abcd"):
        put(disky, name, at)
        disky.snapshot(name)
        seen[name] = sums(disky)
    fork = daemon.inn.snapshot("disky@b").fork(name="kept")
    before = len(rows(daemon, "layers"))  # all are needed, and no deletion below frees one at once
    for name in "bda":
        daemon.inn.snapshot(f"disky@{name}").delete()
        assert sums(disky) == seen["d"]
        assert sums(fork) == seen["b"]
    daemon.stop()
    daemon.start()  # what looks for layers that can be one does so soon, and then not for long
    wait_for("layers are one", lambda: len(rows(daemon, "layers")) < before)
    disky, fork = daemon.inn.guest("disky"), daemon.inn.guest("kept")
    assert [each.name for each in disky.snapshots()] == ["c"]
    disky.restore("c", force=True)
    assert sums(disky) == seen["c"]
    for guest, name in ((fork, "b"), (disky, "c")):
        guest.stop(force=True)
        guest.start()
        assert sums(reach(daemon, guest.name)) == seen[name]
    disky.delete(force=True)
    assert sums(reach(daemon, "kept")) == seen["b"]


def test_a_guest_with_uefi_is_forked_and_put_back(daemon: Daemon) -> None:
    guest = daemon.inn.launch("tiny", name="modern", firmware="uefi")
    guest.run("touch /mark")
    grandchild = guest.fork(name="child").fork(name="grandchild")
    assert has(grandchild, "/mark")
    grandchild.snapshot("s")
    grandchild.run("rm /mark")
    grandchild.restore("s", force=True)
    assert has(grandchild, "/mark")
    grandchild.restart(force=True)
    assert not has(reach(daemon, "grandchild"), "/mark")


def test_uefi_variables_live_as_long_as_a_snapshot_names_them(daemon: Daemon) -> None:
    guest = daemon.inn.create("tiny", name="modern", firmware="uefi", memory="96MiB")
    folder = daemon.home / "state" / "firmware"
    guest.snapshot("s")
    image = guest.snapshot("t").publish("modern")
    (path,) = folder.iterdir()  # the same three times
    sound = path.read_bytes()
    guest.snapshots()[1].delete()
    guest.delete()
    daemon.stop()
    path.write_bytes(sound[:-1] + b"?")
    daemon.start()
    with pytest.raises(SeraiError) as caught:
        daemon.inn.launch("modern", name="one", wait=False)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT
    assert daemon.inn.guests() == []
    path.write_bytes(sound)
    one = daemon.inn.launch("modern", name="one", wait=False)
    assert (daemon.home / "state" / "guests" / one.id / "uefi-vars.fd").read_bytes()
    one.delete(force=True)
    daemon.inn.delete_image(image.name)
    assert [*folder.iterdir()] == []


def test_a_stopped_guest_is_saved_and_put_back(daemon: Daemon, disky: Guest) -> None:
    put(disky, "a", 0)
    before = sums(disky)
    disky.stop()
    disky.snapshot("off")
    disky.restore("off")  # nothing was written since: nothing is lost
    disky.start()
    guest = reach(daemon, "disky")
    put(guest, "b", 0)
    guest.stop()
    with pytest.raises(SeraiError) as caught:
        guest.restore("off")
    assert caught.value.code is Code.UNSAVED_WORK
    guest.restore("off", force=True)
    assert daemon.inn.guest("disky").info.state is GuestState.STOPPED
    daemon.inn.guest("disky").start()
    assert sums(reach(daemon, "disky")) == before


def test_file_systems_are_quiet_when_asked_for(disky: Guest) -> None:
    made = disky.snapshot("quiet", quiesce=True)
    assert made.info.quiesced
    assert disky.run("touch /still-writable").ok
    assert made.fork(name="thawed").run("touch /writable").ok
    disky.restore(made, force=True)
    assert disky.run("touch /writable").ok


def test_a_snapshot_outlives_daemon_and_process(daemon: Daemon, guest_reached: Guest) -> None:
    guest_reached.run("echo kept > /mark")
    guest_reached.snapshot("kept")
    guest_reached.stop(force=True)
    daemon.kill()
    daemon.start()
    again = daemon.inn.guest("web1")
    again.restore("kept", force=True)
    assert again.run("cat /mark").stdout == "kept\n"
    assert daemon.inn.snapshot("web1@kept").fork(name="more").run("cat /mark").stdout == "kept\n"


def test_killing_the_daemon_at_any_moment_leaves_whole_snapshots_or_none(
    daemon: Daemon, disky: Guest
) -> None:
    put(disky, "a", 0)
    before = sums(disky)
    for turn, delay in enumerate((0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = pool.submit(daemon.run, "snapshot", "create", "disky", f"t{turn}")
            time.sleep(delay + 0.25)  # the command itself takes a quarter of a second to ask
            daemon.kill()
            done = asked.result()
        daemon.start()
        guest = reach(daemon, "disky")
        assert sums(guest) == before
        found = {each.name: each for each in guest.snapshots()}
        assert all(each.info.state is SnapshotState.READY for each in found.values())
        if done.returncode == 0:
            assert f"t{turn}" in found
        if f"t{turn}" in found:
            fork = found[f"t{turn}"].fork(name=f"f{turn}")
            assert sums(fork) == before
            fork.delete(force=True)


def test_a_flipped_bit_is_found_before_use(daemon: Daemon) -> None:
    disky = daemon.inn.launch("tiny", name="disky", memory="96MiB", disk="16MiB")
    put(disky, "a", 0)
    disky.snapshot("good")
    disky.stop(force=True)
    assert daemon.inn.check().findings == ()  # layers have digests from now on
    daemon.stop()
    files = [*daemon.home.glob("state/memory/*/*"), *daemon.home.glob("state/layers/*.qcow2")]
    assert len(files) >= 4
    for path in files:
        sound = path.read_bytes()
        where = next(at for at in range(len(sound) // 2, len(sound)) if sound[at])
        path.chmod(0o600)
        path.write_bytes(sound[:where] + bytes([sound[where] ^ 4]) + sound[where + 1 :])
        daemon.start()
        with pytest.raises(SeraiError) as caught:
            daemon.inn.guest("disky").restore("good", force=True)
        assert caught.value.code is Code.SNAPSHOT_CORRUPT, path
        assert daemon.inn.guest("disky").info.state is GuestState.STOPPED
        daemon.stop()
        path.write_bytes(sound)
    daemon.start()
    daemon.inn.guest("disky").restore("good", force=True)


# -- images ----------------------------------------------------------------------------------------


def test_a_published_image_is_warm_and_outlives_its_guest(daemon: Daemon, disky: Guest) -> None:
    disky.run("echo warm > /mark")
    put(disky, "a", 0)
    before = sums(disky)
    image = disky.publish("web")
    assert image.warm
    disky.delete(force=True)
    daemon.kill()
    daemon.start()
    one, two = (daemon.inn.launch("web", name=name) for name in ("one", "two"))
    put(one, "b", 0)
    for guest in (one, two):
        assert guest.run("cat /mark; hostname").stdout.split() == ["warm", guest.name]
        assert guest.info.image == "web"
    assert sums(two) == before != sums(one)
    daemon.inn.delete_image("tiny")  # what it was made from stays as long as it is needed
    assert daemon.inn.launch("web", name="three").run("cat /mark").stdout == "warm\n"
    daemon.inn.delete_image("web")
    assert sums(two) == before
    daemon.inn.guest("three").delete(force=True)
    for guest in (one, two):
        guest.delete(force=True)


def test_a_guest_is_gone_when_its_time_is_over(daemon: Daemon, guest: Guest) -> None:
    guest.fork(name="short", ttl=3)
    until = time.monotonic() + LIMIT
    while [each.name for each in daemon.inn.guests()] != ["web1"]:
        assert time.monotonic() < until
        time.sleep(0.1)


# -- refused ---------------------------------------------------------------------------------------


def test_what_can_not_be_done_changes_nothing(daemon: Daemon, guest: Guest) -> None:
    guest.snapshot("one")
    other = daemon.inn.create("tiny", name="other", memory="128MiB")
    refused = [
        (lambda: guest.snapshot("one"), Code.SNAPSHOT_EXISTS),
        (lambda: guest.snapshot("a name"), Code.NAME_INVALID),
        (lambda: guest.restore("none", force=True), Code.SNAPSHOT_NOT_FOUND),
        (lambda: other.restore("one", force=True), Code.SNAPSHOT_NOT_FOUND),
        (lambda: other.restore(guest.snapshots()[0], force=True), Code.SNAPSHOT_NOT_FOUND),
        (lambda: guest.restore("one"), Code.UNSAVED_WORK),
        (lambda: other.snapshot("q", quiesce=True, memory=False), None),
    ]
    for ask, code in refused:
        if code is None:
            ask()
            continue
        with pytest.raises(SeraiError) as caught:
            ask()
        assert caught.value.code is code
    assert [each.name for each in guest.snapshots()] == ["one"]
    assert guest.run("true").ok


def test_cold_memory_takes_less_room_and_is_taken_up_all_the_same(
    daemon: Daemon, guest_reached: Guest
) -> None:
    told = guest_reached.run("head -c 1M /dev/urandom >/data; md5sum /data").stdout
    before = guest_reached.snapshot("base").info.own
    daemon.kill()
    daemon.environ["SERAI_COLD_AFTER"] = "1s"
    daemon.start()
    wait_for("less room", lambda: daemon.inn.snapshot("web1@base").info.own < before / 1.5)
    fork = daemon.inn.snapshot("web1@base").fork(name="web2")
    assert fork.run("md5sum /data").stdout == told
