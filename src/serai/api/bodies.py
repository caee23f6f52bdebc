"""Untrusted text becomes typed values here: bodies, query strings and a few headers.

The structs below are what callers may send, one per kind of request; a body or parameter that is
none of theirs is refused with the JSON path of what is wrong. Actions and results are the structs
of ``model``. When a second version of the API comes, its old bodies are converted upwards here.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException
from msgspec import Meta

from serai.errors import Code, Interrupted, Invalid
from serai.model.event import Event
from serai.model.guest import Guest, GuestChange, GuestSpec
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.talk import ExecRequest
from serai.units import MIB, shorten

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

MAX_WAIT = 3600.0
MAX_PAGE = 10_000
MAX_PARAMETERS = 128
KEY_LENGTH = 255
BODY_TIMEOUT = 30.0


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters in a query string."""


class NoQuery(Query, frozen=True):
    """No parameters."""


Wait = Annotated[
    float,
    Meta(
        ge=0,
        le=MAX_WAIT,
        description="How many seconds to wait for the end of the job; 0: not at all.",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="At most so many items.")]
Cursor = Annotated[str, Meta(description="Where to go on: `next` of the page before.")]


class WaitQuery(Query, frozen=True):
    """For what makes a job, and for one job."""

    wait: Wait = 0.0


class PageQuery(Query, frozen=True):
    """For lists."""

    limit: Limit = 1000
    cursor: Cursor = ""


class GuestsQuery(PageQuery, frozen=True):
    """For the list of guests."""

    label: Annotated[
        list[str], Meta(description="Only guests with this label, as `key=value`; may be repeated.")
    ] = []


class DeleteQuery(WaitQuery, frozen=True):
    """For deleting a guest."""

    force: Annotated[bool, Meta(description="Kill it first if it runs.")] = False


class JobsQuery(Query, frozen=True):
    """For the list of jobs."""

    state: Annotated[JobState, Meta(description="Only jobs in this state.")] | None = None
    limit: Limit = 100
    cursor: Cursor = ""


class EventsQuery(Query, frozen=True):
    """For events."""

    after: (
        Annotated[
            int,
            Meta(
                ge=0,
                description="Only events with a number above this; a stream without it has only new ones.",
            ),
        ]
        | None
    ) = None
    limit: Limit = 1000


class PullQuery(Query, frozen=True):
    """For reading a file."""

    path: Annotated[str, Meta(description="An absolute path in the guest.")]
    pack: Annotated[bool, Meta(description="It is a folder: give a tar of what is in it.")] = False


class PushQuery(Query, frozen=True):
    """For writing a file."""

    path: Annotated[str, Meta(description="An absolute path in the guest.")]
    mode: Annotated[str, Meta(pattern="^[0-7]{3,4}$", description="Permissions, octal.")] = "0644"
    unpack: Annotated[
        bool, Meta(description="The body is a tar: unpack it into the folder `path`.")
    ] = False


class LogQuery(Query, frozen=True):
    """For the serial log."""

    follow: Annotated[bool, Meta(description="Go on with what the guest prints next.")] = False
    tail: (
        Annotated[
            int, Meta(ge=0, description="Begin so many bytes before the end; else at the start.")
        ]
        | None
    ) = None


class ExportFile(StrEnum):
    """What to export of an image."""

    ALL = "all"
    DISK = "disk"
    KERNEL = "kernel"
    INITRD = "initrd"


class ExportQuery(Query, frozen=True):
    """For exporting an image."""

    file: Annotated[
        ExportFile, Meta(description="One file of the image as it is, or a tar of all of it.")
    ] = ExportFile.ALL


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON body."""


class NoBody(Body, frozen=True):
    """Nothing, or an empty object."""


class LaunchBody(GuestSpec, frozen=True, kw_only=True):
    """A guest to be: its specification, and what to do at once.

    Sizes are bytes. ``disk`` 0 means the image's own size. Without ``start`` it is only defined;
    with ``wait_agent`` the job lasts until the agent in the guest answers, where it has one.
    """

    start: bool = True
    wait_agent: bool = True


class StopBody(Body, frozen=True):
    """How to stop: ``timeout`` is in seconds, 0 is the daemon's setting."""

    force: bool = False
    timeout: Annotated[float, Meta(ge=0, le=86400)] = 0.0


class RenameBody(Body, frozen=True):
    """The new name."""

    name: str


class BuildBody(Body, frozen=True):
    """What to build: ``recipe`` is ``tiny`` or ``debian``; the name is the recipe's unless given."""

    recipe: str
    name: str = ""
    suite: str = ""
    include: tuple[str, ...] = ()
    replace: bool = False


class ImportBody(Body, frozen=True):
    """What to import: ``source`` is an absolute path on the daemon's host or an http(s) URL.

    With ``kernel`` the source is a kernel, and ``initrd`` and ``cmdline`` go with it. ``agent``
    says whether a guest agent is in it: ``yes``, ``no`` or ``unknown``.
    """

    source: str
    name: str = ""
    sha256: str = ""
    kernel: bool = False
    initrd: str = ""
    cmdline: str = ""
    agent: str = "unknown"


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A part of a list. ``next`` is the cursor of the part that follows; empty: there is none."""

    items: list[T]
    next: str = ""


class GuestPage(Page[Guest], frozen=True):
    """A page of guests."""


class ImagePage(Page[Image], frozen=True):
    """A page of images."""


class JobPage(Page[Job], frozen=True):
    """A page of jobs."""


class EventPage(Page[Event], frozen=True):
    """A page of events. ``next`` is what to send as ``after``."""


EXAMPLES: Mapping[type[msgspec.Struct], Mapping[str, object]] = {
    LaunchBody: {"image": "tiny", "name": "web1", "cpus": 2, "memory": 512 * MIB},
    GuestChange: {"memory": 1024 * MIB},
    StopBody: {"timeout": 20},
    RenameBody: {"name": "web2"},
    ExecRequest: {"argv": ["uname", "-a"], "timeout": 10},
    BuildBody: {"recipe": "debian", "suite": "bookworm", "include": ["nginx"]},
    ImportBody: {"source": "https://example.org/disk.qcow2", "name": "mine"},
}
"""What a body looks like, for the pages; a test decodes each."""


def body_decoder(kind: type[S]) -> Callable[[bytes], S]:
    """Return a function that reads a JSON body as ``kind``; no body at all is an empty object.

    It raises Invalid (``body-invalid``) with the path of what is wrong.
    """
    decode = msgspec.json.Decoder(kind).decode
    fields = ", ".join(kind.__struct_encode_fields__) or "none"

    def read(untrusted: bytes) -> S:
        try:
            return decode(untrusted or b"{}")
        except msgspec.ValidationError as error:
            raise _refuse(
                Code.BODY_INVALID, error, "the body", f"It may have: {fields}."
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(
                Code.BODY_INVALID, f"the body is no JSON: {error}", hint="Send one JSON object."
            ) from error

    return read


def query_decoder(kind: type[S]) -> Callable[[bytes], S]:
    """Return a function that reads a query string as ``kind``.

    It raises Invalid (``value-invalid``) with the name of the parameter that is wrong.
    """
    lists = {
        field.name
        for field in msgspec.structs.fields(kind)
        if isinstance(field.default_factory, type) and issubclass(field.default_factory, list)
    }
    fields = ", ".join(kind.__struct_fields__) or "none"

    def read(untrusted: bytes) -> S:
        values: dict[str, Any] = {}
        for name, text in _split_query(untrusted):
            if name in lists:
                values.setdefault(name, []).append(text)
            elif name in values:
                raise Invalid(Code.VALUE_INVALID, f"the parameter {shorten(name)} is given twice")
            else:
                values[name] = text
        try:
            return msgspec.convert(values, kind, strict=False)
        except msgspec.ValidationError as error:
            raise _refuse(
                Code.VALUE_INVALID, error, "the query", f"Parameters here: {fields}."
            ) from error

    return read


def _split_query(untrusted: bytes) -> list[tuple[str, str]]:
    if not untrusted:
        return []
    try:
        return parse_qsl(
            untrusted.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as error:
        raise Invalid(
            Code.VALUE_INVALID,
            "the query string can't be read",
            hint=f"Give at most {MAX_PARAMETERS} parameters, in percent-encoded UTF-8.",
        ) from error


def _refuse(code: Code, error: msgspec.ValidationError, what: str, hint: str) -> Invalid:
    """Return the refusal for msgspec's message, which reads ``Expected … - at `$.memory```."""
    message, _, at = str(error).partition(" - at ")
    path = at.strip("`") or "$"
    where = "" if path == "$" else f" at {path}"
    return Invalid(code, f"{what} is wrong{where}: {message}", hint=hint, details={"path": path})


def _announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request with these headers has a body."""
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in headers
    )


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """Read the whole body of a request, at most as long as its route allows, within 30 s.

    Raises Litestar's own error for a body that is too large, before it is read if its length was
    announced; Invalid (``request-too-slow``); Interrupted when the client went away.
    """
    if not _announces_body(request.scope["headers"]):
        return b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            untrusted = await request.body()
    except TimeoutError as error:
        raise Invalid(
            Code.REQUEST_TOO_SLOW, f"the body did not arrive within {BODY_TIMEOUT:.0f} s"
        ) from error
    except InternalServerException as error:
        raise Interrupted(Code.BODY_INVALID, "the client went away within its body") from error
    return untrusted


def read_header(request: Request[Any, Any, Any], name: bytes) -> str:
    """Return a request header, or an empty text."""
    for each, untrusted in request.scope["headers"]:
        if each == name:
            return untrusted.decode("latin-1").strip()
    return ""


def read_key(request: Request[Any, Any, Any]) -> str:
    """Return the Idempotency-Key; Invalid if it is not short and printable ASCII."""
    untrusted = read_header(request, b"idempotency-key")
    if len(untrusted) > KEY_LENGTH or not (untrusted.isascii() and untrusted.isprintable()):
        raise Invalid(
            Code.VALUE_INVALID,
            "the Idempotency-Key is not usable",
            hint=f"Use at most {KEY_LENGTH} printable ASCII characters, like a UUID.",
            details={"path": "Idempotency-Key"},
        )
    return untrusted


def read_version(request: Request[Any, Any, Any]) -> int:
    """Return the version in If-Match; 0, which matches all, for none and for ``*``."""
    untrusted = read_header(request, b"if-match")
    if untrusted in {"", "*"}:
        return 0
    digits = untrusted.removeprefix('"').removesuffix('"')
    if digits.isascii() and digits.isdigit() and len(digits) <= 18 and int(digits) > 0:
        return int(digits)
    raise Invalid(
        Code.VALUE_INVALID,
        "If-Match is not an ETag of a guest",
        hint='Send the ETag of GET as it was, like "3".',
        details={"path": "If-Match"},
    )
