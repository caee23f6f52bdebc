"""Digests that find one flipped bit at the speed of memory: BLAKE3, piece by piece.

A *tree* digest is taken over the digests of pieces of 1 MiB, so that several threads can make it and
a piece of zeros (a hole) costs nothing: it counts as 32 zero bytes. BLAKE3 because it is several
times faster than what Python brings (measured, MB/s on one core: blake3 1,500 to 4,300, sha256 700,
blake2b 500), and a guest's memory has to be read, checked and handed over in one go. SHA-256 stays what
names images.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from blake3 import blake3

from serai.disk.work import Pulse

PIECE = 1 << 20
THREADS = 2
AHEAD = 4
"""How many pieces are on their way at once: bounds the memory that this takes."""
DIGEST_SIZE = 32
NOTHING = bytes(DIGEST_SIZE)
"""What stands for a piece of zeros."""

_ZEROS = bytes(PIECE)

A = TypeVar("A")
R = TypeVar("R")


def digest(content: bytes | bytearray | memoryview) -> bytes:
    """Return the digest of a piece: 32 bytes."""
    return blake3(content).digest()


def named(content: bytes) -> str:
    """Return the digest of something small as it is written down."""
    return f"blake3:{blake3(content).hexdigest()}"


def name_of(pieces: bytes, size: int) -> str:
    """Return the tree digest of a content of ``size`` bytes from the digests of its pieces."""
    return f"blake3-tree:{blake3(size.to_bytes(8, 'little') + pieces).hexdigest()}"


def digest_or_nothing(piece: memoryview, buffer: bytearray) -> bytes:
    """Return the digest of ``piece``, which begins ``buffer``, or what stands for only zeros."""
    return NOTHING if buffer.startswith(_ZEROS[: len(piece)]) else digest(piece)


def in_threads(work: Callable[[A, bytearray], R], items: Iterable[A], pulse: Pulse) -> Iterator[R]:
    """Yield ``work(item, buffer)`` in order, a few at once; none runs on when this is left.

    The buffer of 1 MiB is the thread's own and used again: new memory would take longer to come by
    than to fill.
    """
    local = threading.local()

    def one(item: A) -> R:
        if not hasattr(local, "buffer"):
            local.buffer = bytearray(PIECE)
        return work(item, local.buffer)

    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS, "disk-piece") as pool:
        try:
            for item in items:
                pulse.beat()
                waiting.append(pool.submit(one, item))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_piece(descriptor: int, offset: int, length: int, buffer: bytearray) -> memoryview:
    """Read into ``buffer`` and return what there was of ``length`` bytes, 1 MiB at most."""
    view = memoryview(buffer)[:length]
    done = 0
    while done < length:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return view[:done]


def pieces_of(size: int) -> range:
    """Return where the pieces of a content of ``size`` bytes begin."""
    return range(0, size, PIECE)


def data_pieces(descriptor: int, size: int) -> set[int]:
    """Return where those pieces begin that are not holes as a whole."""
    found: set[int] = set()
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        found.update(range(start // PIECE * PIECE, end, PIECE))
        offset = end
    return found


def tree_digest(descriptor: int, size: int, pulse: Pulse) -> str:
    """Return the tree digest of the first ``size`` bytes of a file."""
    data = data_pieces(descriptor, size)

    def one(offset: int, buffer: bytearray) -> bytes:
        return digest_or_nothing(
            read_piece(descriptor, offset, min(PIECE, size - offset), buffer), buffer
        )

    found = dict(zip(sorted(data), in_threads(one, sorted(data), pulse), strict=True))
    return name_of(b"".join(found.get(each, NOTHING) for each in pieces_of(size)), size)
