"""What tells why a test failed: the console, the screen and the last events of its guests.

Nothing here raises: what can't be had is told instead, since the failure of the test counts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from serai.client import daemon_calls, guest_calls
from serai.client.guests import Guest
from serai.client.inn import Inn
from serai.model.event import Event

CONSOLE_TAIL = 8 << 10
EVENTS_TOLD = 12
PAGE = 1000
LIMIT = 10.0
"""How long each piece may take to come, in seconds."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a test's report."""

    title: str
    text: str


def _of(subject: str, what: str, ask: Callable[[], str]) -> Section:
    try:
        text = ask()
    except Exception as error:  # the test's own failure is not to be masked by any of ours
        text = f"could not be had: {type(error).__name__}: {error}"
    return Section(f"serai: {what} of {subject}", text)


def gather(inn: Inn, guest: Guest, folder: Path) -> Iterator[Section]:
    """Give what is known of ``guest``; its screen and whole log are put into ``folder``."""
    yield _of(guest.name, "console", lambda: _console(inn, guest, folder))
    yield _of(guest.name, "screen", lambda: _screen(inn, guest, folder))
    yield _of(guest.name, "last events", lambda: _events(inn, guest))


def _console(inn: Inn, guest: Guest, folder: Path) -> str:
    call = replace(guest_calls.show_log(guest.id), timeout=LIMIT)
    whole = b"".join(inn.connection.stream(call))
    path = _place(folder, f"{guest.name}.log")
    path.write_bytes(whole)
    tail = whole[-CONSOLE_TAIL:].decode(errors="replace").replace("\r\n", "\n").rstrip()
    if len(whole) <= CONSOLE_TAIL:
        return tail or "(it printed nothing)"
    return f"(its end; all of it: {path})\n{tail.partition(chr(10))[2]}"


def _screen(inn: Inn, guest: Guest, folder: Path) -> str:
    picture = inn.connection.ask(replace(guest_calls.take_screenshot(guest.id), timeout=LIMIT))
    path = _place(folder, f"{guest.name}.png")
    path.write_bytes(picture)
    return str(path)


def _place(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ignored = folder.parent / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
    return folder / name


def _events(inn: Inn, guest: Guest) -> str:
    mine = [each for each in _all_events(inn) if each.subject_id == guest.id]
    told = [_line(each) for each in mine[-EVENTS_TOLD:]]
    return "\n".join([*told, _state(guest)])


def _all_events(inn: Inn) -> Iterator[Event]:
    after = 0
    while page := inn.connection.ask(daemon_calls.list_events(after, PAGE)).items:
        yield from page
        after = page[-1].seq


def _line(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S.%f")[:-3]
    data = " ".join(f"{key}={value}" for key, value in event.data.items())
    return f"{at}  {event.kind}  {data}".rstrip()


def _state(guest: Guest) -> str:
    info = guest.refresh().info
    problem = f"; {info.problem.message}" if info.problem else ""
    return f"now {info.state}, its agent {info.agent}{problem}"
