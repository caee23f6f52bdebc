"""The stream of a machine's devices, and how a later one is made loadable: pure.

QEMU's migration stream (migration/savevm.c, migration/ram.c; x-ignore-shared is on):

    QEVM, version     8 bytes
    configuration     the machine's name and capabilities
    START "ram"       names and sizes of all memory blocks
    PART, END "ram"   pages of the blocks that are not shared: ROMs, video memory
    FULL …            the devices, each with its name
    EOF

``xen-save-devices-state`` writes the head, the devices and EOF: it is quick, but QEMU does not load
that. So a later stream is the base's own as far as its devices, then the later one's devices.

In the memory blocks is what the guest wrote there (its screen), so nothing is searched for in
them: the stream is taken apart record by record.
"""

import re
import struct

from serai.errors import Code, HostFailure

HEAD = b"QEVM\0\0\0\3"
STATE_LIMIT = 256 << 20

RAM_START = re.compile(rb"\x01(.{4})\x03ram\0\0\0\0\0\0\0\x04", re.DOTALL)
U64 = struct.Struct(">Q")
FLAGS = 0xFFF
MEM_SIZE, EOS = 0x04, b"\0\0\0\0\0\0\0\x10"
PART, END, FULL = b"\x02", b"\x03", b"\x04"
FOOTER = b"\x7e"
CONFIGURATION_LIMIT = 4096

# An offset with flags (ram.c, save_page_header): 0x02 a page of one byte, 0x08 a whole page; with
# 0x20 of the same block as the last, else the block's name follows.
OFFSET = rb".{6}[\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0]"
RECORDS = rb"(?:%b(?:\x22.|\x28.{4096}|\x02(?:%b).|\x08(?:%b).{4096}))*"


def find_devices(untrusted_stream: bytes) -> int:
    """Return where the devices begin in a whole stream.

    Raises HostFailure (``snapshot-unfit``) when it is not one that we know.
    """
    if not untrusted_stream.startswith(HEAD):
        raise _unfit("it does not begin as a stream of QEMU does")
    start = RAM_START.search(untrusted_stream, 0, CONFIGURATION_LIMIT)
    if start is None:
        raise _unfit("it has no memory blocks")
    section = start.group(1)
    at, names = _read_blocks(untrusted_stream, start.end())
    at = _skip_footer(untrusted_stream, at, section)
    records = _records_of(names)
    kind = PART
    while kind == PART:
        kind = untrusted_stream[at : at + 1]
        if kind not in (PART, END) or untrusted_stream[at + 1 : at + 5] != section:
            raise _unfit("its memory blocks do not end")
        found = records.match(untrusted_stream, at + 5)
        if found is None or untrusted_stream[found.end() : found.end() + 8] != EOS:
            raise _unfit("its memory blocks have pages of an unknown kind")
        at = _skip_footer(untrusted_stream, found.end() + 8, section)
    return at


def _read_blocks(stream: bytes, at: int) -> tuple[int, list[bytes]]:
    """Read the list of memory blocks; return where it ends, and their names."""
    try:
        total = U64.unpack_from(stream, at)[0]
        if total & FLAGS != MEM_SIZE:
            raise _unfit("its memory blocks have no sizes")
        at, left, names = at + 8, total & ~FLAGS, []
        while left > 0:
            length = stream[at]
            names.append(stream[at + 1 : at + 1 + length])
            left -= U64.unpack_from(stream, at + 1 + length)[0]
            at += 1 + length + 16  # the block's size, and its place
    except (struct.error, IndexError) as error:
        raise _unfit("it ends too early") from error
    if left != 0 or stream[at : at + 8] != EOS:
        raise _unfit("its memory blocks are others than it says")
    return at + 8, names


def _records_of(names: list[bytes]) -> "re.Pattern[bytes]":
    choice = b"|".join(re.escape(bytes([len(name)]) + name) for name in names)
    return re.compile(RECORDS % (OFFSET, choice, choice), re.DOTALL)


def _skip_footer(stream: bytes, at: int, section: bytes) -> int:
    if stream[at : at + 5] != FOOTER + section:
        raise _unfit("a section of it has no end")
    return at + 5


def first_device(untrusted_stream: bytes, at: int) -> bytes:
    """Return name and number of the device whose section is at ``at``."""
    if untrusted_stream[at : at + 1] != FULL or len(untrusted_stream) < at + 14:
        raise _unfit("it has no devices")
    end = at + 6 + untrusted_stream[at + 5] + 8
    return untrusted_stream[at + 5 : end]


def splice(untrusted_base: bytes, untrusted_devices: bytes) -> bytes:
    """Return the stream that loads ``devices`` (as saved later) over the base.

    Raises HostFailure (``snapshot-unfit``) when the two are not of the same machine.
    """
    border = find_devices(untrusted_base)
    if not untrusted_devices.startswith(HEAD):
        raise _unfit("the devices do not begin as a stream of QEMU does")
    if first_device(untrusted_base, border) != first_device(untrusted_devices, len(HEAD)):
        raise _unfit("the base is another machine's")
    return untrusted_base[:border] + untrusted_devices[len(HEAD) :]


def _unfit(why: str) -> HostFailure:
    return HostFailure(Code.SNAPSHOT_UNFIT, f"the state of the devices can't be used: {why}")
