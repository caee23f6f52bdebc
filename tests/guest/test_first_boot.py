"""The first boot of the real debian image: told by its user, reached by ssh. One boot for all of it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import state_with_debian
from keeper import Daemon
from tiny import copy_state

from serai.errors import Conflict

pytestmark = pytest.mark.timeout(1000)

SECRET = "nobody-is-to-see-this"
USER_DATA = f"""#cloud-config
write_files:
  - path: /etc/told
    permissions: "0600"
    content: {SECRET}
runcmd:
  - [sh, -c, "hostname > /root/ran"]
"""
LISTENING = "0A"


@pytest.fixture
def debian(serai_home: Path) -> Iterator[Daemon]:
    """A daemon that has the image ``debian``."""
    copy_state(state_with_debian(), serai_home)
    keeper = Daemon(serai_home, agent_timeout="300", first_boot_timeout="600")
    keeper.start()
    try:
        yield keeper
        keeper.delete_all()
        keeper.stop()
        assert not (left := keeper.leftovers()), f"left behind: {left}"
    finally:
        keeper.kill_all()


def make_key(folder: Path, name: str) -> Path:
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def ssh(daemon: Daemon, key: Path, guest: str, *command: str) -> tuple[int, str]:
    """Log in with this key and no other; return the code and what was printed."""
    only = ("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "IdentityAgent=none")
    done = daemon.run("ssh", "-i", str(key), *only, guest, "--", *command)
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def listening_ports(pid: int) -> list[str]:
    """Return the local addresses where a process listens by TCP."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        sockets.add(os.readlink(fd))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets]


def test_a_guest_is_what_it_was_told_and_is_reached_by_ssh(debian: Daemon, tmp_path: Path) -> None:
    key, stranger = make_key(tmp_path, "mine"), make_key(tmp_path, "other")
    data = tmp_path / "user-data"
    data.write_text(USER_DATA)
    done = debian.run(
        *(
            "launch",
            "debian",
            "web1",
            "--memory",
            "512MiB",
            "--cpus",
            "2",
            "--hostname",
            "told.lan",
        ),
        *("--ssh-key", f"{key}.pub", "--user-data", str(data), "--wait-for", "cloud-init"),
        timeout=800,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"web1 is running, cloud-init is done (" in done.stdout
    assert b"web1: cloud-init" in done.stderr

    # it is what it was told
    code, said = ssh(debian, key, "web1", "cat /root/ran /etc/told")
    assert (code, said.split()) == (0, ["told", SECRET])
    guest = debian.inn.guest("web1")
    assert guest.run("cat /var/lib/cloud/data/instance-id").stdout.strip() == guest.id
    assert guest.run("hostname -f").stdout.strip() == "told.lan"
    assert guest.info.hostname == "told.lan"
    assert guest.run("networkctl -n 0 status | grep -c routable").ok

    # who may log in, and what stays open
    assert ssh(debian, key, "web1", "exit", "7")[0] == 7
    code, said = ssh(debian, stranger, "web1", "true")
    assert (code, "Permission denied" in said) == (255, True)
    assert listening_ports(guest.info.pid) == []

    # nobody is shown it
    for words in (("show", "web1"), ("job", "list"), ("events",), ("list",)):
        told = debian.run(*words, "--format", "json").stdout
        assert (
            SECRET.encode() not in told and key.with_suffix(".pub").read_bytes()[12:40] not in told
        )
    for path in (debian.home / "state").glob("serai.db*"):
        assert SECRET.encode() not in path.read_bytes()
    kept = [
        *(debian.home / "state" / "seeds").iterdir(),
        *(debian.home / "state").glob("guests/*/seed.iso"),
    ]
    assert len(kept) == 2 and all(path.stat().st_mode & 0o077 == 0 for path in kept)

    # another name outside changes nothing inside; a fork is somebody else and lets the same in
    guest.rename("web2")
    assert ssh(debian, key, "web2", "hostname") == (0, "told\n")
    fork = guest.fork(name="web3")
    guest.delete(force=True)
    assert ssh(debian, key, "web3", "hostname; cat /etc/told")[1].split() == ["web3", SECRET]
    assert fork.info.hostname == "web3"


def test_tiny_can_not_be_told_anything(daemon: Daemon) -> None:
    for told in ({"hostname": "x"}, {"user_data": "#!/bin/sh"}):
        with pytest.raises(Conflict) as caught:
            daemon.inn.launch("tiny", **told)
        assert caught.value.code == "image-unfit"
    assert daemon.inn.guests() == []
    with pytest.raises(Conflict) as caught:
        daemon.inn.launch("tiny", name="web1", memory="128MiB", wait_for="cloud-init")
    assert caught.value.code == "image-unfit"
    daemon.inn.launch("tiny", name="web1", memory="128MiB")
    code, said = ssh(daemon, Path("/dev/null"), "web1", "true")
    assert (code, "the ssh server of web1 does not answer" in said) == (255, True)
