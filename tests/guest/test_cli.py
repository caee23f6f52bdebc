"""The command line and the SDK as a user has them: a real daemon, a real guest."""

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keeper import Daemon

import serai
import serai.aio
from serai import Guest, SeraiError
from serai.errors import Code

LIMIT = 30.0


def start(daemon: Daemon, *words: str, **more: object) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "serai", *words]
    return subprocess.Popen(argv, env=daemon.environ, **more)  # type: ignore[call-overload,no-any-return]


def test_the_first_example(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERAI_HOME", str(daemon.home))
    with serai.connect() as inn:
        guest = inn.launch("tiny", name="web1", memory="256MiB")
        result = guest.run("uname -a")
        assert result.ok and result.stdout.startswith("Linux")
        inn.guest("web1").stop(force=True)
        inn.guest("web1").start()
        assert [each.name for each in inn.guests()] == ["web1"]
        guest.delete(force=True)
        assert inn.guests() == []


async def test_the_example_for_async(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERAI_HOME", str(daemon.home))
    async with serai.aio.connect() as inn:
        one, two = await asyncio.gather(
            inn.launch("tiny", name="web1", memory="128MiB"),
            inn.launch("tiny", name="web2", memory="128MiB"),
        )
        results = await asyncio.gather(one.run("hostname"), two.run("exit 3"))
        assert [result.code for result in results] == [0, 3]
        await (await inn.guest("web1")).stop(force=True)
        assert sorted(each.name for each in await inn.guests()) == ["web1", "web2"]
        await asyncio.gather(one.delete(force=True), two.delete(force=True))
        assert await inn.guests() == []


def test_exec_is_as_if_it_ran_here(daemon: Daemon, guest: Guest) -> None:
    data = bytes(range(256)) * 40
    done = daemon.run("exec", "web1", "--", "cat", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    done = daemon.run("exec", "web1", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out\n", b"err\n")
    assert daemon.run("exec", "web1", "--", "no-such-command").returncode == 127
    assert daemon.run("exec", "none", "--", "true").returncode == 125
    assert daemon.run("exec", "web1", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    done = daemon.run("exec", "web1", "-e", "A=b c", "--", "sh", "-c", 'echo "$A"')
    assert done.stdout == b"b c\n"
    much = os.urandom(2 << 20)
    done = daemon.run("exec", "web1", "--", "sha256sum", stdin=much)
    expected = subprocess.run(["sha256sum"], input=much, capture_output=True, check=True).stdout
    assert done.stdout == expected


def test_folders_there_and_back(daemon: Daemon, guest: Guest, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_bytes(os.urandom(100_000))
    (source / "name with ü and spaces").write_text("x")
    (source / "link").symlink_to("inner/file")
    (source / "program").write_text("#!/bin/sh\necho ran\n")
    (source / "program").chmod(0o755)
    assert daemon.run("push", "web1", str(source), "/root/copy").returncode == 0
    assert daemon.run("exec", "web1", "--", "/root/copy/program").stdout == b"ran\n"
    assert daemon.run("pull", "web1", "/root/copy", str(tmp_path / "back")).returncode == 0
    assert not subprocess.run(["diff", "-r", source, tmp_path / "back"], check=False).returncode
    assert (tmp_path / "back" / "link").is_symlink()
    assert os.access(tmp_path / "back" / "program", os.X_OK)


def test_ctrl_c_of_a_launch_leaves_nothing(daemon: Daemon) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for pause in (0.0, 0.5):
        known = {job.id for job in daemon.inn.jobs()}
        with start(daemon, "launch", "tiny", "web1", **pipes) as program:
            until = time.monotonic() + LIMIT
            while known >= {job.id for job in daemon.inn.jobs()}:
                assert time.monotonic() < until
                time.sleep(0.002)
            time.sleep(pause)
            program.send_signal(signal.SIGINT)
            _, err = program.communicate(timeout=LIMIT)
        assert program.returncode == 130, err.decode()
        left = [each.name for each in daemon.inn.guests()]
        if left:  # it ran already: then it is said how to remove it
            assert b"serai delete --force web1" in err
            daemon.delete_all()


def test_a_client_that_goes_away_does_no_harm(daemon: Daemon, guest: Guest) -> None:
    """No SIGPIPE reaches a daemon that was started by the command line."""
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.socket))
            client.sendall(b"GET /v1/guests/web1/log?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(100)
        guest.run("echo more > /dev/console")
    assert daemon.is_running
    assert daemon.inn.status().pid == daemon.pid


def test_console_over_a_terminal(daemon: Daemon, guest: Guest) -> None:
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    shown = b""

    def read_until(wanted: bytes) -> None:
        nonlocal shown
        while wanted not in shown:
            assert select.select([ours], [], [], LIMIT)[0], shown
            shown += os.read(ours, 4096)

    with start(daemon, "console", "web1", **streams) as program:
        read_until(b"ctrl-]")
        os.write(ours, b"\r")
        read_until(b"#")
        os.write(ours, b"echo $((6 * 7))is\r")
        read_until(b"42is")
        os.write(ours, b"\x1d")
        while program.poll() is None:
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 4096)
    assert program.returncode == 0
    os.close(ours)
    os.close(theirs)
    assert guest.state == "running"


def test_a_daemon_in_the_background(serai_home: Path) -> None:
    """start, start again, status, stop, stop again; as the first things a user does."""
    keeper = Daemon(serai_home)
    try:
        assert keeper.run("daemon", "status").returncode == 3
        done = keeper.run("daemon", "start")
        assert done.returncode == 0, done.stderr.decode()
        status = json.loads(keeper.run("daemon", "status", "--format", "json").stdout)
        assert f"process {status['pid']}".encode() in done.stdout
        assert Path(f"/proc/{status['pid']}").exists()
        assert b"already" in keeper.run("daemon", "start").stdout
        done = keeper.run("daemon", "run")
        assert done.returncode == 4
        assert b"runs here already" in done.stderr
    finally:
        assert keeper.run("daemon", "stop").returncode == 0
    assert keeper.run("daemon", "stop").stdout == b"no daemon runs\n"
    assert not keeper.socket.exists()
    with pytest.raises(SeraiError) as caught:
        keeper.inn.status()
    assert caught.value.code is Code.DAEMON_UNREACHABLE
    assert "serai daemon start" in caught.value.hint
