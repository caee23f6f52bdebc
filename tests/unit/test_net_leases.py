"""The lease file lies in dnsmasq's own folder: what it may have put there is not followed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serai.errors import HostFailure
from serai.net.dnsmasq import rewrite_leases

STRANGER = "1790000000 52:54:00:00:00:01 10.0.0.9 gone *\n"


def test_leases_of_nobody_are_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "leases"
    path.write_text("duid 00:01\n" + STRANGER)
    assert rewrite_leases(path, ())
    assert path.read_text() == "duid 00:01\n"
    assert not rewrite_leases(path, ())


def test_no_file_is_nothing_stale(tmp_path: Path) -> None:
    assert not rewrite_leases(tmp_path / "leases", ())


@pytest.mark.parametrize("put", [os.symlink, os.link])
def test_a_link_is_not_followed(tmp_path: Path, put: Callable[[Path, Path], None]) -> None:
    victim = tmp_path / "victim"
    victim.write_text(STRANGER)
    put(victim, tmp_path / "leases")
    with pytest.raises(HostFailure):
        rewrite_leases(tmp_path / "leases", ())
    assert victim.read_text() == STRANGER


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "leases")
    with pytest.raises(HostFailure):
        rewrite_leases(tmp_path / "leases", ())
