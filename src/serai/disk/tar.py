"""The headers of an untrusted tar archive, read strictly: ustar (POSIX.1-1988) and nothing beyond.

Sizes over 8 GiB are taken as GNU tar writes them. Names are for comparing: no caller may use one as a path.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serai.disk.reader import Reader, refused

BLOCK = 512
REGULAR = b"0"
OLD_REGULAR = b"\0"
EXTENDED = frozenset(b"xgLK")
MAX_MEMBERS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of an archive: where its content is, and its type as the header has it."""

    name: str
    offset: int
    size: int
    kind: bytes


def read_members(reader: Reader) -> Iterator[Member]:
    """Yield all members; refuses an archive that is cut off, or has more than anybody needs."""
    offset = 0
    count = 0
    while any(header := reader.read(offset, BLOCK, "the archive")):
        yield (member := _read_member(header, offset + BLOCK))
        offset += BLOCK + -(-member.size // BLOCK) * BLOCK
        count += 1
        if offset > reader.size:
            raise refused("the archive is truncated")
        if count > MAX_MEMBERS:
            raise refused(f"the archive has more than {MAX_MEMBERS} members")


def _read_member(header: bytes, offset: int) -> Member:
    checksum = sum(header[:148]) + 8 * 0x20 + sum(header[156:])
    try:
        name = header[:100].rstrip(b"\0").decode("utf-8")
        size = _read_number(header[124:136])
        sound = _read_number(header[148:156]) == checksum
    except (UnicodeDecodeError, ValueError) as error:
        raise refused("the archive has a header that can't be read") from error
    if not sound or size < 0 or header[257:262] != b"ustar" or header[345:500].strip(b"\0"):
        raise refused("the archive has a header that can't be read")
    if header[156] in EXTENDED:
        raise refused(
            "the archive has extended headers",
            hint="Pack it anew: tar --format=ustar -cf NEW.ova THE.ovf THE.mf DISK…",
        )
    return Member(name=name, offset=offset, size=size, kind=header[156:157])


def _read_number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError("no octal number")
    return int(digits.decode("ascii"), 8)
