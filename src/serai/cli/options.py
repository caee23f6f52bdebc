"""Options and arguments that many commands share, and the connection they use."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from serai.cli.fast import fetch_guests
from serai.client.blocking import Connection
from serai.client.calls import list_images
from serai.errors import SeraiError
from serai.settings import current_places
from serai.units import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size like 512MiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return bytes."""
        return value if isinstance(value, int) else parse_size(str(value))


class Duration(click.ParamType[float]):
    """A duration like 30s."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return seconds."""
        return value if isinstance(value, float) else parse_duration(str(value))


SIZE = Size()
DURATION = Duration()


def connection() -> Connection:
    """Return the connection to this environment's daemon."""
    return Connection(current_places().socket)


def complete_guest(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a guest."""
    names = [str(guest["name"]) for guest in fetch_guests() or []]
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_image(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of an image."""
    try:
        names = [image.name for image in connection().ask(list_images()).items]
    except SeraiError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def guest_argument(function: F) -> F:
    """One guest's name."""
    return click.argument("guest", metavar="NAME", shell_complete=complete_guest)(function)


def guests_argument(function: F) -> F:
    """One or more guests' names."""
    argument = click.argument(
        "guests", metavar="NAME...", nargs=-1, required=True, shell_complete=complete_guest
    )
    return argument(function)


def format_option(function: F) -> F:
    """``--format table|json``."""
    option = click.option(
        "--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print."
    )  # fmt: skip
    return option(function)


def pairs_from(words: tuple[str, ...], option: str) -> dict[str, str]:
    """Return ``K=V`` words as a mapping; a usage error for a word without ``=``."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{word!r} is not K=V", param_hint=option)
        pairs[key] = value
    return pairs
