"""What the command line refuses, and how it says so: usage, names, families, other peoples' bytes."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from api_peer import Inn
from cli_shell import Shell, shell_and_inn
from fake_engine import make_guest

from serai.cli.main import COMMANDS, cli
from serai.errors import EXIT_CODES, FAMILIES, Code, Family, HostFailure


class Both:
    """A shell and what it talks to."""

    def __init__(self, shell: Shell, inn: Inn) -> None:
        self.run = shell.run
        self.engine = inn.engine


@pytest.fixture
async def it(serai_home: Path) -> AsyncIterator[Both]:
    async with shell_and_inn(serai_home) as (shell, inn):
        inn.engine.add_guests(3)
        yield Both(shell, inn)


@pytest.mark.parametrize(
    "words",
    [
        ["launch"],
        ["launch", "tiny", "a", "b"],
        ["launch", "tiny", "--cpus", "many"],
        ["launch", "tiny", "--memory", "much"],
        ["launch", "tiny", "--memory", "-1"],
        ["launch", "tiny", "--label", "x"],
        ["launch", "tiny", "--firmware", "open"],
        ["launch", "tiny", "--frobnicate"],
        ["launch", "tiny", "-web1"],
        ["frobnicate"],
        ["image"],
        ["image", "frobnicate"],
        ["image", "build", "gentoo"],
        ["stop"],
        ["stop", "g1", "--timeout", "-3"],
        ["set", "g1", "--label", "x"],
        ["exec"],
        ["exec", "g1"],
        ["exec", "g1", "-e", "X", "--", "true"],
        ["job", "list", "--state", "tired"],
        ["events", "--after", "x"],
        ["completion", "cmd"],
        ["list", "--format", "yaml"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_told_and_asks_for_nothing(it: Both, words: list[str]) -> None:
    done = await it.run(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err and "Traceback" not in done.err
    assert it.engine.actions == []


@pytest.mark.parametrize(
    "name", ["a b", "a/b", "../etc", "a\nb", "-x", "раураl", "x" * 10_000, "", ".", "..", "a%2fb", "?#"]
)  # fmt: skip
async def test_names_that_are_none_change_nothing(it: Both, name: str) -> None:
    for words in (["rename", "--", "g1", name], ["show", "--", name], ["delete", "--", name],
                  ["image", "delete", "--", name], ["job", "cancel", "--", name]):  # fmt: skip
        done = await it.run(*words)
        assert done.code in (2, 3), done.err
        assert len(done.err) < 500
        assert "Traceback" not in done.err
    for words in (
        ["launch", "--", "tiny"],
        ["fork", "--", "g1"],
        ["snapshot", "create", "--", "g1"],
    ):
        assert (await it.run(*words, name)).code == 2
    assert list(it.engine.all_guests) == ["g0", "g1", "g2"]
    assert it.engine.actions == []


@pytest.mark.parametrize("words", [["launch", "tiny"], ["fork", "g1"]], ids=" ".join)
@pytest.mark.parametrize(
    ("ttl", "why"), [("0s", "longer than 0 s"), ("0", "longer than"), ("3651d", "most 10 years")]
)
async def test_a_guest_lives_for_a_while_at_least_and_not_too_long(
    it: Both, words: list[str], ttl: str, why: str
) -> None:
    done = await it.run(*words, "--ttl", ttl)
    assert (done.code, done.out) == (2, "")
    assert why in done.err and "Leave --ttl out" in done.err
    assert it.engine.actions == []
    assert (await it.run(*words, "web", "--ttl", "3650d")).code == 0


@pytest.mark.parametrize("family", [each for each in FAMILIES if each is not Family.BUG], ids=str)
async def test_the_exit_code_is_that_of_the_family(it: Both, family: Family) -> None:
    it.engine.fail_next("guest", FAMILIES[family](Code.DISK_FULL, "why", hint="what to do"))
    done = await it.run("show", "g1")
    assert done.code == EXIT_CODES[family]
    assert done.err == "error: why\nhint: what to do\n"


@pytest.mark.parametrize("form", [["--format", "json"], ["--format=json"]], ids=str)
async def test_errors_as_json(it: Both, form: list[str]) -> None:
    done = await it.run("show", "none", *form)
    assert (done.code, done.out) == (3, "")
    problem = json.loads(done.err)
    assert (problem["code"], problem["family"]) == ("guest-not-found", "not-found")
    assert json.loads((await it.run("show", *form)).err)["code"] == "usage"


async def test_what_a_guest_says_does_not_command_the_terminal(it: Both) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    it.engine.all_guests["g1"] = make_guest("g1", 1, notes=(evil,))
    it.engine.fail_next("guest", HostFailure(Code.TOOL_FAILED, evil, hint=evil))
    failed = await it.run("show", "g1")
    shown = await it.run("show", "g1")
    assert failed.code == 7
    for text in (shown.out, failed.err):
        assert "owned" in text
        assert not {"\x1b", "\x07", "\x9b"} & set(text)


async def test_list_gives_all_however_many_pages(it: Both) -> None:
    it.engine.add_guests(10_003)
    names = (await it.run("list", "-q")).out.splitlines()
    assert len(names) == 10_003
    assert len(json.loads((await it.run("list", "--format", "json")).out)) == 10_003


async def test_a_file_that_cannot_be_written_is_told(it: Both, tmp_path: Path) -> None:
    for words in (["screenshot", "g1"], ["image", "export", "tiny", "-o"]):
        done = await it.run(*words, str(tmp_path / "none" / "file"))
        assert done.code == 7
        assert "No such file or directory" in done.err


def commands() -> list[list[str]]:
    """Return the words of every command and sub-command."""
    found = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli, **cli.context_settings), name)
        assert command is not None
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.commands]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help(serai_home: Path, words: list[str]) -> None:
    done = Shell(serai_home).call(*words, "--help")
    assert done.code == 0, done.err
    assert done.out.startswith(f"Usage: serai {' '.join(words)}")
    text = done.out.partition("\n\n")[2]
    assert re.match(r"  [A-Z][^\0]*?\.\n(\n|$)", text), "it begins with a sentence"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("schedule pause", "When it is due it makes and deletes no snapshot"),
        ("schedule pause", "`serai schedule run` does so all the same"),
        ("delete", "Delete guests, their disks and their snapshots."),
        ("launch", "[default: (the guest's name with --ssh-key or --user-data, else the image's)]"),
        ("launch", "Without any of them the guest calls itself as the image does."),
        ("schedule run", "Also if it is paused: that holds only what it does by itself."),
    ],
)
def test_help_is_true(serai_home: Path, words: str, said: str) -> None:
    done = Shell(serai_home).call(*words.split(), "--help")
    assert said in " ".join(done.out.split())


def test_help_lists_every_command(serai_home: Path) -> None:
    for words in ([], ["--help"], ["-h"]):
        done = Shell(serai_home).call(*words)
        assert done.code == 0
        assert re.findall(r"^  ([a-z][a-z-]*)  ", done.out, re.M) == list(COMMANDS)


def test_version(serai_home: Path) -> None:
    assert re.fullmatch(r"serai \d+\.\d+\.\d+\n", Shell(serai_home).call("--version").out)


def test_a_mistake_of_ours_is_told_as_one(
    serai_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("serai.cli.guests.connection", broken)
    done = Shell(serai_home).call("show", "g1")
    assert done.code == 70
    assert "ZeroDivisionError" in done.err
    assert "Traceback" not in done.err
