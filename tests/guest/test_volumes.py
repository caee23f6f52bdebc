"""Volumes at real guests: plugged, grown, frozen, forked, shared, limited, copied, and never lost."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pycdlib
import pytest
from keeper import Daemon

from serai import Guest, SeraiError
from serai.client import volume_calls
from serai.client.volumes import Volume
from serai.errors import Code
from serai.model.guest import AgentState
from serai.units import MIB

LIMIT = 20.0
SUM = "md5sum < /dev/$DISK"


def disk_of(guest: Guest, volume: Volume) -> str:
    """Return what the guest calls the volume, found by its serial number, once it is there."""
    look = "grep -l $SERIAL /sys/block/vd*/serial | cut -d/ -f4"
    until = time.monotonic() + LIMIT
    while not (name := guest.run(look, env={"SERIAL": volume.info.serial}).stdout.strip()):
        assert time.monotonic() < until, "the guest does not see the disk"
        time.sleep(0.05)
    return name


def reach(guest: Guest) -> None:
    until(lambda: guest.refresh().info.agent is AgentState.ANSWERING)


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


def put(guest: Guest, disk: str, text: str) -> None:
    words = "head -c 1048576 /dev/zero | tr '\\0' $TEXT | dd of=/dev/$DISK bs=64k conv=fsync 2>/dev/null"
    assert guest.run(words, env={"DISK": disk, "TEXT": text}).ok


def first(guest: Guest, disk: str) -> str:
    words = "dd if=/dev/$DISK bs=512 count=1 iflag=direct 2>/dev/null | head -c 1"
    return guest.run(words, env={"DISK": disk}).stdout


def sectors(guest: Guest, disk: str) -> int:
    return int(guest.run("cat /sys/block/$DISK/size", env={"DISK": disk}).stdout)


def refused(code: Code, work: Callable[[], object]) -> SeraiError:
    with pytest.raises(SeraiError) as caught:
        work()
    assert caught.value.code is code, caught.value
    assert caught.value.hint
    return caught.value


def test_a_volume_goes_along_with_its_guest(daemon: Daemon) -> None:
    """Attached, written, grown, frozen, forked, put back, taken away; the daemon killed between."""
    inn = daemon.inn
    guest = inn.launch(
        "tiny", name="web1", memory="128MiB", disk="32MiB", volumes=["size=8MiB,boot=1"]
    )
    assert [each.name for each in inn.volumes(guest="web1")] == ["web1-1"]
    data = inn.create_volume("data", "16MiB", serial="DATA-1").attach("web1")
    disk = disk_of(guest, data)
    put(guest, disk, "a")
    assert data.refresh().info.own >= MIB

    data.resize("24MiB")
    until(lambda: sectors(guest, disk) == 24 * 2048)
    refused(Code.SHRINK_REFUSED, lambda: data.resize("8MiB"))

    guest.snapshot("s")
    put(guest, disk, "b")
    fork = guest.fork(name="fork")
    assert (first(fork, disk), first(guest, disk)) == ("b", "b")
    put(fork, disk, "f")
    assert first(guest, disk) == "b"
    refused(Code.VOLUME_IN_USE, lambda: data.attach("fork"))

    daemon.kill()
    daemon.start()
    inn, guest = daemon.inn, daemon.inn.guest("web1")
    data = inn.volume("data")
    assert first(guest, disk) == "b"
    late = inn.create_volume("late", "8MiB").attach("web1")
    guest.restore("s", force=True)
    assert (first(guest, disk), sectors(guest, disk)) == ("a", 24 * 2048)
    assert late.refresh().info.attached == ()
    assert [each.guest for each in data.refresh().info.attached] == ["web1"]

    data.detach()
    assert not guest.run(["test", "-e", f"/dev/{disk}"]).ok
    fork.delete(force=True)
    data.attach("web1")
    assert first(guest, disk_of(guest, data)) == "a"
    for name, code in (("root", Code.VOLUME_IS_ROOT), ("late", Code.VOLUME_NOT_ATTACHED)):
        assert (
            code.encode() in daemon.run("volume", "detach", name, "web1", "--format", "json").stderr
        )
    guest.stop(force=True)
    reach(guest.start())
    assert first(guest, disk_of(guest, data)) == "a"
    guest.delete(force=True)
    assert data.refresh().info.attached == ()
    for volume in inn.volumes():
        volume.delete()


def test_volumes_are_shared_limited_discarded_and_copied(
    daemon: Daemon, guest: Guest, tmp_path: Path
) -> None:
    inn = daemon.inn
    inn.create_pool("fast", str(tmp_path / "fast"))
    data = inn.create_volume("data", "24MiB", pool="fast").attach("web1")
    disk = disk_of(guest, data)

    filled = guest.run(
        "dd if=/dev/urandom of=/dev/$DISK bs=1M count=12 conv=fsync", env={"DISK": disk}
    )
    assert filled.ok and data.refresh().info.own > 12 * MIB
    assert guest.run("blkdiscard -o 1048576 -l 10485760 /dev/$DISK", env={"DISK": disk}).ok
    begun = time.monotonic()
    until(lambda: data.refresh().info.own < 3 * MIB)
    assert time.monotonic() - begun < 5
    content = guest.run(SUM, env={"DISK": disk}).stdout.split()[0]

    data.limit(bps="3MiB")
    begun = time.monotonic()
    assert guest.run(
        "dd if=/dev/$DISK of=/dev/null bs=1M count=6 iflag=direct", env={"DISK": disk}
    ).ok
    assert time.monotonic() - begun > 1
    fork = guest.fork(name="fork")
    begun = time.monotonic()
    assert fork.run(
        "dd if=/dev/$DISK of=/dev/null bs=1M count=6 iflag=direct", env={"DISK": disk}
    ).ok
    assert time.monotonic() - begun > 1
    fork.delete(force=True)
    data.limit()

    data.snapshot("kept")
    copy = data.clone("copy", snapshot="kept")
    assert copy.info.shared > 0 and copy.info.own < MIB
    copy.attach("web1", read_only=True)
    reader = guest.fork(name="reader")
    for each in (guest, reader):
        shown = disk_of(each, copy)
        assert each.run("cat /sys/block/$DISK/ro", env={"DISK": shown}).stdout.strip() == "1"
        assert each.run(SUM, env={"DISK": shown}).stdout.split()[0] == content
    assert len(copy.refresh().info.attached) == 2
    assert "reader" in refused(Code.VOLUME_IN_USE, lambda: copy.attach("reader")).message
    refused(Code.VOLUME_IN_USE, copy.delete)
    refused(Code.POOL_IN_USE, lambda: inn.delete_pool("fast"))
    reader.delete(force=True)

    put(guest, disk, "x")
    for form in ("raw", "vmdk"):
        path = tmp_path / f"out.{form}"
        digest = data.export(str(path), form=form, snapshot="kept")
        assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        refused(Code.FILE_FAILED, lambda path=path: data.export(str(path)))  # type: ignore[misc]
        inn.import_volume(str(path), f"back-{form}").attach("web1")
        back = disk_of(guest, inn.volume(f"back-{form}"))
        assert guest.run(SUM, env={"DISK": back}).stdout.split()[0] == content
    _check_nbd(daemon, tmp_path, content)
    guest.delete(force=True)
    for volume in inn.volumes():
        volume.delete()
    inn.delete_pool("fast")
    assert sorted(os.listdir(tmp_path / "fast")) == []


def _check_nbd(daemon: Daemon, folder: Path, content: str) -> None:
    words = [sys.executable, "-m", "serai", "volume", "export", "data@kept", "--nbd"]
    with subprocess.Popen(words, env=daemon.environ, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        address = serving.stdout.readline().strip()
        shown = subprocess.run(["nbdinfo", "--map", address], capture_output=True, check=True)
        assert b"hole,zero" in shown.stdout and b"data" in shown.stdout
        copied = folder / "nbd.raw"
        subprocess.run(["nbdcopy", address, str(copied)], check=True)
        assert hashlib.md5(copied.read_bytes()).hexdigest() == content
        serving.send_signal(signal.SIGINT)
    assert not list(daemon.home.glob("run/nbd/*"))


def make_medium(path: Path, text: str) -> Path:
    """Make an ISO 9660 medium with one file, SAID.TXT."""
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.add_fp(io.BytesIO(text.encode()), len(text), "/SAID.TXT;1")
    iso.write(str(path))
    iso.close()
    return path


def test_a_medium_is_inserted_and_ejected(daemon: Daemon, tmp_path: Path) -> None:
    """The guest mounts it, reads it, keeps it as long as it is mounted, and sees the next one."""
    inn = daemon.inn
    for name in ("one", "two"):
        inn.import_image(str(make_medium(tmp_path / f"{name}.iso", f"this is {name}")), name=name)
    guest = inn.launch("tiny", name="web1", memory="128MiB", wait=False)
    refused(Code.NO_CD_DRIVE, lambda: guest.insert("one"))
    refused(Code.IMAGE_UNFIT, lambda: guest.insert("tiny"))
    guest.stop(force=True)
    guest.insert("one")
    reach(guest.start())
    refused(Code.IMAGE_IN_USE, lambda: inn.delete_image("one"))
    until(lambda: guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt").ok)
    assert read_medium(guest) == "this is one"
    refused(Code.VOLUME_HELD, guest.eject)
    assert read_medium(guest) == "this is one", "what is mounted is not taken away"
    assert guest.run("umount /mnt").ok
    guest.eject()
    assert not guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt").ok, "the drive is empty"
    guest.insert("two")
    until(lambda: guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt").ok)
    assert read_medium(guest) == "this is two"
    fork = guest.fork(name="fork")
    assert read_medium(fork) == "this is two"
    fork.delete(force=True)
    guest.eject(force=True)
    guest.restart(force=True)
    guest.delete(force=True)
    for name in ("one", "two"):
        inn.delete_image(name)


def read_medium(guest: Guest) -> str:
    """Return what is on the medium itself, not what the guest remembers of it."""
    return guest.run("echo 3 > /proc/sys/vm/drop_caches; cat /mnt/said.txt").stdout


def test_no_daemon_that_dies_leaves_two_writers(daemon: Daemon, guest: Guest) -> None:
    """Killed while volumes come and go: afterwards record and machine agree, and all can be detached."""
    for number in range(3):
        daemon.inn.create_volume(f"v{number}", "8MiB")
    for moment in (0.0, 0.04):
        daemon.inn.volume("v0").attach("web1")
        disk_of(guest, daemon.inn.volume("v0"))
        asked = [
            daemon.inn.connection.ask(call)
            for call in (
                volume_calls.detach_volume("v0"),
                volume_calls.attach_volume("v1", "web1"),
                volume_calls.attach_volume("v2", "web1", read_only=True),
            )
        ]
        assert [job.kind for job in asked] == ["volume-detach", "volume-attach", "volume-attach"]
        time.sleep(moment)  # the moment is what is tried here
        daemon.kill()
        daemon.start()
        guest = daemon.inn.guest("web1")
        until(partial(_are_over, daemon, [job.id for job in asked]))
        volumes = [each for each in daemon.inn.volumes() if each.info.attached]
        held = {each.info.serial for each in volumes}
        _agree(guest, held)
        for volume in volumes:
            volume.detach()
    guest.delete(force=True)
    for volume in daemon.inn.volumes():
        volume.delete()


def _are_over(daemon: Daemon, jobs: list[str]) -> bool:
    return all(daemon.inn.job(each).is_final for each in jobs)


def _agree(guest: Guest, held: set[str]) -> None:
    shown = "cat /sys/block/vd*/serial 2>/dev/null; true"
    until(lambda: set(guest.run(shown).stdout.split()) == held)
