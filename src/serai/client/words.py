"""What both SDKs share: results, and how what people write becomes what the API takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import msgspec

from serai.errors import Code, Invalid, SeraiError
from serai.model.event import Event
from serai.model.firstboot import FirstBoot
from serai.model.guest import Firmware, GuestChange, GuestSpec, RestartPolicy
from serai.model.schedule import Every, Keep, ScheduleChange, When
from serai.model.talk import ExecRequest, ExecResult
from serai.model.volume import DEFAULT_POOL, Limits, VolumeWish
from serai.units import parse_at, parse_duration, parse_size, shorten

E = TypeVar("E", bound=StrEnum)

Size = int | str
"""Bytes, or a text like ``256MiB``."""
Duration = float | str
"""Seconds, or a text like ``2h``."""
Held = list[str] | None
"""The ids of the forks that go with the guest that a ``with`` block holds; None: none holds it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a command in a guest. ``raw_stdout`` holds bytes that may be no text."""

    code: int
    raw_stdout: bytes
    raw_stderr: bytes
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """True when the command ended with 0."""
        return self.code == 0

    @property
    def stdout(self) -> str:
        """Its standard output as text."""
        return self.raw_stdout.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its standard error as text."""
        return self.raw_stderr.decode(errors="replace")


def size_of(size: Size) -> int:
    """Return bytes; Invalid (``size-invalid``)."""
    return size if isinstance(size, int) else parse_size(size)


def seconds_of(duration: Duration) -> float:
    """Return seconds; Invalid (``value-invalid``)."""
    return parse_duration(duration) if isinstance(duration, str) else float(duration)


def choice_of(kind: type[E], word: str) -> E:
    """Return a word as one of ``kind``; Invalid (``value-invalid``) if it is none."""
    try:
        return kind(word)
    except ValueError as error:
        raise Invalid(
            Code.VALUE_INVALID, f"{shorten(word)} is none of {', '.join(kind)}"
        ) from error


def spec_of(
    image: str,
    *,
    name: str = "",
    cpus: int = 1,
    memory: Size = "256MiB",
    disk: Size = 0,
    firmware: str = "bios",
    restart: str = "no",
    labels: Mapping[str, str] | None = None,
) -> GuestSpec:
    """Return the spec of a guest; Invalid for a size that is none."""
    return GuestSpec(
        image=image,
        name=name,
        cpus=cpus,
        memory=size_of(memory),
        disk=size_of(disk),
        firmware=choice_of(Firmware, firmware),
        restart=choice_of(RestartPolicy, restart),
        labels=dict(labels or {}),
    )


def limits_of(*, iops: int, iops_burst: int, bps: Size, bps_burst: Size, seconds: int) -> Limits:
    """Return the limits of a volume; Invalid for a size that is none."""
    return Limits(
        iops=iops,
        iops_burst=iops_burst,
        bps=size_of(bps),
        bps_burst=size_of(bps_burst),
        burst_seconds=seconds,
    )


def wishes_of(volumes: Sequence[str | VolumeWish]) -> list[VolumeWish]:
    """Return volumes for a new guest; a text is what ``--volume`` takes."""
    return [parse_wish(each) if isinstance(each, str) else each for each in volumes]


def parse_wish(text: str) -> VolumeWish:
    """Read ``NAME[,read-only][,boot=N]`` or ``[NAME,]size=10GiB[,pool=POOL][,boot=N]``.

    Raises Invalid (``value-invalid``, ``size-invalid``).
    """
    words = text.split(",")
    given: dict[str, str] = {}
    for place, word in enumerate(words):
        key, equals, value = word.partition("=")
        if place == 0 and not equals:
            key, value = "name", word
        elif key == "read-only":
            value = "" if equals else "yes"
        if key not in ("name", "size", "pool", "boot", "read-only") or key in given or not value:
            raise Invalid(
                Code.VALUE_INVALID,
                f"{shorten(text)} asks for no volume",
                hint="Write NAME, NAME,read-only, or size=10GiB; with boot=N to boot from it.",
            )
        given[key] = value
    if not given.keys() & {"name", "size"}:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} names no volume and no size")
    boot = given.get("boot", "0")
    if not (boot.isascii() and boot.isdigit() and len(boot) < 4):
        raise Invalid(Code.VALUE_INVALID, f"{shorten(boot)} is no place in the order of booting")
    return VolumeWish(
        name=given.get("name", ""),
        size=size_of(given.get("size", 0)),
        pool=given.get("pool", DEFAULT_POOL),
        read_only="read-only" in given,
        boot=int(boot),
    )


def first_boot_of(
    *, hostname: str = "", ssh_keys: Sequence[Path | str] = (), user_data: Path | bytes | str = ""
) -> FirstBoot:
    """Return what a guest is told at its first boot; a path stands for what the file holds.

    Raises Invalid (``ssh-key-invalid``, ``user-data-invalid``) for what is better not even sent.
    """
    return FirstBoot(
        hostname=hostname,
        ssh_keys=tuple(line for each in ssh_keys for line in _key_lines(each)),
        user_data=_text_of(user_data, Code.USER_DATA_INVALID),
    )


def _key_lines(given: Path | str) -> list[str]:
    """Return the keys in a text or file, as ``authorized_keys`` has them: one a line."""
    text = _text_of(given, Code.SSH_KEY_INVALID)
    if "PRIVATE KEY" in text:
        raise Invalid(
            Code.SSH_KEY_INVALID,
            f"{given if isinstance(given, Path) else 'what was given'} is a private key",
            hint="It stays with you. Give the public one: the file with .pub.",
        )
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise Invalid(Code.SSH_KEY_INVALID, f"there is no ssh key in {shorten(str(given))}")
    return found


def _text_of(given: Path | bytes | str, code: Code) -> str:
    if isinstance(given, str):
        return given
    try:
        return (given if isinstance(given, bytes) else given.read_bytes()).decode()
    except UnicodeDecodeError as error:
        what = given if isinstance(given, Path) else "what was given"
        raise Invalid(code, f"{what} is no text (UTF-8)") from error


def change_of(
    *,
    cpus: int | None = None,
    memory: Size | None = None,
    disk: Size | None = None,
    restart: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> GuestChange:
    """Return a change of what is given; the rest stays."""
    unset = msgspec.UNSET
    return GuestChange(
        cpus=unset if cpus is None else cpus,
        memory=unset if memory is None else size_of(memory),
        disk=unset if disk is None else size_of(disk),
        restart=unset if restart is None else choice_of(RestartPolicy, restart),
        labels=unset if labels is None else dict(labels),
    )


PERIODS = tuple(str(each) for each in Every if each is not Every.INTERVAL)


def when_of(every: Duration, at: str = "") -> When:
    """Return when: ``hourly``, ``daily``, ``weekly``, ``monthly`` ``at`` a time in it (UTC), or "15m".

    Raises Invalid (``value-invalid``) for what is none of them.
    """
    if isinstance(every, str) and every in PERIODS:
        return When(every=Every(every), at=parse_at(every, at) if at else 0.0)
    if at:
        raise Invalid(
            Code.VALUE_INVALID,
            f"an interval has no time of day, and {shorten(at)} was given",
            hint="Leave it away, or say hourly, daily, weekly or monthly.",
        )
    return When(every=Every.INTERVAL, interval=seconds_of(every))


def schedule_change_of(
    *,
    every: Duration = "",
    at: str = "",
    keep: Keep | None = None,
    memory: bool | None = None,
    quiesce: bool | None = None,
    name_as: str | None = None,
    paused: bool | None = None,
) -> ScheduleChange:
    """Return a change of what is given; the rest stays. ``every`` and ``at`` go together."""
    unset = msgspec.UNSET
    if at and not every:
        raise Invalid(Code.VALUE_INVALID, "a time needs to be said of what", hint="Give every too.")
    return ScheduleChange(
        when=when_of(every, at) if every else unset,
        keep=unset if keep is None else keep,
        memory=unset if memory is None else memory,
        quiesce=unset if quiesce is None else quiesce,
        name_as=unset if name_as is None else name_as,
        paused=unset if paused is None else paused,
    )


class ScheduleOptions(TypedDict, total=False):
    """What may be said of a schedule beside when: see ``Guest.schedule``."""

    keep: Keep
    memory: bool
    quiesce: bool
    name_as: str


def request_of(
    command: str | Sequence[str],
    *,
    stdin: bytes | str = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = 0.0,
) -> ExecRequest:
    """Return the request for a command: a text goes to the guest's shell, a list is run as it is."""
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    data = stdin.encode() if isinstance(stdin, str) else stdin
    return ExecRequest(argv=argv, stdin=data, env=dict(env or {}), timeout=timeout)


def result_of(answer: ExecResult) -> Result:
    """Return what became of a command."""
    return Result(answer.code, answer.stdout, answer.stderr, answer.truncated)


class ForkOptions(TypedDict, total=False):
    """What may be said of forks: see ``Guest.fork``."""

    name: str
    keep_identity: bool
    together: Iterable[str]
    ttl: Duration
    wait: bool


def fork_words(
    *,
    name: str = "",
    keep_identity: bool = False,
    together: Iterable[str] = (),
    ttl: Duration = 0.0,
    wait: bool = True,
) -> dict[str, Any]:
    """Return the options of a fork as the API takes them; TypeError for one that is none."""
    return {
        "name": name,
        "keep_identity": keep_identity,
        "together": tuple(together),
        "ttl": seconds_of(ttl),
        "wait_agent": wait,
    }


def tell_of_cleaning(wrong: Sequence[SeraiError], error: BaseException | None) -> None:
    """Raise what went wrong at the end of a block; if the block failed, tell of it as a note there."""
    if error is None and wrong:
        raise wrong[0]
    for each in wrong:
        assert error is not None
        error.add_note(f"and something is left: {each.message}")


class EventReader:
    """Finds the events in a text/event-stream, whatever pieces it comes in (WHATWG HTML, 9.2)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Give the events that are complete now."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield msgspec.json.decode(line[5:], type=Event)


def read_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Give the events of a stream."""
    reader = EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
