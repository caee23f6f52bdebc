"""Small descriptions that are believed whole or not at all: a digest, a struct, and what belongs to it.

    8 bytes   magic
    32 bytes  BLAKE3 of all that follows
    4 bytes   length of the JSON, little-endian
    …         the JSON of a struct
    …         attachments, one after the other; the struct says how long each is

Written once, never changed. Not for: secrecy, or protection from somebody who can write here.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from serai.disk.digests import DIGEST_SIZE, digest
from serai.disk.files import write_durably
from serai.errors import Code, HostFailure

MAGIC = b"SERAIMM1"
LIMIT = 1 << 30
_LENGTH = struct.Struct("<I")
_START = len(MAGIC) + DIGEST_SIZE

T = TypeVar("T", bound=msgspec.Struct)


def corrupt(what: str, reason: str) -> HostFailure:
    """Return the problem ``snapshot-corrupt`` for ``what``."""
    return HostFailure(
        Code.SNAPSHOT_CORRUPT,
        f"{what} is damaged: {reason}",
        hint="See what else is: serai check",
        details={"what": what},
    )


def write_sealed(path: Path, about: msgspec.Struct, attachments: Sequence[bytes]) -> None:
    """Write the new file ``path`` and sync it; its name is the caller's to make durable."""
    head = msgspec.json.encode(about)
    content = b"".join((_LENGTH.pack(len(head)), head, *attachments))
    write_durably(path, MAGIC + digest(content) + content, mode=0o400)


def read_sealed(path: Path, kind: type[T], what: str) -> tuple[T, bytes]:
    """Return the struct and the bytes of all attachments, verified.

    Raises HostFailure (``snapshot-corrupt``) for ``what`` when it is gone or not what was written.
    """
    content = _read(path, what)
    if content[: len(MAGIC)] != MAGIC or digest(content[_START:]) != content[len(MAGIC) : _START]:
        raise corrupt(what, f"{path.name} is not what was stored")
    (length,) = _LENGTH.unpack_from(content, _START)
    begin = _START + _LENGTH.size
    try:
        about = msgspec.json.decode(content[begin : begin + length], type=kind)
    except msgspec.MsgspecError as error:
        raise corrupt(what, f"{path.name} is of another version: {error}") from error
    return about, content[begin + length :]


def _read(path: Path, what: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise corrupt(what, f"{path.name} is gone") from error
    except OSError as error:
        raise corrupt(what, f"{path.name}: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if not _START + _LENGTH.size <= size <= LIMIT:
            raise corrupt(what, f"{path.name} has {size} bytes")
        return file.read(size)
