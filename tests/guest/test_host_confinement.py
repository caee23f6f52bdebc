"""A running guest's QEMU, seen from outside: to whom it belongs and is charged."""

import os
from pathlib import Path

import pytest
from instances import memory_file
from keeper import Daemon

from serai import Guest
from serai.host.cgroup import ROOT, Cgroups, find_layout
from serai.model.node import CgroupLayout
from serai.units import MIB

SHARE_CHARGED = 0.9 if find_layout() is CgroupLayout.V2 else 0.99
"""On v2 QEMU is moved while it is being loaded; what it touched before is charged to the daemon."""


def fields_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


def groups_of(guest: Guest) -> list[Path]:
    """Find the guest's group, while those of others come and go."""
    walk = os.walk(ROOT)
    return sorted(Path(parent, guest.id) for parent, folders, _ in walk if guest.id in folders)


def test_qemu_is_apart_and_leaves_no_core(guest: Guest) -> None:
    pid = guest.info.pid
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    core = next(line.split() for line in limits if line.startswith("Max core file size"))
    assert core[4] == "0"
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_memory_is_charged_to_the_guests_group(daemon: Daemon, guest_reached: Guest) -> None:
    """Of one that was booted: a fork shares its memory with others."""
    assert daemon.is_running
    folders = groups_of(guest_reached)
    if not folders:
        assert Cgroups().note, "groups could be made, but were not"
        pytest.skip(Cgroups().note)
    pid = guest_reached.info.pid
    for folder in folders:
        assert (folder / "cgroup.procs").read_text().split() == [str(pid)]
    anonymous = int(fields_of(pid)["RssAnon"].split()[0]) * 1024
    owed = memory_file(pid).st_blocks * 512 + anonymous
    usage = [
        int(path.read_text())
        for folder in folders
        for path in (folder / "memory.current", folder / "memory.usage_in_bytes")
        if path.exists()
    ]
    assert owed > 64 * MIB
    assert usage and usage[0] >= SHARE_CHARGED * owed
    guest_reached.delete(force=True)
    assert not groups_of(guest_reached)
