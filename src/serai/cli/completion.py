"""``serai completion``: the scripts that make shells complete our commands."""

import click
from click.shell_completion import get_completion_class

from serai.cli.output import print_line

WHOLE_WORDS = "COMP_WORDBREAKS=${COMP_WORDBREAKS//@}"
"""Else bash would give us ``web1@ready`` as three words."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script for shell completion.

    bash: put `source <(serai completion bash)` into ~/.bashrc. zsh: put
    `source <(serai completion zsh)` into ~/.zshrc. fish: `serai completion fish >
    ~/.config/fish/completions/serai.fish`. Names of guests, snapshots and images are completed, too.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "serai", "_SERAI_COMPLETE")
    print_line(script.source_template % script.source_vars())
    if shell == "bash":
        print_line(WHOLE_WORDS)
