"""Options and arguments that many commands share, and the connection they use."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from serai.cli.fast import fetch_guests
from serai.client.blocking import Connection
from serai.client.calls import Call, Page
from serai.client.image_calls import list_images
from serai.client.network_calls import list_groups, list_networks
from serai.client.snapshot_calls import list_schedules, list_snapshots
from serai.client.volume_calls import list_volumes
from serai.errors import Code, Invalid, SeraiError
from serai.model.guest import MAX_TTL
from serai.settings import current_places
from serai.units import parse_duration, parse_size, split_source

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


class Lifetime(Duration):
    """How long a guest lives; who leaves it out has it for ever."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return seconds; Invalid (``value-invalid``) for none, and for more than ten years."""
        seconds = super().convert(value, param, ctx)
        if isinstance(value, float) or 0 < seconds <= MAX_TTL:
            return seconds
        raise Invalid(
            Code.VALUE_INVALID,
            "a guest lives at most 10 years" if seconds else "a guest lives longer than 0 s",
            hint="Leave --ttl out, and it is not deleted by itself.",
        )


SIZE = Size()
DURATION = Duration()
LIFETIME = Lifetime()


def connection() -> Connection:
    """Return the connection to this environment's daemon."""
    return Connection(current_places().socket)


def complete_guest(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a guest."""
    names = [str(guest["name"]) for guest in fetch_guests() or []]
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_volume(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a volume."""
    try:
        names = [each.name for each in connection().ask(list_volumes()).items]
    except SeraiError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_image(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of an image."""
    return _complete(list_images(), begun)


def complete_network(
    ctx: click.Context, param: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete the name of a network."""
    return _complete(list_networks(), begun)


def complete_group(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a security group."""
    return _complete(list_groups(), begun)


def _complete(call: Call[Page[Any]], begun: str) -> list[CompletionItem]:
    try:
        names = [each.name for each in connection().ask(call).items]
    except SeraiError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_source(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete ``GUEST`` or, from the ``@`` on, ``GUEST@SNAPSHOT``."""
    guest, at, _ = begun.partition("@")
    if not at:
        return complete_guest(ctx, param, begun)
    names = [f"{guest}@{name}" for name in _snapshot_names(guest)]
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_snapshot(
    ctx: click.Context, param: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete ``GUEST SNAPSHOT…`` and ``GUEST@SNAPSHOT…``."""
    guest, *given = ctx.params.get("words") or ("",)
    if not guest or "@" in guest:
        return complete_source(ctx, param, begun)
    names = [name for name in _snapshot_names(guest) if name not in given]
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def complete_schedule(
    ctx: click.Context, param: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Complete the name of a schedule, once its guest is given."""
    try:
        found = connection().ask(list_schedules(ctx.params.get("guest") or "-")).items
    except SeraiError:
        return []
    return [CompletionItem(each.name) for each in found if each.name.startswith(begun)]


def _snapshot_names(guest: str) -> list[str]:
    try:
        return [each.name for each in connection().ask(list_snapshots(guest)).items]
    except SeraiError:
        return []


def new_name_argument(metavar: str) -> Callable[[F], F]:
    """The name of what is to be made: "" where it is left out, and never given as that."""
    return click.argument("name", metavar=metavar, required=False, default=None, callback=_given)


def _given(ctx: click.Context, param: click.Parameter, name: str | None) -> str:
    if name == "":
        raise Invalid(Code.NAME_INVALID, "'' is no name", hint="Leave it out, or give one.")
    return name or ""


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


def snapshots_from(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``GUEST SNAPSHOT…`` or ``GUEST@SNAPSHOT…`` as pairs, at least one.

    Raises a usage error when a snapshot is missing, and Invalid (``name-invalid``) as
    ``split_source`` does.
    """
    if "@" not in words[0]:
        words = [f"{words[0]}@{name}" for name in words[1:]]
    pairs = [split_source(word) for word in words]
    if not pairs or not all(snapshot for _, snapshot in pairs):
        raise click.UsageError(
            "Which snapshot? Write GUEST SNAPSHOT, or GUEST@SNAPSHOT.", click.get_current_context()
        )
    return pairs


def pairs_from(words: tuple[str, ...], option: str) -> dict[str, str]:
    """Return ``K=V`` words as a mapping; a usage error for a word without ``=``."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{word!r} is not K=V", param_hint=option)
        pairs[key] = value
    return pairs
