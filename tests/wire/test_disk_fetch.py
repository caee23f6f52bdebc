"""Downloads against a server of our own that breaks, lies and misleads in every way we know."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serai.disk.fetch import Fetched, fetch
from serai.errors import Code, HostFailure, Invalid, SeraiError

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 10_000_000
NO_PAUSES = (0.0, 0.0, 0.0)

Answer = Callable[["Asked"], bytes]


@dataclass
class Asked:
    """One request as the server saw it, and how often one came before it."""

    path: str
    headers: dict[str, str]
    number: int

    @property
    def start(self) -> int:
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))


@dataclass
class Server:
    """Answers each request with the bytes that ``answer`` gives, then hangs up."""

    url: str = ""
    answer: Answer = lambda asked: b""
    asked: list[Asked] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        asked = Asked(lines[0].split()[1], headers, len(self.asked))
        self.asked.append(asked)
        writer.write(self.answer(asked))
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass  # the client has seen enough


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/disk.qcow2"
    async with listener:
        yield made


def reply(status: str, body: bytes = b"", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def whole(content: bytes = CONTENT, **headers: object) -> bytes:
    return reply("200 OK", content, Content_Length=len(content), **headers)


def part(start: int, content: bytes = CONTENT, **headers: object) -> bytes:
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return reply(
        "206 Partial Content",
        content[start:],
        Content_Range=span,
        Content_Length=len(content) - start,
        **headers,
    )


async def get(server: Server, target: Path, *, sha256: str = "", limit: int = LIMIT) -> Fetched:
    return await fetch(server.url, target, limit=limit, sha256=sha256, pauses=NO_PAUSES)


async def problem(server: Server, target: Path, **options: object) -> SeraiError:
    with pytest.raises(SeraiError) as caught:
        await get(server, target, **options)  # type: ignore[arg-type]
    assert not target.exists()
    return caught.value


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_whole_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    server.answer = lambda asked: whole()
    target = tmp_path / "x"
    found = await fetch(
        server.url, target, limit=LIMIT, sha256=DIGEST.upper(), report=lambda *a: seen.append(a)
    )
    assert target.read_bytes() == CONTENT
    assert (found.size, found.digest, found.url) == (len(CONTENT), DIGEST, server.url)
    assert seen and seen[0][1] == len(CONTENT)
    assert left(tmp_path) == {"x"}


async def test_goes_on_after_a_break_in_the_middle(server: Server, tmp_path: Path) -> None:
    def answer(asked: Asked) -> bytes:
        if asked.number == 0:
            return whole(ETag='"v1"')[:1_500_000]
        return part(asked.start, ETag='"v1"')

    server.answer = answer
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    assert server.asked[1].headers["if-range"] == '"v1"'
    assert server.asked[1].start > 1_000_000


async def test_goes_on_after_a_restart_of_the_daemon(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole(ETag='"v1"')[:1_500_000] if asked.number == 0 else b""
    error = await problem(server, tmp_path / "x")
    assert error.code is Code.DOWNLOAD_FAILED
    assert "kept" in error.hint
    assert left(tmp_path) == {"x.part", "x.part.json"}
    before = len(server.asked)
    server.answer = lambda asked: part(asked.start, ETag='"v1"')
    assert (await get(server, tmp_path / "x", sha256=DIGEST)).digest == DIGEST
    assert server.asked[before].start > 1_000_000
    assert left(tmp_path) == {"x"}


async def test_another_boot_starts_anew(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole(ETag='"v1"')[:1_500_000] if asked.number == 0 else b""
    await problem(server, tmp_path / "x")
    state = tmp_path / "x.part.json"
    state.write_text(state.read_text().replace('"boot":"', '"boot":"other'))
    server.answer = lambda asked: whole(ETag='"v1"')
    before = len(server.asked)
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    assert "range" not in server.asked[before].headers


async def test_changed_etag_starts_anew(server: Server, tmp_path: Path) -> None:
    newer = os.urandom(2_000_000)

    def answer(asked: Asked) -> bytes:
        return whole(ETag='"v1"')[:1_500_000] if asked.number == 0 else whole(newer, ETag='"v2"')

    server.answer = answer
    assert (await get(server, tmp_path / "x")).digest == hashlib.sha256(newer).hexdigest()


@pytest.mark.parametrize("lie", ["etag", "start", "total", "no range"])
async def test_never_mixes_two_versions(server: Server, tmp_path: Path, lie: str) -> None:
    newer = os.urandom(2_900_000)

    def answer(asked: Asked) -> bytes:
        if asked.number == 0:
            return whole(ETag='"v1"')[:1_500_000]
        if "range" not in asked.headers:
            return whole(newer, ETag='"v2"')
        if lie == "etag":
            return part(asked.start, CONTENT, ETag='"v2"')
        if lie == "start":
            return part(asked.start - 1000, CONTENT, ETag='"v1"')
        if lie == "total":
            return part(asked.start, newer, ETag='"v1"')
        return reply("206 Partial Content", newer, Content_Length=len(newer))

    server.answer = answer
    assert (await get(server, tmp_path / "x")).digest == hashlib.sha256(newer).hexdigest()


async def test_part_that_is_shorter_than_it_says_is_not_the_end(
    server: Server, tmp_path: Path
) -> None:
    def answer(asked: Asked) -> bytes:
        if asked.number == 0:
            return whole(ETag='"v1"')[:1_500_000]
        if asked.number > 1:
            return part(asked.start, ETag='"v1"')
        span = f"bytes {asked.start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        body = CONTENT[asked.start : asked.start + 1000]
        return reply("206 Partial Content", body, Content_Range=span, Content_Length=1000)

    server.answer = answer
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    assert len(server.asked) == 3


async def test_without_strong_etag_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole(ETag='W/"v1"')[: 1_500_000 if asked.number == 0 else None]
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    assert "range" not in server.asked[1].headers


async def test_date_serves_when_there_is_no_etag(server: Server, tmp_path: Path) -> None:
    date = "Mon, 01 Jan 2024 00:00:00 GMT"

    def answer(asked: Asked) -> bytes:
        if asked.number == 0:
            return whole(Last_Modified=date)[:1_500_000]
        return part(asked.start, Last_Modified=date)

    server.answer = answer
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    assert server.asked[1].headers["if-range"] == date.lower()


async def test_server_that_always_breaks_is_given_up(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole()[:1000]
    assert (await problem(server, tmp_path / "x")).code is Code.DOWNLOAD_FAILED
    assert len(server.asked) <= len(NO_PAUSES) + 2


async def test_length_that_lies(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: reply("200 OK", CONTENT, Content_Length=len(CONTENT) + 5)
    assert (await problem(server, tmp_path / "x")).code is Code.DOWNLOAD_FAILED
    server.answer = lambda asked: reply("200 OK", CONTENT, Content_Length=1000)
    assert (await problem(server, tmp_path / "x", sha256=DIGEST)).code is (
        Code.IMAGE_DIGEST_MISMATCH
    )
    server.answer = lambda asked: reply("200 OK", CONTENT, Content_Length="many")
    assert (await problem(server, tmp_path / "x")).code is Code.DOWNLOAD_FAILED


@pytest.mark.parametrize("claimed", [True, False])
async def test_too_much_is_refused(server: Server, tmp_path: Path, claimed: bool) -> None:
    claim = reply("200 OK", Content_Length=len(CONTENT))
    server.answer = lambda asked: claim if claimed else reply("200 OK", CONTENT)
    error = await problem(server, tmp_path / "x", limit=1_000_000)
    assert error.code is Code.IMAGE_REFUSED
    assert left(tmp_path) == set()


async def test_wrong_digest_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole(ETag='"v1"')
    error = await problem(server, tmp_path / "x", sha256="0" * 64)
    assert isinstance(error, Invalid)
    assert error.code is Code.IMAGE_DIGEST_MISMATCH
    assert left(tmp_path) == set()


async def test_no_room_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: whole()
    with pytest.raises(HostFailure) as caught:
        await fetch(server.url, tmp_path / "x", limit=LIMIT, reserve=1 << 60, pauses=NO_PAUSES)
    assert caught.value.code is Code.DISK_FULL
    assert left(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("claimed", [True, False])
async def test_full_disk_leaves_nothing(server: Server, small_disk: Path, claimed: bool) -> None:
    server.answer = lambda asked: whole() if claimed else reply("200 OK", CONTENT)
    assert (await problem(server, small_disk / "x")).code is Code.DISK_FULL
    assert left(small_disk) == set()


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "\x00"])
async def test_redirect_elsewhere_is_refused(server: Server, tmp_path: Path, place: str) -> None:
    server.answer = lambda asked: reply("302 Found", Location=place)
    error = await problem(server, tmp_path / "x")
    assert error.code is Code.DOWNLOAD_FAILED
    assert len(server.asked) == (4 if place == "\x00" else 1)


async def test_redirect_is_followed_and_ends(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: (
        whole() if asked.path == "/b" else reply("302 Found", Location="/b")
    )
    assert (await get(server, tmp_path / "x")).digest == DIGEST
    server.answer = lambda asked: reply("302 Found", Location="/b")
    server.asked.clear()
    assert (await problem(server, tmp_path / "y")).code is Code.DOWNLOAD_FAILED
    assert len(server.asked) == 6


@pytest.mark.parametrize(("status", "tries"), [("404 Not Found", 1), ("503 Busy", 4)])
async def test_errors_of_the_server(
    server: Server, tmp_path: Path, status: str, tries: int
) -> None:
    server.answer = lambda asked: reply(status, b"sorry", Content_Length=5)
    error = await problem(server, tmp_path / "x")
    assert error.code is Code.DOWNLOAD_FAILED
    assert error.hint
    assert len(server.asked) == tries


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(HostFailure) as caught:
        await fetch("http://127.0.0.1:1/x", tmp_path / "x", limit=LIMIT, pauses=NO_PAUSES)
    assert caught.value.code is Code.DOWNLOAD_FAILED


@pytest.mark.parametrize("url", ["file:///etc/passwd", "nbd://x/y", "http://", "x"])
async def test_only_http_urls_are_taken(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        await fetch(url, tmp_path / "x", limit=LIMIT)
    assert caught.value.code is Code.VALUE_INVALID
    assert left(tmp_path) == set()


async def test_password_is_neither_shown_nor_stored(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("http://", "http://me:secret@")
    server.answer = lambda asked: whole(ETag='"v1"')[:1_500_000] if asked.number == 0 else b""
    with pytest.raises(HostFailure) as caught:
        await fetch(url, tmp_path / "x", limit=LIMIT, pauses=NO_PAUSES)
    assert "secret" not in str(caught.value.problem())
    assert "secret" not in (tmp_path / "x.part.json").read_text()
    assert server.asked[0].headers["authorization"].startswith("basic ")
