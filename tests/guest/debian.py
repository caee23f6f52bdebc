"""The debian image, built once by the daemon itself and kept in .work/cache, keyed by the recipe."""

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keeper import Daemon, running, wait_for
from tiny import CACHE, ROOT, built_once, copy_state

from serai import Guest, SeraiError

MADE_FROM = (
    "disk/build_debian.py",
    "disk/boot_disk.py",
    "disk/bare.py",
    "disk/recipes/bare.h",
    "disk/recipes/reborn.c",
    "disk/recipes/debian/*",
)
PATIENCE = {"agent_timeout": "300", "first_boot_timeout": "600"}
"""Settings for a daemon whose guests start under emulation, beside other tests."""
HOST_LISTS = Path("/var/lib/apt/lists")


def state_with_debian() -> Path:
    """Return a state folder that holds the debian image; building it takes one to two minutes."""
    digest = hashlib.sha256()
    for pattern in MADE_FROM:
        for path in sorted((ROOT / "src" / "serai").glob(pattern)):
            digest.update(path.read_bytes())
    return built_once(f"debian-{digest.hexdigest()[:16]}", _build)


def _build(folder: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="deb-", dir=CACHE))
    daemon = Daemon(home)
    daemon.start()
    try:
        before = {path.name for path in HOST_LISTS.iterdir()}
        daemon.inn.build_image("debian")
        left = {path.name for path in HOST_LISTS.iterdir()}
        assert before <= left, "the build has emptied the host's own package lists"
        daemon.stop()
        for path in CACHE.glob("debian-????????????????"):
            shutil.rmtree(path)
        (home / "state").rename(folder)
    finally:
        daemon.kill_all()
        shutil.rmtree(home)


@contextmanager
def open_debian(home: Path) -> Iterator[Daemon]:
    """Run a daemon that has the image ``debian``; nothing may be left of it afterwards."""
    copy_state(state_with_debian(), home)
    with running(Daemon(home, **PATIENCE)) as keeper:
        yield keeper


def check_system(guest: Guest, firmware: str) -> None:
    """It has booted by that firmware, its root fills the disk of 3 GiB, and all is up."""
    assert guest.run("test -d /sys/firmware/efi").ok == (firmware == "uefi")
    assert int(guest.run("df --output=size / | tail -1").stdout) > 2_600_000
    assert "VERSION_CODENAME" in guest.run("cat /etc/os-release").stdout
    assert guest.run("ip -4 -o address show scope global").stdout
    assert len(guest.run("cat /etc/machine-id").stdout.strip()) == 32
    services = "systemctl is-active ssh qemu-guest-agent systemd-networkd reborn"
    wait_for("all is up", lambda: guest.run(services).stdout.split() == ["active"] * 4, limit=120.0)
    assert guest.run("ls -l /proc/$(pidof reborn)/fd | grep -q /dev/vport").ok, "it waits"


def check_end(guest: Guest) -> None:
    """It ends when it is asked to, and its file systems are clean."""
    guest.run("echo kept > /root/file; sync")
    guest.stop(timeout=180)
    assert guest.info.last_exit == "requested"
    assert "Power down" in guest.log(tail=2000)


def make_key(folder: Path, name: str) -> Path:
    """Make a key to log in with; the public half is beside it."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def ssh(daemon: Daemon, key: Path, guest: str, *command: str) -> tuple[int, str]:
    """Log in with this key and no other; return the code and what was printed."""
    only = ("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "IdentityAgent=none")
    done = daemon.run("ssh", "-i", str(key), *only, guest, "--", *command)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


WRITE = "i=0; while :; do i=$((i+1)); echo $i >>/srv/log; sleep 0.02; done"
WHOLE = "awk '$1 != NR { exit 1 }' /srv/log && wc -l </srv/log"
"""Fails unless the file has all lines up to its end."""


def lines(guest: Guest) -> int:
    """Return how many lines the file has that is being written."""
    done = guest.run(WHOLE)
    assert done.ok, "the file that is being written has a gap"
    return int(done.stdout)


def answers(guest: Guest) -> bool:
    """Tell whether its agent does what it is asked for."""
    try:
        return guest.run("true", timeout=5).ok
    except SeraiError as error:
        print(f"{guest.name}: {error.code}: {error.message}")
        return False


def check_fork(fork: Guest, source: Guest) -> None:
    """A fork of a full system is up, and is somebody of its own."""
    assert fork.run("hostname; cat /etc/hostname").stdout.split() == [fork.name] * 2
    for fact in ("cat /etc/machine-id", "cat /sys/class/net/e*/address", "head -c 16 /dev/random"):
        own, theirs = (each.run(f"{fact} | base64").stdout for each in (fork, source))
        assert own != theirs, fact
    mac = fork.info.ports[0].mac if fork.info.ports else fork.info.mac
    assert mac in fork.run("cat /sys/class/net/e*/address").stdout
    assert abs(float(fork.run("date +%s").stdout) - time.time()) < 5
    up = "test -e /run/sshd.reborn || systemctl is-active ssh qemu-guest-agent"
    wait_for("all is up", lambda: fork.run(up).stdout == "active\n" * 2, limit=60.0)
    keys = "cat /etc/ssh/ssh_host_*_key.pub"
    mine, others = (each.run(keys).stdout.split() for each in (fork, source))
    assert mine[0] == others[0] == "ssh-ed25519" and mine[1] != others[1], "it has keys of its own"


def check_forks(debian: Daemon, guest: Guest) -> None:
    """Snapshots, forks, restores and a warm image of a full system that is at work."""
    assert guest.run(["systemd-run", "--unit=writer", "sh", "-c", WRITE]).ok
    warm = guest.snapshot("warm")
    wait_for("its agent is there again", lambda: answers(guest), limit=30.0)
    quiet = guest.snapshot("quiet", quiesce=True)
    guest.snapshot("cold", memory=False, quiesce=True).delete()
    before = lines(guest)
    for fork in (guest.fork(name="d2"), quiet.fork(name="d3")):
        check_fork(fork, guest)
        seen = lines(fork)
        fork.run("systemctl stop writer; sync; echo 3 >/proc/sys/vm/drop_caches")
        assert lines(fork) > seen > 0  # it wrote on, and its disk has it
        fork.delete(force=True)
    assert lines(guest) > before
    guest.restore(warm, force=True)
    assert lines(guest) < before
    assert abs(float(guest.run("date +%s").stdout) - time.time()) < 5
    guest.publish("warm-debian")
    made = debian.inn.launch("warm-debian", name="d4")
    check_fork(made, guest)
    lines(made)
    made.delete(force=True)
    for snapshot in guest.snapshots():
        snapshot.delete()
    debian.inn.delete_image("warm-debian")
