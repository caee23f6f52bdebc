"""The folder of a base: the whole RAM of a guest that was frozen, and its stream of devices.

    ram     as large as the RAM, with holes where it is zeros (or ``ram.zst``, when cold)
    about   sealed: the size, a digest for each MiB of ``ram``, the stream of devices

It is read once into a sealed memory file, which all forks map privately; QEMU never sees ``ram``.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from serai.disk.content import Content
from serai.disk.digests import (
    DIGEST_SIZE,
    NOTHING,
    PIECE,
    data_pieces,
    digest_or_nothing,
    in_threads,
    pieces_of,
    read_piece,
)
from serai.disk.files import write_data
from serai.disk.sealed import corrupt, read_sealed, write_sealed
from serai.disk.work import Pulse
from serai.host.pages import PAGE

RAM_NAME = "ram"
ABOUT_NAME = "about"
STATE_LIMIT = 1 << 29
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class BaseAbout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="base"):
    """What is sealed of a base; the digests, then the stream of ``state`` bytes are attached."""

    size: int
    state: int


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What was read of a base: all but the RAM."""

    size: int
    sums: bytes
    state: bytes


def read_base(folder: Path) -> Base:
    """Return what is sealed of a base; raises HostFailure (``snapshot-corrupt``)."""
    what = f"the memory {folder.name}"
    about, attached = read_sealed(folder / ABOUT_NAME, BaseAbout, what)
    sums = len(pieces_of(about.size)) * DIGEST_SIZE
    if about.size <= 0 or about.size % PAGE or sums + about.state != len(attached):
        raise corrupt(what, "its description contradicts itself")
    return Base(size=about.size, sums=attached[:sums], state=attached[sums:])


def write_base(folder: Path, ram_fd: int, size: int, state: bytes, pulse: Pulse) -> None:
    """Write the files of a base into the new ``folder`` and sync them."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    target = os.open(folder / RAM_NAME, flags, 0o400)
    try:
        os.ftruncate(target, size)
        sums = _copy_ram(ram_fd, target, size, pulse)
        os.fsync(target)
    finally:
        os.close(target)
    write_sealed(folder / ABOUT_NAME, BaseAbout(size=size, state=len(state)), (sums, state))


def _copy_ram(ram_fd: int, target: int, size: int, pulse: Pulse) -> bytes:
    def one(offset: int, buffer: bytearray) -> tuple[int, bytes]:
        piece = read_piece(ram_fd, offset, min(PIECE, size - offset), buffer)
        found = digest_or_nothing(piece, buffer)
        if found is not NOTHING:
            write_data(target, buffer, len(piece), offset)
        return offset, found

    sums = bytearray(len(pieces_of(size)) * DIGEST_SIZE)
    for offset, found in in_threads(one, sorted(data_pieces(ram_fd, size)), pulse):
        pulse.beat(offset, size)
        place = offset // PIECE * DIGEST_SIZE
        sums[place : place + DIGEST_SIZE] = found
    return bytes(sums)


def load_base(folder: Path, base: Base, pulse: Pulse) -> int:
    """Return a sealed memory file with the RAM, which was verified on the way; it is the caller's.

    Any uid may map it privately; nobody, not even we, can change it.
    """
    made = os.memfd_create(f"serai-ram-{folder.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, base.size)
        check_ram(folder, base, pulse, made)
        os.fchmod(made, 0o666)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(made)
        raise
    return made


def check_ram(folder: Path, base: Base, pulse: Pulse, target: int | None = None) -> None:
    """Read all of the RAM and compare it with its digests; copy it to ``target`` if there is one.

    Raises HostFailure (``snapshot-corrupt``).
    """
    what = f"the memory {folder.name}"
    with Content.open(folder / RAM_NAME, what) as ram:
        if ram.size != base.size:
            raise corrupt(what, f"its RAM has {ram.size} bytes instead of {base.size}")

        def one(offset: int, buffer: bytearray) -> int:
            piece = memoryview(buffer)[: min(PIECE, base.size - offset)]
            ram.read_into(offset, piece)
            place = offset // PIECE * DIGEST_SIZE
            if digest_or_nothing(piece, buffer) != base.sums[place : place + DIGEST_SIZE]:
                raise corrupt(what, f"its RAM is not what was stored, at {offset >> 20} MiB")
            if target is not None:
                write_data(target, buffer, len(piece), offset)
            return offset

        for offset in in_threads(one, sorted(ram.pieces() | _wanted(base)), pulse):
            pulse.beat(offset, base.size)


def _wanted(base: Base) -> set[int]:
    """Return where the pieces begin that are not zeros."""
    sums = base.sums
    return {
        place // DIGEST_SIZE * PIECE
        for place in range(0, len(sums), DIGEST_SIZE)
        if not sums.startswith(NOTHING, place)
    }
