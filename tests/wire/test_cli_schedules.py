"""The commands of schedules, and the SDK, against the real API over an engine in memory."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cli_stage import Stage, staged
from fake_engine import NOW

import serai
import serai.aio
from serai.errors import Code, Invalid, NotFound
from serai.model.actions import CreateSchedule, DeleteSchedule, RunSchedule, SetSchedule
from serai.model.schedule import Every, Keep, ScheduleChange, When


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        made.engine.add_guests(2)
        yield made


@pytest.fixture
def planned(stage: Stage) -> Stage:
    """g0 with the schedule nightly."""
    words = "schedule create g0 nightly --every daily --at 03:30 --keep-daily 7 --keep-weekly 4"
    assert stage.serai(*words.split()).code == 0
    stage.engine.actions.clear()
    return stage


def test_create_passes_its_options_on_and_says_when_it_begins(stage: Stage) -> None:
    words = (
        "schedule create g0 nightly --every weekly --at 'sun 03:30' --keep-last 1 --keep-hourly 2 "
        "--keep-daily 3 --keep-weekly 4 --keep-monthly 5 --no-memory --quiesce --name-as {date}"
    )
    done = stage.serai(*shlex.split(words))
    assert (done.code, done.err) == (0, "")
    assert done.text == (
        "g0 nightly: weekly at sun 03:30 UTC, keeps 1 last, 2 hourly, 3 daily, 4 weekly, 5 monthly; "
        "first at 2023-11-19 03:30:00 UTC\n"
    )
    assert stage.engine.actions == [
        CreateSchedule(
            guest="g0", name="nightly", when=When(every=Every.WEEKLY, at=6 * 86400 + 12600),
            keep=Keep(last=1, hourly=2, daily=3, weekly=4, monthly=5), memory=False, quiesce=True,
            name_as="{date}",
        )
    ]  # fmt: skip


def test_create_with_nothing_but_an_interval(stage: Stage) -> None:
    done = stage.serai("schedule", "create", "g0", "--every", "15m")
    assert done.text.startswith(
        "g0 interval: every 15m, keeps all; first at 2023-11-14 22:15:00 UTC"
    )
    when = When(every=Every.INTERVAL, interval=900)
    assert stage.engine.actions == [CreateSchedule(guest="g0", when=when)]
    made = json.loads(
        stage.serai(*["schedule", "create", "g1", "--every", "hourly", "--format", "json"]).out
    )
    assert (made["name"], made["when"]["every"]) == ("hourly", "hourly")


def test_list_and_show(planned: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.cli.schedules.time.time", lambda: NOW)
    planned.serai(*["schedule", "create", "g1", "often", "--every", "hourly", "--at", ":30"])
    planned.serai(*["schedule", "pause", "g1", "often"])
    lines = planned.serai("schedule", "list").text.splitlines()
    assert " ".join(lines[1].split()) == (
        "g0 nightly daily at 03:30 UTC 7 daily, 4 weekly 0 in 5h - -"
    )
    assert lines[2].split()[-6:] == [":30", "all", "0", "paused", "-", "-"]
    assert len(planned.serai("schedule", "list", "g0").text.splitlines()) == 2
    assert len(json.loads(planned.serai("schedule", "list", "--format", "json").out)) == 2
    text = planned.serai("schedule", "show", "g0", "nightly").text
    assert "next:      2023-11-15 03:30:00 UTC\n" in text
    assert "last:      never\n" in text
    assert (
        "next:      never: it is paused\n" in planned.serai("schedule", "show", "g1", "often").text
    )


def test_show_tells_what_the_last_turn_said_and_what_is_wrong(planned: Stage) -> None:
    [(id_, record)] = planned.engine.timetable.all.items()
    problem = NotFound(Code.AGENT_UNAVAILABLE, "no ag\x1bent", hint="do").problem()
    planned.engine.timetable.all[id_] = msgspec.structs.replace(
        record, ran_at=NOW, said="it failed", problem=problem
    )
    text = planned.serai("schedule", "show", "g0", "nightly").text
    assert "last:      2023-11-14 22:13:20 UTC\nsaid:      it failed\n" in text
    assert "problem:   no ag\\x1bent\nhint:      do\n" in text
    assert "agent-unavailable" in planned.serai("schedule", "list").text


def test_list_without_schedules_says_how_to_make_one(stage: Stage) -> None:
    done = stage.serai("schedule", "list", "g0")
    assert done.err == (
        "there are no schedules; to make one: serai schedule create g0 --every daily\n"
    )
    assert stage.serai("schedule", "list", "--format", "json").text == "[]\n"


def test_set_changes_only_what_is_given(planned: Stage) -> None:
    done = planned.serai(*["schedule", "set", "g0", "nightly", "--keep-daily", "14"])
    assert done.text == "g0 nightly: daily at 03:30 UTC, keeps 14 daily, 4 weekly\n"
    planned.serai(
        *["schedule", "set", "g0", "nightly", "--every", "2h", "--memory", "--no-quiesce"]
    )
    assert planned.engine.actions == [
        SetSchedule(
            guest="g0", schedule="nightly", change=ScheduleChange(keep=Keep(daily=14, weekly=4))
        ),
        SetSchedule(
            guest="g0", schedule="nightly",
            change=ScheduleChange(
                when=When(every=Every.INTERVAL, interval=7200), memory=True, quiesce=False
            ),
        ),
    ]  # fmt: skip
    found = planned.serai(
        *["schedule", "set", "g0", "nightly", "--keep-last", "1", "--format", "json"]
    )
    assert json.loads(found.out)["keep"]["last"] == 1


def test_pause_resume_run_and_delete(planned: Stage) -> None:
    assert planned.serai("schedule", "pause", "g0", "nightly").text == "g0 nightly is paused\n"
    done = planned.serai("schedule", "resume", "g0", "nightly")
    assert done.text == "g0 nightly goes on, at 2023-11-15 03:30:00 UTC\n"
    assert planned.serai("schedule", "run", "g0", "nightly").code == 0
    planned.serai(*["schedule", "create", "g0", "other", "--every", "hourly"])
    done = planned.serai("schedule", "delete", "g0", "nightly", "nope", "other")
    assert (done.code, done.text) == (3, "nightly is deleted\nother is deleted\n")
    assert planned.engine.actions[2] == RunSchedule(guest="g0", schedule="nightly")
    assert planned.engine.actions[-1] == DeleteSchedule(guest="g0", schedule="other")


def test_preview_says_which_stay_and_why(planned: Stage) -> None:
    for name in ("a", "b"):
        planned.serai("snapshot", "create", "g0", name)
    done = planned.serai(*["schedule", "preview", "g0", "nightly", "--keep-last", "1"])
    lines = done.text.splitlines()
    assert lines[1].startswith("b ") and lines[1].endswith("yes    one of the last")
    assert lines[2].endswith("no     no rule keeps it")
    assert done.err == "1 of 2 would stay\n"
    found = json.loads(
        planned.serai(*["schedule", "preview", "g0", "nightly", "--format", "json"]).out
    )
    assert [each["rule"] for each in found] == ["daily", "none"]


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("create g0", 2, "usage"),
        ("create g0 x --every sometimes", 2, "value-invalid"),
        ("create g0 x --every 1s", 2, "value-invalid"),
        ("create g0 x --every daily --at 25:00", 2, "value-invalid"),
        ("create g0 x --every 15m --at 03:30", 2, "value-invalid"),
        ("create g0 x --every daily --keep-last -1", 2, "usage"),
        ("create g0 x --every daily --name-as {guest}", 2, "value-invalid"),
        ("create g0 X --every daily", 2, "name-invalid"),
        ("create g0 nightly --every daily", 4, "schedule-exists"),
        ("create nope x --every daily", 3, "guest-not-found"),
        ("list nope", 3, "guest-not-found"),
        ("show g0 nope", 3, "schedule-not-found"),
        ("show g1 nightly", 3, "schedule-not-found"),
        ("set g0 nightly", 2, "usage"),
        ("set g0 nightly --at 03:30", 2, "value-invalid"),
        ("set g0 nope --keep-last 1", 3, "schedule-not-found"),
        ("pause g0 nope", 3, "schedule-not-found"),
        ("run g0 nope", 3, "schedule-not-found"),
        ("preview g0 nope", 3, "schedule-not-found"),
        ("delete g0", 2, "usage"),
    ],
)
def test_problems_have_exit_code_and_code_and_change_nothing(
    planned: Stage, words: str, code: int, problem: str
) -> None:
    done = planned.serai("schedule", *shlex.split(words), "--format", "json")
    assert (done.code, json.loads(done.err.splitlines()[-1])["code"]) == (code, problem)
    assert planned.engine.actions == []
    assert planned.serai("schedule", *shlex.split(words)).err.startswith("error: ")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("serai schedule show g", ["g0", "g1"]),
        ("serai schedule show g0 n", ["nightly"]),
        ("serai schedule delete g0 n", ["nightly"]),
        ("serai schedule run nope n", []),
        ("serai schedule re", ["resume"]),
    ],
)
def test_completion(
    planned: Stage, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_SERAI_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert [line.split(",")[1] for line in planned.serai().text.split()] == offered


# -- the SDK ---------------------------------------------------------------------------------------


def test_life_of_a_schedule(stage: Stage) -> None:
    inn = serai.connect()
    guest = inn.guest("g0")
    made = guest.schedule("daily", "03:30", name="nightly", keep=serai.Keep(daily=7), memory=False)
    assert repr(made) == "<Schedule g0 nightly>"
    assert (made.info.memory, made.info.keep.daily, made.info.when.at) == (False, 7, 12600)
    assert made.set("15m", keep=serai.Keep(last=2)).info.when.interval == 900
    assert made.pause().info.paused and not made.resume().info.paused
    assert made.info.keep == serai.Keep(last=2)
    guest.snapshot("a")
    assert [each.stays for each in made.preview()] == [True]
    assert [each.rule for each in made.preview(serai.Keep(daily=1))] == ["daily"]
    assert made.run() == ""
    assert guest.schedule(3600).info.when == When(every=Every.INTERVAL, interval=3600)
    assert [each.name for each in guest.schedules()] == ["interval", "nightly"]
    assert [each.id for each in inn.schedules()] == [each.id for each in guest.schedules()]
    made.delete()
    with pytest.raises(NotFound):
        made.refresh()
    for every, at in (("daily", "25:00"), ("sometimes", ""), ("15m", "03:30"), ("interval", "")):
        with pytest.raises(Invalid):
            guest.schedule(every, at)


async def test_life_of_a_schedule_async(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        guest = await inn.guest("g0")
        made = await guest.schedule("weekly", "sun 03:30", keep=serai.Keep(daily=7))
        assert repr(made) == "<AsyncSchedule g0 weekly>"
        assert (await made.set(memory=False)).info.memory is False
        assert (await made.pause()).info.paused and not (await made.resume()).info.paused
        await guest.snapshot("a")
        assert [each.stays for each in await made.preview(serai.Keep(last=1))] == [True]
        assert await made.run() == ""
        assert [each.name for each in await guest.schedules()] == ["weekly"]
        assert [each.id for each in await inn.schedules()] == [made.id]
        await made.delete()
        with pytest.raises(NotFound):
            await made.refresh()
