"""Copying with holes, naming what the disk says, and work in threads that ends when nobody waits."""

import asyncio
import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.disk.files import BLOCK, check_room, copy_sparse, naming_disk_problems
from serai.disk.work import Pulse, run_in_thread
from serai.errors import Code, HostFailure, Invalid


def copy(content: bytes, **options: int) -> tuple[bytes, str, int]:
    """Return the copy, its digest, and how many bytes of it are not holes."""
    source, target = os.memfd_create("source"), os.memfd_create("target")
    try:
        os.write(source, content)
        os.lseek(source, 0, os.SEEK_SET)
        digest = copy_sparse(source, target, Pulse(), **{"limit": 1 << 30, **options})
        return os.pread(target, 1 << 30, 0), digest, os.fstat(target).st_blocks * 512
    finally:
        os.close(source)
        os.close(target)


PART = st.tuples(st.sampled_from([b"\0", b"x", b"\0x"]), st.integers(0, 3 * BLOCK))


@settings(max_examples=100, deadline=None)
@given(st.lists(PART, max_size=6))
def test_copy_is_exact(parts: list[tuple[bytes, int]]) -> None:
    content = b"".join(piece * count for piece, count in parts)
    copied, digest, _ = copy(content)
    assert copied == content
    assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_zeros_become_holes() -> None:
    content = b"x" * BLOCK + bytes(100 * BLOCK) + b"y" + bytes(10 * BLOCK)
    copied, _, allocated = copy(content)
    assert copied == content
    assert allocated == 2 * BLOCK


def test_copy_is_bounded() -> None:
    assert copy(b"abc" * 1000, length=500)[0] == (b"abc" * 1000)[:500]
    with pytest.raises(Invalid) as caught:
        copy(b"abc" * 1000, limit=2999)
    assert caught.value.code is Code.IMAGE_REFUSED


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, Code.DISK_FULL),
        (errno.EDQUOT, Code.DISK_FULL),
        (errno.EACCES, Code.PERMISSION),
        (errno.EROFS, Code.PERMISSION),
        (errno.EIO, Code.FILE_FAILED),
    ],
)
def test_problems_have_names(number: int, code: Code) -> None:
    with pytest.raises(HostFailure) as caught, naming_disk_problems("writing"):
        raise OSError(number, os.strerror(number), "/x")
    assert caught.value.code is code
    assert "writing" in caught.value.message


def test_room(tmp_path: Path) -> None:
    room = check_room(tmp_path, 1, reserve=0, what="x")
    assert room > 1
    for need, reserve in ((1 << 60, 0), (0, 1 << 60)):
        with pytest.raises(HostFailure) as caught:
            check_room(tmp_path, need, reserve=reserve, what="x")
        assert caught.value.code is Code.DISK_FULL


async def test_work_ends_when_nobody_waits() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(pulse: Pulse) -> None:
        begun.set()
        try:
            while not ended.wait(0.001):
                pulse.beat()
        finally:
            ended.set()

    task = asyncio.ensure_future(run_in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_work_reports_on_the_loop_and_fails_as_itself() -> None:
    here, told = threading.current_thread(), []

    def work(pulse: Pulse) -> None:
        pulse.beat(1, 2)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run_in_thread(work, lambda *n: told.append((threading.current_thread(), *n)))
    assert told == [(here, 1, 2)]
