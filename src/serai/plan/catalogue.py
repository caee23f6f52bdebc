"""Indexes of images: what is in one, which entry is meant, what it is pinned by. Pure.

An index and a publisher's file of digests are strangers' files until they got through here.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import msgspec

from serai.errors import Code, Invalid, NotFound
from serai.model.catalogue import FORMAT, Index, IndexEntry
from serai.units import check_image_name, shorten

MAX_INDEX = 4 << 20
MAX_SUMS = 4 << 20
MAX_ENTRIES = 10_000
ARCH = "x86_64"
"""What guests here run on."""

_VERSION = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_GNU_LINE = re.compile(r"\\?([0-9A-Fa-f]{64,128}) [ *](\S.*)", re.ASCII)
_BSD_LINE = re.compile(r"(SHA256|SHA512) ?\((.+)\) ?= ?([0-9A-Fa-f]{64,128})", re.ASCII)
_BARE_LINE = re.compile(r"[0-9A-Fa-f]{64,128}", re.ASCII)
_ALGORITHMS = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must have: ``algorithm`` is sha256 or sha512, ``hex`` in lower case."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def index_refused(reason: str, *, hint: str = "") -> Invalid:
    """Return the problem ``index-refused`` with its reason."""
    return Invalid(Code.INDEX_REFUSED, f"the index is refused: {reason}", hint=hint)


# -- what is in it ---------------------------------------------------------------------------------


def read_index(untrusted: bytes) -> Index:
    """Return an index whose every entry can be; Invalid (``index-refused``) that names the other."""
    if len(untrusted) > MAX_INDEX:
        raise index_refused(f"it is larger than {MAX_INDEX} bytes")
    try:
        index = msgspec.json.decode(untrusted, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise index_refused(f"it can't be read: {error}") from error
    if index.format != FORMAT:
        raise index_refused(
            f"its format is {index.format}, this serai knows {FORMAT}",
            hint="Is this serai too old for it?",
        )
    if len(index.entries) > MAX_ENTRIES:
        raise index_refused(f"it has more than {MAX_ENTRIES} entries")
    for entry in index.entries:
        _check_entry(entry)
    _check_unique(index.entries)
    return index


def _check_entry(entry: IndexEntry) -> None:
    for name in (entry.name, *entry.aliases):
        check_name(name)
    if entry.version and not _VERSION.fullmatch(entry.version):
        raise index_refused(f"{entry.name} has the version {shorten(entry.version)}, which none is")
    for text in (entry.format, entry.os, entry.user, entry.arch):
        if len(text) > 100 or not text.isprintable():
            raise index_refused(f"{entry.full_name} says {shorten(text)} of itself")
    if entry.size < 0 or entry.min_memory < 0:
        raise index_refused(f"{entry.full_name} has a negative size")
    _check_place(entry)
    _check_pins(entry)


def check_name(name: str) -> None:
    """Refuse an entry's name or alias that no image could have."""
    try:
        check_image_name(name)
    except Invalid as error:
        raise index_refused(error.message) from error


def _check_place(entry: IndexEntry) -> None:
    """Refuse a URL that is neither http(s) nor a place below the index."""
    for url in (entry.url, *([entry.sums_url] if entry.sums_url else [])):
        if not url.isprintable() or len(url) > 2048:
            raise index_refused(f"{entry.full_name} is at no URL")
        if _scheme(url) in ("http", "https"):
            continue
        parts = url.split("/")
        if ":" in url or "\\" in url or "%" in url or {"", ".", ".."} & set(parts):
            raise index_refused(f"{entry.full_name} is at {shorten(url)}, outside of its index")


def _scheme(url: str) -> str:
    """Return the scheme of an absolute URL with a host, "" for any other text."""
    try:
        parts = urlsplit(url)
        return parts.scheme if parts.hostname and "://" in url else ""
    except ValueError:
        return ""


def _check_pins(entry: IndexEntry) -> None:
    for digest, length in ((entry.sha256, 64), (entry.sha512, 128)):
        if digest and (len(digest) != length or not _HEX.fullmatch(digest)):
            raise index_refused(f"{entry.full_name} has a digest that is none")
    if entry.sha256 or entry.sha512:
        return
    if not entry.sums_url.startswith("https://"):
        raise index_refused(
            f"{entry.full_name} is pinned by nothing",
            hint="An entry needs sha256 or sha512, or sums_url over https.",
        )


def _check_unique(entries: Iterable[IndexEntry]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            key = (name, entry.version, entry.arch)
            if key in seen:
                raise index_refused(f"{name} {entry.version} for {entry.arch} is in it twice")
            seen.add(key)


# -- which is meant --------------------------------------------------------------------------------


def choose(index: Iterable[IndexEntry], wanted: str) -> IndexEntry:
    """Return the entry that ``NAME[:VERSION]`` means for this host, without a version the newest.

    Raises NotFound (``image-not-found``), with what there is in its hint.
    """
    name, colon, version = wanted.partition(":")
    named = [each for each in index if name in (each.name, *each.aliases)]
    fit = [each for each in named if each.arch == ARCH and version in ("", each.version)]
    if fit and (version or not colon):
        return max(fit, key=lambda each: version_key(each.version))
    have = ", ".join(each.full_name for each in named if each.arch == ARCH)
    raise NotFound(
        Code.IMAGE_NOT_FOUND,
        f"the index has no {shorten(wanted)} for {ARCH}",
        hint=f"It has {have}." if have else "See what it has: serai image catalogue",
    )


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Return what versions are ordered by: numbers as numbers, so that 9 comes before 10."""
    parts = re.findall(r"[0-9]+|[a-z]+", version)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def place_of(entry: IndexEntry, index_url: str) -> str:
    """Return where the entry's file is; one without a server is relative to the index."""
    return entry.url if "://" in entry.url else urljoin(index_url, entry.url)


# -- what pins it ----------------------------------------------------------------------------------


def pinned_digest(entry: IndexEntry) -> Digest | None:
    """Return the digest that the index itself gives; None where only the publisher's file does."""
    if entry.sha512:
        return Digest("sha512", entry.sha512)
    return Digest("sha256", entry.sha256) if entry.sha256 else None


def read_sums(untrusted: bytes, file: str) -> Digest:
    """Return the digest that a publisher's file of digests gives for ``file``.

    Read are the forms of ``sha256sum`` and of BSD's ``sha256``, signed in the clear or not (the
    signature is not looked at), and a file that is one digest only. Raises Invalid
    (``index-refused``) when there is none, or there are two that differ.
    """
    lines = untrusted[:MAX_SUMS].decode("utf-8", "replace").splitlines()
    found = {_digest_in(line.strip(), file) for line in lines} - {None}
    bare = [line.strip() for line in lines if line.strip()]
    if not found and len(bare) == 1 and _BARE_LINE.fullmatch(bare[0]):
        found = {_digest(bare[0])}
    digests = [digest for digest in found if digest is not None]
    best = max((len(digest.hex) for digest in digests), default=0)
    chosen = [digest for digest in digests if len(digest.hex) == best]
    if len(chosen) != 1:
        raise index_refused(
            f"the publisher's file of digests has {'no' if not chosen else 'more than one'} "
            f"digest for {shorten(file)}",
            hint="The publisher may have moved it: import it by hand, see serai image import --help",
        )
    return chosen[0]


def _digest_in(line: str, file: str) -> Digest | None:
    if gnu := _GNU_LINE.fullmatch(line):
        return _digest(gnu[1]) if _is_file(gnu[2], file) else None
    if bsd := _BSD_LINE.fullmatch(line):
        digest = _digest(bsd[3])
        fits = digest is not None and digest.algorithm == bsd[1].lower()
        return digest if fits and _is_file(bsd[2], file) else None
    return None


def _is_file(named: str, file: str) -> bool:
    return named.removeprefix("./") == file


def _digest(text: str) -> Digest | None:
    algorithm = _ALGORITHMS.get(len(text))
    return Digest(algorithm, text.lower()) if algorithm else None


# -- why it is believed ----------------------------------------------------------------------------


def is_private_way(url: str) -> bool:
    """Tell whether nobody between here and there can change what comes: https, or this host."""
    if _scheme(url) == "https":
        return True
    host = (urlsplit(url).hostname or "") if _scheme(url) else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_trust(
    url: str, *, is_pinned: bool, has_signature: bool, signer: str, must_be_signed: bool
) -> str:
    """Return a sentence that says why the index at ``url`` is believed, or refuse it.

    ``is_pinned``: the caller gave its digest. ``signer`` is the fingerprint of the trusted key that
    made its signature, "" where none did; ``must_be_signed``: the caller named the key. A signature
    that no trusted key made is never passed over in silence.
    """
    if signer:
        return f"signed by {signer[:19]}"
    if is_pinned and not must_be_signed:
        return "pinned by its digest"
    if "://" not in url and not must_be_signed:
        return "a file on this host"
    if has_signature or must_be_signed:
        raise index_refused(
            "no key that is trusted here has signed it" if has_signature else "it is not signed",
            hint="Trust its key with --key FILE, or put it into the folder keys of the state folder.",
        )
    if is_private_way(url):
        return "unsigned, over https" if url.startswith("https") else "unsigned, from this host"
    raise index_refused(
        "it is not signed and came over plain http",
        hint="Give its digest with --index-sha256, or use https.",
    )
