"""How a tree of snapshots is drawn."""

from hypothesis import given
from hypothesis import strategies as st

from serai.cli.snapshots import facts_of, rows_of
from serai.cli.tree import ASCII, LINES, draw_branches
from serai.errors import Family, Problem
from serai.model.snapshot import Snapshot


def drawn(*nodes: str, glyphs: object = LINES) -> list[str]:
    """Draw nodes written as ``name<parent``."""
    pairs = [(name, parent) for name, _, parent in (node.partition("<") for node in nodes)]
    before = draw_branches(pairs, glyphs)  # type: ignore[arg-type]
    return [branch + name for branch, (name, _) in zip(before, pairs, strict=True)]


def test_a_long_history_is_a_list() -> None:
    assert drawn("a", "b<a", "c<b") == ["a", "b", "c"]
    chain = [("n0", ""), *((f"n{number}", f"n{number - 1}") for number in range(1, 3000))]
    assert set(draw_branches(chain, LINES)) == {""}


def test_branches() -> None:
    assert drawn("a", "b<a", "c<b", "d<b", "e<d", "f<d", "g<b", "h<g") == [
        "a",
        "b",
        "├─ c",
        "├─ d",
        "│  ├─ e",
        "│  └─ f",
        "└─ g",
        "   h",
    ]


def test_several_roots_and_a_lost_parent() -> None:
    assert drawn("a", "b<a", "c<gone") == ["├─ a", "│  b", "└─ c"]
    assert drawn() == []


def test_where_there_are_no_lines() -> None:
    assert drawn("a", "b<a", "c<a", "d<c", glyphs=ASCII) == ["a", "|- b", "`- c", "   d"]
    assert ASCII.all.isascii()


@given(st.lists(st.integers(0, 1000), max_size=60))
def test_every_tree_can_be_read_back(choices: list[int]) -> None:
    """From the lines alone it is seen what each stands on."""
    parents = {number: choice % (number + 1) - 1 for number, choice in enumerate(choices)}
    order: list[int] = []

    def walk(parent: int) -> None:
        for number, each in parents.items():
            if each == parent:
                order.append(number)
                walk(number)

    walk(-1)
    nodes = [(str(number), "" if parents[number] < 0 else str(parents[number])) for number in order]
    before = draw_branches(nodes, LINES)
    seen: list[tuple[str, str]] = []
    stack: list[tuple[int, str]] = []  # (column, node) of the lines above that are still open
    for branch, (node, _) in zip(before, nodes, strict=True):
        is_branch = branch.endswith((LINES.branch, LINES.last))
        column = len(branch)
        while stack and (stack[-1][0] > column or (is_branch and stack[-1][0] == column)):
            stack.pop()
        seen.append((node, stack[-1][1] if stack else ""))
        stack.append((column, node))
    assert seen == nodes


def make(**changes: object) -> Snapshot:
    values: dict[str, object] = {
        "name": "ready", "id": "1", "guest": "web1", "guest_id": "g", "state": "ready",
        "created_at": 40.0, "parent": "", "depth": 0, "is_current": False, "with_memory": True,
        "quiesced": False, "note": "", "schedule": "", "own": 3 << 20, "shared": 0, "forks": 0,
    }  # fmt: skip
    return Snapshot(**{**values, **changes})  # type: ignore[arg-type]


def test_a_row_has_sizes_age_and_where_the_guest_stands() -> None:
    rows = rows_of([make(is_current=True, forks=2, note="n", with_memory=False)], 100.0, LINES)
    assert rows == [("ready ← now", "1m", "3 MiB", "-", "no", "ready", "2", "n")]
    [(name, *_)] = rows_of([make(is_current=True)], 100.0, ASCII)
    assert name == "ready <- now"


def test_facts_tell_what_is_wrong() -> None:
    problem = Problem(
        family=Family.HOST_FAILURE, code="snapshot-corrupt", message="a bit", hint="check"
    )
    found = dict(facts_of(make(problem=problem, schedule="nightly"), "clean", 100.0))
    assert (found["problem"], found["hint"]) == ("a bit", "check")
    assert (found["schedule"], found["parent"]) == ("nightly", "clean")
    assert "problem" not in dict(facts_of(make(), "-", 100.0))
