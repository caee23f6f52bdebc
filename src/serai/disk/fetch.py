"""Downloading over http(s): what was interrupted goes on where it stopped, and is never mixed up.

    TARGET.part        what has come so far
    TARGET.part.json   from where, and which version of it (``Partial``)
    TARGET             complete and checked; appears by rename

A download goes on only with the very same content: the server is asked with If-Range and the strong
ETag (or the date) of what we have, and what it says of the range and the total must fit; else
everything is fetched anew. Only http and https are spoken, also after a redirect. The length that
a server claims is a hint, the limit is ours. Content-Encoding is ignored on purpose: a ``.gz`` that
a server declares as an encoding is still the file that was asked for.

Callers come by ``remote``, which imports this when it is needed.
"""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import msgspec

from serai.disk.files import check_room, naming_disk_problems, sync_folder
from serai.disk.remote import Fetched, Report, digest_mismatch
from serai.disk.work import Pulse, run_in_thread
from serai.errors import Code, HostFailure, Invalid, SeraiError
from serai.units import format_size, shorten

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each further try that follows one which brought nothing."""
UNREACHABLE_TRIES = 3
MAX_TRIES = 1000
MAX_REDIRECTS = 5
MAX_URL = 4096
PIECE = 1 << 20
PIECE_TIMEOUT = 600.0
"""A server may take this long for each MiB: slower than 1.7 kB/s is called a stall."""
TIMEOUT = httpx.Timeout(connect=15.0, read=60.0, write=15.0, pool=15.0)
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
REPORT_EVERY = 0.2

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.ASCII)


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of an unfinished download.

    ``url`` is a digest of it (it may hold a password), ``validator`` what If-Range takes; ``boot`` is the host's boot id: after a power cut the file may lack what it seems to have.
    """

    url: str
    boot: str
    validator: str = ""
    total: int = 0


class _Again(Exception):
    """This try brought no complete file; another may."""


@dataclass(slots=True, kw_only=True)
class _Download:
    """One download on its way: the open file, and what is known of the server's version of it."""

    url: httpx.URL
    target: Path
    limit: int
    reserve: int
    report: Report
    trusted: bool
    algorithm: str
    descriptor: int
    done: int = 0
    partial: Partial = field(default_factory=lambda: Partial(url="", boot=""))
    digest: "hashlib._Hash" = field(init=False)
    reported: float = 0.0

    def __post_init__(self) -> None:
        self.digest = hashlib.new(self.algorithm)


def check_url(text: str) -> httpx.URL:
    """Return ``text`` as an http or https URL, or raise Invalid (``value-invalid``)."""
    try:
        url = httpx.URL(text)
        fine = url.scheme in ("http", "https") and bool(url.host) and len(text) <= MAX_URL
    except (httpx.InvalidURL, ValueError) as error:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is not a URL: {error}") from error
    if not fine or not text.isprintable():
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is not an http or https URL")
    return url


def plain_url(url: httpx.URL) -> str:
    """Return ``url`` as it may be stored and shown: without user, password and query (a key?)."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def url_beside(text: str, ending: str) -> str:
    """Return the URL of the file beside, whose name has ``ending`` too."""
    url = check_url(text)
    return str(url.copy_with(path=url.path + ending))


async def fetch(
    url: str,
    target: Path,
    *,
    limit: int,
    sha256: str = "",
    sha512: str = "",
    reserve: int = 0,
    report: Report = lambda done, total: None,
    pauses: Sequence[float] = PAUSES,
) -> Fetched:
    """Download ``url`` to ``target``; durable when it returns.

    Called again after an interruption (cancelled, failed, daemon killed), it goes on with what is
    there. ``sha512`` or else ``sha256`` (hex) is checked if given. Raises HostFailure ``download-failed`` (what came is
    kept) and ``disk-full`` (nothing is kept), Invalid ``image-digest-mismatch`` and
    ``image-refused`` for more than ``limit`` bytes (nothing is kept), ``value-invalid``.
    """
    place = check_url(url)
    part = target.with_name(target.name + ".part")
    with naming_disk_problems("downloading"):
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    download = _Download(
        url=place,
        target=target,
        limit=limit,
        reserve=reserve,
        report=report,
        trusted=bool(sha256 or sha512),
        algorithm="sha512" if sha512 else "sha256",
        descriptor=descriptor,
    )
    try:
        with naming_disk_problems("downloading"):
            await _run(download, pauses)
            return await _finish(download, sha512 or sha256)
    except SeraiError as error:
        if error.code is not Code.DOWNLOAD_FAILED:
            _drop(target)
        raise
    finally:
        os.close(descriptor)


async def _run(download: _Download, pauses: Sequence[float]) -> None:
    """Try until the file is complete or nothing more comes."""
    await run_in_thread(lambda pulse: _take_up(download, pulse))
    trust = httpx.create_ssl_context()
    trust.load_default_certs()  # also what this host's administrator trusts
    async with httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False, verify=trust) as client:
        fruitless, best = 0, download.done
        for _ in range(MAX_TRIES):
            try:
                await _try_once(client, download)
                return
            except (httpx.TransportError, TimeoutError, _Again) as error:
                fruitless = fruitless + 1 if download.done <= best else 0
                best = max(best, download.done)
                patience = len(pauses) if download.done else UNREACHABLE_TRIES
                if fruitless > min(patience, len(pauses)):
                    raise _failed(download, error) from error
            await asyncio.sleep(pauses[fruitless - 1] if fruitless else 0)
    raise _failed(download, "it was interrupted too often")


def _failed(download: _Download, why: object, hint: str = "") -> HostFailure:
    kept = f" What has come ({format_size(download.done)}) is kept." if download.done else ""
    reason = str(why) or type(why).__name__
    return HostFailure(
        Code.DOWNLOAD_FAILED,
        f"{plain_url(download.url)} could not be downloaded: {reason}",
        hint=hint or f"Check the address and the network, then try again.{kept}",
        details={"url": plain_url(download.url), "received": str(download.done)},
    )


# -- one try ---------------------------------------------------------------------------------------


async def _try_once(client: httpx.AsyncClient, download: _Download) -> None:
    """Ask for what is missing and take it; returns when the file is complete."""
    url = download.url
    for _ in range(MAX_REDIRECTS + 1):
        async with client.stream("GET", url, headers=_headers(download)) as response:
            if response.status_code not in REDIRECTS:
                await _take(response, download)
                return
            url = _redirected(response, url, download)
    raise _failed(download, f"it was redirected more than {MAX_REDIRECTS} times")


def _headers(download: _Download) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if download.done and download.partial.validator:
        headers |= {"Range": f"bytes={download.done}-", "If-Range": download.partial.validator}
    return headers


def _redirected(response: httpx.Response, url: httpx.URL, download: _Download) -> httpx.URL:
    untrusted_place = response.headers.get("location", "")
    try:
        target = check_url(str(url.join(untrusted_place)))
    except (SeraiError, httpx.InvalidURL, ValueError) as error:
        raise _failed(
            download,
            f"it was redirected to {shorten(untrusted_place)}, which is not an http(s) URL",
            "The server is not what you expected; use another address.",
        ) from error
    if url.scheme == "https" and target.scheme == "http" and not download.trusted:
        raise _failed(
            download,
            "it was redirected from https to http",
            "Give the digest with --sha256, then the way does not matter.",
        )
    return target


async def _take(response: httpx.Response, download: _Download) -> None:
    """Take a final answer's body; raises _Again when the file is not complete after it."""
    if response.status_code == 206:
        total = _check_range(response, download)
    elif response.status_code == 200:
        total = _begin_anew(response, download)
    elif response.status_code == 416 and download.done:
        _forget(download)
        raise _Again("the server has less than we have")
    elif response.status_code in TRY_AGAIN:
        raise _Again(f"the server answered {response.status_code} {response.reason_phrase}")
    else:
        error = _failed(download, f"the server answered {response.status_code}", _hint(response))
        error.details["status"] = str(response.status_code)
        raise error
    _check_total(download, total)
    await _receive(response, download, total)
    if total and download.done != total:
        raise _Again(f"{download.done} of {total} bytes came")


def _hint(response: httpx.Response) -> str:
    if response.status_code in (401, 403, 407):
        return "The server wants a user and a password: https://USER:PASSWORD@HOST/…"
    return "Check the address: the server knows no such file." if response.is_error else ""


def _check_range(response: httpx.Response, download: _Download) -> int:
    """Return the total of a partial answer that goes on exactly where we are."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    total = int(match[3]) if match and match[3] != "*" else download.partial.total
    fits = match is not None and int(match[1]) == download.done and download.done > 0
    if not fits or total != download.partial.total or not _same_version(response, download):
        _forget(download)
        raise _Again("the server went on with something else")
    return total


def _same_version(response: httpx.Response, download: _Download) -> bool:
    """True unless the answer names another version than the one that we have the beginning of."""
    named = {response.headers.get("etag"), response.headers.get("last-modified")} - {None}
    return not named or download.partial.validator in named


def _begin_anew(response: httpx.Response, download: _Download) -> int:
    """Start from the first byte, remembering which version this is. Returns the total, 0 if unknown."""
    _forget(download)
    length = response.headers.get("content-length", "")
    etag = response.headers.get("etag", "")
    strong = "" if etag.startswith("W/") else etag
    download.partial = Partial(
        url=_url_digest(download),
        boot=_boot_id(),
        validator=strong or response.headers.get("last-modified", ""),
        total=int(length) if length.isascii() and length.isdigit() else 0,
    )
    _state_path(download.target).write_bytes(msgspec.json.encode(download.partial))
    return download.partial.total


def _check_total(download: _Download, total: int) -> None:
    if total > download.limit:
        raise _too_large(download)
    check_room(
        download.target.parent,
        max(total - download.done, 0),
        reserve=download.reserve,
        what="downloading",
    )


def _too_large(download: _Download) -> Invalid:
    return Invalid(
        Code.IMAGE_REFUSED,
        f"{plain_url(download.url)} is larger than the limit of {format_size(download.limit)}",
        hint="The setting image_limit raises the limit.",
    )


async def _receive(response: httpx.Response, download: _Download, total: int) -> None:
    pieces = response.aiter_raw(PIECE)
    while True:
        async with asyncio.timeout(PIECE_TIMEOUT):
            piece = await anext(pieces, b"")
        if not piece:
            return
        if download.done + len(piece) > download.limit:
            raise _too_large(download)
        if total and download.done + len(piece) > total:
            raise _Again("more came than the server had said")
        await run_in_thread(partial(_keep, download, piece))
        now = time.monotonic()
        if now - download.reported >= REPORT_EVERY:
            download.reported = now
            download.report(download.done, total)


def _keep(download: _Download, piece: bytes, pulse: Pulse) -> None:
    view = memoryview(piece)
    download.digest.update(view)
    while view:
        written = os.pwrite(download.descriptor, view, download.done)
        view, download.done = view[written:], download.done + written


# -- what is on the disk -------------------------------------------------------------------------


def _state_path(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


def _url_digest(download: _Download) -> str:
    return hashlib.sha256(str(download.url).encode()).hexdigest()


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _take_up(download: _Download, pulse: Pulse) -> None:
    """Go on with what an earlier call left, if it is ours, from this boot, and can be asked for."""
    try:
        state = _state_path(download.target).read_bytes()
        download.partial = msgspec.json.decode(state, type=Partial)
    except (OSError, msgspec.MsgspecError):
        _forget(download)
        return
    size = os.fstat(download.descriptor).st_size
    mine = download.partial.url == _url_digest(download) and download.partial.boot == _boot_id()
    if not mine or not download.partial.validator or size > download.limit:
        _forget(download)
        return
    while piece := os.pread(download.descriptor, PIECE, download.done):
        download.digest.update(piece)
        download.done += len(piece)
        pulse.beat()


def _forget(download: _Download) -> None:
    """Start from nothing."""
    download.done = 0
    download.digest = hashlib.new(download.algorithm)
    download.partial = Partial(url="", boot="")
    os.ftruncate(download.descriptor, 0)


async def _finish(download: _Download, expected: str) -> Fetched:
    """Check the digest, make the file durable and give it its name."""
    found = download.digest.hexdigest()
    if expected and found != expected.lower():
        raise digest_mismatch(plain_url(download.url), expected, found)
    await run_in_thread(lambda _: os.fsync(download.descriptor))
    part = download.target.with_name(download.target.name + ".part")
    part.rename(download.target)
    _state_path(download.target).unlink(missing_ok=True)
    sync_folder(download.target.parent)
    return Fetched(
        path=download.target, size=download.done, digest=found, url=plain_url(download.url)
    )


def _drop(target: Path) -> None:
    target.with_name(target.name + ".part").unlink(missing_ok=True)
    _state_path(target).unlink(missing_ok=True)
