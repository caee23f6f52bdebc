"""Sealing what a guest is told, waiting for its first boot, the way in: over a guest that is not there."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from serai.disk.seeds import SeedFolder
from serai.engine.first_boot import find_ssh, wait_cloud_init, wait_ssh
from serai.engine.reach import open_ssh
from serai.engine.seeding import sealed
from serai.errors import Code, Conflict, HostFailure, Interrupted, Invalid, SeraiError
from serai.model.actions import LaunchGuest
from serai.model.firstboot import FirstBoot
from serai.model.guest import AgentState, GuestSpec
from serai.model.lifecycle import GuestState
from serai.model.talk import ExecRequest, ExecResult
from serai.qemu.agent import Interface

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
SECRET = "#!/bin/sh\necho secret\n"
LAUNCH = LaunchGuest(
    spec=GuestSpec(image="debian"), first_boot=FirstBoot(hostname="h", user_data=SECRET)
)


def make_house(folder: Path) -> Any:
    shelf = SimpleNamespace(guests=list, snapshots={}, is_whole=True)
    return SimpleNamespace(
        seeds=SeedFolder(folder / "seeds"),
        shelf=shelf,
        settings=SimpleNamespace(first_boot_timeout=5.0),
        places=SimpleNamespace(guests_run=folder),
    )


# -- sealing ---------------------------------------------------------------------------------------


async def test_what_goes_on_holds_no_secret_and_names_it(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    async with sealed(house, LAUNCH) as shown:
        assert shown.first_boot == FirstBoot(hostname="h")
        assert house.seeds.get(shown.seed) == FirstBoot(user_data=SECRET)
        house.shelf.guests = lambda: [SimpleNamespace(seed=shown.seed)]
    assert house.seeds.get(shown.seed).user_data == SECRET


async def test_nothing_is_kept_of_what_was_refused(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    with pytest.raises(Conflict):
        async with sealed(house, LAUNCH):
            raise Conflict(Code.GUEST_EXISTS, "no")
    assert not list((tmp_path / "seeds").iterdir())
    with pytest.raises(Invalid):
        async with sealed(house, LaunchGuest(spec=LAUNCH.spec, first_boot=FirstBoot(hostname="-"))):
            pytest.fail("it was taken")


async def test_a_guest_that_is_told_nothing_has_no_seed(tmp_path: Path) -> None:
    bare = LaunchGuest(spec=LAUNCH.spec)
    async with sealed(make_house(tmp_path), bare) as shown:
        assert shown is bare
    assert not list(tmp_path.iterdir())


# -- waiting for cloud-init ------------------------------------------------------------------------

Answer = str | SeraiError | Callable[[], str]
LOST = Interrupted(Code.AGENT_UNAVAILABLE, "it reboots")


class FakeAgent:
    """Answers each question with the next of its answers, the last for ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []
        self.addresses: list[str] = []

    async def interfaces(self, *, timeout: float) -> list[Interface]:
        assert timeout
        told = [{"ip-address": each, "prefix": 24} for each in self.addresses]
        return [msgspec.convert({"name": "net", "ip-addresses": told}, Interface)]

    async def execute(self, request: ExecRequest) -> ExecResult:
        self.asked.append(request.argv)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SeraiError):
            raise answer
        told = answer if isinstance(answer, str) else answer()
        return ExecResult(code=0, stdout=told.encode(), stderr=b"")


ME = SimpleNamespace(pid=os.getpid())


def make_driver(folder: Path, *answers: Answer, instance: Any = None) -> Any:
    instance = instance or SimpleNamespace(agent=FakeAgent(*answers), process=ME)
    return SimpleNamespace(
        name="web1",
        record=SimpleNamespace(id="id-1", ports=()),
        house=make_house(folder),
        state=GuestState.RUNNING,
        instance=instance,
        agent_state=AgentState.ANSWERING,
        exited=asyncio.Event(),
        powered_off=asyncio.Event(),
    )


class FakeJob:
    def __init__(self) -> None:
        self.told: list[str] = []

    def progress(self, done: int, total: int, message: str) -> None:
        assert done < total
        self.told.append(message)


def result(*errors: str) -> str:
    return "ended\n" + json.dumps({"v1": {"datasource": "NoCloud", "errors": errors}}, indent=1)


async def test_the_stages_are_told_until_the_end(tmp_path: Path) -> None:
    driver = make_driver(
        tmp_path, "init-local\n", LOST, "modules-config\n", "", "modules-final\n", result()
    )
    job: Any = FakeJob()
    await wait_cloud_init(driver, job)
    assert job.told == [f"cloud-init: {each}" for each in ("init-local", "modules-config", "modules-final")]  # fmt: skip
    assert [words[-1] for words in driver.instance.agent.asked] == [
        "begin", "init-local", "init-local", "modules-config", "modules-config", "modules-final",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (result("('scripts_user', boom)", "more"), "cloud-init had errors: ('scripts_user', boom); more"),
        ("ended\nrubbish", "its result can't be read"),
        ("ended\n" + "[" * 5000, "its result can't be read"),
        ("disabled\n", "switched off"),
        ("missing\n", "no working cloud-init"),
        ("\x1b[2Jwhatever\n", "no working cloud-init"),
    ],
)  # fmt: skip
async def test_a_bad_end_says_what_failed(tmp_path: Path, told: str, words: str) -> None:
    driver = make_driver(tmp_path, told, "status: error\n")
    with pytest.raises(Conflict) as caught:
        await wait_cloud_init(driver, FakeJob())  # type: ignore[arg-type]
    assert caught.value.code is Code.FIRST_BOOT_FAILED
    assert words in caught.value.message
    assert "web1 runs" in caught.value.message
    if told.startswith("ended"):
        assert caught.value.details["status"] == "status: error\n"


async def test_a_guest_that_ends_or_never_comes_to_an_end(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, "init\n")
    driver.house.settings.first_boot_timeout = 0.5
    with pytest.raises(Interrupted, match=r"took over 0\.5 s until cloud-init is done") as caught:
        await wait_cloud_init(driver, FakeJob())  # type: ignore[arg-type]
    assert caught.value.code is Code.TIMEOUT
    driver.exited.set()
    with pytest.raises(Conflict, match="ended during its first boot"):
        await wait_cloud_init(driver, FakeJob())  # type: ignore[arg-type]


# -- the way in ------------------------------------------------------------------------------------


class LendingQemu:
    """Lends ports as QEMU does: whoever calls one gets ``greeting``, and what it says back."""

    def __init__(self, greeting: bytes, *, refusals: int = 0) -> None:
        self.agent = FakeAgent("")
        self.process = ME
        self.greeting = greeting
        self.refusals = refusals
        self.lent: dict[str, asyncio.Server] = {}
        self.inside = ""

    async def forward(self, netdev: str, forward: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise HostFailure(Code.QMP_FAILED, "could not set up host forwarding rule")
        where, _, inside = forward.partition("-")
        kind, address, port = where.split(":")
        assert (netdev, kind, address) == ("net0", "tcp", "127.0.0.1")
        self.inside = inside
        self.lent[where] = await asyncio.start_server(self._talk, address, int(port))

    async def end_forward(self, _netdev: str, forward: str) -> None:
        self.lent.pop(forward).close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        with contextlib.suppress(OSError):
            while self.greeting and (data := await reader.read(100)):
                writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def lending(folder: Path, qemu: LendingQemu) -> AsyncIterator[Any]:
    yield make_driver(folder, instance=qemu)
    assert not qemu.lent, "a port stays open"


@pytest.mark.parametrize("refusals", [0, 3])
async def test_the_port_is_lent_for_the_call_only(tmp_path: Path, refusals: int) -> None:
    qemu = LendingQemu(b"SSH-2.0-test\r\n", refusals=refusals)
    async with lending(tmp_path, qemu) as driver:
        stream = await open_ssh(driver, 5.0)
        assert stream.greeting == b"SSH-2.0-test\r\n"
        assert not qemu.lent
        stream.writer.write(b"hello")
        assert await stream.reader.readexactly(5) == b"hello"
        stream.writer.close()


@pytest.mark.parametrize(
    ("addresses", "inside"),
    [
        (["127.0.0.1", "fe80::1", "10.0.2.16", "10.0.2.17"], "10.0.2.16:22"),
        (["192.0.2.1"], ":22"),
        (["rubbish"], ":22"),
        (["-:22 quit", "10.0.2.15"], ":22"),
        ([], ":22"),
    ],
)
async def test_the_guest_says_where_it_is_in_its_network(
    tmp_path: Path, addresses: list[str], inside: str
) -> None:
    qemu = LendingQemu(b"SSH-2.0-test\r\n")
    qemu.agent.addresses = addresses
    async with lending(tmp_path, qemu) as driver:
        (await open_ssh(driver, 5.0)).writer.close()
    assert qemu.inside == inside


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400\r\n", b""])
async def test_who_is_no_ssh_server(tmp_path: Path, greeting: bytes) -> None:
    async with lending(tmp_path, LendingQemu(greeting)) as driver:
        with pytest.raises(Conflict, match="nobody answers there as an ssh server does") as caught:
            await open_ssh(driver, 5.0)
        assert caught.value.code is Code.SSH_UNREACHABLE
        driver.house.settings.first_boot_timeout = 0.5
        with pytest.raises(Interrupted, match="until its ssh server answers"):
            await wait_ssh(driver)


async def test_a_qemu_that_lends_nothing_and_a_guest_that_is_off(tmp_path: Path) -> None:
    async with lending(tmp_path, LendingQemu(b"", refusals=99)) as driver:
        with pytest.raises(HostFailure):
            await open_ssh(driver, 5.0)
        driver.state = GuestState.STOPPED
        with pytest.raises(Conflict) as caught:
            await open_ssh(driver, 5.0)
        assert caught.value.code is Code.GUEST_STATE


async def test_waiting_for_ssh_ends_when_it_answers(tmp_path: Path) -> None:
    qemu = LendingQemu(b"")
    async with lending(tmp_path, qemu) as driver:
        waiting = asyncio.ensure_future(wait_ssh(driver))
        await asyncio.sleep(0)
        qemu.greeting = b"SSH-2.0-test\r\n"
        await waiting


async def test_host_keys_come_from_the_agent(tmp_path: Path) -> None:
    (tmp_path / "id-1").mkdir()
    driver = make_driver(tmp_path, f"{KEY} root@web1\nrubbish\nuser debian\n")
    found = await find_ssh(driver)
    assert (found.user, found.alias, found.is_known) == ("debian", "serai-id-1", True)
    assert Path(found.known_hosts).read_text() == f"serai-id-1 {KEY}\n"
    driver.agent_state = AgentState.SILENT
    assert not (await find_ssh(driver)).is_known
