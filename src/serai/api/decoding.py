"""Untrusted text becomes typed values here: bodies, query strings and a few headers.

What is not of the type that its route names is refused with the JSON path of what is wrong, and so
is every unknown field and parameter. Nothing that is decoded here is trusted further: names, sizes
and paths are checked by whoever knows what they mean.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from serai.errors import Code, Interrupted, Invalid
from serai.units import shorten

S = TypeVar("S", bound=msgspec.Struct)

MAX_PARAMETERS = 128
KEY_LENGTH = 255
BODY_TIMEOUT = 30.0


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
