"""The pytest plugin as a project of somebody else's uses it: in a pytest of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import serai

SETUP = """
import pytest

@pytest.fixture(scope="session")
def serai_setup():
    def prepare(guest):
        assert guest.run("echo prepared > /prepared").ok
    return prepare
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_each_has_a_machine_of_its_own(guest, number):
    assert guest.run("cat /prepared").stdout == "prepared\\n"
    assert not guest.run("test -e /mine").ok
    guest.run("touch /mine")
    assert guest.run("hostname").stdout.strip() == guest.name

def test_forks_go_too(guest):
    assert [each.run("true").ok for each in guest.fork(2)] == [True, True]

@pytest.mark.serai(memory="160MiB")
def test_more_of_another_kind(guests):
    first, second = guests(2)
    assert first.info.memory == second.info.memory == 160 << 20
"""
FAILING = """
def test_that_fails(guest):
    guest.run("echo the last words > /dev/ttyS0")
    assert guest.run("exit 7").ok, "as it was meant to"
"""


class Project:
    """A folder with tests, and the daemon that all of ours share."""

    def __init__(self, folder: Path, home: str) -> None:
        self.folder = folder
        self.home = home
        self.inn = serai.connect(Path(home) / "run" / "api.sock")

    def run(self, *words: str) -> tuple[int, str]:
        """Run its tests; return pytest's exit code and what it said."""
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--serai-home={self.home}",
            *words,
        ]
        clean = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("PYTEST", "COV"))
        }
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env=clean,
            capture_output=True,
            timeout=100,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def guests(self) -> set[str]:
        return {each.name for each in self.inn.guests()}


@pytest.fixture
def project(tmp_path: Path, inn: serai.Inn, serai_daemon_home: str) -> Project:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Project(tmp_path, serai_daemon_home)


def test_each_test_gets_a_prepared_machine_also_in_parallel(project: Project) -> None:
    (project.folder / "conftest.py").write_text(SETUP)
    (project.folder / "test_ours.py").write_text(TESTS)
    before = project.guests()
    code, said = project.run("-n", "2")
    assert code == 0, said
    assert "6 passed" in said
    assert project.guests() == before
    warm = [each.name for each in project.inn.images() if each.name.startswith("pytest-")]
    code, said = project.run("-k", "forks")
    assert code == 0, said
    assert warm == [
        each.name for each in project.inn.images() if each.name.startswith("pytest-")
    ], "made once"


def test_a_failure_tells_what_the_machine_said(project: Project) -> None:
    (project.folder / "test_ours.py").write_text(FAILING)
    before = project.guests()
    code, said = project.run()
    assert code == 1, said
    assert "as it was meant to" in said and "the last words" in said
    (picture,) = (project.folder / "serai-artifacts").rglob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in said
    assert project.guests() == before

    code, said = project.run("--serai-keep")
    (kept,) = project.guests() - before
    assert code == 1 and re.search(rf"serai console {kept}", said), said
    assert project.inn.guest(kept).run("hostname").stdout.strip() == kept
    project.inn.guest(kept).delete(force=True)


def test_without_the_means_it_says_what_is_missing(project: Project) -> None:
    (project.folder / "test_ours.py").write_text(FAILING)
    code, said = project.run("--serai-image", "nowhere")
    assert code == 1 and "the image nowhere" in said and "serai image import" in said, said
    assert "Traceback" not in said
