"""``serai completion``: the scripts that make shells complete our commands."""

import click
from click.shell_completion import get_completion_class

from serai.cli.output import print_line


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    bash: source <(serai completion bash), in your .bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root().command
    print_line(kind(root, {}, "serai", "_SERAI_COMPLETE").source())
