"""Files and folders into and out of guests, and commands whose input does not fit into a request.

Where a copy goes, and how it comes to be whole, is said in ``copying``.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import msgspec

from serai.client.async_connection import AsyncConnection
from serai.client.copying import (
    INLINE_INPUT,
    Pulled,
    ask_whether_folder,
    may_be_folder,
    must_exist,
    receiving_file,
    receiving_folder,
    target_in_guest,
    with_input_file,
)
from serai.client.files import OnLeftOut, pack_folder, read_pieces
from serai.client.guest_calls import pull_file, push_file, run_command
from serai.errors import SeraiError
from serai.model.talk import ExecRequest, ExecResult


def _ignore(_: str) -> None:
    """Take no notice of what is no file and was left out."""


async def push(
    connection: AsyncConnection,
    guest: str,
    source: Path,
    path: str,
    on_left_out: OnLeftOut = _ignore,
) -> str:
    """Copy a file or folder into a guest; return its path there."""
    must_exist(source)
    target = target_in_guest(source, path)
    if source.is_dir():
        call = push_file(guest, target, mode=0o755, unpack=True)
        await connection.send(call, pack_folder(source, on_left_out))
        return target
    try:
        await _push_file(connection, guest, source, target)
    except SeraiError as error:
        if not may_be_folder(error, path) or not await _is_folder(connection, guest, path):
            raise
        target = target_in_guest(source, f"{path}/")
        await _push_file(connection, guest, source, target)
    return target


async def _push_file(connection: AsyncConnection, guest: str, source: Path, target: str) -> None:
    mode = source.stat().st_mode & 0o777
    with source.open("rb") as file:
        call = push_file(guest, target, mode=mode, unpack=False)
        await connection.send(call, read_pieces(file))


async def _is_folder(connection: AsyncConnection, guest: str, path: str) -> bool:
    try:
        return (await connection.ask(run_command(guest, ask_whether_folder(path)))).code == 0
    except SeraiError:
        return False


async def pull(connection: AsyncConnection, guest: str, path: str, local: str) -> Pulled:
    """Copy a file or folder out of a guest; return where it is.

    A file is there whole or not at all; of a folder, a failure leaves what came before.
    """
    if not path.endswith("/"):
        try:
            return await _pull_file(connection, guest, path, local)
        except SeraiError as error:
            if not may_be_folder(error, path) or not await _is_folder(connection, guest, path):
                raise
    call = pull_file(guest, path, pack=True)
    with receiving_folder(path, local) as (archive, pulled):
        async for chunk in connection.stream(call):
            archive.write(chunk)
    return pulled


async def _pull_file(connection: AsyncConnection, guest: str, path: str, local: str) -> Pulled:
    call = pull_file(guest, path, pack=False)
    with receiving_file(path, local) as (file, pulled):
        async for chunk in connection.stream(call):
            file.write(chunk)
    return pulled


async def run(
    connection: AsyncConnection, guest: str, request: ExecRequest, more: Iterable[bytes] = ()
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
        return await connection.ask(run_command(guest, whole))
    path, from_file = with_input_file(request)
    call = push_file(guest, path, mode=0o600, unpack=False)
    await connection.send(call, chain([bytes(stdin)], pieces))
    return await connection.ask(run_command(guest, from_file))
