"""A file that is kept as it is, or compressed when it is cold: read alike.

    NAME       the bytes
    NAME.zst   the same, in pieces of 1 MiB, each a zstd frame of its own; a piece of zeros is empty

    NAME.zst:  "SERAIZS1", size (u64), the length of each frame (u32 each), the frames

Where both are there, NAME counts. Nothing is verified here but that the compressed form is one: what
comes out is checked against the digests of whoever reads it.
"""

import os
import struct
import sys
from array import array
from itertools import accumulate
from pathlib import Path

import zstandard

from serai.disk.digests import PIECE, data_pieces, in_threads, pieces_of, read_piece
from serai.disk.files import write_all
from serai.disk.sealed import corrupt
from serai.disk.work import Pulse

SUFFIX = ".zst"
MAGIC = b"SERAIZS1"
HEAD = struct.Struct("<8sQ")
LEVEL = 3
SIZE_LIMIT = 1 << 46
_ZEROS = bytes(PIECE)


class Content:
    """An open file of either form. ``size`` is that of the plain one."""

    def __init__(self, descriptor: int, *, compressed: bool, what: str) -> None:
        self.descriptor = descriptor
        self.compressed = compressed
        self._what = what
        self._kept: tuple[int, bytes] = (-1, b"")
        self._lengths = array("I")
        self._places: list[int] = []
        self.size = os.fstat(descriptor).st_size
        if compressed:
            self._read_head()

    @classmethod
    def open(cls, path: Path, what: str) -> "Content":
        """Open ``path`` or its compressed form. HostFailure (``snapshot-corrupt``): neither is there."""
        for candidate in (path, path.with_name(path.name + SUFFIX), path):
            try:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(candidate, flags)
            except FileNotFoundError:
                continue
            try:
                return cls(descriptor, compressed=candidate is not path, what=what)
            except BaseException:
                os.close(descriptor)
                raise
        raise corrupt(what, f"{path.name} is gone")

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def __enter__(self) -> "Content":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pieces(self) -> set[int]:
        """Return where the pieces begin that are not surely zeros."""
        if not self.compressed:
            return data_pieces(self.descriptor, self.size)
        return {index * PIECE for index, length in enumerate(self._lengths) if length}

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what is at ``offset``; any number of threads may."""
        if offset + len(view) > self.size:
            raise corrupt(self._what, "it is too short")
        while view:
            count = self._read_some(offset, view)
            view, offset = view[count:], offset + count

    def _read_some(self, offset: int, view: memoryview) -> int:
        if not self.compressed:
            count = os.preadv(self.descriptor, [view], offset)
            if count == 0:
                raise corrupt(self._what, "it is too short")
            return count
        index, begin = divmod(offset, PIECE)
        piece = self._piece(index)
        part = piece[begin : begin + len(view)]
        view[: len(part)] = part
        return len(part)

    def _piece(self, index: int) -> bytes:
        kept, piece = self._kept  # one tuple: another thread replaces it whole
        if kept != index:
            piece = self._decompress(index)
            self._kept = (index, piece)
        return piece

    def _decompress(self, index: int) -> bytes:
        size = min(PIECE, self.size - index * PIECE)
        length = self._lengths[index]
        if length == 0:
            return _ZEROS[:size]
        frame = os.pread(self.descriptor, length, self._places[index])
        try:
            if zstandard.frame_content_size(frame) != size:
                raise corrupt(self._what, "a frame has another size")
            piece = zstandard.ZstdDecompressor().decompress(frame)
        except zstandard.ZstdError as error:
            raise corrupt(self._what, str(error)) from error
        if len(piece) != size:
            raise corrupt(self._what, "a frame has another size")
        return piece

    def _read_head(self) -> None:
        there = self.size
        head = os.pread(self.descriptor, HEAD.size, 0)
        magic, size = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0)
        count = len(pieces_of(size)) if size <= SIZE_LIMIT else 0
        if magic != MAGIC or not count > 0 or HEAD.size + 4 * count > there:
            raise corrupt(self._what, "its compressed form is none")
        self._lengths.frombytes(os.pread(self.descriptor, 4 * count, HEAD.size))
        if sys.byteorder == "big":
            self._lengths.byteswap()
        self._places = list(accumulate(self._lengths, initial=HEAD.size + 4 * count))
        if self._places[-1] != there:
            raise corrupt(self._what, "its compressed form has another length")
        self.size = size


def compress_file(source: Path, target: Path, pulse: Pulse) -> int:
    """Write the compressed form of ``source`` to the new file ``target`` and sync it.

    Returns its size. The name is the caller's to make durable, and to remove on failure.
    """
    with Content(os.open(source, os.O_RDONLY | os.O_CLOEXEC), compressed=False, what="") as plain:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        made = os.open(target, flags, 0o400)
        try:
            return _compress(plain, made, pulse)
        finally:
            os.close(made)


def _compress(plain: Content, made: int, pulse: Pulse) -> int:
    def one(offset: int, buffer: bytearray) -> tuple[int, bytes]:
        piece = read_piece(plain.descriptor, offset, min(PIECE, plain.size - offset), buffer)
        if buffer.startswith(_ZEROS[: len(piece)]):
            return offset, b""
        return offset, zstandard.ZstdCompressor(level=LEVEL).compress(piece)

    lengths = array("I", bytes(4 * len(pieces_of(plain.size))))
    place = HEAD.size + 4 * len(lengths)
    for offset, frame in in_threads(one, sorted(plain.pieces()), pulse):
        pulse.beat(offset, plain.size)
        write_all(made, memoryview(frame), place)
        lengths[offset // PIECE] = len(frame)
        place += len(frame)
    if sys.byteorder == "big":
        lengths.byteswap()
    write_all(made, memoryview(HEAD.pack(MAGIC, plain.size) + lengths.tobytes()), 0)
    os.ftruncate(made, place)
    os.fsync(made)
    return place
