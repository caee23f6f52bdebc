"""Fixtures of the guest ring: a ladder from a daemon to a guest whose inside is reached.

    daemon          a real daemon in a home of its own, with the image tiny
    guest_defined   a guest that was never started
    guest_started   it boots; its inside may not be up
    guest_reached   it has booted: its agent answers
    guest           its agent answers; it was forked from a warm image, which the daemon has too
    disky           the same, with a disk of 64 MiB that nothing was written to

After each test all guests are deleted and the daemon is stopped; the test fails if a process, a
socket or a file is left. When a test fails, logs, events and command lines are saved below
.work/failures, and the path is printed; with ``--sit`` the daemon waits for a human.

A test asks for ``guest`` where it does not matter how that came to be: it is there at once. One that is
about what is true of a booted guest only, as the first time that it is frozen, asks for ``guest_reached``.
Who asks for a ``guest`` and for no daemon gets it from our own pytest plugin, by a daemon that all such
tests share.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Daemon, running
from nursery import Nursery
from tiny import ROOT, copy_state, state_with_tiny
from warm import WARM, WARM_DISK, copy_warm, state_with_warm

from serai import Guest

FAILURES = ROOT / ".work" / "failures"
LONGEST = frozenset(
    f"test_{name}.py"
    for name in ("first_boot", "build_debian", "bubbles", "networks", "soak", "faults", "booting")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: workers that take tests from each other end at the same time."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_state() -> Path:
    """A state folder that holds the tiny image, built once; see ``copy_state``."""
    return state_with_tiny()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """What daemons are forked from that no test wants to see start."""
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def daemon(
    request: pytest.FixtureRequest, serai_home: Path, tiny_state: Path, nursery: Nursery
) -> Iterator[Daemon]:
    """A daemon that has the image ``tiny``, and for a test that needs one the warm ones.

    Files of the images are links into .work/cache: a test that spoils files does so to what it has made.
    """
    keeper = Daemon(serai_home)
    keeper.nursery = nursery
    is_warm = not {"warm", "guest", "disky"}.isdisjoint(request.fixturenames)
    if is_warm:
        copy_warm(state_with_warm(), serai_home)
    else:
        copy_state(tiny_state, serai_home)
    with running(keeper):
        yield keeper
        if is_warm and keeper.is_running:
            keeper.delete_all()
            keeper.delete_warm()


@pytest.fixture
def warm(daemon: Daemon) -> str:
    """The name of a warm image that the daemon has."""
    assert daemon.is_running
    return WARM


@pytest.fixture
def guest_defined(daemon: Daemon) -> Guest:
    """A guest that was never started."""
    return daemon.inn.create("tiny", name="web1", memory="128MiB")


@pytest.fixture
def guest_started(daemon: Daemon) -> Guest:
    """A guest that runs; its inside may not be up."""
    return daemon.inn.launch("tiny", name="web1", memory="128MiB", wait=False)


@pytest.fixture
def guest_reached(daemon: Daemon) -> Guest:
    """A guest that has booted, and whose agent answers."""
    return daemon.inn.launch("tiny", name="web1", memory="128MiB")


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Guest:
    """A guest whose agent answers: the daemon's, or the plugin's where the test has none."""
    if "daemon" in request.fixturenames:
        launched: Guest = request.getfixturevalue("daemon").inn.launch(WARM, name="web1")
        return launched
    forked: Guest = request.getfixturevalue("guests")(memory="128MiB")
    return forked


@pytest.fixture
def disky(daemon: Daemon) -> Guest:
    """A guest with a disk, whose agent answers."""
    return daemon.inn.launch(WARM_DISK, name="disky")


@pytest.fixture(scope="session")
def serai_daemon_home(tiny_state: Path) -> Iterator[str]:
    """Where the plugin's daemon has its home; nothing may be left of it when all tests are done."""
    home = Path(tempfile.mkdtemp(prefix="serai-"))
    copy_state(tiny_state, home)
    yield str(home)
    left = Daemon(home).leftovers()
    Daemon(home).kill_all()
    shutil.rmtree(home)
    known = [path for path in left if "/layers/" in path or "/memory/" in path]
    assert left == known, f"left behind: {left}"  # but for the warm image


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Save what tells why a test failed while its daemon is still there."""
    report = yield
    given = getattr(item, "funcargs", {}).values()
    keeper = next((each for each in given if isinstance(each, Daemon)), None)
    if report.failed and report.when == "call" and keeper is not None:
        folder = FAILURES / item.name.replace("/", "-")
        keeper.save(folder)
        report.sections.append(("saved", f"logs, events and command lines: {folder}"))
        if item.config.option.sit:
            _sit(item, keeper)
    return report


def _sit(item: pytest.Item, keeper: Daemon) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{item.name} failed. Look around: export SERAI_HOME={keeper.home}")
        input("Press Enter to go on. ")
