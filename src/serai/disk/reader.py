"""Reading an untrusted file within its bounds.

Whatever a header claims, ``Reader`` reads only bytes that are in the file, and never more at once
than ``MAX_READ``. Every parser of this room reads through it and refuses through ``refused``.
"""

import os
import stat

from serai.errors import Code, Invalid

MAX_READ = 1 << 25
SECTOR = 512


def refused(reason: str, *, hint: str = "") -> Invalid:
    """Return the problem ``image-refused`` with its reason."""
    return Invalid(Code.IMAGE_REFUSED, f"the image is refused: {reason}", hint=hint)


class Reader:
    """An open regular file (the descriptor stays the caller's) of a size that is asked once."""

    def __init__(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise refused("it is not a regular file")
        self.descriptor = descriptor
        self.size = facts.st_size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return exactly these bytes, or refuse because ``what`` lies outside of the file."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise refused(f"{what} lies outside of the file (truncated, or it lies)")
        if length > MAX_READ:
            raise refused(f"{what} is absurdly large")
        pieces: list[bytes] = []
        while length:
            piece = os.pread(self.descriptor, length, offset)
            if not piece:
                raise refused(f"the file shrank while {what} was read")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def peek(self, offset: int, length: int) -> bytes:
        """Return what there is of these bytes: fewer, or none, at the end of the file."""
        available = max(0, min(length, self.size - offset))
        return self.read(offset, available, "the file") if available else b""
