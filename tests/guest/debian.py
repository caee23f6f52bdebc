"""The debian image, built once by the daemon itself and kept in .work/cache, keyed by the recipe."""

import hashlib
import shutil
import tempfile
import time
from pathlib import Path

from keeper import Daemon, wait_for
from tiny import CACHE, ROOT, built_once

from serai import Guest, SeraiError

MADE_FROM = (
    "disk/build_debian.py",
    "disk/boot_disk.py",
    "disk/reborn.py",
    "disk/recipes/reborn.c",
    "disk/recipes/debian/*",
)
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
    assert fork.info.mac in fork.run("cat /sys/class/net/e*/address").stdout
    assert abs(float(fork.run("date +%s").stdout) - time.time()) < 5
    assert fork.run("systemctl is-active ssh qemu-guest-agent").stdout == "active\n" * 2


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
