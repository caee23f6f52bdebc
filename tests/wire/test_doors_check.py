"""Checking the storage through each door, over an engine in memory: what goes in and what comes out."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cli_stage import Stage, staged

import serai
import serai.aio
from serai.errors import Code, Conflict, Interrupted
from serai.model.actions import CheckStorage
from serai.model.check import CheckReport, Fault, Finding, FindingKind

SOUND = CheckReport(layers=37, memories=4, images=1, snapshots=12)
DAMAGED = Finding(
    fault=Fault.DAMAGED, kind=FindingKind.LAYER, id="l1", message="the layer l1 can't be used",
    snapshots=("web1@s1", "web1@s2"), guests=("web1",),
)  # fmt: skip
ORPHAN = Finding(
    fault=Fault.ORPHAN,
    kind=FindingKind.MEMORY,
    id="m1",
    message="no record is of m1\x1b[2J",
    mendable=True,
)
UNSOUND = msgspec.structs.replace(
    SOUND, layers=1, findings=(DAMAGED, ORPHAN), unsound=1, orphans=1, left_out=3
)
MENDED = msgspec.structs.replace(
    SOUND, findings=(msgspec.structs.replace(ORPHAN, mended=True),), mended=1
)


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        yield made


def test_a_sound_house_is_told_in_one_sentence(stage: Stage) -> None:
    done = stage.serai("check")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("37 layers, 4 memories, 12 snapshots: all sound (")
    assert stage.engine.actions == [CheckStorage()]


def test_each_finding_has_its_line_and_the_code_says_that_something_is_wrong(stage: Stage) -> None:
    stage.engine.report = UNSOUND
    done = stage.serai("check")
    damaged, orphan, more, told = done.text.splitlines()
    assert damaged == (
        "damaged: the layer l1 can't be used; on it: snapshots web1@s1, web1@s2; guests web1"
    )
    assert orphan == "orphan: no record is of m1\\x1b[2J"
    assert more == "and 3 more"
    assert told.startswith("1 layer, 4 memories, 12 snapshots: 1 not sound, 1 orphan left (")
    assert (done.code, done.err) == (7, "to delete what nobody has: serai check --repair\n")


def test_what_was_deleted_is_said_and_is_no_failure(stage: Stage) -> None:
    stage.engine.report = MENDED
    done = stage.serai("check", "--repair")
    assert stage.engine.actions == [CheckStorage(repair=True)]
    assert done.text.startswith("deleted: no record is of m1")
    assert ": all sound, 1 orphan deleted (" in done.text
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(("report", "code"), [(SOUND, 0), (UNSOUND, 7), (MENDED, 0)])
def test_as_json_it_is_the_report(stage: Stage, report: CheckReport, code: int) -> None:
    stage.engine.report = report
    done = stage.serai("check", "--format", "json")
    assert (done.code, msgspec.json.decode(done.out, type=CheckReport)) == (code, report)


def test_a_check_that_fails_is_an_error(stage: Stage) -> None:
    stage.engine.fail_next("submit", Interrupted(Code.JOB_INTERRUPTED, "the daemon ended"))
    assert stage.serai("check").code == 8


def test_the_sdk_gives_the_report(stage: Stage) -> None:
    stage.engine.report = UNSOUND
    with serai.connect() as inn:
        assert inn.check() == UNSOUND
        assert not inn.check(repair=True).is_sound
    assert stage.engine.actions == [CheckStorage(), CheckStorage(repair=True)]


async def test_the_async_sdk_gives_the_report(stage: Stage) -> None:
    async with serai.aio.connect() as inn:
        assert (await inn.check(repair=True)) == SOUND
        stage.engine.fail_next("submit", Conflict(Code.JOB_CANCELLED, "cancelled"))
        with pytest.raises(Conflict):
            await inn.check()
    assert stage.engine.actions == [CheckStorage(repair=True)]


def test_the_report_is_the_job_s_and_other_jobs_have_none(stage: Stage) -> None:
    stage.engine.report = UNSOUND
    stage.serai("check")
    stage.serai("launch", "tiny", "web1")
    launch, check = serai.connect().jobs()
    assert (check.kind, check.report, launch.report) == ("check", UNSOUND, None)
