"""Random requests to every operation: each gets an answer that is documented, and never a bug.

Requests are made from the OpenAPI document: half of the values fit their schema, half are anything.
"""

import string
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from api_peer import Inn, served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serai.api.openapi import build_openapi
from serai.api.reference import operations

DOCUMENT = build_openapi()
OPERATIONS = [each for each in operations(DOCUMENT) if not each[2].get("x-websocket")]

ANY_TEXT = st.text(max_size=40)
SOME_TEXT = st.sampled_from(
    ["", "g0", "g1", "tiny", "debian", "/tmp/x", "0644", "../..", "a\0b", "-", "é", "x" * 300, "1"]
)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 5000) | st.sampled_from([1 << 28, 1 << 63, 1 << 70, -(1 << 64)])


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema allows, more or less."""
    if "$ref" in schema:
        return fitting(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        fields = {name: mixed(field) for name, field in schema["properties"].items()}
        required = {name: fields.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(required, optional=fields)
    if kind == "object":
        return st.dictionaries(SOME_TEXT, SOME_TEXT, max_size=3)
    if kind == "array":
        return st.lists(fitting(schema.get("items", {})), max_size=3)
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return NUMBERS
    if kind == "number":
        return st.sampled_from([0, 0.001, 1e300, -1.0])
    return SOME_TEXT | ANY_TEXT


def mixed(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values of which nearly all fit."""
    return st.integers(0, 9).flatmap(lambda dice: fitting(schema) if dice else ANY_VALUE)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes, dict[str, bytes]]:
    """Return method, target, body and headers of a request."""
    method, path, operation = draw(st.sampled_from(OPERATIONS))
    query, headers = [], {}
    for parameter in operation["parameters"]:
        name, where = parameter["name"], parameter["in"]
        if where == "path":
            path = path.replace(f"{{{name}}}", quote(draw(SOME_TEXT | ANY_TEXT) or "g0", safe=""))
        elif (
            where == "query" and name != "follow" and (parameter["required"] or draw(st.booleans()))
        ):
            query.append(f"{quote(name)}={quote(_as_text(draw(mixed(parameter['schema']))))}")
        elif where == "header" and name != "Accept" and draw(st.booleans()):
            headers[name] = draw(st.text(string.printable[:94], max_size=300)).encode()
    query += draw(st.lists(ANY_TEXT.map(quote), max_size=1))
    return method, f"{path}?{'&'.join(query)}", draw(_body_of(operation)), headers


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _body_of(operation: dict[str, Any]) -> st.SearchStrategy[bytes]:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        schema = content["application/json"]["schema"]
        return mixed(schema).map(msgspec.json.encode) | st.binary(max_size=30)
    return st.just(b"") | st.binary(max_size=30)


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        yield each


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(request=requests())
async def test_random_requests_never_find_a_bug(
    inn: Inn, request: tuple[str, str, bytes, dict[str, bytes]]
) -> None:
    method, target, body, headers = request
    inn.engine.all_guests.clear()
    inn.engine.add_guests(2)
    answer = await inn.ask(method, target, content=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code != 500, answer.text


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(junk=st.binary(max_size=200), start=st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST "]))
async def test_random_bytes_never_find_a_bug(inn: Inn, junk: bytes, start: bytes) -> None:
    """Whatever is sent, the answer (if the bytes deserve one) is well-formed, and others go on."""
    reader, writer = await inn.connect()
    writer.write(start + junk + b"\r\n\r\n")
    writer.write_eof()
    answered = await reader.read()
    writer.close()
    assert answered == b"" or answered.startswith((b"HTTP/1.1 4", b"HTTP/1.1 307"))
    assert (await inn.ask("GET", "/v1/guests")).status_code == 200
