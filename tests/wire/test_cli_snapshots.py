"""The commands of snapshots and forks against the real API over an engine in memory."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cli_stage import Stage, staged
from fake_engine import NOW

from serai.errors import Code, Conflict, HostFailure
from serai.model.actions import (
    ChangeSnapshot,
    CreateSnapshot,
    DeleteSnapshot,
    ForkGuest,
    LaunchGuest,
    PublishImage,
    RestoreSnapshot,
)
from serai.model.guest import GuestSpec


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(2)
        yield made


@pytest.fixture
def saved(stage: Stage) -> Stage:
    """g0 with the snapshots ready and later."""
    for name in ("ready", "later"):
        assert stage.serai("snapshot", "create", "g0", name).code == 0
    stage.engine.actions.clear()
    return stage


def snapshot_id(stage: Stage, name: str) -> str:
    return stage.engine.snapshot("g0", name).id


# -- making and looking ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["g0 ready", "g0@ready"])
def test_create_passes_its_options_on_and_says_what_it_made(stage: Stage, words: str) -> None:
    done = stage.serai(
        "snapshot", "create", *words.split(), "--no-memory", "--quiesce", "--note", "täg"
    )
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("g0@ready is there: disks only, 3 MiB of its own (")
    assert stage.engine.actions == [
        CreateSnapshot(guest="g0", name="ready", memory=False, quiesce=True, note="täg")
    ]


def test_create_without_a_name_says_which_it_got(stage: Stage) -> None:
    text = stage.serai("snapshot", "create", "g0").text
    assert text.startswith("g0@snap-1 is there: with memory, ")
    made = json.loads(stage.serai("snapshot", "create", "g0", "--format", "json").out)
    assert (made["name"], made["is_current"]) == ("snap-2", True)


def test_list_draws_a_tree(saved: Stage) -> None:
    saved.serai("snapshot", "restore", "g0", "ready", "--force")
    saved.serai("snapshot", "create", "g0", "other", "--no-memory", "--note", "a\x1b[2Jb")
    saved.serai("fork", "g0@later", "x", "--count", "3")
    lines = saved.serai("snapshot", "list", "g0").text.splitlines()
    assert lines[0].split() == ["NAME", "AGE", "OWN", "SHARED", "MEMORY", "STATE", "FORKS", "NOTE"]
    assert [line[:14].rstrip() for line in lines[1:]] == ["ready", "├─ later", "└─ other ← now"]
    assert lines[2].split()[3:] == ["3", "MiB", "40", "MiB", "yes", "ready", "3"]
    assert lines[3].split()[-4:] == ["no", "ready", "-", "a\\x1b[2Jb"]
    found = json.loads(saved.serai("snapshot", "list", "g0", "--format", "json").out)
    assert [each["name"] for each in found] == ["ready", "later", "other"]


def test_list_has_the_beginning_of_a_long_note_and_show_has_all(stage: Stage) -> None:
    stage.serai("snapshot", "create", "g0", "--note", "x" * 40)
    stage.serai("snapshot", "create", "g0", "--note", "y" * 1800)
    lines = stage.serai("snapshot", "list", "g0").text.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["x" * 40, f"{'y' * 39}…"]
    assert "y" * 1800 in stage.serai("snapshot", "show", "g0@snap-2").text


def test_list_without_snapshots_says_how_to_make_one(stage: Stage) -> None:
    done = stage.serai("snapshot", "list", "g0")
    assert done.err == "g0 has no snapshots; to make one: serai snapshot create g0\n"
    assert len(done.text.splitlines()) == 1
    assert stage.serai("snapshot", "list", "g0", "--format", "json").text == "[]\n"


def test_list_on_a_terminal_without_lines(saved: Stage) -> None:
    for name in ("a", "b"):
        saved.serai("snapshot", "restore", "g0", "ready", "--force")
        saved.serai("snapshot", "create", "g0", name)
    with saved.process("snapshot", "list", "g0", stdout=-1) as process:
        assert process.stdout is not None
        assert "├─ later" in process.stdout.read().decode()
    saved._patch.setenv("PYTHONIOENCODING", "ascii")
    with saved.process("snapshot", "list", "g0", stdout=-1) as process:
        assert process.stdout is not None
        text = process.stdout.read().decode()
    assert "|- later" in text and "`- b <- now" in text and "?" not in text


def test_more_snapshots_than_a_page_holds(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        stage.serai("snapshot", "create", "g0")
    monkeypatch.setattr("serai.client.calls.PAGE", 2)
    assert len(stage.serai("snapshot", "list", "g0").text.splitlines()) == 6


@pytest.mark.parametrize("words", ["g0 later", "g0@later"])
def test_show(saved: Stage, words: str) -> None:
    text = saved.serai("snapshot", "show", *words.split()).text
    assert "parent:   ready\n" in text
    assert "guest:    g0, which stands on it\n" in text
    found = json.loads(saved.serai("snapshot", "show", *words.split(), "--format", "json").out)
    assert found["id"] == snapshot_id(saved, "later")


# -- changing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["g0 ready", "g0@ready"])
def test_restore(saved: Stage, words: str) -> None:
    refused = saved.serai("snapshot", "restore", *words.split())
    assert (refused.code, refused.out) == (4, b"")
    assert "or restore with --force" in refused.err
    done = saved.serai("snapshot", "restore", *words.split(), "--force")
    assert done.text.startswith("g0 is back at ready, and running (")
    assert saved.engine.actions == [RestoreSnapshot(guest="g0", snapshot="ready", force=True)]
    as_json = saved.serai("snapshot", "restore", *words.split(), "--force", "--format", "json")
    assert json.loads(as_json.out)["name"] == "g0"


@pytest.mark.parametrize("words", ["g0 ready later", "g0@ready g0@later"])
def test_delete_several(saved: Stage, words: str) -> None:
    done = saved.serai("snapshot", "delete", *words.split())
    assert done.text == "g0@ready is deleted\ng0@later is deleted\n"
    assert saved.engine.actions == [
        DeleteSnapshot(guest="g0", snapshot="ready"),
        DeleteSnapshot(guest="g0", snapshot="later"),
    ]


def test_delete_of_guests_at_once_and_one_is_not_there(saved: Stage) -> None:
    saved.serai("snapshot", "create", "g1", "ready")
    done = saved.serai("snapshot", "delete", "g1@ready", "g1@nope", "g0@ready", "--format", "json")
    assert done.code == 3
    assert [(each["name"], each["code"]) for each in json.loads(done.out)] == [
        ("g1@ready", ""),
        ("g1@nope", "snapshot-not-found"),
        ("g0@ready", ""),
    ]


@pytest.mark.parametrize("words", ["g0 ready", "g0@ready"])
def test_rename_and_note(saved: Stage, words: str) -> None:
    made = snapshot_id(saved, "ready")
    assert (
        saved.serai("snapshot", "note", *words.split(), "a b").text == "g0@ready has a new note\n"
    )
    done = saved.serai("snapshot", "rename", *words.split(), "steady")
    assert done.text == "g0@ready is now g0@steady\n"
    assert saved.engine.actions == [
        ChangeSnapshot(guest="g0", snapshot=made, note="a b"),
        ChangeSnapshot(guest="g0", snapshot=made, name="steady"),
    ]
    renamed = saved.serai("snapshot", "rename", "g0", "steady", "ready", "--format", "json")
    assert json.loads(renamed.out)["note"] == "a b"
    assert saved.serai("snapshot", "note", "g0@ready", "").code == 0
    assert saved.engine.snapshot("g0", "ready").note == ""


# -- forks and images ------------------------------------------------------------------------------


def test_fork_passes_its_options_on(saved: Stage) -> None:
    done = saved.serai("fork", "g0@ready", "web2", "--keep-identity", "--ttl", "2h", "--no-wait")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("web2 is running (tcg, ")
    assert saved.engine.actions == [
        ForkGuest(
            guest="g0", snapshot="ready", name="web2", keep_identity=True, ttl=7200, wait=False
        )
    ]


def test_guests_are_forked_together(stage: Stage) -> None:
    done = stage.serai("fork", "g0", "copy", "--with", "g1", "--with", "g2", "--keep-identity")
    assert done.text.startswith("3 forks of g0, g1, g2 are running: copy-g0, copy-g1, copy-g2 (")
    assert stage.engine.actions == [
        ForkGuest(guest="g0", name="copy", keep_identity=True, together=("g1", "g2"))
    ]


def test_fork_of_a_guest_as_it_is_and_without_a_name(stage: Stage) -> None:
    done = stage.serai("fork", "g0")
    assert stage.engine.actions == [ForkGuest(guest="g0")]
    assert done.text.startswith("fork-2 is running, its agent answers (tcg, ")


def test_many_forks_are_told_in_one_line(stage: Stage) -> None:
    done = stage.serai("fork", "g0", "x", "--count", "30")
    assert done.text.startswith("30 forks of g0 are running: x-1 to x-30 (")
    made = json.loads(stage.serai("fork", "g0", "y", "--count", "2", "--format", "json").out)
    assert [each["name"] for each in made] == ["y-1", "y-2"]
    [one] = json.loads(stage.serai("fork", "g0", "z", "--format", "json").out)
    assert one["name"] == "z"


def test_publish(saved: Stage) -> None:
    done = saved.serai("image", "publish", "g0@ready", "mine")
    assert done.text.startswith("mine is there: kernel, warm, 2.9 MiB, ")
    assert "mine  kernel, warm  2.9 MiB" in saved.serai("image", "list").text
    found = saved.serai(
        "image", "publish", "g0", "mine", "--replace", "--no-memory", "--format", "json"
    )
    assert json.loads(found.out)["name"] == "mine"
    assert saved.engine.actions == [
        PublishImage(guest="g0", snapshot="ready", image="mine"),
        PublishImage(guest="g0", image="mine", replace=True, memory=False),
    ]


def test_launch_of_a_warm_image_tells_of_the_guest_and_not_of_the_image(stage: Stage) -> None:
    stage.serai("image", "publish", "g0", "g1")  # an image that is called as another guest
    assert stage.serai("launch", "g1", "web1").text.startswith("web1 is running, ")


def test_launch_with_a_time_to_live(stage: Stage) -> None:
    assert stage.serai("launch", "tiny", "web1", "--ttl", "2h").code == 0
    assert stage.engine.actions == [
        LaunchGuest(spec=GuestSpec(image="tiny", name="web1"), ttl=7200)
    ]


def test_show_tells_when_a_guest_is_deleted_and_what_it_comes_from(
    saved: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serai.cli.guests.time.time", lambda: NOW)
    saved.serai("fork", "g0@ready", "x", "--ttl", "2h")
    text = saved.serai("show", "x").text
    assert f"forked from: snapshot {snapshot_id(saved, 'ready')}\n" in text
    assert "deleted:     in 2h\n" in text
    over = msgspec.structs.replace(saved.engine.guest("x"), expires_at=NOW - 5)
    saved.engine.all_guests["x"] = over
    assert "deleted:     now\n" in saved.serai("show", "x").text
    assert "deleted:" not in saved.serai("show", "g0").text


# -- what is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("snapshot create g0 Bad", 2, "name-invalid"),
        ("snapshot create g0 ready", 4, "snapshot-exists"),
        ("snapshot create g0@ready again", 2, "name-invalid"),
        ("snapshot create g0@", 2, "name-invalid"),
        ("snapshot create nope x", 3, "guest-not-found"),
        ("snapshot create", 2, "usage"),
        ("snapshot list nope", 3, "guest-not-found"),
        ("snapshot show g0", 2, "usage"),
        ("snapshot show g0 nope", 3, "snapshot-not-found"),
        ("snapshot show g1 ready", 3, "snapshot-not-found"),
        ("snapshot show g0 ready later", 2, "usage"),
        ("snapshot show g0@ready later", 2, "usage"),
        ("snapshot show g0@", 2, "name-invalid"),
        ("snapshot show @ready", 2, "name-invalid"),
        ("snapshot show g0 @ready", 2, "name-invalid"),
        ("snapshot show g0 ..", 2, "name-invalid"),
        ("snapshot restore g0", 2, "usage"),
        ("snapshot restore g0 nope --force", 3, "snapshot-not-found"),
        ("snapshot restore g0 ready", 4, "unsaved-work"),
        ("snapshot delete g0", 2, "usage"),
        ("snapshot delete g0@ready later", 2, "usage"),
        ("snapshot rename g0 ready", 2, "usage"),
        ("snapshot rename g0 ready later", 4, "snapshot-exists"),
        ("snapshot rename g0 nope x", 3, "snapshot-not-found"),
        ("snapshot note g0 nope x", 3, "snapshot-not-found"),
        ("fork", 2, "usage"),
        ("fork g0@ x", 2, "name-invalid"),
        ("fork @ready x", 2, "name-invalid"),
        ("fork g0@@ready x", 2, "name-invalid"),
        ("fork g0@ready@x x", 2, "name-invalid"),
        ("fork g0 g1", 4, "guest-exists"),
        ("fork g0 x@y", 2, "name-invalid"),
        ("fork g0 x --count 0", 2, "value-invalid"),
        ("fork g0 x --count many", 2, "usage"),
        ("fork g0 x --ttl soon", 2, "value-invalid"),
        ("fork nope x", 3, "guest-not-found"),
        ("fork g0@nope x", 3, "snapshot-not-found"),
        ("image publish g0", 2, "usage"),
        ("image publish g0@ mine", 2, "name-invalid"),
        ("image publish g0 tiny", 4, "image-exists"),
        ("image publish g0@nope mine", 3, "snapshot-not-found"),
        ("launch tiny --ttl soon", 2, "value-invalid"),
    ],
)
def test_problems_have_exit_code_and_code_and_change_nothing(
    saved: Stage, words: str, code: int, problem: str
) -> None:
    done = saved.serai(*shlex.split(words), "--format", "json")
    error = done.err.splitlines()[-1]
    assert (done.code, json.loads(error)["code"]) == (code, problem)
    assert saved.engine.actions == []
    assert saved.serai(*shlex.split(words)).err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            "snapshot create g0 --quiesce",
            HostFailure(Code.AGENT_UNAVAILABLE, "no agent", hint="do"),
        ),
        ("snapshot restore g0 ready", HostFailure(Code.SNAPSHOT_CORRUPT, "a bit", hint="do")),
        ("fork g0@ready x", Conflict(Code.SNAPSHOT_UNFIT, "other QEMU", hint="do")),
    ],
)
def test_problems_of_the_daemon_are_told_with_their_hint(
    saved: Stage, words: str, error: HostFailure
) -> None:
    saved.engine.fail_next("submit", error)
    done = saved.serai(*words.split())
    assert done.code in (4, 7)
    assert done.err == f"error: {error.message}\nhint: do\n"


# -- completion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("serai fork g", ["g0", "g1"]),
        ("serai fork g0@", ["g0@ready", "g0@later"]),
        ("serai fork g0@r", ["g0@ready"]),
        ("serai fork nope@", []),
        ("serai image publish g0@l", ["g0@later"]),
        ("serai snapshot show g", ["g0", "g1"]),
        ("serai snapshot show g0 r", ["ready"]),
        ("serai snapshot show g0@r", ["g0@ready"]),
        ("serai snapshot delete g0 ready l", ["later"]),
        ("serai snapshot delete g0 ready r", []),
        ("serai snapshot delete g0@ready g0@l", ["g0@later"]),
        ("serai snapshot create g", ["g0", "g1"]),
        ("serai snapshot list g", ["g0", "g1"]),
        ("serai snapshot re", ["rename", "restore"]),
    ],
)
def test_completion_offers_snapshots(
    saved: Stage, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_SERAI_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    done = saved.serai()
    assert [line.split(",")[1] for line in done.text.split()] == offered


def test_bash_takes_a_source_as_one_word(saved: Stage) -> None:
    script = saved.serai("completion", "bash").text
    assert script.endswith("COMP_WORDBREAKS=${COMP_WORDBREAKS//@}\n")
    assert "COMP_WORDBREAKS" not in saved.serai("completion", "zsh").text
