"""Files and folders into and out of guests, and commands whose input does not fit into a request.

Where a copy goes is decided without looking, so that doing it twice gives the same: a target that
ends with ``/`` is a folder into which the copy goes under its own name; any other target is the
copy's own name. Only a *file* whose target turns out to be a folder goes into that, as with cp.
"""

import os
import posixpath
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import msgspec

from serai.client import calls
from serai.client.blocking import Connection
from serai.client.files import OnLeftOut, pack_folder, read_pieces, unpack_folder
from serai.errors import Code, NotFound, SeraiError
from serai.model.talk import ExecRequest, ExecResult

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


def _is_folder(connection: Connection, guest: str, path: str) -> bool:
    try:
        return connection.ask(calls.run_command(guest, ask_whether_folder(path))).code == 0
    except SeraiError:
        return False


def push(
    connection: Connection, guest: str, source: Path, path: str, on_left_out: OnLeftOut
) -> str:
    """Copy a file or folder into a guest; return its path there."""
    must_exist(source)
    target = target_in_guest(source, path)
    if source.is_dir():
        call = calls.push_file(guest, target, mode=0o755, unpack=True)
        connection.send(call, pack_folder(source, on_left_out))
        return target
    try:
        _push_file(connection, guest, source, target)
    except SeraiError as error:
        if not may_be_folder(error, path) or not _is_folder(connection, guest, path):
            raise
        target = target_in_guest(source, f"{path}/")
        _push_file(connection, guest, source, target)
    return target


def _push_file(connection: Connection, guest: str, source: Path, target: str) -> None:
    mode = source.stat().st_mode & 0o777
    with source.open("rb") as file:
        call = calls.push_file(guest, target, mode=mode, unpack=False)
        connection.send(call, read_pieces(file))


def pull(connection: Connection, guest: str, path: str, local: str) -> Pulled:
    """Copy a file or folder out of a guest; return where it is.

    A file is there whole or not at all; of a folder, a failure leaves what came before.
    """
    if not path.endswith("/"):
        try:
            return _pull_file(connection, guest, path, local)
        except SeraiError as error:
            if not may_be_folder(error, path) or not _is_folder(connection, guest, path):
                raise
    call = calls.pull_file(guest, path, pack=True)
    with receiving_folder(path, local) as (archive, pulled):
        for chunk in connection.stream(call):
            archive.write(chunk)
    return pulled


def _pull_file(connection: Connection, guest: str, path: str, local: str) -> Pulled:
    call = calls.pull_file(guest, path, pack=False)
    with receiving_file(path, local) as (file, pulled):
        for chunk in connection.stream(call):
            file.write(chunk)
    return pulled


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


def run(
    connection: Connection, guest: str, request: ExecRequest, more: Iterable[bytes] = ()
) -> ExecResult:
    """Run a command in a guest. ``more`` is standard input that follows ``request.stdin``.

    Input that is too much for a request is put into a file of the guest first, which is gone when
    the command starts.
    """
    pieces, stdin = iter(more), bytearray(request.stdin)
    for piece in pieces:
        stdin += piece
        if len(stdin) > INLINE_INPUT:
            break
    if len(stdin) <= INLINE_INPUT:
        whole = msgspec.structs.replace(request, stdin=bytes(stdin))
        return connection.ask(calls.run_command(guest, whole))
    path, from_file = with_input_file(request)
    call = calls.push_file(guest, path, mode=0o600, unpack=False)
    connection.send(call, chain([bytes(stdin)], pieces))
    return connection.ask(calls.run_command(guest, from_file))


def with_input_file(request: ExecRequest) -> tuple[str, ExecRequest]:
    """Return a path in the guest for the input, and the command that reads it from there."""
    path = f"/tmp/.serai-{secrets.token_hex(8)}"  # noqa: S108 - in the guest
    argv = ["/bin/sh", "-c", INPUT_FROM_FILE, path, *request.argv]
    return path, msgspec.structs.replace(request, argv=argv, stdin=b"")
