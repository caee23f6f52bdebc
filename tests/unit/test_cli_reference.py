"""docs/cli.md is made from the commands, is up to date, and holds all that the contract names."""

import os
import re
from pathlib import Path

import click
import pytest

from serai.cli.main import COMMANDS, cli
from serai.cli.reference import leaves, reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

CONTRACT = {
    "daemon run": [],
    "daemon start": [],
    "daemon stop": [],
    "daemon status": ["--format"],
    "image build": ["--suite", "--include"],
    "image import": ["--name", "--sha256"],
    "image pull": ["--index", "--key", "--name", "--replace", "--format"],
    "image catalogue": ["--index", "--format"],
    "image index": ["--sign-key", "--format"],
    "image key": ["--format"],
    "image list": ["--format"],
    "image show": ["--format"],
    "image export": [],
    "image delete": [],
    "image publish": ["--no-memory", "--replace", "--format"],
    "snapshot create": ["--no-memory", "--quiesce", "--note", "--format"],
    "snapshot list": ["--format"],
    "snapshot show": ["--format"],
    "snapshot restore": ["--force", "--format"],
    "snapshot delete": ["--format"],
    "snapshot rename": ["--format"],
    "snapshot note": ["--format"],
    "network create": ["--subnet", "--subnet6", "--mode", "--dns", "--label", "--format"],
    "network list": ["--format"],
    "network show": ["--format"],
    "network set": ["--dns", "--subnet6", "--label", "--format"],
    "network delete": ["--format"],
    "port list": ["--format"],
    "port add": ["--rate-in", "--rate-out", "--burst-in", "--burst-out", "--format"],
    "port remove": ["--format"],
    "port set": ["--group", "--rate-in", "--rate-out", "--burst-in", "--burst-out", "--format"],
    "rules create": ["--in", "--out", "--note", "--format"],
    "rules list": ["--format"],
    "rules show": ["--format"],
    "rules add": ["--in", "--out", "--format"],
    "rules remove": ["--in", "--out", "--format"],
    "rules delete": ["--format"],
    "forward add": ["--udp", "--address", "--port", "--format"],
    "forward list": ["--format"],
    "forward remove": ["--format"],
    "check": ["--repair", "--format"],
    "schedule create": [
        "--every",
        "--at",
        "--keep-last",
        "--keep-hourly",
        "--keep-daily",
        "--keep-weekly",
        "--keep-monthly",
        "--no-memory",
        "--quiesce",
        "--name-as",
        "--format",
    ],
    "schedule list": ["--format"],
    "schedule show": ["--format"],
    "schedule set": ["--every", "--at", "--keep-last", "--format"],
    "schedule pause": ["--format"],
    "schedule resume": ["--format"],
    "schedule run": ["--format"],
    "schedule preview": ["--keep-last", "--format"],
    "schedule delete": ["--format"],
    "fork": ["--count", "--keep-identity", "--ttl", "--no-wait", "--format"],
    "volume create": ["--pool", "--serial", "--note", "--iops", "--bps-burst", "--format"],
    "volume list": ["--pool", "--guest", "--format"],
    "volume show": ["--format"],
    "volume attach": ["--read-only", "--boot", "--format"],
    "volume detach": ["--format"],
    "volume resize": ["--format"],
    "volume set": ["--iops", "--iops-burst", "--bps", "--bps-burst", "--burst-seconds", "--note"],
    "volume clone": ["--format"],
    "volume snapshot": ["--note", "--delete", "--format"],
    "volume import": ["--pool", "--sha256", "--format"],
    "volume export": ["--as", "--nbd", "--format"],
    "volume delete": ["--format"],
    "pool create": ["--format"],
    "pool list": ["--format"],
    "pool show": ["--format"],
    "pool delete": ["--format"],
    "medium insert": ["--force", "--format"],
    "medium eject": ["--force", "--format"],
    "launch": [
        "--volume",
        "--cpus",
        "--memory",
        "--disk",
        "--firmware",
        "--restart",
        "--label",
        "--network",
        "--ssh-key",
        "--user-data",
        "--hostname",
        "--ttl",
        "--no-wait",
        "--wait-for",
    ],
    "import": ["--disk", "--cpus", "--memory", "--root-only", "--sha256", "--format"],
    "list": ["--format"],
    "show": ["--format"],
    "start": [],
    "stop": ["--force", "--timeout"],
    "restart": [],
    "pause": [],
    "resume": [],
    "delete": ["--force"],
    "rename": [],
    "set": ["--cpus", "--memory", "--disk", "--restart", "--label"],
    "exec": ["-n"],
    "ssh": ["--user", "--identity", "--option"],
    "ssh-proxy": [],
    "push": [],
    "pull": [],
    "console": [],
    "log": ["-f"],
    "screenshot": [],
    "vnc": [],
    "job list": ["--format"],
    "job show": ["--format"],
    "job cancel": [],
    "job wait": [],
    "events": ["-f", "--format"],
    "doctor": ["--fix"],
    "completion": [],
}
RAW = {"console", "log", "completion", "daemon run", "ssh", "ssh-proxy"}
"""What prints no result of ours: bytes of a guest, a script, the log of a daemon."""
LEAVES = tuple(leaves())


def test_the_page_is_up_to_date() -> None:
    if os.environ.get("SERAI_GOLDEN") == "write":
        PAGE.write_text(reference() + "\n")
    assert PAGE.read_text() == reference() + "\n", "docs/cli.md is old: make golden"


def test_all_of_the_contract_is_there_and_nothing_undocumented() -> None:
    found = dict(LEAVES)
    assert set(found) == set(CONTRACT)
    for path, options in CONTRACT.items():
        has = {name for each in found[path].params for name in (*each.opts, *each.secondary_opts)}
        assert set(options) <= has, path


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[path for path, _ in LEAVES])
def test_each_command_has_heading_and_options_on_the_page(
    path: str, command: click.Command
) -> None:
    page = PAGE.read_text()
    section = page.split(f"\n## `serai {path}`\n")[1].split("\n## ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert all(name in section for name in parameter.opts), parameter.name
            assert parameter.help, f"{path} {parameter.name} has no help"


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[path for path, _ in LEAVES])
def test_each_result_can_be_had_as_json(path: str, command: click.Command) -> None:
    has_format = any("--format" in each.opts for each in command.params)
    assert has_format == (path not in RAW)


def test_the_table_says_what_the_commands_say() -> None:
    root = click.Context(cli, **cli.context_settings)
    for name, entry in COMMANDS.items():
        command = cli.get_command(root, name)
        assert command is not None
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert first == entry.help, name


def test_help_has_every_command_and_its_words_end_with_a_full_stop() -> None:
    text = cli.get_help(click.Context(cli, info_name="serai", **cli.context_settings))
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.M), name
    assert all(entry.help.endswith(".") for entry in COMMANDS.values())
