"""An ordinary user's daemon, started by root for a user who has nothing: what needs no root works."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootable import make_bootable
from debian import answers, make_key
from keeper import Daemon, running, wait_for
from test_coming_in import make_ova
from test_volumes import disk_of, first, make_medium, put, reach, sectors
from tiny import ROOT, copy_state

from serai import Guest
from serai.units import MIB

UID = 64_123
"""Of nobody: it is in no group and in no table of users."""


def can_start_programs() -> bool:
    """Tell whether somebody else than root can run the program from where it is."""
    words = [sys.executable, "-c", "import serai"]
    who = {"user": UID, "group": UID, "extra_groups": ()}
    try:
        return subprocess.run(words, cwd="/", capture_output=True, **who).returncode == 0
    except PermissionError:
        return False


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are an ordinary user's already"),
    pytest.mark.skipif(
        os.geteuid() == 0 and not can_start_programs(), reason=f"{ROOT} is closed to others"
    ),
]


def give_away(folder: Path) -> None:
    """Make the user the owner of a folder and of all in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)


@pytest.fixture
def daemon(serai_home: Path, tiny_state: Path) -> Iterator[Daemon]:
    """The user's daemon, with the image ``tiny``."""
    copy_state(tiny_state, serai_home)
    shutil.copytree(tiny_state / "images", serai_home / "copy")  # an owner of their own
    shutil.rmtree(serai_home / "state" / "images")
    (serai_home / "copy").rename(serai_home / "state" / "images")
    (serai_home / "state" / "capabilities.json").unlink()  # what root can, it can't
    give_away(serai_home)
    with running(Daemon(serai_home, uid=str(UID))) as keeper:
        yield keeper


@pytest.fixture
def files(serai_home: Path) -> Path:
    """A folder for files, to be given away."""
    folder = serai_home / "files"
    folder.mkdir()
    return folder


def test_volumes_of_an_ordinary_user(daemon: Daemon, files: Path) -> None:
    give_away(files)
    inn = daemon.inn
    guest = inn.launch("tiny", name="web1", memory="128MiB", volumes=["size=8MiB"])
    assert os.stat(f"/proc/{guest.info.pid}").st_uid == UID
    data = inn.create_volume("data", "16MiB").attach("web1")
    disk = disk_of(guest, data)
    put(guest, disk, "a")
    data.resize("24MiB")
    wait_for("it has grown", lambda: sectors(guest, disk) == 24 * 2048)
    data.limit(iops=1000)
    data.snapshot("kept")
    put(guest, disk, "b")
    copy = data.clone("copy", snapshot="kept").attach("web1", read_only=True)
    assert (first(guest, disk_of(guest, copy)), first(guest, disk)) == ("a", "b")
    fork = guest.fork(name="fork")
    assert first(fork, disk_of(fork, data)) == "b"
    fork.delete(force=True)
    data.detach()

    inn.create_pool("fast", str(files / "fast"))
    exported = files / "data.vmdk"
    digest = data.export(str(exported), form="vmdk", snapshot="kept")
    assert digest == f"sha256:{hashlib.sha256(exported.read_bytes()).hexdigest()}"
    assert exported.stat().st_uid == UID
    back = inn.import_volume(str(exported), "back", pool="fast").attach("web1")
    assert first(guest, disk_of(guest, back)) == "a"
    check_nbd(daemon)
    guest.delete(force=True)
    for volume in inn.volumes():
        volume.delete()
    inn.delete_pool("fast")


def check_nbd(daemon: Daemon) -> None:
    """The user reads a volume by NBD."""
    words = [sys.executable, "-m", "serai", "volume", "export", "data", "--nbd"]
    with subprocess.Popen(
        words, env=daemon.environ, stdout=subprocess.PIPE, text=True, **daemon.owner
    ) as serving:
        assert serving.stdout is not None
        address = serving.stdout.readline().strip()
        shown = subprocess.run(
            ["nbdinfo", "--size", address], capture_output=True, check=True, **daemon.owner
        )
        assert int(shown.stdout) == 24 * MIB
        serving.send_signal(signal.SIGINT)


def test_images_and_first_boot_of_an_ordinary_user(
    daemon: Daemon, files: Path, tiny_state: Path
) -> None:
    """Disks, media and an OVA come in; a guest is told something and boots from its own disk."""
    inn = daemon.inn
    system = make_bootable(files, tiny_state, "system")
    make_ova(files, system, system, memory=256)
    make_medium(files / "medium.iso", "this is it")
    key = make_key(files, "key")
    (files / "user-data").write_text("#cloud-config\nhostname: told\n")
    give_away(files)
    for words in (
        ("image", "import", str(system), "--name", "system"),
        ("image", "import", str(files / "medium.iso"), "--name", "medium"),
        ("import", str(files / "old.ova"), "appliance"),
        ("launch", "system", "web1", "--memory", "192MiB", "--no-wait",
         "--ssh-key", f"{key}.pub", "--user-data", str(files / "user-data"), "--hostname", "told"),
    ):  # fmt: skip
        done = daemon.run(*words)
        assert done.returncode == 0, done.stderr.decode()
    assert [each.name for each in inn.volumes(guest="appliance")] == ["appliance-1"]
    guest = inn.guest("web1")
    wait_for("it is up", lambda: answers(guest))
    assert told_by_seed(guest, "user-data") == "#cloud-config\nhostname: told\n"
    assert Path(f"{key}.pub").read_text().split()[1] in told_by_seed(guest, "meta-data")
    guest.stop(force=True)
    guest.insert("medium")
    reach(guest.start())
    wait_for("it sees the medium", lambda: guest.run("mount -t iso9660 -o ro /dev/sr0 /mnt").ok)
    assert guest.run("cat /mnt/said.txt").stdout == "this is it"
    guest.delete(force=True)
    inn.guest("appliance").delete()
    for volume in inn.volumes():
        volume.delete()


def told_by_seed(guest: Guest, name: str) -> str:
    """Return a document of the disk by which the guest is told something."""
    guest.run("for each in cdrom isofs; do insmod /lib/modules/$each.ko; done; mkdir /seed")
    guest.run("mount -t iso9660 -o ro /dev/vdb /seed")
    return guest.run(["cat", f"/seed/{name}"]).stdout
