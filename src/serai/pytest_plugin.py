"""The pytest plugin: ``guest`` is a machine of its own for each test, forked from a warm image.

    def test_it_runs(guest):
        assert guest.run("uname").stdout == "Linux\\n"

Fixtures: ``guest``, ``guests`` (makes more), ``inn`` (the daemon), and two for a project to override: ``serai_setup``,
``serai_daemon_home``. See docs/testing.md. Every run of pytest where serai is installed loads this module,
so it is small, and loads ``serai.testing`` when a guest is wanted.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import serai

GUESTS = pytest.StashKey[Any]()
KEPT_PROPERTY = "serai-kept"
ARTIFACTS = "serai-artifacts"

MARK = (
    "serai(image, memory=, cpus=, disk=, firmware=, warm=): "
    "the machine that the fixtures guest and guests give"
)
SETTINGS: tuple[tuple[str, Any, Any, str], ...] = (
    ("serai_image", "string", "tiny", "image or recipe (tiny, debian) that guests are made of"),
    ("serai_home", "string", "", "home of the daemon (SERAI_HOME) that guests are made by"),
    ("serai_ttl", "string", "2h", "after how long a guest goes by itself if pytest was killed"),
    ("serai_artifacts", "string", "", f"folder for what failed tests leave ({ARTIFACTS})"),
    ("serai_setup_files", "paths", [], "files and folders that the fixture serai_setup uses"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take options and settings on."""
    group = parser.getgroup("serai", "machines for tests (serai)")
    group.addoption("--serai-image", metavar="NAME", help="image or recipe that guests are made of")
    group.addoption("--serai-home", metavar="DIR", help="home of the daemon that makes the guests")
    group.addoption(
        "--serai-artifacts", metavar="DIR", help="folder for screens and logs of failed tests"
    )
    group.addoption(
        "--serai-keep", action="store_const", const="failed", default="",
        help="keep the guests of failed tests for a day, and say how to enter them",
    )  # fmt: skip
    group.addoption(
        "--serai-keep-all", action="store_const", const="all", dest="serai_keep",
        help="keep the guests of all tests for a day, and say how to enter them",
    )  # fmt: skip
    for name, kind, default, told in SETTINGS:
        parser.addini(name, told, type=kind, default=default)


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark, for --strict-markers and --markers."""
    config.addinivalue_line("markers", MARK)


def _said(config: pytest.Config, name: str) -> str:
    """Return what an option says, or else the setting of that name."""
    return str(config.getoption(name) or config.getini(name))


@contextmanager
def _explained() -> Iterator[None]:
    """Let a test whose guest can't be had fail with the reason, not with our way to it."""
    errors = import_module("serai.errors")
    reason = ""
    try:
        yield
    except errors.SeraiError as error:
        reason = import_module("serai.testing.session").explain(error)
    if reason:
        pytest.fail(reason, pytrace=False)


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def serai_setup() -> "Callable[[serai.Guest], object] | None":
    """Override this to return a function that prepares the machine which all tests are given forks of."""
    return None


@pytest.fixture(scope="session")
def serai_daemon_home(pytestconfig: pytest.Config) -> str:
    """The home of the daemon; "" for that of this environment, or else a private one."""
    return _said(pytestconfig, "serai_home")


@pytest.fixture(scope="session")
def _serai_session(
    pytestconfig: pytest.Config, serai_daemon_home: str, serai_setup: Any
) -> Iterator[Any]:
    work = import_module("serai.testing.session")
    root = pytestconfig.rootpath
    options = work.Options(
        home=str(serai_daemon_home),
        image=_said(pytestconfig, "serai_image"),
        ttl=pytestconfig.getini("serai_ttl"),
        keeps=bool(pytestconfig.option.serai_keep),
        root=root,
        artifacts=root / (_said(pytestconfig, "serai_artifacts") or ARTIFACTS),
        files=[Path(path) for path in pytestconfig.getini("serai_setup_files")],
    )
    with _explained():
        session = work.Session(options, serai_setup)
    yield session
    session.close()


@pytest.fixture(scope="session")
def inn(_serai_session: Any) -> "serai.Inn":
    """The connection to the daemon that makes the guests."""
    return _serai_session.inn  # type: ignore[no-any-return]


@pytest.fixture
def guests(request: pytest.FixtureRequest, _serai_session: Any) -> Iterator[Any]:
    """Make guests: ``guests()`` one, ``guests(3)`` a list, ``guests(memory="1GiB")`` another kind."""
    item: pytest.Item = request.node
    words = [_words_of(mark) for mark in item.iter_markers("serai")]
    made = _serai_session.begin(item.name, item.nodeid, words[::-1])
    item.stash[GUESTS] = made
    yield made
    del item.stash[GUESTS]
    with _explained():
        made.end()


@pytest.fixture
def guest(guests: Any) -> Any:
    """A machine of the test's own (serai.Guest), whose agent answers; thrown away afterwards."""
    with _explained():
        return guests()


def _words_of(mark: pytest.Mark) -> dict[str, Any]:
    if len(mark.args) > 1:
        pytest.fail(f"the mark serai takes one image, not {mark.args}", pytrace=False)
    return {**({"image": mark.args[0]} if mark.args else {}), **mark.kwargs}


# -- failures --------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test what its guests tell, while they are there."""
    report = yield
    made = item.stash.get(GUESTS, None)
    if made is None or call.when == "teardown":
        return report
    if report.failed:
        report.sections += [(part.title, part.text) for part in made.evidence()]
    keep = item.config.option.serai_keep
    if (keep == "failed" and report.failed) or (keep == "all" and call.when == "call"):
        for command in made.keep():
            report.user_properties.append((KEPT_PROPERTY, command))
            report.sections.append(("serai: its guest is kept", command))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end what was kept, and how to enter it; also what the workers of pytest-xdist kept."""
    reports = [each for some in terminalreporter.stats.values() for each in some]
    found = [pair for each in reports for pair in getattr(each, "user_properties", ())]
    commands = [command for name, command in found if name == KEPT_PROPERTY]
    if commands:
        terminalreporter.section("guests that were kept")
        for command in commands:
            terminalreporter.line(command)
