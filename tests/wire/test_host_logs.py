"""Cutting a log that somebody else writes: the newer half stays, and the writer goes on."""

import ctypes
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serai.host import logs
from serai.host.logs import trim_log

LINE = 16
LIMIT = 64 << 10
COUNT = 20_000


@pytest.fixture(params=["here", "/dev/shm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where ranges can be taken out of a file (ext4), and where they can't (tmpfs)."""
    if request.param == "here":
        yield tmp_path
        return
    if not os.access(request.param, os.W_OK):
        pytest.skip(f"{request.param} may not be written")
    path = Path(tempfile.mkdtemp(prefix="serai-", dir=request.param))
    yield path
    shutil.rmtree(path)


def line(number: int) -> bytes:
    return b"%015d\n" % number


def numbers(content: bytes) -> list[int]:
    """Return the numbers of all whole lines; the first may have been cut."""
    whole = content[content.index(b"\n") + 1 :] if content else b""
    assert len(whole) % LINE == 0
    return [int(whole[at : at + LINE]) for at in range(0, len(whole), LINE)]


def test_the_newer_half_stays(folder: Path) -> None:
    path = folder / "log"
    path.write_bytes(b"".join(map(line, range(COUNT))))
    inode = path.stat().st_ino
    assert trim_log(path, LIMIT)
    found = numbers(path.read_bytes())
    assert found == list(range(found[0], COUNT))
    block = os.statvfs(path).f_bsize
    assert LIMIT // 2 - LINE <= path.stat().st_size <= LIMIT // 2 + block
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_what_is_within_the_limit_is_left_alone(folder: Path, size: int) -> None:
    path = folder / "log"
    path.write_bytes(bytes(size))
    assert not trim_log(path, LIMIT)
    assert path.stat().st_size == size


@pytest.mark.parametrize("limit", [2, 100, 4095, 4097, 9000])
def test_small_limits_hold_too(folder: Path, limit: int) -> None:
    path = folder / "log"
    path.write_bytes(b"".join(map(line, range(1000))))
    assert trim_log(path, limit)
    assert path.stat().st_size <= limit // 2 + os.statvfs(path).f_bsize
    assert path.read_bytes().endswith(line(999)[-(limit // 2) :])


def test_a_missing_file_is_fine_and_a_link_is_not_followed(folder: Path) -> None:
    assert not trim_log(folder / "none", LIMIT)
    (folder / "real").write_bytes(bytes(LIMIT * 2))
    (folder / "link").symlink_to(folder / "real")
    assert not trim_log(folder / "link", LIMIT)
    assert (folder / "real").stat().st_size == LIMIT * 2


def test_what_is_written_meanwhile_is_kept_in_order(folder: Path) -> None:
    """A writer that appends all the time; whatever is cut off is older than all that stays."""
    path = folder / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    enough = threading.Event()
    written = []

    def write() -> None:
        while not enough.is_set():
            os.write(fd, line(len(written)))
            written.append(None)

    writer = threading.Thread(target=write)
    writer.start()
    cuts = 0
    while cuts < 5:
        cuts += trim_log(path, LIMIT)
    enough.set()
    writer.join()
    os.close(fd)
    found = numbers(path.read_bytes())
    assert found == sorted(set(found))
    assert found[-1] > LIMIT // 2 // LINE * cuts
    if _can_collapse(folder):  # elsewhere a line may fall between two system calls
        assert found == list(range(found[0], len(written)))


def _can_collapse(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(bytes(64 << 10))
    with probe.open("r+b") as file:
        return logs._collapse(file.fileno(), 4096)


def test_an_append_during_the_copy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way without the file system's help, made slow: a line comes after every piece."""
    path = tmp_path / "log"
    path.write_bytes(b"".join(map(line, range(1000))))
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)
    late = iter(range(1000, 1003))
    read = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        chunk = read(fd, size, offset)
        if (number := next(late, None)) is not None:
            os.write(appending, line(number))
        return chunk

    monkeypatch.setattr(logs, "_collapse", lambda fd, length: False)
    monkeypatch.setattr(logs, "CHUNK", 1024)
    monkeypatch.setattr(logs.os, "pread", pread)
    assert trim_log(path, 8000)
    found = numbers(path.read_bytes())
    assert found == list(range(found[0], 1003))
    os.close(appending)


def test_the_kernel_says_no_and_nothing_is_lost(tmp_path: Path) -> None:
    """``fallocate`` refuses what is no whole number of blocks."""
    path = tmp_path / "log"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file:
        assert not logs._collapse(file.fileno(), 1000)
        assert ctypes.get_errno() >= 0
    assert path.stat().st_size == 10_000
