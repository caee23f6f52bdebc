"""``serai rules``: security groups, the rules of what may pass."""

import click

from serai.cli.options import complete_group, connection, format_option
from serai.cli.output import print_facts, print_json, print_line, print_table, say
from serai.cli.progress import finish
from serai.cli.verbs import Verb, do_to_all
from serai.client import network_calls
from serai.client.network_words import rule_text, rules_of
from serai.model.network import Group, GroupChange, GroupSpec

COLUMNS = ("NAME", "RULES", "PORTS", "NOTE")

one_group = click.argument("name", metavar="GROUP", shell_complete=complete_group)
IN = click.option("--in", "inward", multiple=True, metavar="RULE",
                  help="What may come in, like tcp:80 or any@10.0.0.0/8; may be repeated.")  # fmt: skip
OUT = click.option("--out", "outward", multiple=True, metavar="RULE",
                   help="What may go out; with none, everything may. May be repeated.")  # fmt: skip


@click.group()
def rules() -> None:
    """Say what may pass at guests' ports: security groups.

    Ports in a group (`serai port set GUEST PORT --group GROUP`) let in what a rule of it allows, and
    answers. A rule is written PROTOCOL[:PORTS][@REMOTE]: tcp:80, udp:5000-5100@10.0.0.0/8,
    icmp, any@group:web. A change holds at once, at all ports.
    """


@rules.command()
@click.argument("name", metavar="GROUP")
@IN
@OUT
@click.option("--note", default="", metavar="TEXT", help="A note, shown in the list.")
@format_option
def create(
    name: str, inward: tuple[str, ...], outward: tuple[str, ...], note: str, form: str
) -> None:
    """Make a security group.

    Without a rule for what comes in, nothing does but answers.
    """
    spec = GroupSpec(name=name, rules=rules_of(inward, outward), note=note)
    daemon = connection()
    finish(daemon, network_calls.create_group(spec))
    made = daemon.ask(network_calls.show_group(name))
    if form == "json":
        print_json(made)
    else:
        print_line(f"{made.name} is there, with {_count(len(made.rules))}")


def _count(number: int) -> str:
    return "1 rule" if number == 1 else f"{number} rules"


@rules.command(name="list")
@format_option
def list_groups(form: str) -> None:
    """List security groups.

    Sorted by name. PORTS counts the ports in each. With --format json: an array.
    """
    found = connection().all_of(network_calls.list_groups)
    if form == "json":
        print_json(found)
        return
    if not found:
        say("there are no security groups; to make one: serai rules create GROUP --in tcp:22")
    rows = [(each.name, str(len(each.rules)), str(each.ports), each.note) for each in found]
    print_table(COLUMNS, rows)


@rules.command()
@one_group
@format_option
def show(name: str, form: str) -> None:
    """Show a security group and its rules."""
    each = connection().ask(network_calls.show_group(name))
    if form == "json":
        print_json(each)
    else:
        print_facts(facts_of(each))


def facts_of(each: Group) -> list[tuple[str, str]]:
    """Return what is shown of a security group, in order."""
    pairs = [
        ("name", each.name),
        ("id", each.id),
        ("note", each.note or "-"),
        ("ports", str(each.ports)),
    ]
    return pairs + [(str(rule.direction), rule_text(rule)) for rule in each.rules]


@rules.command()
@one_group
@IN
@OUT
@format_option
def add(name: str, inward: tuple[str, ...], outward: tuple[str, ...], form: str) -> None:
    """Add rules to a security group; they hold at once."""
    _change(name, GroupChange(add=rules_of(inward, outward)), form)


@rules.command()
@one_group
@IN
@OUT
@format_option
def remove(name: str, inward: tuple[str, ...], outward: tuple[str, ...], form: str) -> None:
    """Remove rules from a security group.

    They are written as they were added. What they let pass is cut at once.
    """
    _change(name, GroupChange(remove=rules_of(inward, outward)), form)


def _change(name: str, change: GroupChange, form: str) -> None:
    if not change.add and not change.remove:
        raise click.UsageError("Which rules? Use --in and --out.", click.get_current_context())
    daemon = connection()
    finish(daemon, network_calls.change_group(name, change))
    after = daemon.ask(network_calls.show_group(name))
    if form == "json":
        print_json(after)
    else:
        print_line(f"{after.name} has {_count(len(after.rules))} now")


@rules.command()
@click.argument("names", metavar="GROUP...", nargs=-1, required=True,
                shell_complete=complete_group)  # fmt: skip
@format_option
def delete(names: tuple[str, ...], form: str) -> int:
    """Delete security groups.

    No port may be in them, and no rule of another group name them.
    """
    return do_to_all(names, Verb(network_calls.delete_group, "is deleted"), form)
