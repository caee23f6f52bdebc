"""Unix sockets: private from the first moment, and at paths of any length."""

import asyncio
import os
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import uvloop

from serai.host.sockets import PATH_LIMIT, bind_unix, connect_unix, short_address


@pytest.fixture(params=[20, PATH_LIMIT, PATH_LIMIT + 1, 900])
def path(request: pytest.FixtureRequest, serai_home: Path) -> Path:
    """A path of so many bytes, around what fits into an address and far beyond."""
    length: int = request.param
    folder = serai_home
    while length - len(str(folder)) > 130:
        folder /= "f" * 100
    rest = length - len(str(folder)) - 3
    if rest > 60:
        folder /= "g" * (rest - 40)
    folder.mkdir(parents=True, exist_ok=True)
    name = "s" * max(1, length - len(str(folder)) - 1)
    assert len(str(folder / name)) == max(length, len(str(folder)) + 2)
    return folder / name


async def test_who_connects_is_heard(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    listener = bind_unix(path, mode=0o600)
    try:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not listener.getblocking()
        assert not os.get_inheritable(listener.fileno())
        reader, writer = await connect_unix(path)
        server, _ = await asyncio.get_running_loop().sock_accept(listener)
        with server:
            writer.write(b"hello")
            await writer.drain()
            server.setblocking(True)
            assert server.recv(10) == b"hello"
            server.send(b"line\n")
            assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()
    finally:
        listener.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_what_was_there_is_replaced(path: Path) -> None:
    bind_unix(path, mode=0o600).close()
    listener = bind_unix(path, mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    _, writer = await connect_unix(path)
    writer.close()
    listener.close()


async def test_nobody_listens(path: Path) -> None:
    with pytest.raises(OSError):
        await connect_unix(path)
    bind_unix(path, mode=0o600).close()
    with pytest.raises(ConnectionRefusedError):
        await connect_unix(path)


def test_a_failure_leaves_no_descriptor(serai_home: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError):
        bind_unix(serai_home / "none" / "s", mode=0o600)
    with pytest.raises(OSError):
        bind_unix(serai_home / ("n" * 200), mode=0o600)
    with pytest.raises(FileNotFoundError), short_address(serai_home / ("f" * 120) / "s"):
        raise AssertionError("the folder is not there")
    assert os.listdir("/proc/self/fd") == before


def test_the_mode_does_not_depend_on_the_umask(serai_home: Path) -> None:
    before = os.umask(0)
    try:
        listener = bind_unix(serai_home / "s", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((serai_home / "s").stat().st_mode) == 0o600
    listener.close()


def test_a_long_line_is_bounded(serai_home: Path) -> None:
    async def read() -> None:
        with bind_unix(serai_home / "s", mode=0o600) as listener:
            reader, writer = await connect_unix(serai_home / "s", limit=1000)
            server, _ = await asyncio.get_running_loop().sock_accept(listener)
            with server:
                server.send(bytes(4000))
                with pytest.raises(ValueError, match="limit"):
                    await reader.readline()
            writer.close()

    asyncio.run(read())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_who_is_one_too_many_is_told_at_once(
    serai_home: Path, runner: Callable[[Coroutine[None, None, None]], None]
) -> None:
    """A program that hangs takes nobody; its callers must neither wait nor think that they are in."""
    path = serai_home / "s"

    async def call_too_often() -> None:
        writers = []
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                writers.append((await connect_unix(path))[1])
        assert len(writers) == 3, "a backlog of 2 lets 3 wait"
        for writer in writers:
            writer.close()
            await writer.wait_closed()

    with bind_unix(path, mode=0o600, backlog=2):
        runner(asyncio.sleep(0))  # the first loop opens what all others share
        before = len(os.listdir("/proc/self/fd"))
        runner(call_too_often())
        assert len(os.listdir("/proc/self/fd")) == before
