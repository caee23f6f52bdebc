"""The reference of all commands, made from the commands themselves: docs/cli.md.

``python -m serai.cli.reference`` prints it; ``SERAI_GOLDEN=write pytest tests/unit/test_cli_reference.py``
writes it (so does ``make golden``).
"""

from collections.abc import Iterator

import click

from serai.cli.main import COMMANDS, cli
from serai.cli.output import print_line
from serai.errors import EXIT_CODES

MADE = "<!-- Made by `make golden`; edit the command's own help, not this page. -->\n"
INTRO = """\
# Commands

Results go to standard output, all else to standard error. `--format json` prints results for programs, and
problems as one object with their `code` ([problems](problems.md)). Colours and progress bars are only drawn
on a terminal; `NO_COLOR` turns colours off.

`SERAI_HOME=DIR` says which daemon is talked to, and where it keeps everything ([settings](settings.md)). A
command that finds no daemon says how to start one.

A command that is interrupted by ctrl-C ends with 130. What it had asked for goes on as a job, and it is said how
to wait for it; `launch`, `fork`, `snapshot create`, `image build`, `image import` and `image publish` are cancelled.
"""


def reference() -> str:
    """Return the page."""
    parts = [MADE, INTRO, _exit_codes(), _contents()]
    for path, command in leaves():
        parts.append(_section(path, command))
    return "\n".join(parts)


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Give every command that does something, with its words: ``image build``."""
    root = click.Context(cli, info_name="serai", **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner, each in sorted(command.commands.items()):
                yield f"{name} {inner}", each
        else:
            yield name, command


def _exit_codes() -> str:
    rows = "".join(f"| {code} | `{family}` |\n" for family, code in EXIT_CODES.items())
    return (
        "## Exit codes\n\n| code | what went wrong |\n|---|---|\n| 0 | nothing |\n"
        f"{rows}| 130 | it was interrupted by ctrl-C |\n\n"
        "`exec` has those of the command in the guest, 125 for a problem of ours and 127 for a command that the "
        "guest has not.\n"
    )


def _contents() -> str:
    lines = [
        f"| [`{path}`](#serai-{path.replace(' ', '-')}) | {_short(command)} |"
        for path, command in leaves()
    ]
    return "\n".join(["## All commands\n", "| command | what it does |", "|---|---|", *lines, ""])


def _short(command: click.Command) -> str:
    return (command.help or "").split("\n\n", 1)[0].replace("\n", " ").strip()


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"serai {path}", **cli.context_settings)
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"## `serai {path}`\n", f"```\n{' '.join(usage.split())}\n```\n", _text(command)]
    rows = [row for row in map(_row, command.get_params(context)) if row]
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _text(command: click.Command) -> str:
    paragraphs = (command.help or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs) + "\n"


def _row(parameter: click.Parameter) -> str:
    """Return an option as a row; nothing for an argument, ``--help`` and what is hidden."""
    if not isinstance(parameter, click.Option) or parameter.hidden or "--help" in parameter.opts:
        return ""
    context = click.Context(click.Command("none"))
    record = parameter.get_help_record(context)
    assert record is not None
    names, meaning = (" ".join(text.split()).replace("|", "\\|") for text in record)
    return f"| `{names}` | {meaning} |"


if __name__ == "__main__":
    print_line(reference())
