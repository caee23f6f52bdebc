"""The command line: one visible table of commands, loaded when they are used."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import click

from serai.cli.output import print_error, say
from serai.errors import EXIT_CODES, Code, Family, Invalid, SeraiError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is (``module:attribute``) and what it does, in a few words."""

    where: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "launch": Entry("serai.cli.create:launch", "Make a guest of an image and start it."),
    "list": Entry("serai.cli.guests:list_guests", "List all guests."),
    "show": Entry("serai.cli.guests:show", "Show all that is known of a guest."),
    "start": Entry("serai.cli.guests:start", "Start guests."),
    "stop": Entry("serai.cli.guests:stop", "Stop guests: gracefully, then by force."),
    "restart": Entry("serai.cli.guests:restart", "Stop guests and start them anew."),
    "pause": Entry("serai.cli.guests:pause", "Hold guests' virtual CPUs."),
    "resume": Entry("serai.cli.guests:resume", "Let paused guests go on."),
    "delete": Entry("serai.cli.guests:delete", "Delete guests and their volumes."),
    "rename": Entry("serai.cli.guests:rename", "Give a guest another name."),
    "set": Entry("serai.cli.guests:set_guest", "Change a guest's size, policy or labels."),
    "exec": Entry("serai.cli.inside:execute", "Run a command in a guest."),
    "push": Entry("serai.cli.copy:push", "Copy a file or folder into a guest."),
    "pull": Entry("serai.cli.copy:pull", "Copy a file or folder out of a guest."),
    "console": Entry("serai.cli.console:console", "Use a guest's serial console."),
    "log": Entry("serai.cli.inside:log", "Show what a guest printed on its serial console."),
    "screenshot": Entry("serai.cli.inside:screenshot", "Save what a guest's screen shows."),
    "vnc": Entry("serai.cli.vnc:vnc", "Print where a VNC viewer connects."),
    "image": Entry("serai.cli.images:image", "Build, import and manage images."),
    "job": Entry("serai.cli.jobs:job", "Look at jobs, wait for them, cancel them."),
    "events": Entry("serai.cli.jobs:events", "Show what happened, or follow it."),
    "daemon": Entry("serai.daemon_command:daemon", "Run, start, stop the daemon."),
    "doctor": Entry("serai.doctor_command:doctor", "Say what this host can do and what is missing."),
    "completion": Entry("serai.cli.completion:completion", "Print a script for shell completion."),
}  # fmt: skip


class Table(click.Group):
    """The group of all commands; imports the module of a command when that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, imported now."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.where.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from the table alone, so that help is instant."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="serai", message="serai %(version)s")
def cli() -> None:
    """Run, keep and multiply machines.

    A daemon does the work: serai daemon start. Then: serai image build tiny, serai launch tiny.
    """


def main() -> int:
    """Run the command line; return the exit code that the problem's family has."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        result = cli.main(prog_name="serai", standalone_mode=False)
    except SeraiError as error:
        print_error(error, _form())
        return EXIT_CODES[error.family]
    except click.exceptions.Abort:
        say("interrupted")
        return 130
    except click.ClickException as error:
        return _usage(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
    print_error(Invalid(Code.USAGE, error.format_message(), hint=hint), _form())
    return EXIT_CODES[Family.INVALID]


def _form() -> str:
    words = " ".join(sys.argv[1:])
    return "json" if "--format json" in words or "--format=json" in words else "table"
