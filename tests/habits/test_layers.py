"""Imports point down: every import of the package is walked and compared with the drawing.

The drawing is section "the house" of docs/design/0001-the-house.md; here it is as data. An import
may go to the same room or to one on a storey below, never up, never sideways, never inside a
function, never under ``TYPE_CHECKING``.
"""

from collections.abc import Iterator

import pytest
from tree import Import, Module, modules, room_of

WIRING = {"daemon", "daemon_command", "doctor_command", "__main__"}
STOREYS: tuple[set[str], ...] = (
    {"api", "cluster"},
    {"engine"},
    {"qemu", "oci", "disk", "net", "backup", "store", "client"},
    {"host"},
    {"plan"},
    {"model", "settings"},
    {"units"},
    {"errors"},
)
OUTSIDE = {
    "cli": {"client", "model", "errors", "units", "settings"},
    "testing": {"client", "model", "errors", "units", "settings"},
    "pytest_plugin": {"testing", "errors"},
}
ROOT_MODULE = {room: {"client", "errors", "model", "settings"} for room in ("serai", "aio")}

DOORS = {
    "subprocess": {"serai.host.process": "the one door to programs"},
    "sqlalchemy": {"serai.store": "the only room that knows SQL"},
    "alembic": {"serai.store": "the only room that knows SQL"},
    "aiosqlite": {"serai.store": "the only room that knows SQL"},
    "sqlite3": {"serai.store": "the only room that knows SQL"},
    "qemu": {"serai.qemu.qmp": "the one door to a monitor"},
    "litestar": {"serai.api": "the only room that answers HTTP"},
    "uvicorn": {"serai.api": "the only room that answers HTTP"},
    "http.HTTPStatus": {"serai.api": "the only room that knows HTTP statuses"},
    "click": {
        "serai.cli": "the command line",
        "serai.daemon_command": "a command of its own beside what it starts",
        "serai.doctor_command": "a command of its own beside what it asks",
    },
    "pyroute2": {"serai.net": "the only room that speaks netlink"},
    "rich": {"serai.cli": "drawing"},
    "defusedxml": {"serai.plan.foreign_xml": "the one reader of strangers' XML"},
    "pytest": {"serai.pytest_plugin": "no dependency of a running serai"},
}
"""Outside thing → modules or rooms that may import it, and why."""

STARTERS = ("create_subprocess_exec", "create_subprocess_shell", "posix_spawn", "Popen", "system")


def _may_import(room: str) -> set[str]:
    if room in WIRING:
        return {*set().union(*STOREYS), *OUTSIDE, *WIRING, *ROOT_MODULE}
    named = {**OUTSIDE, **ROOT_MODULE}
    if room in named:
        return named[room]
    for number, storey in enumerate(STOREYS):
        if room in storey:
            return set().union(*STOREYS[number + 1 :])
    pytest.fail(f"the room {room} is on no storey: put it into STOREYS and the design note")


def _imports() -> Iterator[Import]:
    for module in modules():
        yield from module.imports


def test_there_is_a_tree_to_walk() -> None:
    assert len(modules()) > 50
    assert sum(1 for _ in _imports()) > 300


def test_imports_point_down() -> None:
    wrong = [
        f"{each.place}: {each.module.room} imports {each.target}"
        for each in _imports()
        if each.target.startswith("serai.")
        and (room := room_of(each.target)) != each.module.room
        and room not in _may_import(each.module.room)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_wiring() -> None:
    wrong = [
        each.place
        for each in _imports()
        if room_of(each.target) in WIRING and each.target.startswith("serai.")
        if each.module.room not in WIRING
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_hides_in_a_function() -> None:
    wrong = [each.place for each in _imports() if each.is_inside_function]
    assert not wrong, "\n".join(wrong)


def test_no_import_is_for_types_only() -> None:
    wrong = [each.place for each in _imports() if each.target == "typing.TYPE_CHECKING"]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {each.name for each in modules()}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for each in _imports():
        target = each.target if each.target in names else each.target.rpartition(".")[0]
        if target in names and target != each.module.name:
            graph[each.module.name].add(target)
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"a circle among: {', '.join(sorted(graph))}"


def _is_at(module: Module, places: dict[str, str]) -> bool:
    return any(module.name == place or module.name.startswith(f"{place}.") for place in places)


@pytest.mark.parametrize("outside", DOORS)
def test_each_outside_thing_has_one_door(outside: str) -> None:
    wrong = [
        each.place
        for each in _imports()
        if f"{each.target}.".startswith(f"{outside}.") and not _is_at(each.module, DOORS[outside])
    ]
    assert not wrong, f"only {', '.join(DOORS[outside])} may import {outside}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("starter", STARTERS)
def test_only_one_module_starts_programs(starter: str) -> None:
    wrong = [
        f"{module.path}:{line}"
        for module in modules()
        if module.name != "serai.host.process"
        for line in module.calls(starter)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_one_module_prints() -> None:
    wrong = [
        f"{module.path}:{line}"
        for module in modules()
        if module.name != "serai.cli.output"
        for line in module.calls("print")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_is_pure() -> None:
    """No I/O, clock, randomness or async on the lower storeys."""
    forbidden = ("asyncio", "os", "pathlib", "time", "random", "secrets", "socket", "uuid", "io")
    wrong = [
        f"{each.place}: {each.target}"
        for each in _imports()
        if each.module.room in {"model", "plan", "units", "errors"}
        and each.target.partition(".")[0] in forbidden
        and each.target != "pathlib.PurePath"  # does not touch a disk
    ]
    assert not wrong, "\n".join(wrong)
