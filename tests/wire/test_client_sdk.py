"""The SDK as the issue shows it, blocking and async alike, against the real API."""

import inspect
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from cli_stage import Stage, staged
from fake_engine import PNG

import serai
import serai.aio
from serai.aio import AsyncGuest, AsyncInn, AsyncSchedule
from serai.client.guests import Guest
from serai.client.inn import Inn
from serai.client.schedules import Schedule
from serai.errors import Code, Conflict, HostFailure, Invalid, NotFound
from serai.model.event import EventKind
from serai.model.job import Job


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        yield made


def test_the_example_of_the_readme(stage: Stage) -> None:
    with serai.connect() as inn:
        guest = inn.launch("tiny", name="web1", memory="256MiB")
        result = guest.run("uname -a")
        assert (result.stdout, result.stderr, result.code, result.ok) == (
            "/bin/sh -c uname -a",
            "",
            0,
            True,
        )
        assert inn.guest("web1").stop(force=True).state == "stopped"
        inn.guest("web1").start()
        assert [each.name for each in inn.guests()] == ["web1"]
        guest.delete(force=True)
        assert inn.guests() == []


async def test_the_example_of_the_readme_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1", memory="256MiB")
        result = await guest.run("uname -a")
        assert (result.stdout, result.stderr, result.code, result.ok) == (
            "/bin/sh -c uname -a",
            "",
            0,
            True,
        )
        stopped = await (await inn.guest("web1")).stop(force=True)
        assert await stopped.state() == "stopped"
        await (await inn.guest("web1")).start()
        assert [each.name for each in await inn.guests()] == ["web1"]
        await guest.delete(force=True)
        assert await inn.guests() == []


def _public(kind: type) -> dict[str, list[str]]:
    found = {}
    for name, each in inspect.getmembers(kind):
        if not name.startswith("_"):
            function = each.fget if isinstance(each, property) else each
            found[name] = [*inspect.signature(function).parameters] if callable(function) else []
    return found


@pytest.mark.parametrize(
    ("blocking", "awaited"), [(Inn, AsyncInn), (Guest, AsyncGuest), (Schedule, AsyncSchedule)]
)
def test_the_twins_are_alike(blocking: type, awaited: type) -> None:
    assert _public(blocking) == _public(awaited)


def test_a_guest_in_a_with_block_is_gone_afterwards(stage: Stage) -> None:
    inn = serai.connect()
    with inn.launch("tiny") as guest:
        assert [each.id for each in inn.guests()] == [guest.id]
    assert inn.guests() == []
    with inn.launch("tiny") as guest:
        guest.delete(force=True)
    with pytest.raises(ZeroDivisionError), inn.launch("tiny"):
        _ = 1 / 0
    assert inn.guests() == []


async def test_an_async_guest_in_a_with_block_is_gone_afterwards(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        async with await inn.launch("tiny"):
            assert len(await inn.guests()) == 1
        assert await inn.guests() == []


def test_verbs(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.create("tiny", name="web1")
    assert guest.info.state == "stopped"
    assert guest.start().pause().info.state == "paused"
    assert guest.resume().restart(force=True).rename("web2").name == "web2"
    assert guest.set(memory="512MiB").info.memory == 512 << 20
    assert repr(guest) == "<Guest web2 running>"
    assert guest.console_path == f"/v1/guests/{guest.id}/console"
    assert guest.screenshot() == PNG
    assert guest.vnc().endswith("vnc.sock")
    stage.engine.log_path("web2").write_bytes(b"booting\n")
    assert (guest.log(), guest.log(tail=4)) == ("booting\n", "ing\n")


async def test_verbs_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.create("tiny", name="web1")
        assert guest.info.state == "stopped"
        await guest.pause()
        assert (await guest.resume()).info.state == "running"
        assert (await (await guest.restart()).rename("web2")).name == "web2"
        assert (await guest.set(memory=512 << 20)).info.memory == 512 << 20
        assert repr(guest) == "<AsyncGuest web2 running>"
        assert (await guest.screenshot(), (await guest.vnc())[-8:]) == (PNG, "vnc.sock")
        stage.engine.log_path("web2").write_bytes(b"booting\n")
        assert await guest.log(tail=4) == "ing\n"


def test_wrong_words_are_errors_of_ours(stage: Stage) -> None:
    inn = serai.connect()
    for wrong in ({"memory": "lots"}, {"firmware": "magic"}, {"restart": "maybe"}):
        with pytest.raises(Invalid):
            inn.launch("tiny", **wrong)
    with pytest.raises(NotFound) as raised:
        inn.guest("nope")
    assert raised.value.code == "guest-not-found"
    with pytest.raises(Conflict):
        inn.launch("tiny", name="a"), inn.launch("tiny", name="a")
    assert serai.SeraiError in type(raised.value).__mro__


def test_labels_filter(stage: Stage) -> None:
    inn = serai.connect()
    inn.launch("tiny", name="a", labels={"k": "v=w", "l": "1"})
    inn.launch("tiny", name="b", labels={"k": "v"})
    assert [each.name for each in inn.guests({"k": "v=w", "l": "1"})] == ["a"]


def test_more_guests_than_a_page_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.engine.add_guests(25)
    monkeypatch.setattr("serai.client.calls.PAGE", 10)
    assert len(serai.connect().guests()) == 25
    assert len(stage.serai("list", "--label", "k=v", "-q").text.split()) == 0
    assert len(stage.serai("list", "-q").text.split()) == 25


async def test_more_guests_than_a_page_holds_async(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.engine.add_guests(25)
    monkeypatch.setattr("serai.client.calls.PAGE", 10)
    async with serai.aio.connect() as inn:
        assert len(await inn.guests()) == 25
        assert len(await inn.images()) == 1


def folder_of(path: Path) -> Path:
    (path / "d").mkdir()
    (path / "d" / "f").write_text("content")
    return path / "d"


def test_files_and_folders(stage: Stage, tmp_path: Path) -> None:
    guest = serai.connect().launch("tiny", name="web1")
    assert guest.push(b"bytes", "/f") == "/f"
    assert guest.pull("/f") == b"bytes"
    assert guest.push(folder_of(tmp_path), "/srv/") == "/srv/d"
    with tarfile.open(fileobj=BytesIO(stage.engine.files["web1", "/srv/d"])) as tar:
        assert tar.getnames() == ["f"]
    stage.engine.files["web1", "/srv/d/"] = stage.engine.files["web1", "/srv/d"]
    assert guest.pull_to("/srv/d/", tmp_path / "copy") == tmp_path / "copy"
    assert (tmp_path / "copy" / "f").read_text() == "content"
    assert guest.pull_to("/f", f"{tmp_path}/copy/") == tmp_path / "copy" / "f"
    with pytest.raises(NotFound, match="there is no file"):
        guest.push(tmp_path / "nope", "/f")


async def test_files_and_folders_async(stage: Stage, tmp_path: Path) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1")
        assert await guest.push(b"bytes", "/f") == "/f"
        assert await guest.pull("/f") == b"bytes"
        assert await guest.push(folder_of(tmp_path), "/srv/") == "/srv/d"
        stage.engine.files["web1", "/srv/d/"] = stage.engine.files["web1", "/srv/d"]
        assert await guest.pull_to("/srv/d/", tmp_path / "copy") == tmp_path / "copy"
        assert (tmp_path / "copy" / "f").read_text() == "content"
        stage.engine.fail_next("push", HostFailure(Code.FILE_FAILED, "is a directory"))
        assert await guest.push(tmp_path / "copy" / "f", "/tmp") == "/tmp/f"  # ``test -d`` says yes
        stage.engine.fail_next("pull", HostFailure(Code.FILE_FAILED, "is a directory"))
        stage.engine.files["web1", "/srv/d"] = stage.engine.files["web1", "/srv/d/"]
        assert await guest.pull_to("/srv/d", f"{tmp_path}/other/") == tmp_path / "other" / "d"


def test_much_input_goes_by_a_file(stage: Stage) -> None:
    guest = serai.connect().launch("tiny", name="web1")
    much = b"x" * (1 << 20)
    answer = guest.run(["wc", "-c"], stdin=much)
    [(_, content)] = stage.engine.files.items()
    assert (content, answer.stdout.split()[-2:]) == (much, ["wc", "-c"])
    assert guest.run(["cat"], stdin="little").stderr == "little"


async def test_much_input_goes_by_a_file_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.launch("tiny", name="web1")
        await guest.run(["wc", "-c"], stdin=b"x" * (1 << 20))
    assert [len(content) for content in stage.engine.files.values()] == [1 << 20]


def test_images_and_jobs(stage: Stage, tmp_path: Path) -> None:
    inn = serai.connect()
    told: list[Job] = []
    assert inn.build_image("tiny", replace=True, on_progress=told.append).name == "tiny"
    assert inn.import_image("/disk", name="tiny").name == "tiny"
    assert [each.name for each in inn.images()] == ["tiny"]
    inn.export_image("tiny", tmp_path / "k", "kernel")
    assert (tmp_path / "k").read_bytes() == b"K" * 1000
    inn.delete_image("tiny")
    newest = inn.jobs()[0]
    assert inn.job(newest.id) == inn.wait_job(newest.id) == newest
    with pytest.raises(Conflict):
        inn.cancel_job(newest.id)
    assert inn.status().version


async def test_images_and_jobs_async(stage: Stage, tmp_path: Path) -> None:
    async with serai.aio.connect() as inn:
        assert (await inn.build_image("tiny", replace=True)).name == "tiny"
        assert (await inn.import_image("/disk", name="tiny")).name == "tiny"
        await inn.export_image("tiny", tmp_path / "k", "kernel")
        assert (tmp_path / "k").read_bytes() == b"K" * 1000
        await inn.delete_image("tiny")
        newest = (await inn.jobs())[0]
        assert await inn.job(newest.id) == await inn.wait_job(newest.id) == newest
        with pytest.raises(Conflict):
            await inn.cancel_job(newest.id)
        assert (await inn.status()).version


def test_events(stage: Stage) -> None:
    inn = serai.connect()
    for number in range(3):
        stage.do(stage.engine.tell(EventKind.GUEST_CREATED, f"täg{number}"))
    assert [each.seq for each in inn.events(1)] == [2, 3]
    watched = inn.watch(after=0)
    assert [next(watched).subject for _ in range(3)] == ["täg0", "täg1", "täg2"]
    stage.do(stage.engine.tell(EventKind.GUEST_DELETED, "new"))
    assert next(watched).subject == "new"
    stage.stop()
    assert list(watched) == []


async def test_events_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        stage.do(stage.engine.tell(EventKind.GUEST_CREATED, "a"))
        watched = inn.watch(after=0)
        assert (await anext(watched)).subject == "a"
        assert [each.seq for each in await inn.events()] == [1]
        stage.stop()
        assert [each async for each in watched] == []


def test_importing_serai_is_light() -> None:
    assert set(serai.__all__) <= {*serai.LAZY, *serai.MODULES}
    for name in serai.__all__:
        assert getattr(serai, name)
    with pytest.raises(AttributeError):
        _ = serai.nothing
