"""Streams of devices: where the devices begin is found exactly, and what is no stream is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, HostFailure
from serai.qemu.state import HEAD, find_devices, splice

PAGE = 4096
SECTION = b"\0\0\0\2"
BLOCKS = {b"memory": 1 << 28, b"0000:00:01.0/vga.vram": 1 << 24, b"pc.bios": 1 << 18}
EOS = struct.pack(">Q", 0x10)
FOOTER = b"\x7e" + SECTION


def name(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def a_device(idstr: bytes, body: bytes, section: int = 9) -> bytes:
    number = struct.pack(">I", section)
    head = b"\x04" + number + name(idstr) + struct.pack(">II", 0, 1)
    return head + body + b"\x7e" + number


def a_page(at: int, data: bytes, block: bytes = b"") -> bytes:
    flags = (0x02 if len(data) == 1 else 0x08) | (0 if block else 0x20)
    return struct.pack(">Q", at * PAGE | flags) + (name(block) if block else b"") + data


def a_start(blocks: dict[bytes, int] = BLOCKS) -> bytes:
    listed = b"".join(name(key) + struct.pack(">QQ", size, 0) for key, size in blocks.items())
    total = struct.pack(">Q", sum(blocks.values()) | 0x04)
    head = b"\x01" + SECTION + name(b"ram") + struct.pack(">II", 0, 4)
    return head + total + listed + EOS + FOOTER


def a_part(*pages: bytes, kind: bytes = b"\x02") -> bytes:
    return kind + SECTION + b"".join(pages) + EOS + FOOTER


CONFIGURATION = b"\x07" + struct.pack(">I", 10) + b"pc-q35-7.2"
VGA, BIOS = b"0000:00:01.0/vga.vram", b"pc.bios"
PAGES = (
    a_page(0, b"S" * PAGE, VGA),
    a_page(1, b"\0"),
    a_page(4095, b"\x22" * PAGE),
    a_page(0, b"\0", BIOS),
    a_page(63, b"\x10" * PAGE),
)
BEFORE = HEAD + CONFIGURATION + a_start() + a_part(*PAGES) + a_part(kind=b"\x03")
DEVICES = a_device(b"timer", b"old") + a_device(b"cpu", b"old cpu") + b"\0"
LATER = a_device(b"timer", b"new!", 11) + a_device(b"cpu", b"new cpu", 12) + b"\0"


def refused(*streams: bytes) -> None:
    with pytest.raises(HostFailure) as caught:
        splice(*streams) if len(streams) == 2 else find_devices(*streams)
    assert caught.value.code is Code.SNAPSHOT_UNFIT


def test_the_border_is_found() -> None:
    assert find_devices(BEFORE + DEVICES) == len(BEFORE)
    assert splice(BEFORE + DEVICES, HEAD + LATER) == BEFORE + LATER


def test_nothing_that_a_guest_paints_is_taken_for_the_border() -> None:
    """The guest writes to its video memory; what looks like a device there is a picture."""
    picture = (FOOTER + a_device(b"timer", b"evil") + a_start() + a_part()).ljust(PAGE, b".")
    painted = HEAD + CONFIGURATION + a_start() + a_part(a_page(0, picture, VGA), kind=b"\x03")
    assert splice(painted + DEVICES, HEAD + LATER) == painted + LATER


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=1), st.booleans()))
)
def test_any_pages(pages: list[tuple[int, bytes, bool]]) -> None:
    records = [a_page(at, fill * (PAGE if whole else 1), VGA) for at, fill, whole in pages]
    before = HEAD + CONFIGURATION + a_start() + a_part(*records) + a_part(*records, kind=b"\x03")
    assert find_devices(before + DEVICES) == len(before)


@pytest.mark.parametrize("size", range(0, len(BEFORE), 97))
def test_a_stream_that_ends_early_is_refused(size: int) -> None:
    refused(BEFORE[:size])


def test_other_machines_are_refused() -> None:
    refused(BEFORE + DEVICES, HEAD + a_device(b"rtc", b"x") + b"\0")
    refused(BEFORE + b"\0", HEAD + LATER)
    refused(BEFORE + DEVICES, LATER)
    refused(BEFORE + DEVICES, HEAD)
    refused(BEFORE, HEAD + LATER)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"QEVM\0\0\0\2" + BEFORE[8:],
        HEAD + a_part(*PAGES),
        HEAD + a_start({b"memory": 1 << 28}).replace(b"\x04memory", b"\x08memory"),
        BEFORE.replace(VGA, b"0000:00:01.0/vga.vrax", 2)[: len(BEFORE)],
        BEFORE.replace(a_page(1, b"\0"), struct.pack(">Q", PAGE | 0x100) + b"\0"),
        BEFORE.replace(a_page(1, b"\0"), struct.pack(">Q", PAGE | 0x40) + b"\0"),
        BEFORE.replace(FOOTER, b"\x7e\0\0\0\3"),
        BEFORE.replace(b"\x03" + SECTION + EOS, b"\x04" + SECTION + EOS),
        HEAD + b"." * 5000 + BEFORE[8:],
    ],
)
def test_what_is_no_stream_is_refused(stream: bytes) -> None:
    if b"vrax" in stream:  # a page of a block that there is not
        stream = stream.replace(b"vga.vrax", b"vga.vram", 1)
    refused(stream)


def test_sizes_that_do_not_add_up_are_refused() -> None:
    start = a_start()
    total = struct.pack(">Q", sum(BLOCKS.values()) | 0x04)
    for other in (sum(BLOCKS.values()) + PAGE, sum(BLOCKS.values()) - PAGE, 0, 1 << 60):
        changed = start.replace(total, struct.pack(">Q", other | 0x04))
        refused(HEAD + CONFIGURATION + changed + a_part(kind=b"\x03") + DEVICES)


@given(st.binary(max_size=300), st.integers(0, len(BEFORE)))
def test_noise_is_refused_or_harmless(noise: bytes, at: int) -> None:
    stream = BEFORE[:at] + noise
    try:
        assert find_devices(stream) <= len(stream)
    except HostFailure:
        pass
