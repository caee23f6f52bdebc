"""Every command against the real API over an engine in memory: what is asked, printed, returned."""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import click
import msgspec
import pytest
from cli_stage import Stage, run_here, staged
from fake_engine import PNG

from serai.cli.main import cli
from serai.client.copying import INLINE_INPUT
from serai.errors import Code, Conflict, Family, HostFailure, Interrupted, Problem
from serai.model.actions import (
    BuildImage,
    DeleteGuest,
    ImportImage,
    LaunchGuest,
    RestartGuest,
    SetGuest,
    StopGuest,
)
from serai.model.event import Event, EventKind
from serai.model.guest import GuestSpec
from serai.model.talk import ExecRequest, ExecResult


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        yield made


@pytest.fixture
def one(stage: Stage) -> Stage:
    """A stage with the guest g0."""
    stage.engine.add_guests(1)
    return stage


# -- launching and looking -------------------------------------------------------------------------


def test_launch_says_what_it_made_and_passes_all_options_on(stage: Stage) -> None:
    done = stage.serai(
        *[
            "launch",
            "tiny",
            "web1",
            "--cpus",
            "2",
            "--memory",
            "512MiB",
            "--disk",
            "2G",
            "--firmware",
            "uefi",
            "--restart",
            "always",
        ],
        *["--label", "a=b", "--label", "c=d=e", "--no-wait"],
    )
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("web1 is running (tcg, ")
    assert stage.engine.actions == [
        LaunchGuest(
            wait=False,
            spec=GuestSpec(
                image="tiny", name="web1", cpus=2, memory=512 << 20, disk=2 << 30, firmware="uefi",
                restart="always", labels={"a": "b", "c": "d=e"},
            ),
        )
    ]  # fmt: skip


def test_launch_without_a_name_says_which_it_got(stage: Stage) -> None:
    assert stage.serai("launch", "tiny").text.startswith("guest-0 is running, its agent answers (")


def test_launch_as_json_gives_the_guest(stage: Stage) -> None:
    found = json.loads(stage.serai("launch", "tiny", "web1", "--format", "json").out)
    assert (found["name"], found["memory"]) == ("web1", 256 << 20)


WITHOUT_FORMAT = ("log", "console", "nope", "--nope")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("launch nope", 3, "image-not-found"),
        ("launch tiny --memory lots", 2, "size-invalid"),
        ("launch tiny --cpus 0", 2, "size-invalid"),
        ("launch tiny g0", 4, "guest-exists"),
        ("launch tiny -- --evil", 2, "name-invalid"),
        ("launch tiny --label nothing", 2, "usage"),
        ("launch tiny --firmware magic", 2, "usage"),
        ("launch", 2, "usage"),
        ("show nope", 3, "guest-not-found"),
        ("show ../../system", 3, "guest-not-found"),
        ("exec nope -- ls", 125, "guest-not-found"),
        ("job show nope", 3, "job-not-found"),
        ("image show nope", 3, "image-not-found"),
        ("image export nope", 3, "image-not-found"),
        ("image build windows", 2, "usage"),
        ("console nope", 3, "guest-not-found"),
        ("log nope", 3, "guest-not-found"),
        ("pull g0 /nope x", 3, "file-failed"),
        ("push g0 /nope/there x", 3, "file-failed"),
        ("set g0", 2, "usage"),
        ("set g0 --label nothing", 2, "usage"),
        ("events --after -1", 2, "usage"),
        ("screenshot g0 /nope/there.png", 7, "file-failed"),
        ("--nope", 2, "usage"),
        ("nope", 2, "usage"),
    ],
)
def test_problems_have_exit_code_code_and_sentence(
    one: Stage, words: str, code: int, problem: str
) -> None:
    done = one.serai(*words.split())
    assert (done.code, done.out) == (code, b"")
    assert done.err.startswith("error: ")
    if words.split()[0] not in WITHOUT_FORMAT:
        head, dashes, tail = words.partition(" -- ")
        as_json = one.serai(*head.split(), "--format", "json", *dashes.split(), *tail.split())
        assert (as_json.code, json.loads(as_json.err)["code"]) == (code, problem)


def test_a_command_that_is_not_there_names_the_nearest(stage: Stage) -> None:
    assert "Did you mean 'launch'?" in stage.serai("lunch").err


def test_no_command_at_all_is_help(stage: Stage) -> None:
    done = stage.serai()
    assert (done.code, done.err) == (0, "")
    assert "screenshot" in done.text


def test_a_group_alone_shows_its_help_as_an_error(stage: Stage) -> None:
    done = stage.serai("image")
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("Usage: serai image")


def test_list_is_the_same_by_both_ways(one: Stage) -> None:
    one.engine.add_guests(3)
    one.engine.all_guests["g1"] = msgspec.structs.replace(
        one.engine.all_guests["g1"], labels={"a": "b"}
    )
    fast, slow = one.serai("list").text, one.serai("list", "--label", "a=b").text
    assert slow.splitlines() == [fast.splitlines()[0], fast.splitlines()[2]]
    assert one.serai("list", "-q").text.split() == ["g0", "g1", "g2"]
    by_json = json.loads(one.serai("list", "--format", "json").out)
    assert [each["name"] for each in by_json] == ["g0", "g1", "g2"]
    needed = ["name", "id", "kind", "state", "accel", "image", "cpus", "memory", "created_at"]
    assert set(needed) <= set(by_json[0])


def test_list_by_label(stage: Stage) -> None:
    stage.serai("launch", "tiny", "a", "--label", "k=v")
    stage.serai("launch", "tiny", "b")
    assert stage.serai("list", "--label", "k=v", "-q").text == "a\n"
    assert stage.serai("list", "--label", "k=w", "--format", "json").text == "[]\n"
    assert stage.serai("list", "--label", "k=v").text.splitlines()[1].split()[0] == "a"


def test_show_says_what_tcg_means_and_what_is_wrong(one: Stage) -> None:
    problem = Problem(
        family=Family.HOST_FAILURE, code="disk-full", message="no room \x1b[2J", hint="make some"
    )
    guest = one.engine.all_guests["g0"]
    one.engine.all_guests["g0"] = msgspec.structs.replace(guest, problem=problem, labels={"a": "b"})
    text = one.serai("show", "g0").text
    assert "tcg (emulated: slow, and no security boundary" in text
    assert "no room \\x1b[2J" in text
    assert "hint:" in text and "make some" in text and "a=b" in text
    assert (
        json.loads(one.serai("show", "g0", "--format", "json").out)["problem"]["code"]
        == "disk-full"
    )


# -- verbs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("start g0", "g0 is started"),
        ("stop g0", "g0 is stopped"),
        ("restart g0", "g0 is restarted"),
        ("pause g0", "g0 is paused"),
        ("resume g0", "g0 goes on"),
        ("delete g0", "g0 is deleted"),
    ],
)
def test_verbs_say_what_was_done(one: Stage, words: str, said: str) -> None:
    done = one.serai(*words.split())
    assert (done.code, done.text, done.err) == (0, f"{said}\n", "")
    one.engine.add_guests(1)
    [result] = json.loads(one.serai(*words.split(), "--format", "json").out)
    assert result == {"name": "g0", "ok": True, "message": said, "code": ""}


def test_options_of_verbs_arrive(one: Stage) -> None:
    one.serai("stop", "g0", "--force", "--timeout", "90s")
    one.serai("restart", "g0", "--timeout", "1m")
    one.serai("delete", "g0", "--force")
    assert one.engine.actions == [
        StopGuest(guest="g0", force=True, timeout=90),
        RestartGuest(guest="g0", timeout=60),
        DeleteGuest(guest="g0", force=True),
    ]


def test_several_guests_and_one_is_not_there(stage: Stage) -> None:
    stage.engine.add_guests(3)
    done = stage.serai("stop", "g0", "nope", "g2")
    assert (done.code, done.text) == (3, "g0 is stopped\ng2 is stopped\n")
    assert done.err.count("error: ") == 1
    results = json.loads(stage.serai("stop", "g0", "nope", "--format", "json").out)
    assert [(each["ok"], each["code"]) for each in results] == [
        (True, ""),
        (False, "guest-not-found"),
    ]


def test_rename(one: Stage) -> None:
    assert one.serai("rename", "g0", "web1").text == "g0 is now web1\n"
    assert json.loads(one.serai("rename", "web1", "web2", "--format", "json").out)["name"] == "web2"


def test_set_changes_only_what_is_named(one: Stage) -> None:
    assert one.serai("set", "g0", "--memory", "1GiB").text == "g0 is changed\n"
    [action] = one.engine.actions
    assert isinstance(action, SetGuest)
    assert msgspec.to_builtins(action.change) == {"memory": 1 << 30}
    assert action.version == 0


def test_set_adds_and_drops_labels_of_the_version_it_saw(one: Stage) -> None:
    guest = one.engine.all_guests["g0"]
    labels = {"a": "1", "b": "2"}
    one.engine.all_guests["g0"] = msgspec.structs.replace(guest, labels=labels, version=7)
    one.serai("set", "g0", "--label", "a-", "--label", "c=3", "--format", "json")
    [action] = one.engine.actions
    assert isinstance(action, SetGuest)
    assert (action.change.labels, action.version) == ({"b": "2", "c": "3"}, 7)


# -- inside ----------------------------------------------------------------------------------------


class Inside:
    """Stands in for a guest: records what is asked, answers what it is told to."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[ExecRequest] = []
        self.result = ExecResult(code=0, stdout=b"", stderr=b"")
        self.folders: set[str] = set()
        monkeypatch.setattr(stage.engine, "execute", self.execute)

    async def execute(self, guest: str, request: ExecRequest) -> ExecResult:
        if request.argv[:2] == ["test", "-d"]:
            return ExecResult(code=int(request.argv[2] not in self.folders), stdout=b"", stderr=b"")
        self.asked.append(request)
        return self.result


@pytest.fixture
def inside(one: Stage, monkeypatch: pytest.MonkeyPatch) -> Inside:
    return Inside(one, monkeypatch)


def test_exec_is_binary_safe_and_has_the_commands_exit_code(one: Stage, inside: Inside) -> None:
    every = bytes(range(256))
    inside.result = ExecResult(code=42, stdout=every, stderr=b"oh\n")
    done = one.serai("exec", "g0", "--", "cat", stdin=every)
    assert (done.code, done.out, done.err) == (42, every, "oh\n")
    assert inside.asked == [ExecRequest(argv=["cat"], stdin=every)]


@pytest.mark.parametrize(
    ("words", "argv"),
    [
        ("exec g0 -- ls -l", ["ls", "-l"]),
        ("exec g0 ls -l -n", ["ls", "-l", "-n"]),
        ("exec g0 -n -- ls -n", ["ls", "-n"]),
        ("exec -n g0 -- ls --timeout 3", ["ls", "--timeout", "3"]),
        ("exec g0 -e A=1 --timeout 3s -- ls", ["ls"]),
        ("exec g0 sh -c x -- y", ["sh", "-c", "x", "--", "y"]),
        ("exec g0 -- sh -- y", ["sh", "--", "y"]),
    ],
)
def test_the_words_of_a_command_stay_its_own(
    one: Stage, inside: Inside, words: str, argv: list[str]
) -> None:
    assert one.serai(*words.split()).code == 0
    assert inside.asked[0].argv == argv


def test_exec_passes_environment_and_time_limit(one: Stage, inside: Inside) -> None:
    one.serai("exec", "-e", "A=1", "-e", "B=x=y", "--timeout", "2m", "g0", "--", "env")
    assert (inside.asked[0].env, inside.asked[0].timeout) == ({"A": "1", "B": "x=y"}, 120)


def test_exec_without_standard_input(one: Stage, inside: Inside) -> None:
    one.serai("exec", "-n", "g0", "--", "cat", stdin=b"not read")
    assert inside.asked[0].stdin == b""


def test_exec_with_much_input_puts_it_into_a_file_first(one: Stage, inside: Inside) -> None:
    much = bytes(range(256)) * 8192
    assert len(much) > INLINE_INPUT
    assert one.serai("exec", "g0", "--", "sha256sum", "-b", stdin=much).code == 0
    [((guest, path), content)] = one.engine.files.items()
    assert (guest, content) == ("g0", much)
    [request] = inside.asked
    assert request.stdin == b""
    assert request.argv[3:] == [path, "sha256sum", "-b"]


def test_exec_as_json(one: Stage, inside: Inside) -> None:
    inside.result = ExecResult(code=3, stdout=b"a\xff", stderr=b"b", truncated=True)
    done = one.serai("exec", "--format", "json", "g0", "--", "x")
    assert done.code == 3
    assert json.loads(done.out) == {"code": 3, "stdout": "a�", "stderr": "b", "truncated": True}


def test_exec_says_when_output_was_cut(one: Stage, inside: Inside) -> None:
    inside.result = ExecResult(code=0, stdout=b"", stderr=b"", truncated=True)
    assert "only the first 16 MiB" in one.serai("exec", "g0", "x").err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostFailure(Code.EXEC_FAILED, "no such command"), 127),
        (HostFailure(Code.AGENT_UNAVAILABLE, "no agent"), 125),
        (Interrupted(Code.AGENT_TIMEOUT, "too slow"), 125),
    ],
)
def test_exec_problems_have_exit_codes_of_their_own(
    one: Stage, error: HostFailure, code: int
) -> None:
    one.engine.fail_next("execute", error)
    done = one.serai("exec", "g0", "--", "x")
    assert (done.code, done.out) == (code, b"")
    assert done.err.startswith(f"error: {error.message}")


# -- files -----------------------------------------------------------------------------------------


def test_push_and_pull_a_file(one: Stage, tmp_path: Path) -> None:
    every = bytes(range(256)) * 3000
    (tmp_path / "f").write_bytes(every)
    done = one.serai("push", "g0", str(tmp_path / "f"), "/srv/f")
    assert done.text == f"{tmp_path}/f is now g0:/srv/f\n"
    assert one.engine.files == {("g0", "/srv/f"): every}
    one.serai("pull", "g0", "/srv/f", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == every


@pytest.mark.parametrize(
    ("path", "there"), [("/srv/", "/srv/f"), ("/srv", "/srv"), ("/", "/f"), ("/a/b", "/a/b")]
)
def test_where_a_pushed_file_goes(one: Stage, tmp_path: Path, path: str, there: str) -> None:
    (tmp_path / "f").write_text("x")
    found = json.loads(one.serai("push", "g0", str(tmp_path / "f"), path, "--format", "json").out)
    assert found["target"] == f"g0:{there}"
    assert list(one.engine.files) == [("g0", there)]


def test_a_file_pushed_onto_a_folder_goes_into_it(
    one: Stage, inside: Inside, tmp_path: Path
) -> None:
    (tmp_path / "f").write_text("x")
    inside.folders.add("/tmp")
    one.engine.fail_next("push", HostFailure(Code.FILE_FAILED, "is a directory"))
    assert one.serai("push", "g0", str(tmp_path / "f"), "/tmp").text.endswith("g0:/tmp/f\n")
    one.engine.fail_next("push", HostFailure(Code.FILE_FAILED, "read-only"))
    assert one.serai("push", "g0", str(tmp_path / "f"), "/etc/x").code == 7


def test_standard_streams_are_files_too(one: Stage) -> None:
    every = bytes(range(256))
    one.serai("push", "g0", "-", "/f", stdin=every)
    assert one.serai("pull", "g0", "/f", "-").out == every


@pytest.mark.parametrize(
    ("source", "path", "there"),
    [("d", "/srv/", "/srv/d"), ("d/", "/srv/", "/srv/d"), ("d", "/x", "/x")],
)
def test_where_a_pushed_folder_goes(
    one: Stage, tmp_path: Path, source: str, path: str, there: str
) -> None:
    (tmp_path / "d" / "inner").mkdir(parents=True)
    (tmp_path / "d" / "inner" / "f").write_text("x")
    assert one.serai("push", "g0", f"{tmp_path}/{source}", path).code == 0
    [((_, target), archive)] = one.engine.files.items()
    assert target == there
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        assert tar.getnames() == ["inner", "inner/f"]


def archive_of(**files: str) -> bytes:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, BytesIO(text.encode()))
    return made.getvalue()


@pytest.mark.parametrize(
    ("path", "local", "there"),
    [
        ("/srv/d/", "x", "x"),
        ("/srv/d/", "x/", "x/d"),
        ("/srv/d/", "old/", "old/d"),
        ("/srv/d/", "old", "old"),
    ],
)
def test_where_a_pulled_folder_goes(
    one: Stage, tmp_path: Path, path: str, local: str, there: str
) -> None:
    (tmp_path / "old").mkdir()
    one.engine.files["g0", path] = archive_of(f="content")
    done = one.serai("pull", "g0", path, f"{tmp_path}/{local}")
    assert (done.code, done.text) == (0, f"g0:{path} is now {tmp_path}/{there}\n")
    assert (tmp_path / there / "f").read_text() == "content"


def test_a_folder_is_found_to_be_one(one: Stage, inside: Inside, tmp_path: Path) -> None:
    inside.folders.add("/srv/d")
    one.engine.fail_next("pull", HostFailure(Code.FILE_FAILED, "is a directory"))
    one.engine.files["g0", "/srv/d"] = archive_of(f="content")
    assert one.serai("pull", "g0", "/srv/d", f"{tmp_path}/x").code == 0
    assert (tmp_path / "x" / "f").read_text() == "content"


@pytest.mark.parametrize(("local", "there"), [("x", "x"), ("x/", "x/f"), (".", "f")])
def test_where_a_pulled_file_goes(one: Stage, tmp_path: Path, local: str, there: str) -> None:
    one.engine.files["g0", "/srv/f"] = b"x"
    assert one.serai("pull", "g0", "/srv/f", f"{tmp_path}/{local}").code == 0
    assert (tmp_path / there).read_bytes() == b"x"


def test_a_pull_that_is_cut_off_leaves_what_was_there(one: Stage, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    one.engine.files["g0", "/broken"] = b"new"
    done = one.serai("pull", "g0", "/broken", f"{tmp_path}/f")
    assert done.code == 8
    assert "cut off" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "old"


def test_a_hostile_folder_is_refused_and_says_so(one: Stage, tmp_path: Path) -> None:
    one.engine.files["g0", "/d/"] = archive_of(**{"../evil": "x"})
    done = one.serai("pull", "g0", "/d/", f"{tmp_path}/x")
    assert done.code == 2
    assert not (tmp_path / "evil").exists()


def test_what_is_left_out_is_named(one: Stage, tmp_path: Path) -> None:
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("li\x1bnk")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    one.engine.files["g0", "/d/"] = made.getvalue()
    assert (
        "left out, not to be trusted: li\\x1bnk (1 in all)"
        in one.serai("pull", "g0", "/d/", f"{tmp_path}/x").err
    )


# -- looks -----------------------------------------------------------------------------------------


def test_log_and_its_end(one: Stage) -> None:
    one.engine.log_path("g0").write_bytes(b"\x1b[2Jbooting\n")
    assert one.serai("log", "g0").out == b"\x1b[2Jbooting\n"
    assert one.serai("log", "g0", "--tail", "4").out == b"ing\n"


def test_screenshot(one: Stage, tmp_path: Path) -> None:
    file = tmp_path / "s.png"
    assert one.serai("screenshot", "g0", str(file)).text == f"{file}: {len(PNG)} bytes\n"
    assert file.read_bytes() == PNG
    assert one.serai("screenshot", "g0", "-").out == PNG


def test_vnc_prints_a_path(one: Stage) -> None:
    path = one.engine.vnc("g0").socket
    assert one.serai("vnc", "g0").text == f"{path}\n"
    assert json.loads(one.serai("vnc", "g0", "--format", "json").out) == {"socket": path}


# -- images, jobs, events --------------------------------------------------------------------------


def test_images(stage: Stage) -> None:
    assert "tiny  kernel" in stage.serai("image", "list").text
    assert json.loads(stage.serai("image", "list", "--format", "json").out)[0]["name"] == "tiny"
    assert "name:" in stage.serai("image", "show", "tiny").text
    assert stage.serai("image", "build", "tiny", "--replace").text.startswith(
        "tiny is there: kernel"
    )
    assert stage.serai("image", "delete", "tiny").text == "tiny is deleted\n"


def test_image_build_passes_its_options_on(stage: Stage) -> None:
    stage.serai("image", "build", "debian", "--name", "tiny", "--suite", "trixie", "--include", "a,b", "--include", "c")  # fmt: skip
    assert stage.engine.actions == [
        BuildImage(recipe="debian", name="tiny", suite="trixie", include=("a", "b", "c"))
    ]


def test_import_hands_over_an_absolute_path(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage.serai("image", "import", "disk.qcow2", "--name", "tiny", "--sha256", "AB" * 32)
    stage.serai("image", "import", "https://example.org/x", "--name", "tiny", "--agent", "no")
    assert stage.engine.actions == [
        ImportImage(source=f"{tmp_path}/disk.qcow2", name="tiny", sha256="ab" * 32),
        ImportImage(source="https://example.org/x", name="tiny", agent="no"),
    ]


def test_image_export(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stage.serai("image", "export", "tiny").text == "tiny.tar: 2.9 MiB\n"
    with tarfile.open("tiny.tar") as tar:
        assert tar.getnames() == ["image.json", "kernel", "initrd"]
    stage.serai("image", "export", "tiny", "--file", "kernel", "-o", "k")
    assert Path("k").read_bytes() == b"K" * 1000
    assert stage.serai("image", "export", "tiny", "--file", "kernel", "-o", "-").out == b"K" * 1000
    assert stage.serai("image", "export", "tiny", "--file", "disk").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "tiny.tar"]


def test_what_an_export_of_a_published_image_leaves_out_is_said(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stage.serai("image", "export", "tiny").err == ""
    tiny = stage.engine.all_images["tiny"]
    stage.engine.all_images["tiny"] = msgspec.structs.replace(tiny, snapshot="s", warm=True)
    told = stage.serai("image", "export", "tiny", "-o", "-")
    assert (told.code, told.out[:10]) == (0, b"image.json")
    assert told.err.startswith("note: tiny was published from a guest; its memory, ")
    assert stage.serai("image", "export", "tiny", "--file", "kernel").err == ""


def test_jobs(one: Stage) -> None:
    one.serai("stop", "g0")
    assert one.serai("job", "list").text.splitlines()[1].split()[:4] == [
        "000000",
        "stop",
        "g0",
        "done",
    ]
    assert "state:    done" in one.serai("job", "show", "000000").text
    assert json.loads(one.serai("job", "wait", "000000", "--format", "json").out)["state"] == "done"
    assert one.serai("job", "cancel", "000000").code == 4
    assert one.serai("job", "list", "--state", "failed", "--format", "json").text == "[]\n"


def test_a_job_that_fails_fails_the_command(one: Stage) -> None:
    one.engine.hold = True
    problem = Conflict(Code.GUEST_STATE, "it fell over", hint="pick it up").problem()

    async def fail(job_id: str, timeout: float) -> object:
        await one.engine.finish(job_id, problem)
        return one.engine.all_jobs[job_id]

    one.engine.wait_job = fail  # type: ignore[assignment, method-assign]
    done = one.serai("start", "g0")
    assert (done.code, done.out) == (4, b"")
    assert "error: it fell over\nhint: pick it up\n" in done.err
    assert one.serai("job", "wait", "000000").code == 4


def test_a_job_that_was_cancelled_by_somebody_is_no_success(one: Stage) -> None:
    one.engine.hold = True

    async def cancel(job_id: str, timeout: float) -> object:
        return await one.engine.cancel_job(job_id)

    one.engine.wait_job = cancel  # type: ignore[assignment, method-assign]
    done = one.serai("start", "g0")
    assert (done.code, "cancelled" in done.err) == (4, True)


def test_events(one: Stage) -> None:
    one.do(one.engine.tell(EventKind.GUEST_CREATED, "g0"))
    one.do(one.engine.tell(EventKind.GUEST_DELETED, "g0"))
    lines = one.serai("events").text.splitlines()
    assert [line.split()[3] for line in lines] == ["guest-created", "guest-deleted"]
    found = json.loads(one.serai("events", "--after", "1", "--format", "json").out)
    assert [each["seq"] for each in found] == [2]


def test_more_events_than_a_page_holds(one: Stage) -> None:
    one.engine.all_events = [
        Event(seq=number + 1, at=0.0, kind=EventKind.GUEST_RESET) for number in range(2100)
    ]
    assert len(one.serai("events").text.splitlines()) == 2100


# -- no daemon -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    ["list", "list -q", "show x", "launch tiny", "exec x -- ls", "image list", "job list", "events",
     "console x", "log x", "push x /etc/hostname /x", "vnc x", "daemon status"],
)  # fmt: skip
def test_without_a_daemon_it_is_said_how_to_start_one(
    serai_home: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("SERAI_HOME", str(serai_home))
    done = run_here(monkeypatch, tuple(words.split()))
    assert (done.code, done.out) == (125 if words.startswith("exec") else 3, b"")
    assert "serai daemon start" in done.err


def test_a_home_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long" * 50)
    monkeypatch.setenv("SERAI_HOME", str(home))
    assert run_here(monkeypatch, ("list",)).code == 3


def test_completion_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = run_here(monkeypatch, ("completion", shell)).text
        assert "_SERAI_COMPLETE" in text
    assert run_here(monkeypatch, ("completion", "csh")).code == 2


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("serai la", ["launch"]),
        ("serai show g", ["g0", "g1"]),
        ("serai stop g0 g", ["g0", "g1"]),
        ("serai launch t", ["tiny"]),
        ("serai image b", ["build"]),
        ("serai image show ti", ["tiny"]),
        ("serai launch --firmware u", ["uefi"]),
    ],
)
def test_completion_offers_commands_guests_and_images(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    stage.engine.add_guests(2)
    monkeypatch.setenv("_SERAI_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    done = stage.serai()
    assert cli.shell_complete(click.Context(cli, **cli.context_settings), "la")[0].value == "launch"
    assert [line.split(",")[1] for line in done.text.splitlines()] == offered
