"""Copying files and folders into and out of guests."""

import contextlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from serai.cli.options import connection, guest_argument
from serai.cli.output import print_line, write_bytes
from serai.client import calls
from serai.errors import Code, Invalid, NotFound

CHUNK = 256 << 10


@click.command()
@guest_argument
@click.argument("source", metavar="LOCAL")
@click.argument("path", metavar="PATH")
def push(guest: str, source: str, path: str) -> None:
    """Copy the file or folder LOCAL to PATH in a guest; - is standard input.

    A PATH that ends with / is a folder: LOCAL is copied into it under its own name. Otherwise PATH
    is the copy's own name; of a folder, the content is copied into PATH.
    """
    if source == "-":
        _send(guest, path, _pieces_of(sys.stdin.buffer), mode=0o644)
        return
    local = Path(source)
    if not local.exists():
        raise NotFound(Code.FILE_FAILED, f"there is no file {source}")
    target = path + local.resolve().name if path.endswith("/") else path
    if local.is_dir():
        _push_folder(guest, local, target)
    else:
        with local.open("rb") as file:
            _send(guest, target, _pieces_of(file), mode=local.stat().st_mode & 0o777)
    print_line(f"{source} is now {guest}:{target}")


def _send(
    guest: str, path: str, pieces: Iterable[bytes], *, mode: int, unpack: bool = False
) -> None:
    connection().send(calls.push_file(guest, path, mode=mode, unpack=unpack), pieces)


def _push_folder(guest: str, folder: Path, path: str) -> None:
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname=".", filter=_as_root)
        archive.seek(0)
        _send(guest, path, _pieces_of(archive), mode=0o600, unpack=True)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _pieces_of(file: object) -> Iterator[bytes]:
    while piece := file.read(CHUNK):  # type: ignore[attr-defined]
        yield piece


@click.command()
@guest_argument
@click.argument("path", metavar="PATH")
@click.argument("target", metavar="LOCAL")
def pull(guest: str, path: str, target: str) -> None:
    """Copy the file PATH out of a guest to LOCAL; - is standard output.

    A PATH that ends with / is a folder: its content is copied into the folder LOCAL. A LOCAL that
    is a folder gets the file under its own name.
    """
    if path.endswith("/"):
        _pull_folder(guest, path, Path(target))
    elif target == "-":
        for chunk in connection().stream(calls.pull_file(guest, path, pack=False)):
            write_bytes(chunk)
        return
    else:
        _pull_file(guest, path, Path(target))
    print_line(f"{guest}:{path} is now {target}")


def _pull_file(guest: str, path: str, target: Path) -> None:
    """Write the file under a name of its own first, so that a failure leaves what was there."""
    final = target / Path(path).name if target.is_dir() else target
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for chunk in connection().stream(calls.pull_file(guest, path, pack=False)):
                file.write(chunk)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _pull_folder(guest: str, path: str, target: Path) -> None:
    with tempfile.TemporaryFile() as archive:
        for chunk in connection().stream(calls.pull_file(guest, path, pack=True)):
            archive.write(chunk)
        archive.seek(0)
        target.mkdir(parents=True, exist_ok=True)
        _unpack(archive, target)


def _unpack(untrusted_archive: object, target: Path) -> None:
    """Unpack a guest's tar: nothing outside ``target``, no devices, no owners (PEP 706)."""
    try:
        with tarfile.open(fileobj=untrusted_archive) as tar:  # type: ignore[call-overload]
            tar.extractall(target, filter="data")
    except (tarfile.TarError, OSError) as error:
        with contextlib.suppress(OSError):
            target.rmdir()
        raise Invalid(
            Code.FILE_FAILED, f"what the guest sent was not unpacked to its end: {error}"
        ) from error
