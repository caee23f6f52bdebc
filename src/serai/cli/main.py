"""The command line: one visible table of commands, loaded when they are used."""

import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from serai.cli.output import print_error, say
from serai.errors import EXIT_CODES, Bug, Code, Family, HostFailure, Invalid, SeraiError

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is (``module:attribute``) and what it does, in a few words."""

    where: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "launch": Entry("serai.cli.create:launch", "Make a guest of an image and start it."),
    "import": Entry("serai.cli.importing:import_", "Make a guest of an OVA or of a libvirt definition."),
    "list": Entry("serai.cli.guests:list_guests", "List all guests."),
    "show": Entry("serai.cli.guests:show", "Show all that is known of a guest."),
    "start": Entry("serai.cli.verbs:start", "Start guests."),
    "stop": Entry("serai.cli.verbs:stop", "Stop guests: gracefully, then by force."),
    "restart": Entry("serai.cli.verbs:restart", "Stop guests and start them anew."),
    "pause": Entry("serai.cli.verbs:pause", "Hold guests' virtual CPUs."),
    "resume": Entry("serai.cli.verbs:resume", "Let paused guests go on."),
    "delete": Entry("serai.cli.verbs:delete", "Delete guests, their disks and their snapshots."),
    "rename": Entry("serai.cli.guests:rename", "Give a guest another name."),
    "set": Entry("serai.cli.guests:set_guest", "Change a guest's size, policy or labels."),
    "exec": Entry("serai.cli.inside:execute", "Run a command in a guest."),
    "ssh": Entry("serai.cli.ssh:ssh", "Log in to a guest by ssh, wherever its network is."),
    "ssh-proxy": Entry("serai.cli.ssh:ssh_proxy", "Lead to a guest's ssh server: a ProxyCommand for ssh."),
    "push": Entry("serai.cli.copy:push", "Copy a file or folder into a guest."),
    "pull": Entry("serai.cli.copy:pull", "Copy a file or folder out of a guest."),
    "console": Entry("serai.cli.console:console", "Use a guest's serial console."),
    "log": Entry("serai.cli.looks:log", "Show what a guest printed on its serial console."),
    "screenshot": Entry("serai.cli.looks:screenshot", "Save what a guest's screen shows."),
    "vnc": Entry("serai.cli.looks:vnc", "Print where a VNC viewer connects."),
    "snapshot": Entry("serai.cli.snapshots:snapshot", "Save guests, look at what is saved, go back to it."),
    "schedule": Entry("serai.cli.schedules:schedule", "Have snapshots made, and deleted again, by themselves."),
    "fork": Entry("serai.cli.fork:fork", "Make new guests from a guest or from a snapshot."),
    "volume": Entry("serai.cli.volumes:volume", "Disks that live by themselves: make, attach, grow, copy them."),
    "pool": Entry("serai.cli.pools:pool", "The places where volumes lie."),
    "medium": Entry("serai.cli.pools:medium", "Put a medium into a guest's CD drive, or take it out."),
    "network": Entry("serai.cli.networks:network", "Make and manage networks."),
    "port": Entry("serai.cli.ports:port", "Attach guests to networks, also while they run."),
    "rules": Entry("serai.cli.rules:rules", "Say what may pass at guests' ports: security groups."),
    "forward": Entry("serai.cli.forwards:forward", "Let ports of the host lead into guests."),
    "image": Entry("serai.cli.images:image", "Build, pull, import and manage images."),
    "check": Entry("serai.cli.checking:check", "Read everything that is stored and say what is wrong."),
    "job": Entry("serai.cli.jobs:job", "Look at jobs, wait for them, cancel them."),
    "events": Entry("serai.cli.events:events", "Show what happened, or follow it."),
    "daemon": Entry("serai.daemon_command:daemon", "Run, start, stop the daemon."),
    "doctor": Entry("serai.doctor_command:doctor",
                    "Say what this host can do, what is missing, and the exact command that mends it."),
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for; say which may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0][:60]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; where nobody reads its output any more, end quietly (else click says 1)."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from the table alone, so that help is instant."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command from the table alone."""
        return [
            CompletionItem(name, help=entry.help)
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]


@click.command(
    cls=Table, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="serai", message="serai %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run, keep and multiply machines.

    A daemon does the work: serai daemon start. Then: serai image build tiny, serai launch tiny.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> int:
    """Run the command line; return the exit code that the problem's family has."""
    try:
        result = cli.main(prog_name="serai", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, click.UsageError) and error.message.startswith("Usage:"):
            say(error.message)  # a group was named without a command: that is click's own help
            return EXIT_CODES[Family.INVALID]
        problem = problem_of(error)
        print_error(problem, form_of(sys.argv[1:]))
        return EXIT_CODES[problem.family]
    return result if isinstance(result, int) else 0


def problem_of(error: Exception) -> SeraiError:
    """Return what is told of an exception, whoever raised it."""
    if isinstance(error, SeraiError):
        return error
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"{context.command_path} --help" if context else ""
        return Invalid(Code.USAGE, error.format_message(), hint=hint)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return HostFailure(Code.FILE_FAILED, f"{where}{error.strerror or error}")
    if os.environ.get("SERAI_TRACE"):
        say("".join(traceback.format_exception(error)))
    return Bug(
        Code.BUG,
        f"serai made a mistake: {type(error).__name__}: {error}",
        hint="Please report it with what is printed with SERAI_TRACE=1 in the environment.",
    )


def form_of(words: list[str]) -> str:
    """Return the format that the command line asks for, whether or not it could be understood."""
    ours = words[: words.index("--")] if "--" in words else words
    text = " ".join(ours)
    return "json" if "--format json" in text or "--format=json" in text else "table"
