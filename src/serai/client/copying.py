"""Where copies into and out of guests go, and how they come to be whole; sending is ``transfers``'.

Where a copy goes is decided without looking, so that doing it twice gives the same: a target that
ends with ``/`` is a folder into which the copy goes under its own name; any other target is the
copy's own name. Only a *file* whose target turns out to be a folder goes into that, as with cp.
"""

import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from serai.client.files import unpack_folder
from serai.errors import Code, NotFound, SeraiError
from serai.model.talk import ExecRequest

INLINE_INPUT = 512 << 10
"""How much standard input goes along with the request, which the daemon limits to 1 MiB."""
INPUT_FROM_FILE = 'exec < "$0" && rm -f "$0" && exec "$@"'
LOOK_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Pulled:
    """Where a copy is now, and the names in it that were left out because they can't be trusted."""

    path: Path
    left_out: list[str]


def target_in_guest(source: Path, path: str) -> str:
    """Return the path in the guest that the copy of ``source`` gets."""
    return f"{path}{source.resolve().name}" if path.endswith("/") else path


def must_exist(source: Path) -> None:
    """Raise NotFound (``file-failed``) for a local file that is not there."""
    if not source.exists():
        raise NotFound(Code.FILE_FAILED, f"there is no file {str(source)[:200]!r}")


def may_be_folder(error: SeraiError, path: str) -> bool:
    """Tell whether a copy may have failed because ``path`` in the guest is a folder."""
    return error.code is Code.FILE_FAILED and not path.endswith("/")


def ask_whether_folder(path: str) -> ExecRequest:
    """Return the command that ends with 0 if ``path`` in the guest is a folder."""
    return ExecRequest(argv=["test", "-d", path], timeout=LOOK_TIMEOUT)


def name_of(path: str) -> str:
    """Return the last part of a path in a guest; Invalid names like ``..`` give a plain word."""
    name = posixpath.basename(posixpath.normpath(path))
    return name if name not in ("", ".", "..") else "root"


@contextmanager
def receiving_file(path: str, local: str) -> Iterator[tuple[BinaryIO, Pulled]]:
    """Give a file to write to, which gets its name when the block ends well."""
    target = Path(local)
    if local.endswith("/"):
        target.mkdir(parents=True, exist_ok=True)
    final = target / name_of(path) if target.is_dir() else target
    with written_whole(final) as file:
        yield file, Pulled(final, [])


@contextmanager
def written_whole(final: Path) -> Iterator[BinaryIO]:
    """Give a file to write to that is named ``final`` once it is complete, and is gone otherwise."""
    partial = final.with_name(f".{final.name[:200]}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def receiving_folder(path: str, local: str) -> Iterator[tuple[BinaryIO, Pulled]]:
    """Give a file to write a tar to, which is unpacked when the block ends well."""
    target = Path(local) / name_of(path) if local.endswith("/") else Path(local)
    target.parent.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    with tempfile.TemporaryFile(dir=target.parent) as archive:
        yield archive, Pulled(target, left_out)
        archive.seek(0)
        target.mkdir(exist_ok=True)
        left_out += unpack_folder(archive, target)


def with_input_file(request: ExecRequest) -> tuple[str, ExecRequest]:
    """Return a path in the guest for the input, and the command that reads it from there."""
    path = f"/tmp/.serai-{secrets.token_hex(8)}"  # noqa: S108 - in the guest
    argv = ["/bin/sh", "-c", INPUT_FROM_FILE, path, *request.argv]
    return path, msgspec.structs.replace(request, argv=argv, stdin=b"")
