"""A memory copied ahead: what is written at any time meanwhile is in the page set, as it is at the end."""

import mmap
import os
from collections.abc import Iterator

import pytest

from serai.host import userfault
from serai.host.pages import PAGE, pages_offset, read_numbers
from serai.qemu.ahead import LITTLE, Ahead, open_ahead
from serai.qemu.memory import Ram, open_ram

NAME = "serai-ram-9"
PAGES = 9000
MANY = range(1000, 1000 + LITTLE + 500)


@pytest.fixture
def private() -> Iterator[mmap.mmap]:
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGES * PAGE)
    for number in range(0, PAGES, 3):
        os.pwrite(fd, b"base", number * PAGE)
    with mmap.mmap(fd, PAGES * PAGE, flags=mmap.MAP_PRIVATE) as mapped:
        yield mapped
    os.close(fd)


@pytest.fixture
def ram(private: mmap.mmap) -> Iterator[Ram]:
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        yield ram


@pytest.fixture
def noted(ram: Ram) -> Iterator[Ram]:
    """The memory, of a process that has what the kernel needs to note what is written."""
    try:
        fd = userfault._make_ready(userfault._make_own())
    except OSError as error:
        pytest.skip(f"this kernel notes no writes: {error}")
    yield ram
    os.close(fd)


def write(private: mmap.mmap, numbers: "range | list[int]", text: bytes) -> None:
    for number in numbers:
        private[number * PAGE : number * PAGE + len(text)] = text


def gathered(ahead: Ahead) -> dict[int, bytes]:
    """Return the pages that the set has, by number."""
    fd = os.memfd_create("pages")
    try:
        count = ahead.gather(fd)
        numbers = read_numbers(fd, pages=PAGES)
        assert len(numbers) == count
        begin = pages_offset(count)
        return {each: os.pread(fd, PAGE, begin + at * PAGE) for at, each in enumerate(numbers)}
    finally:
        os.close(fd)


def assert_same(found: dict[int, bytes], private: mmap.mmap, wanted: set[int]) -> None:
    assert set(found) == wanted
    for number, page in found.items():
        assert page == private[number * PAGE : (number + 1) * PAGE], number


@pytest.mark.parametrize("buffer", [PAGE, 3 * PAGE, 1 << 20])
def test_what_is_written_meanwhile_is_there(
    private: mmap.mmap, noted: Ram, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    monkeypatch.setattr("serai.qemu.memory.BUFFER", buffer)
    monkeypatch.setattr("serai.qemu.ahead.BUFFER", buffer)
    write(private, [0, 7, 8, *MANY], b"own")
    with open_ahead(noted) as ahead:
        ahead.copy()
        assert ahead.begun
        write(private, [8, 9, 1100, PAGES - 1], b"later")  # two of them for the first time
        ahead.catch_up()
        write(private, [0, 10, 1200], b"last")
        ahead.copy_rest()
        assert_same(gathered(ahead), private, {0, 7, 8, 9, 10, PAGES - 1, *MANY})


def test_only_what_was_written_is_copied_again(
    private: mmap.mmap, noted: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(private, MANY, b"own")
    copied = []
    copy = Ram.copy
    with open_ahead(noted) as ahead:
        ahead.copy()
        write(private, [1000, 1001, 5], b"x")
        monkeypatch.setattr(
            Ram, "copy", lambda self, runs, fd: copied.append(runs) or copy(self, runs, fd)
        )
        ahead.copy_rest()
        ahead.copy_rest()
    assert copied == [[(5, 1), (1000, 2)], []]


def test_it_is_done_again_later(private: mmap.mmap, noted: Ram) -> None:
    for text in (b"one", b"two"):
        write(private, MANY, text)
        with open_ahead(noted) as ahead:
            ahead.copy()
            write(private, [3], text)
            ahead.copy_rest()
            assert_same(gathered(ahead), private, {3, *MANY})


def test_a_memory_that_is_written_faster_than_copied_comes_to_an_end(
    private: mmap.mmap, noted: Ram, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    copy = Ram.copy

    def copying(self: Ram, runs: "list[tuple[int, int]]", fd: int) -> None:
        nonlocal turns
        turns += 1
        copy(self, runs, fd)
        write(private, range(PAGES), b"%d" % turns)

    monkeypatch.setattr(Ram, "copy", copying)
    write(private, MANY, b"own")
    with open_ahead(noted) as ahead:
        ahead.copy()
        assert turns == 2
        monkeypatch.setattr(Ram, "copy", copy)
        ahead.copy_rest()
        assert_same(gathered(ahead), private, set(range(PAGES)))


def test_little_is_not_copied_ahead(private: mmap.mmap, noted: Ram) -> None:
    write(private, MANY[:LITTLE], b"own")
    with open_ahead(noted) as ahead:
        ahead.copy()
        ahead.catch_up()
        assert not ahead.begun


def test_where_the_kernel_notes_nothing_nothing_is_done_ahead(private: mmap.mmap, ram: Ram) -> None:
    write(private, MANY, b"own")
    with open_ahead(ram) as ahead:
        ahead.copy()
        ahead.catch_up()
        assert not ahead.begun
