"""The documentation is complete: what the program knows by name has its place there.

``SERAI_GOLDEN=write pytest tests/habits/test_docs.py`` (or ``make docs``) writes the made pages anew.
"""

import os
import re
from enum import StrEnum

import pytest
from pages import PAGES, exit_codes_table
from tree import ROOT

from serai.api.problems import CODE_STATUS
from serai.api.routes import ROUTES, SOCKETS
from serai.errors import Code
from serai.model.actions import ACTIONS
from serai.model.check import Fault, FindingKind
from serai.model.event import EventKind
from serai.model.guest import Accel, AgentState, ExitReason, RestartPolicy
from serai.model.job import JobState
from serai.model.lifecycle import GuestState
from serai.model.schedule import Every, Rule
from serai.model.snapshot import SnapshotState
from serai.settings import SETTINGS

DOCS = ROOT / "docs"
WORDS: tuple[type[StrEnum], ...] = (
    GuestState,
    EventKind,
    ExitReason,
    AgentState,
    JobState,
    Accel,
    RestartPolicy,
    SnapshotState,
    Fault,
    FindingKind,
    Every,
    Rule,
)


def read(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.parametrize("name", PAGES)
def test_made_pages_are_up_to_date(name: str) -> None:
    text = PAGES[name]()
    if os.environ.get("SERAI_GOLDEN") == "write":
        (DOCS / name).write_text(text)
    assert read(name) == text, f"docs/{name} is old: make docs"


def test_every_setting_has_its_heading() -> None:
    page = read("settings.md")
    assert [name for name in SETTINGS if f"## `{name.name}`\n" not in page] == []


def test_every_problem_has_its_heading_and_status() -> None:
    found = dict(re.findall(r"^### `([a-z-]+)`\nHTTP (\d+)\. ", read("problems.md"), re.M))
    assert found == {code.value: str(int(CODE_STATUS[code])) for code in Code}


def test_the_exit_codes_are_those_of_the_program() -> None:
    assert exit_codes_table() in read("problems.md")


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words.__name__)
def test_every_word_is_explained(words: type[StrEnum]) -> None:
    page = read("words.md")
    assert [word for word in words if f"`{word}`" not in page] == []


def test_every_action_is_explained() -> None:
    tags = [str(action.__struct_config__.tag) for action in ACTIONS]
    page = read("words.md")
    assert [tag for tag in tags if f"| `{tag}` |" not in page] == []


def test_every_route_is_described() -> None:
    page = read("api.md")
    rows = [(row.method, row.path) for row in ROUTES] + [("WebSocket", row.path) for row in SOCKETS]
    assert rows
    assert [row for row in rows if f"{row[0]} {row[1]}" not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_what_tests_push_goes_where_the_small_image_finds_it() -> None:
    applets = (ROOT / "src/serai/disk/recipes/tiny/applets").read_text()
    folders = {"", *(f"/{line.split()[0]}" for line in applets.splitlines() if line)}
    pushed = re.findall(r"\.push\([^,]+, \"(/[^\"]+)\"", read("testing.md"))
    assert {path.rpartition("/")[0] for path in pushed} <= folders
    assert "/usr/bin/app" in pushed


def test_files_that_are_explained_are_there() -> None:
    named = re.findall(r"^\| (.*?) \|", (ROOT / "FILES.md").read_text(), re.M)
    paths = [path for cell in named for path in re.findall(r"`([^`]+)`", cell)]
    assert len(paths) > 15
    made = {".work/"}
    assert [path for path in paths if path not in made and not (ROOT / path).exists()] == []
