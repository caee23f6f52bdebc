"""The first boot of the real debian image, by UEFI: told by its user, reached by ssh. One boot for all of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian import (
    PATIENCE,
    check_end,
    check_fork,
    check_system,
    make_key,
    open_debian,
    ssh,
    state_with_debian,
)
from keeper import Daemon
from namespaced import open_daemon, open_namespace
from renewal import check_address, check_renewals
from tiny import copy_state

from serai import Guest
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
ADDRESS, ADDRESS6 = "10.55.0.77", "fd55::77"
NETWORK = {"subnet": "10.55.0.0/24", "subnet6": "fd55::/64"}


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace for its network; "" where nobody may make one."""
    if os.geteuid() != 0:
        yield ""
        return
    with open_namespace("-first") as name:
        yield name


@pytest.fixture
def debian(serai_home: Path, namespace: str) -> Iterator[Daemon]:
    """A daemon that has the image ``debian``; as root with the network ``lan``, in a namespace."""
    if not namespace:
        with open_debian(serai_home) as keeper:
            yield keeper
        return
    copy_state(state_with_debian(), serai_home)
    with open_daemon(serai_home, namespace, **PATIENCE) as keeper:
        keeper.inn.create_network("lan", **NETWORK)
        yield keeper


def test_a_guest_is_what_it_was_told_and_is_reached_by_ssh(
    debian: Daemon, namespace: str, tmp_path: Path
) -> None:
    key, stranger = make_key(tmp_path, "mine"), make_key(tmp_path, "other")
    data = tmp_path / "user-data"
    data.write_text(USER_DATA)
    lan = [each.name for each in debian.inn.networks()] if namespace else []
    done = debian.run(
        *("launch", "debian", "web1", "--memory", "512MiB", "--cpus", "2", "--disk", "3GiB"),
        *("--firmware", "uefi", "--hostname", "told.lan", "--ssh-key", f"{key}.pub"),
        *("--user-data", str(data), "--wait-for", "cloud-init"),
        *(f"--network={each},address={ADDRESS},address6={ADDRESS6}" for each in lan),
        timeout=800,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"web1 is running" in done.stdout and b", cloud-init is done (" in done.stdout
    assert b"web1: cloud-init" in done.stderr

    # it is what it was told
    guest = debian.inn.guest("web1")
    check_system(guest, "uefi")
    code, said = ssh(debian, key, "web1", "cat /root/ran /etc/told")
    assert (code, said.split()) == (0, ["told", SECRET])
    assert guest.run("cat /var/lib/cloud/data/instance-id").stdout.strip() == guest.id
    assert guest.run("hostname -f").stdout.strip() == "told.lan"
    assert guest.info.hostname == "told.lan"
    assert guest.run("networkctl -n 0 status | grep -c routable").ok
    if lan:
        check_addresses(guest)
    code, said = ssh(debian, stranger, "web1", "true")
    assert (code, "Permission denied" in said) == (255, True)
    check_nobody_is_shown(debian, key)

    # another name outside changes nothing inside; a fork is somebody else and lets the same in
    guest.rename("web2")
    assert ssh(debian, key, "web2", "hostname") == (0, "told\n")
    fork = guest.fork(name="web3")
    said = ssh(debian, key, "web3", "hostname; cat /etc/told; echo; cat /etc/ssh/ssh_host_*.pub")[1]
    assert said.split()[:2] == ["web3", SECRET]
    assert said.split()[3] not in guest.run("cat /etc/ssh/*.pub").stdout
    check_fork(fork, guest)
    assert fork.info.hostname == "web3"
    if lan:
        check_address(fork, guest, namespace)
    fork.delete(force=True)
    if lan:
        check_renewals(debian, namespace, guest, key)
    check_end(guest)


def check_addresses(guest: Guest) -> None:
    """Its addresses are the reserved ones, set by what cloud-init wrote and not asked for."""
    shown = guest.run("ip -o address show scope global").stdout
    lines = {line.split()[3]: line for line in shown.splitlines()}
    assert {f"{ADDRESS}/24", f"{ADDRESS6}/64"} <= lines.keys(), shown
    for each in (f"{ADDRESS}/24", f"{ADDRESS6}/64"):
        assert "dynamic" not in lines[each] and "valid_lft forever" in lines[each], shown
    assert "default via 10.55.0.1 " in guest.run("ip route").stdout
    assert "via fd55::1 " in guest.run("ip -6 route show default").stdout
    written = guest.run(
        "grep -rh -e DHCP -e Address /run/systemd/network /etc/systemd/network/10-*"
    ).stdout
    assert f"Address={ADDRESS}/24" in written and "DHCP=yes" not in written, written
    assert "10.55.0.1" in guest.run("resolvectl dns").stdout
    assert guest.run("getent ahostsv4 web1").stdout.startswith(
        f"{ADDRESS} "
    )  # as its neighbours find it
    assert guest.run("ping -c 1 -W 5 10.55.0.1 && ping -c 1 -W 5 fd55::1").ok


def check_nobody_is_shown(debian: Daemon, key: Path) -> None:
    """What it was told, and who may log in, is shown by nothing, and kept where nobody else can read."""
    public = key.with_suffix(".pub").read_bytes()[12:40]
    for words in (("show", "web1"), ("job", "list"), ("events",), ("list",)):
        told = debian.run(*words, "--format", "json").stdout
        assert SECRET.encode() not in told and public not in told
    for path in (debian.home / "state").glob("serai.db*"):
        assert SECRET.encode() not in path.read_bytes()
    kept = [
        *(debian.home / "state" / "seeds").iterdir(),
        *(debian.home / "state").glob("guests/*/seed.iso"),
    ]
    assert len(kept) == 2 and all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_tiny_can_not_be_told_anything(daemon: Daemon, warm: str) -> None:
    for told in ({"hostname": "x"}, {"user_data": "#!/bin/sh"}):
        with pytest.raises(Conflict) as caught:
            daemon.inn.launch("tiny", **told)
        assert caught.value.code == "image-unfit"
    assert daemon.inn.guests() == []
    with pytest.raises(Conflict) as caught:
        daemon.inn.launch("tiny", name="web1", memory="128MiB", wait_for="cloud-init")
    assert caught.value.code == "image-unfit"
    daemon.inn.launch(warm, name="web1")
    code, said = ssh(daemon, Path("/dev/null"), "web1", "true")
    assert (code, "the ssh server of web1 does not answer" in said) == (255, True)
