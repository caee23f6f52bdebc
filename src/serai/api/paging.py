"""Lists in parts. A cursor is opaque to clients; inside is the key of the last item they saw."""

import binascii
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol, TypeVar

from serai.api.bodies import Page
from serai.errors import Code, Invalid

T = TypeVar("T")


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """The name, unique in its list."""


class Identified(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """The id, unique everywhere."""


N = TypeVar("N", bound=Named)
S = TypeVar("S", bound=Identified)


def write_cursor(key: str) -> str:
    """Return the cursor for what comes after ``key``."""
    return urlsafe_b64encode(key.encode()).decode("ascii").rstrip("=")


def read_cursor(untrusted: str) -> str:
    """Return the key in a cursor; empty for none. Invalid (``value-invalid``) if it is not ours."""
    try:
        padded = untrusted.encode("ascii") + b"=" * (-len(untrusted) % 4)
        return b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise Invalid(
            Code.VALUE_INVALID,
            "the cursor is none of ours",
            hint="Send `next` of the page before, as it was.",
            details={"path": "$.cursor"},
        ) from error


def cut_page(found: list[T], limit: int, key: Callable[[T], str]) -> Page[T]:
    """Return the first ``limit`` of ``found``, which holds one more if there is a next page."""
    if len(found) <= limit:
        return Page(items=found)
    items = found[:limit]
    return Page(items=items, next=write_cursor(key(items[-1])))


def page_by_name(everything: list[N], limit: int, cursor: str) -> Page[N]:
    """Return one page of ``everything``, sorted by name.

    What is added or removed between two pages never shifts the others.
    """
    after = read_cursor(cursor)
    rest = sorted((each for each in everything if each.name > after), key=attrgetter("name"))
    return cut_page(rest[: limit + 1], limit, lambda each: each.name)


def page_in_order(everything: list[S], limit: int, cursor: str) -> Page[S]:
    """Return one page of ``everything`` in the order that it has.

    Raises Invalid (``value-invalid``) when what the last page ended with is gone.
    """
    begin = 0
    if after := read_cursor(cursor):
        places = (place for place, each in enumerate(everything, 1) if each.id == after)
        begin = next(places, -1)
    if begin < 0:
        raise Invalid(
            Code.VALUE_INVALID,
            "what the last page ended with is gone",
            hint="Begin the list anew, without a cursor.",
            details={"path": "$.cursor"},
        )
    return cut_page(everything[begin : begin + limit + 1], limit, lambda each: each.id)
