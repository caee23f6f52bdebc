"""Page sets: written and read back, and every damaged one refused."""

import os
import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, HostFailure
from serai.host.pages import (
    MAGIC,
    PAGE,
    numbers_of,
    pages_offset,
    read_numbers,
    runs_of,
    write_all,
    write_numbers,
)

PAGES = 5000


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("pages", os.MFD_CLOEXEC)
    yield made
    os.close(made)


def write(fd: int, numbers: list[int]) -> None:
    at = write_numbers(fd, array("I", numbers))
    for number in numbers:
        write_all(fd, struct.pack("<Q", number) * (PAGE // 8), at)
        at += PAGE


@pytest.mark.parametrize("numbers", [[], [0], [4999], [3, 4, 9], list(range(1020)), [1, 3000]])
def test_what_was_written_is_read(fd: int, numbers: list[int]) -> None:
    write(fd, [7, 8, 9])  # and is gone afterwards
    write(fd, numbers)
    assert list(read_numbers(fd, pages=PAGES)) == numbers
    for index, number in enumerate(numbers):
        page = os.pread(fd, PAGE, pages_offset(len(numbers)) + index * PAGE)
        assert page == struct.pack("<Q", number) * (PAGE // 8)


def test_the_layout_is_as_written_down(fd: int) -> None:
    write(fd, [5, 258])
    assert os.pread(fd, 24, 0) == b"SERAIPG1" + bytes([2] + [0] * 7) + bytes(
        [5, 0, 0, 0, 2, 1, 0, 0]
    )
    assert (pages_offset(0), pages_offset(1020), pages_offset(1021)) == (4096, 4096, 8192)
    assert os.fstat(fd).st_size == 4096 + 2 * 4096


def damaged(fd: int, offset: int, data: bytes) -> None:
    write(fd, [3, 4, 9])
    write_all(fd, data, offset)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"s"),
        (8, b"\x02"),
        (8, b"\x04"),
        (8, b"\xff" * 8),
        (15, b"\x01"),
        (16, b"\x04"),  # the same number twice
        (16, b"\x05"),  # 5, 4, 9
        (24, struct.pack("<I", PAGES)),
        (24, b"\xff" * 4),
        (28, b"\x01"),
        (4095, b"\x01"),
        (4096 + 3 * 4096, b"\0"),
    ],
)
def test_a_damaged_one_is_refused(fd: int, offset: int, data: bytes) -> None:
    damaged(fd, offset, data)
    with pytest.raises(HostFailure) as caught:
        read_numbers(fd, pages=PAGES)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT


@pytest.mark.parametrize("size", [0, 1, 15, 16, 4095, 4096, 4096 + 3 * 4096 - 1])
def test_a_short_one_is_refused(fd: int, size: int) -> None:
    write(fd, [3, 4, 9])
    os.ftruncate(fd, size)
    with pytest.raises(HostFailure):
        read_numbers(fd, pages=PAGES)


def test_a_huge_count_costs_nothing(fd: int) -> None:
    os.pwrite(fd, MAGIC + struct.pack("<Q", 1 << 28), 0)
    os.ftruncate(fd, pages_offset(1 << 28) + (1 << 40))
    with pytest.raises(HostFailure, match="can't hold"):
        read_numbers(fd, pages=PAGES)


def test_order_is_checked_across_pieces(fd: int) -> None:
    numbers = array("I", range(70_000))
    numbers[65_536] = 65_535
    write_numbers(fd, numbers)
    os.ftruncate(fd, pages_offset(70_000) + 70_000 * PAGE)
    with pytest.raises(HostFailure, match="ascend"):
        read_numbers(fd, pages=1 << 20)


@given(st.sets(st.integers(0, 300)))
def test_runs_and_numbers_are_the_same(chosen: set[int]) -> None:
    numbers = array("I", sorted(chosen))
    runs = runs_of(numbers)
    assert numbers_of(runs) == numbers
    ends = [first + count for first, count in runs]
    assert all(end < begin for end, (begin, _) in zip(ends, runs[1:], strict=False))
    assert all(count > 0 for _, count in runs)
