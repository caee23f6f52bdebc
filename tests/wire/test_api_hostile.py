"""What no decent client sends. Each gets a problem with its code, nothing changes, nothing hangs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from api_peer import Inn, flood, read_answer, read_head, served
from msgspec import json

from serai.api import server
from serai.api.decoding import body_decoder
from serai.errors import Code, HostFailure, Invalid

DEEP = 100_000


@pytest.fixture
async def inn(tmp_path: Path) -> AsyncIterator[Inn]:
    async with served(tmp_path) as each:
        each.engine.add_guests(3)
        yield each
        assert each.engine.actions == [], "a refused request did something"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"[]", "$"),
        (b"null", "$"),
        (b'"x"', "$"),
        (b"{}", "$"),
        (b'{"image": 5}', "$.image"),
        (b'{"image": "tiny", "memory": "256MiB"}', "$.memory"),
        (b'{"image": "tiny", "memory": 1.5}', "$.memory"),
        (b'{"image": "tiny", "memory": true}', "$.memory"),
        (b'{"image": "tiny", "memory": 1e999}', "$.memory"),
        (b'{"image": "tiny", "memory": 1' + b"0" * 5000 + b"}", "$.memory"),
        (b'{"image": "tiny", "labels": {"a": 1}}', "$.labels[...]"),
        (b'{"image": "tiny", "labels": [["a", "b"]]}', "$.labels"),
        (b'{"image": "tiny", "firmware": "coreboot"}', "$.firmware"),
        (b'{"image": "tiny", "start": "yes"}', "$.start"),
        (b'{"image": "tiny", "colour": "red"}', "$"),
        (b'{"image": "tiny", "kind": "launch"}', "$.kind"),
    ],
)
async def test_wrong_types_name_the_path(inn: Inn, body: bytes, path: str) -> None:
    answer = await inn.ask("POST", "/v1/guests", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "body-invalid")
    assert answer.json()["details"] == {"path": path}


async def test_an_unknown_field_is_named_and_the_known_ones_are_told(inn: Inn) -> None:
    answer = await inn.ask("POST", "/v1/guests", {"image": "tiny", "memry": 5})
    assert "memry" in answer.json()["message"]
    assert "memory" in answer.json()["hint"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"image": "\xff"}',
        b'{"image": "\\ud800"}',
        b'{"image": "\\udfff"}',
        b'{"image": "tiny"} {}',
        b"{'image': 'tiny'}",
        b"\x00",
        b"NaN",
        b"\xef\xbb\xbf{}",
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'{"image":' + b"[" * DEEP,
        b'{"labels":' + b'{"a":' * DEEP,
        b"[" * DEEP + b"]" * DEEP,
    ],
)
async def test_what_is_no_json(inn: Inn, body: bytes) -> None:
    assert await inn.refused("POST", "/v1/guests", content=body) == "400 body-invalid"


async def test_a_verb_takes_no_unknown_body(inn: Inn) -> None:
    assert await inn.refused("POST", "/v1/guests/g1/start", {"force": True}) == "400 body-invalid"
    assert await inn.refused("POST", "/v1/guests/g1/stop", {"timeout": -1}) == "400 body-invalid"


@pytest.mark.parametrize(
    "query",
    ["wait=x", "wait=-1", "wait=3601", "wait=nan", "wait=inf", "wait=1&wait=2", "w=1", "wait=%ff",
     "&".join(["a=1"] * 200), "wait=" + "1" * 5000, "%00=1", "wait"],
)  # fmt: skip
async def test_queries_that_are_wrong(inn: Inn, query: str) -> None:
    refused = await inn.refused("POST", f"/v1/guests/g1/start?{query}")
    assert refused == "400 value-invalid"


async def test_a_query_that_is_no_utf8_names_no_other_file(inn: Inn) -> None:
    assert await inn.refused("GET", "/v1/guests/g1/files?path=/%ff") == "400 value-invalid"


async def test_a_query_has_few_parameters(inn: Inn) -> None:
    many = "&".join(["label=a=1"] * 1000)
    assert await inn.refused("GET", f"/v1/guests?{many}") == "400 value-invalid"


def test_deep_json_in_a_part_that_is_skipped() -> None:
    class Loose(msgspec.Struct):
        pass

    with pytest.raises(Invalid, match="recursion"):
        body_decoder(Loose)(b'{"a":' + b"[" * DEEP)


@pytest.mark.parametrize("cursor", ["!", "a", "%F0%9F%90%AB", "////", "_w", "-" * 500])
async def test_cursors_that_are_not_ours(inn: Inn, cursor: str) -> None:
    assert await inn.refused("GET", f"/v1/guests?cursor={cursor}") == "400 value-invalid"


@pytest.mark.parametrize(
    "name",
    [
        "nope",
        "g1%2F",
        "g1%2Fstop",
        "%2fg1",
        "%00",
        "%0a",
        "a%0d%0ab",
        "..%5c",
        "%ff",
        "%F0%9F%90%AB",
        "-x",
        "x" * 10_000,
    ],
)
async def test_names_that_nobody_has(inn: Inn, name: str) -> None:
    assert await inn.refused("GET", f"/v1/guests/{name}") == "404 guest-not-found"
    assert await inn.refused("POST", f"/v1/guests/{name}/start") == "404 guest-not-found"


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v2/guests", "/v1/guests/a/b/c"])
async def test_paths_that_lead_nowhere(inn: Inn, path: str) -> None:
    assert await inn.refused("GET", path) == "404 route-not-found"


async def test_an_encoded_slash_is_part_of_a_name(inn: Inn) -> None:
    assert await inn.refused("POST", "/v1/guests/g1%2Fstop") == "405 method-not-allowed"
    assert await inn.refused("DELETE", "/v1/guests/g1%2F") == "404 guest-not-found"
    assert (await inn.ask("GET", "/v1/guests/%671")).json()["name"] == "g1"


async def test_dots_in_a_path_are_not_climbed(inn: Inn) -> None:
    request = b"GET /v1/guests/../system HTTP/1.1\r\nhost: x\r\n\r\n"
    status, _, body = await inn.send_raw(request)
    assert (status, json.decode(body)["code"]) == (404, "route-not-found")


async def test_wrong_method_tells_the_right_ones(inn: Inn) -> None:
    answer = await inn.ask("PUT", "/v1/guests/g1")
    assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "PATCH", "DELETE", "OPTIONS"}


async def test_the_console_is_for_websockets(inn: Inn) -> None:
    answer = await inn.ask("GET", "/v1/guests/g1/console")
    assert (answer.status_code, answer.json()["hint"]) == (405, "Open it as a WebSocket.")


HEAD = b"POST /v1/guests HTTP/1.1\r\nhost: serai\r\n"


@pytest.mark.parametrize("path", ["/v1/guests", "/v1/guests/nope/stop"])
async def test_a_gigabyte_is_refused_before_it_is_read(inn: Inn, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n".encode()
    sent, answered = await asyncio.to_thread(flood, inn.path, head, bytes(65536), 1 << 30)
    assert sent < 4 << 20
    assert b"body-too-large" in answered


async def test_a_gigabyte_in_chunks_is_refused_at_the_limit(inn: Inn) -> None:
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent, answered = await asyncio.to_thread(flood, inn.path, head, chunk, 1 << 30)
    assert sent < server.LINGER_LIMIT + (4 << 20)
    assert b"body-too-large" in answered


async def test_an_upload_to_nobody_is_not_read_to_its_end(inn: Inn) -> None:
    head = (
        b"PUT /v1/guests/nope/files?path=/x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
    )
    sent, answered = await asyncio.to_thread(flood, inn.path, head, bytes(65536), 99999999)
    assert sent < 4 << 20
    assert b"guest-not-found" in answered


async def test_a_small_upload_to_nobody_is_told_why(inn: Inn) -> None:
    """A client that sends all before it reads anything must not see a broken pipe."""
    refused = await inn.refused("PUT", "/v1/guests/nope/files?path=/x", content=bytes(4 << 20))
    assert refused == "404 guest-not-found"
    assert (await inn.ask("GET", "/v1/system")).status_code == 200


async def test_lingering_has_an_end(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LINGER_TIMEOUT", 0.05)
    reader, writer = await inn.connect()
    writer.write(b"PUT /v1/guests/nope/files?path=/x HTTP/1.1\r\ncontent-length: 99\r\n\r\na")
    assert (await read_answer(reader))[0] == 404
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /v1/system HTTP/1.1\r\nhost: a b<>\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request(inn: Inn, request_bytes: bytes) -> None:
    status, headers, body = await inn.send_raw(request_bytes)
    assert status in (400, 404)
    assert headers["content-type"] == "application/problem+json"
    assert json.decode(body)["code"] in ("request-malformed", "route-not-found")


@pytest.mark.parametrize("start", [b"GET /v1/guests/", b"GET / HTTP/1.1\r\nx-long: "])
async def test_a_head_without_end_is_cut(inn: Inn, start: bytes) -> None:
    status, _, body = await inn.send_raw(start, b"a" * (server.HEAD_LIMIT + 1000))
    assert (status, json.decode(body)["code"]) == (431, "head-too-large")


async def test_many_headers_are_cut(inn: Inn) -> None:
    lines = b"".join(b"x-%d: y\r\n" % number for number in range(10_000))
    status, _, body = await inn.send_raw(b"GET / HTTP/1.1\r\n", lines)
    assert (status, json.decode(body)["code"]) == (431, "head-too-large")


async def test_trailers_without_end_are_cut(inn: Inn) -> None:
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    trailer = b"x-trailer: " + b"y" * 65536 + b"\r\n"
    sent, answered = await asyncio.to_thread(flood, inn.path, head, trailer, 1 << 26)
    assert sent < 4 << 20
    assert b"head-too-large" in answered


async def test_a_slow_head_is_cut(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT", 0.05)
    status, _, body = await inn.send_raw(b"GET /v1/sys")
    assert (status, json.decode(body)["code"]) == (408, "request-too-slow")


async def test_a_slow_body_is_cut(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.api.decoding.BODY_TIMEOUT", 0.05)
    status, _, body = await inn.send_raw(HEAD + b"content-length: 100\r\n\r\n{")
    assert (status, json.decode(body)["code"]) == (408, "request-too-slow")


async def test_a_slow_upload_is_cut(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.api.streams.CHUNK_TIMEOUT", 0.05)
    request = b"PUT /v1/guests/g1/files?path=/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\na"
    status, _, body = await inn.send_raw(request)
    assert (status, json.decode(body)["code"]) == (408, "request-too-slow")
    assert inn.engine.files == {}


async def test_a_body_that_breaks_off_does_nothing(inn: Inn) -> None:
    _, writer = await inn.connect()
    writer.write(HEAD + b'content-length: 100\r\n\r\n{"image": "tiny"}')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await inn.ask("GET", "/v1/guests")).status_code == 200
    assert len(inn.engine.all_guests) == 3


async def test_a_slow_head_does_not_hold_up_others(inn: Inn) -> None:
    _, writer = await inn.connect()
    writer.write(b"GET /v1/sys")
    await writer.drain()
    assert (await inn.ask("GET", "/v1/system")).status_code == 200
    writer.close()


async def test_requests_in_small_pieces_and_in_one(inn: Inn) -> None:
    one = b"GET /v1/guests/g1 HTTP/1.1\r\nhost: x\r\n\r\n"
    status, _, body = await inn.send_raw(*(one[at : at + 1] for at in range(len(one))))
    assert (status, json.decode(body)["name"]) == (200, "g1")
    reader, writer = await inn.connect()
    writer.write(one * 50)
    for _ in range(50):
        status, _, _ = await read_answer(reader)
        assert status == 200
    writer.close()


async def test_too_many_connections(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    writers = [(await inn.connect())[1] for _ in range(3)]
    reader, writer = await inn.connect()
    status, _, body = await read_answer(reader)
    assert (status, json.decode(body)["code"]) == (503, "queue-full")
    for each in (*writers, writer):
        each.close()


async def test_an_idle_connection_is_closed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_TIMEOUT", 0.05)
    async with served(tmp_path) as inn:
        reader, writer = await inn.connect()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_an_unforeseen_error_is_a_bug_with_a_reference(
    inn: Inn, caplog: pytest.LogCaptureFixture
) -> None:
    inn.engine.fail_next("guest", KeyError("secret"))
    answer = await inn.ask("GET", "/v1/guests/g1")
    assert (answer.status_code, answer.json()["code"]) == (500, "bug")
    assert "secret" not in answer.text
    logged = [record for record in caplog.records if record.exc_info]
    assert [answer.json()["details"]["reference"] in record.message for record in logged] == [True]
    assert (await inn.ask("GET", "/v1/guests/g1")).status_code == 200


async def test_a_failed_host_is_logged_once_without_trace(
    inn: Inn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    inn.engine.fail_next("screenshot", HostFailure(Code.QMP_FAILED, "no screen"))
    assert await inn.refused("GET", "/v1/guests/g1/screenshot") == "502 qmp-failed"
    ours = [record for record in caplog.records if record.name.startswith(("serai", "uvicorn"))]
    assert [(record.levelname, record.exc_info) for record in ours] == [("WARNING", None)]


async def test_log_lines_cannot_be_forged(inn: Inn, caplog: pytest.LogCaptureFixture) -> None:
    inn.engine.fail_next("guest", KeyError())
    await inn.refused("GET", "/v1/guests/g1%0aCRITICAL%20all%20is%20lost")
    assert all("\n" not in record.message for record in caplog.records)


async def test_busy_says_when_to_try_again(tmp_path: Path) -> None:
    async with served(tmp_path) as inn:
        inn.engine.fail_next("submit", server.Busy(Code.QUEUE_FULL, "too much"))
        answer = await inn.ask("POST", "/v1/images/build", {"recipe": "tiny"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_head_of_an_answer_is_whole_after_an_error(inn: Inn) -> None:
    """The connection goes on after a problem when its body was read."""
    reader, writer = await inn.connect()
    for _ in range(3):
        writer.write(HEAD + b"content-length: 2\r\n\r\n{}")
        status, headers = await read_head(reader)
        assert (status, headers.get("connection")) == (400, None)
        await reader.readexactly(int(headers["content-length"]))
    writer.close()
