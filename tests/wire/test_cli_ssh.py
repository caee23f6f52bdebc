"""First boot and ssh from the command line and the SDK, over an engine in memory."""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_stage import LIMIT, Stage, staged

import serai
from serai.errors import Code, Conflict, Invalid
from serai.model.actions import CreateGuest, LaunchGuest
from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.guest import GuestSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me"
FAKE_SSH = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done
"""


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(1)
        yield made


@pytest.fixture
def ssh_server(stage: Stage) -> Iterator[None]:
    """What the guest's ssh server is: it answers in capitals until the client leaves."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(stage.engine.folder / "console.sock"))
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data.upper())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(LIMIT)
    listener.close()


def told(stage: Stage) -> FirstBoot:
    action = stage.engine.actions[-1]
    assert isinstance(action, LaunchGuest | CreateGuest)
    return action.first_boot


# -- launching -------------------------------------------------------------------------------------


def test_launch_sends_keys_user_data_and_host_name(stage: Stage, tmp_path: Path) -> None:
    keys, data = tmp_path / "id.pub", tmp_path / "user-data"
    keys.write_text(f"# mine\n\n{KEY}\n{KEY}2\n")
    data.write_text("#cloud-config\n")
    done = stage.serai(
        *("launch", "tiny", "web1", "--ssh-key", str(keys), "--ssh-key", f"{KEY}3"),
        *("--user-data", str(data), "--hostname", "web1.lan", "--wait-for", "cloud-init"),
    )
    assert done.code == 0, done.err
    assert done.text.startswith("web1 is running, cloud-init is done (")
    assert stage.engine.actions == [
        LaunchGuest(
            spec=GuestSpec(image="tiny", name="web1"),
            first_boot=FirstBoot(
                hostname="web1.lan",
                ssh_keys=(KEY, f"{KEY}2", f"{KEY}3"),
                user_data="#cloud-config\n",
            ),
            wait_for=WaitFor.CLOUD_INIT,
        )
    ]


def test_user_data_from_standard_input(stage: Stage) -> None:
    done = stage.serai(
        "launch", "tiny", "--user-data", "-", "--wait-for", "ssh", stdin=b"#!/bin/sh"
    )
    assert ", ssh answers (" in done.text
    assert told(stage) == FirstBoot(user_data="#!/bin/sh")


@pytest.mark.parametrize(
    ("option", "content", "code"),
    [
        ("--ssh-key", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "ssh-key-invalid"),
        ("--ssh-key", b"# nothing\n", "ssh-key-invalid"),
        ("--ssh-key", b"\xff", "ssh-key-invalid"),
        ("--user-data", b"\x1f\x8b\x08", "user-data-invalid"),
    ],
)
def test_what_is_not_even_sent(
    stage: Stage, tmp_path: Path, option: str, content: bytes, code: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    done = stage.serai("launch", "tiny", option, str(file), "--format", "json")
    assert (done.code, json.loads(done.err)["code"]) == (2, code)
    assert stage.engine.actions == []


@pytest.mark.parametrize("option", ["--ssh-key", "--user-data"])
def test_a_file_that_is_not_there(stage: Stage, option: str) -> None:
    done = stage.serai("launch", "tiny", option, "/nowhere/at all")
    assert done.code == 7
    assert "/nowhere/at all: No such file" in done.err


def test_the_sdk_takes_the_same(stage: Stage, tmp_path: Path) -> None:
    key = tmp_path / "id.pub"
    key.write_text(KEY)
    with serai.connect(stage.socket) as inn:
        inn.launch("tiny", ssh_keys=[key, KEY], user_data="#!/bin/sh", hostname="h", wait_for="ssh")
        assert told(stage) == FirstBoot(hostname="h", ssh_keys=(KEY, KEY), user_data="#!/bin/sh")
        inn.create("tiny", ssh_keys=[KEY])
        assert told(stage) == FirstBoot(ssh_keys=(KEY,))
        with pytest.raises(Invalid, match="none of agent, ssh, cloud-init"):
            inn.launch("tiny", wait_for="luck")


# -- ssh -------------------------------------------------------------------------------------------


def run_ssh(stage: Stage, tmp_path: Path, *words: str) -> list[str]:
    """Run ``serai ssh`` with a program in ssh's place that tells its arguments."""
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "serai", "ssh", *words],
        env={**stage.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ssh_becomes_the_systems_own(stage: Stage, tmp_path: Path) -> None:
    words = run_ssh(stage, tmp_path, "g0", "--", "ls", "-l")
    guest = stage.engine.guest("g0").id
    options = {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["HostKeyAlias"] == f"serai-{guest}"
    assert options["UserKnownHostsFile"] == '"/k n/own%%"'
    proxy = shlex.split(options["ProxyCommand"].replace("%%", "%"))
    assert proxy == [sys.executable, "-m", "serai", "ssh-proxy", guest]
    assert words[-6:] == ["-l", "root", "--", "g0", "ls", "-l"]


def test_ssh_takes_a_user_a_key_and_options(stage: Stage, tmp_path: Path) -> None:
    words = run_ssh(stage, tmp_path, "-l", "ann", "-i", "/my/key", "-o", "LogLevel=ERROR", "g0")
    assert words[:4] == ["-o", "LogLevel=ERROR", "-i", "/my/key"]  # the first of each wins
    assert words[-4:] == ["-l", "ann", "--", "g0"]


def test_ssh_without_ssh(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = stage.serai("ssh", "g0")
    assert done.code == 7
    assert "apt-get install openssh-client" in done.err


def test_ssh_to_nobody(stage: Stage) -> None:
    assert stage.serai("ssh", "nope").code == 3
    assert stage.serai("ssh-proxy", "nope").code == 3


def test_the_proxy_passes_bytes_both_ways(stage: Stage, ssh_server: None) -> None:
    assert ssh_server is None
    data = bytes(range(256)) * 4096
    with stage.process("ssh-proxy", "g0", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdin and proxy.stdout
        assert proxy.stdout.read(14) == b"SSH-2.0-fake\r\n"
        writer = threading.Thread(target=proxy.stdin.write, args=(data,))
        writer.start()
        assert proxy.stdout.read(len(data)) == data.upper()
        writer.join(LIMIT)
        proxy.stdin.close()
        assert proxy.wait(LIMIT) == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Code.SSH_UNREACHABLE, "the ssh server of g0 does not answer"),
        (Code.GUEST_STATE, "g0 is running: nobody can log in now"),
    ],
)
def test_the_proxy_says_why_it_leads_nowhere(stage: Stage, code: Code, words: str) -> None:
    stage.engine.fail_next("open_ssh", Conflict(code, "no"))
    with stage.process("ssh-proxy", "g0", stdin=subprocess.PIPE, stderr=subprocess.PIPE) as proxy:
        assert proxy.stderr
        assert words in proxy.stderr.read().decode()
        assert proxy.wait(LIMIT) == 4
