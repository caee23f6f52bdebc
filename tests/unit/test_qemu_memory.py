"""Reading what /proc says of a mapping: exact where it is as it should be, refused elsewhere."""

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from serai.errors import Code, HostFailure
from serai.host.pages import PAGE, numbers_of, read_numbers
from serai.qemu.memory import (
    close_to_new_writers,
    find_mapping,
    is_sealed,
    open_ram,
    open_ram_file,
    seal_memory,
)

NAME = "serai-ram-5"
SIZE = 0x3000
LINE = b"%s %s %s 00:01 50572                      /memfd:%s (deleted)\n"


def maps(*lines: tuple[str, str, str, str]) -> bytes:
    around = b"55d0-55d1 r--p 00000000 08:01 12    /usr/bin/qemu\n"
    own = b"".join(LINE % tuple(word.encode() for word in line) for line in lines)
    return around + own + b"7fff-8000 rw-p 00000000 00:00 0     [stack]\n"


def test_a_mapping_is_found() -> None:
    assert find_mapping(maps(("1000-4000", "rw-p", "0", NAME)), NAME, SIZE) == 0x1000
    split = maps(("1000-2000", "rw-p", "00000000", NAME), ("2000-4000", "rw-p", "00001000", NAME))
    assert find_mapping(split, NAME, SIZE) == 0x1000


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (("1000-4000", "rw-s", "0", NAME),),
        (("1000-4000", "r--p", "0", NAME),),
        (("1000-4000", "rw-p", "0", "serai-ram-55"),),
        (("1000-4000", "rw-p", "0", "x serai-ram-5"),),
        (("1000-3000", "rw-p", "0", NAME),),
        (("1000-5000", "rw-p", "0", NAME),),
        (("1000-4000", "rw-p", "1000", NAME),),
        (("1000-2000", "rw-p", "0", NAME), ("3000-5000", "rw-p", "1000", NAME)),
        (("1000-2000", "rw-p", "0", NAME), ("2000-4000", "rw-p", "2000", NAME)),
        (("1000-4000", "rw-p", "0", NAME), ("8000-b000", "rw-p", "0", NAME)),
    ],
)
def test_another_one_is_refused(lines: tuple[tuple[str, str, str, str], ...]) -> None:
    with pytest.raises(HostFailure) as caught:
        find_mapping(maps(*lines), NAME, SIZE)
    assert caught.value.code is Code.SNAPSHOT_UNFIT


def test_a_name_in_the_middle_of_a_line_is_no_name() -> None:
    untrue = (
        b"1-2 r--p 0 00:01 5   /tmp/x\\0121000-4000 rw-p 0 00:01 1 /memfd:serai-ram-5 (deleted)\n"
    )
    with pytest.raises(HostFailure):
        find_mapping(untrue, NAME, SIZE)


# -- a memory of our own ---------------------------------------------------------------------------

PAGES = 3000


@pytest.fixture
def base() -> Iterator[int]:
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGES * PAGE)
    for number in range(0, PAGES, 3):
        os.pwrite(fd, b"base", number * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def private(base: int) -> Iterator[mmap.mmap]:
    with mmap.mmap(base, PAGES * PAGE, flags=mmap.MAP_PRIVATE) as mapped:
        yield mapped


CHANGED = [0, 1, 2, 7, 100, *range(511, 1030), 2047, PAGES - 1]


def change(private: mmap.mmap) -> None:
    for number in range(0, PAGES, 5):
        assert private[number * PAGE] in b"b\0"  # looked at is not changed
    for number in CHANGED:
        private[number * PAGE : number * PAGE + 3] = b"own"


def test_both_ways_find_what_was_changed(private: mmap.mmap) -> None:
    change(private)
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        assert list(numbers_of(ram.changed())) == CHANGED
        assert list(numbers_of(list(ram._read_pagemap()))) == CHANGED


def test_many_pieces_are_all_found(private: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serai.qemu.memory.REGIONS", 3)
    monkeypatch.setattr("serai.qemu.memory.ENTRIES_AT_ONCE", 7)
    for number in range(0, PAGES, 2):
        private[number * PAGE] = 1
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        assert list(numbers_of(ram.changed())) == list(range(0, PAGES, 2))
        assert list(numbers_of(list(ram._read_pagemap()))) == list(range(0, PAGES, 2))


def test_a_kernel_without_the_scan_is_read_in_the_old_way(
    private: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(private)
    monkeypatch.setattr("serai.qemu.memory.PAGEMAP_SCAN", 0xC0606611)
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        assert list(numbers_of(ram.changed())) == CHANGED


def test_nothing_changed(private: mmap.mmap) -> None:
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        assert ram.changed() == []
        pages = os.memfd_create("pages")
        assert (ram.save([], pages), ram.load(pages)) == (0, 0)
        os.close(pages)


@pytest.mark.parametrize("buffer", [PAGE, 3 * PAGE, 4 << 20])
def test_pages_go_out_and_in(
    base: int, private: mmap.mmap, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    monkeypatch.setattr("serai.qemu.memory.BUFFER", buffer)
    change(private)
    before = private[:]
    pages = os.memfd_create("pages")
    with open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        assert ram.save(ram.changed(), pages) == len(CHANGED)
        assert list(read_numbers(pages, pages=PAGES)) == CHANGED
        for number in CHANGED:
            private[number * PAGE : (number + 1) * PAGE] = b"?" * PAGE
        assert ram.load(pages) == len(CHANGED)
    os.close(pages)
    assert private[:] == before


def test_a_full_disk_is_told(private: mmap.mmap) -> None:
    private[0] = 1
    full = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(HostFailure), open_ram(os.getpid(), NAME, PAGES * PAGE) as ram:
        ram.save(ram.changed(), full)
    os.close(full)


# -- the file --------------------------------------------------------------------------------------


def test_a_base_is_sealed_for_good(base: int) -> None:
    shared = mmap.mmap(base, PAGE)
    close_to_new_writers(base)
    shared[:3] = b"old"  # who has it may go on
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(base, b"x", 0)
    with pytest.raises(HostFailure, match="somebody can still write"):
        seal_memory(base)
    assert not is_sealed(base)
    shared.close()
    seal_memory(base)
    seal_memory(base)
    assert is_sealed(base)
    assert os.fstat(base).st_mode & 0o777 == 0o666
    with pytest.raises(OSError, match="not permitted"):
        fcntl.fcntl(base, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_only_a_sealed_file_is_a_base(base: int) -> None:
    size = PAGES * PAGE
    os.close(open_ram_file(os.getpid(), NAME, size, private=False))
    with pytest.raises(HostFailure, match="not the one"):
        open_ram_file(os.getpid(), NAME, size, private=True)
    seal_memory(base)
    again = open_ram_file(os.getpid(), NAME, size, private=True)
    assert os.fstat(again).st_ino == os.fstat(base).st_ino
    os.close(again)
    with pytest.raises(HostFailure, match="not the one"):
        open_ram_file(os.getpid(), NAME, size + PAGE, private=True)
    with pytest.raises(HostFailure, match="no such file"):
        open_ram_file(os.getpid(), "serai-ram-6", size, private=False)


def test_a_process_that_is_gone(base: int) -> None:
    with pytest.raises(HostFailure, match="ended"), open_ram(1 << 22, NAME, SIZE) as _:
        pass


def test_where_the_host_forbids_it_a_clear_sentence(
    base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(HostFailure) as caught, open_ram(1, NAME, SIZE):
        pass
    assert caught.value.code is Code.PERMISSION
    assert "ptrace_scope" in caught.value.hint
