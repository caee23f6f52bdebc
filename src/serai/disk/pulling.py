"""Pulling an image by name: an index that can be believed, the entry that is meant, what pins it.

    index    serai's own (``catalogue.json``), a file, or a URL: fetched, its digest or signature checked
    choose   ``plan.catalogue`` says which entry is meant; a digest is in it, or in the publisher's file
    (import  is ``importing``'s: the digest is checked before anything looks into the file)

Serai's own index names the distributions' official images. Those move under one address, so it has
no digests of them: the publisher's file of digests is fetched over https each time.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from serai.disk.images import NewImage
from serai.disk.importing import check_digest, open_source, plain_name
from serai.disk.remote import beside, check_url, digest_mismatch, fetch, is_url, shown
from serai.errors import Code, HostFailure, Invalid, SeraiError
from serai.model.actions import ImportImage, PullImage
from serai.model.catalogue import Catalogue, IndexEntry
from serai.model.image import Expect
from serai.plan.catalogue import (
    MAX_INDEX,
    MAX_SUMS,
    Digest,
    check_trust,
    choose,
    index_refused,
    pinned_digest,
    place_of,
    read_index,
    read_sums,
)
from serai.settings import Settings
from serai.units import shorten

OWN = Path(__file__).with_name("catalogue.json")
SIGNATURE = ".sig"
MAX_SIGNATURE = 64
"""As long as every signature (``plan.signature.LENGTH``, whose import costs too much here)."""
ABSENT = ("403", "404", "410")
"""How a server says that it has no signature: 403 is what an object store says."""
PULLED = "file"
"""Under this name the details of an image have the digest of the file that was pulled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """Which index is meant and what it must be: the fields mean what they mean in ``PullImage``."""

    index: str = ""
    sha256: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is to be pulled: the entry, where its file is, and the digest that it must have."""

    entry: IndexEntry
    source: str
    digest: Digest
    trust: str


def check_request(request: IndexRequest) -> None:
    """Refuse, before anything happens, what names no index; all errors are Invalid."""
    check_digest("sha256", request.sha256)
    if is_url(request.index):
        check_url(request.index)
    elif request.index and (not request.index.startswith("/") or "\0" in request.index):
        raise Invalid(
            Code.VALUE_INVALID, f"{shorten(request.index)} is neither an absolute path nor a URL"
        )
    if request.key:
        _trusted().check_key(request.key)


async def open_index(
    request: IndexRequest, *, scratch: Path, keys: Path, settings: Settings
) -> Catalogue:
    """Return what an index offers, once there is a reason to believe it.

    Uses files in ``scratch``, which the caller removes. Raises Invalid (``index-refused``,
    ``image-digest-mismatch``, ``value-invalid``), NotFound (``file-failed``), HostFailure
    (``download-failed``).
    """
    check_request(request)
    if not request.index:
        untrusted, trust, signer = OWN.read_bytes(), "part of serai", ""
    else:
        untrusted = await _get(request.index, scratch / "index", MAX_INDEX, settings)
        trust, signer = await _check(request, untrusted, scratch, keys, settings)
    index = read_index(untrusted)
    return Catalogue(
        source=shown(request.index),
        digest=f"sha256:{hashlib.sha256(untrusted).hexdigest()}",
        trust=trust,
        signed_by=signer,
        title=index.title,
        entries=index.entries,
    )


async def _check(
    request: IndexRequest, untrusted: bytes, scratch: Path, keys: Path, settings: Settings
) -> tuple[str, str]:
    """Return why the index is believed and the fingerprint of who signed it; or refuse it."""
    found = hashlib.sha256(untrusted).hexdigest()
    if request.sha256 and found != request.sha256.lower():
        raise digest_mismatch(shown(request.index), request.sha256, found)
    signature = await _signature(request.index, scratch, settings)
    signer: str = _trusted().find_signer(untrusted, signature, request.key, keys)
    trust = check_trust(
        request.index,
        is_pinned=bool(request.sha256),
        has_signature=bool(signature),
        signer=signer,
        must_be_signed=bool(request.key),
    )
    return trust, signer


async def _signature(index: str, scratch: Path, settings: Settings) -> bytes:
    """Return the signature beside an index, empty where there is none."""
    try:
        return await _get(
            beside(index, SIGNATURE), scratch / "signature", MAX_SIGNATURE + 1, settings
        )
    except SeraiError as error:
        if error.code is Code.FILE_FAILED or error.details.get("status") in ABSENT:
            return b""
        raise


def _trusted() -> ModuleType:
    return import_module("serai.disk.trusted")  # late, for what it costs


async def _get(place: str, target: Path, limit: int, settings: Settings) -> bytes:
    """Return the small file at a URL or path; ``index-refused`` when it is larger than ``limit``."""
    if not is_url(place):
        return _read(place, limit)
    try:
        await fetch(place, target, limit=limit, reserve=settings.disk_reserve)
    except Invalid as error:
        if error.code is Code.IMAGE_REFUSED:
            raise index_refused(error.message) from error
        raise
    return target.read_bytes()


def _read(path: str, limit: int) -> bytes:
    descriptor = open_source(path)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise index_refused(f"{shorten(path, 200)} is larger than {limit} bytes")
    return content


async def choose_image(
    action: PullImage, *, scratch: Path, keys: Path, settings: Settings
) -> Chosen:
    """Return what ``action`` means, and what pins it.

    Raises as ``open_index`` does, and NotFound (``image-not-found``).
    """
    request = request_of(action)
    catalogue = await open_index(request, scratch=scratch, keys=keys, settings=settings)
    entry = choose(catalogue.entries, action.image)
    digest = pinned_digest(entry)
    if digest is None:
        sums = await _get(entry.sums_url, scratch / "sums", MAX_SUMS, settings)
        digest = read_sums(sums, plain_name(entry.url))
    return Chosen(
        entry=entry, source=_source(entry, action.index), digest=digest, trust=catalogue.trust
    )


def request_of(action: PullImage) -> IndexRequest:
    """Return which index ``action`` means."""
    return IndexRequest(index=action.index, sha256=action.index_sha256, key=action.key)


def _source(entry: IndexEntry, index: str) -> str:
    """Return where the entry's file is: a URL, or a path beside an index that is a file."""
    if is_url(entry.url) or is_url(index):
        return place_of(entry, index)
    if not index:
        raise HostFailure(Code.BUG, "serai's own index has no files of its own")
    return str(Path(index).parent / entry.url)


def import_of(chosen: Chosen, name: str) -> ImportImage:
    """Return the import that brings it in as ``name``."""
    digest, algorithm = chosen.digest.hex, chosen.digest.algorithm
    return ImportImage(
        source=chosen.source,
        name=name,
        sha256=digest if algorithm == "sha256" else "",
        sha512=digest if algorithm == "sha512" else "",
        agent=chosen.entry.agent,
    )


def labelled(new: NewImage, chosen: Chosen) -> NewImage:
    """Return ``new`` with what the index knows of it."""
    entry = chosen.entry
    facts = {
        PULLED: str(chosen.digest),
        "catalogue": entry.full_name,
        "index": chosen.trust,
        "system": entry.os,
        "user": entry.user,
        "cloud-init": "" if entry.cloud_init is Expect.UNKNOWN else str(entry.cloud_init),
    }
    return replace(
        new,
        min_memory=max(new.min_memory, entry.min_memory),
        details={**new.details, **{name: fact for name, fact in facts.items() if fact}},
    )
