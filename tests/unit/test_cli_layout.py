"""How the command line lays things out, and what it does with words and control characters."""

import pytest

from serai.cli import layout
from serai.cli.drawing import amount, title
from serai.cli.events import line_of
from serai.cli.inside import _positional
from serai.cli.main import form_of
from serai.cli.output import plain
from serai.model.event import Event, EventKind
from serai.model.job import Job, JobState

GUEST = {
    "name": "web1", "state": "running", "accel": "tcg", "image": "tiny", "cpus": 1,
    "memory": 256 << 20, "disk": 0, "created_at": 0,
}  # fmt: skip


def test_columns_are_aligned_and_the_last_is_not_padded() -> None:
    text = layout.table(("A", "LONGER", "C"), [("xxxx", "y", "z"), ("", "", "")])
    assert text.split("\n") == ["A     LONGER  C", "xxxx  y       z", ""]


def test_one_column() -> None:
    assert layout.table(("A",), [("x",)]) == "A\nx"


def test_a_table_without_rows_is_its_head() -> None:
    assert layout.guest_table([], colours=True).split() == list(layout.GUEST_COLUMNS)


def test_colours_do_not_move_columns() -> None:
    crashed = {**GUEST, "name": "a-longer-name", "state": "crashed"}
    bare = layout.guest_table([GUEST, crashed], colours=False)
    painted = layout.guest_table([GUEST, crashed], colours=True)
    assert "\x1b[32mrunning\x1b[0m" in painted
    assert "\x1b[31mcrashed\x1b[0m" in painted
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[0m"):
        painted = painted.replace(code, "")
    assert painted == bare


def test_an_unknown_state_has_no_colour() -> None:
    assert "\x1b" not in layout.guest_table([{**GUEST, "state": "new"}], colours=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "-"), (512, "512 B"), (1536, "1.5 KiB"), (256 << 20, "256 MiB"), (1 << 40, "1 TiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert layout.size(number) == text


@pytest.mark.parametrize(
    ("since", "text"),
    [(0, "now"), (1000, "now"), (995, "5s"), (880, "2m"), (2000, "now"), (1000 - 8 * 86400, "1w")],
)
def test_ages(since: float, text: str) -> None:
    assert layout.age(since, 1000) == text


def test_a_moment_is_said_as_a_person_says_it() -> None:
    assert (layout.ago(999.5, 1000), layout.ago(940, 1000)) == ("now", "1m ago")


def test_facts_are_aligned() -> None:
    assert layout.facts([("a", "1"), ("longer", "")]) == "a:      1\nlonger:"
    assert layout.facts([]) == ""


def test_control_characters_are_shown_not_obeyed() -> None:
    assert plain("a\x1b[2Jb\rc\x9bd\x7f") == "a\\x1b[2Jb\\x0dc\\x9bd\\x7f"
    assert plain("täg\n\tok") == "täg\n\tok"


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("list --format json", "json"),
        ("list --format=json", "json"),
        ("list", "table"),
        ("exec web1 -- x --format json", "table"),
    ],
)
def test_the_format_of_errors_is_that_of_our_options(words: str, form: str) -> None:
    assert form_of(words.split()) == form


@pytest.mark.parametrize(
    ("words", "count"),
    [("", 0), ("web1", 1), ("-n web1", 1), ("--timeout 3 web1 -n", 1), ("web1 sh -c x", 3)],
)
def test_positional_words_are_counted_without_values(words: str, count: int) -> None:
    assert _positional(words.split()) == count


def make_job(**changes: object) -> Job:
    values: dict[str, object] = {
        "id": "1", "kind": "launch", "subject": "web1", "state": JobState.RUNNING,
        "created_at": 0.0, "updated_at": 0.0, "phases": ("volumes", "start"), "phase": "start",
    }  # fmt: skip
    return Job(**{**values, **changes})  # type: ignore[arg-type]


def test_a_job_is_drawn_with_phase_and_amount() -> None:
    assert title(make_job()) == "web1: start (2/2)"
    assert title(make_job(phase="", phases=())) == "web1: waiting"
    assert title(make_job(subject="a\x1bb")) == "a\\x1bb: start (2/2)"
    assert amount(make_job()) == ""
    assert amount(make_job(done=1, total=3)) == "1 of 3"
    assert amount(make_job(done=1 << 20, total=5 << 20)) == "1 MiB of 5 MiB"


def test_an_event_is_a_line() -> None:
    event = Event(seq=7, at=0.0, kind=EventKind.GUEST_STATE, subject="web1", data={"state": "up"})
    words = line_of(event).split()
    assert (words[0], words[3:]) == ("7", ["guest-state", "web1", "state=up"])
