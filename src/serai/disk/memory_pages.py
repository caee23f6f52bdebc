"""The folder of a memory that differs from its base by some pages.

    OWNER.pages   pages, one after the other, then 16 bytes of digest for each (or OWNER.pages.zst)
    about         sealed: which page is where, and the stream of devices

Each page is kept once. What is in the base at the same place is not kept at all, zeros aren't either;
what an earlier memory of the same base has already stays in that one's file, which gets a second name
(a hard link) here. So every folder is complete by itself, whatever else is deleted, and the file
system counts who still needs a file. Of the stream of devices only that is kept by which it differs
from its base's: their beginnings are the same.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from blake3 import blake3

from serai.disk.content import Content
from serai.disk.digests import PIECE, digest, in_threads
from serai.disk.files import write_all
from serai.disk.memory_base import ABOUT_NAME, RAM_NAME, Base
from serai.disk.sealed import corrupt, read_sealed, write_sealed
from serai.disk.work import Pulse
from serai.host.pages import PAGE, pages_offset, read_numbers, write_numbers

PAGES_SUFFIX = ".pages"
SUM_SIZE = 16
BATCH = PIECE // PAGE
MOST_OWNERS = 64
ZERO, OWN = 0, 1
"""Sources of a page: zeros, the memory's own file; then come the files of others."""
_ZERO_PAGE = bytes(PAGE)
_PLACE = struct.calcsize("<IHI")

Place = tuple[int, int]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of pages: whose it is, how many pages it has, and the digest of their digests."""

    owner: str
    count: int
    sums: str


class PagesAbout(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pages"
):
    """What is sealed. Attached: numbers (u32), sources (u16) and indexes (u32) of ``count`` pages,
    then the end of the stream of devices, of which ``state_shared`` bytes are the base's."""

    base: str
    size: int
    count: int
    files: tuple[File, ...]
    state_shared: int
    state_digest: str


@dataclass(slots=True)
class Table:
    """Which page is where: number, source, index in the source's file."""

    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    sources: "array[int]" = field(default_factory=lambda: array("H"))
    indexes: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, number: int, source: int, index: int) -> None:
        """Add a page; they come in ascending order."""
        self.numbers.append(number)
        self.sources.append(source)
        self.indexes.append(index)

    def to_bytes(self) -> bytes:
        """Return it as it is attached: little-endian."""
        return b"".join(
            _little(each).tobytes() for each in (self.numbers, self.sources, self.indexes)
        )


def _little(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _table(content: bytes, count: int) -> Table:
    table = Table()
    place = 0
    for column in (table.numbers, table.sources, table.indexes):
        end = place + count * column.itemsize
        column.frombytes(content[place:end])
        column[:] = _little(column)
        place = end
    return table


def read_about(folder: Path) -> tuple[PagesAbout, Table, bytes]:
    """Return what is sealed: description, table, end of the stream. ``snapshot-corrupt``."""
    what = f"the memory {folder.name}"
    about, attached = read_sealed(folder / ABOUT_NAME, PagesAbout, what)
    if not 0 <= about.count * _PLACE <= len(attached) or about.size % PAGE:
        raise corrupt(what, "its description contradicts itself")
    table = _table(attached, about.count)
    return about, table, attached[about.count * _PLACE :]


def peek_files(folder: Path) -> list[Path]:
    """Return the files of pages in a folder that are not compressed."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(PAGES_SUFFIX))


# -- storing ---------------------------------------------------------------------------------------


class Earlier:
    """The files of earlier memories that may have a page already."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def offer(self, path: Path) -> None:
        """Consider the pages of another file; the first ones offered count."""
        if len(self._paths) < MOST_OWNERS:
            self._paths.setdefault(path.name, path)

    def find(self, wanted: set[bytes]) -> dict[bytes, tuple[Path, int]]:
        """Return where pages with these digests are: in which file, and the how manieth."""
        found: dict[bytes, tuple[Path, int]] = {}
        for path in self._paths.values():
            try:
                sums = read_sums(path)
            except OSError:
                continue  # deleted meanwhile, or compressed
            for index, (each,) in enumerate(struct.iter_unpack(f"{SUM_SIZE}s", sums)):
                if each in wanted and each not in found:
                    found[each] = (path, index)
        return found


def read_sums(path: Path) -> bytes:
    """Return the digests at the end of a file of pages that is not compressed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        count = os.fstat(descriptor).st_size // (PAGE + SUM_SIZE)
        return os.pread(descriptor, count * SUM_SIZE, count * PAGE)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPages:
    """What is to be stored: ``pages_fd`` is a page set, None where nothing differs from the base."""

    memory_id: str
    base_folder: Path
    base: Base
    pages_fd: int | None
    state: bytes


def write_pages(folder: Path, new: NewPages, earlier: Earlier, pulse: Pulse) -> None:
    """Write the files of a memory into the new ``folder`` and sync them.

    Raises HostFailure (``snapshot-corrupt``) for a page set or a base that is none, and OSError.
    """
    numbers = array("I")
    if new.pages_fd is not None:
        numbers = read_numbers(new.pages_fd, pages=new.base.size // PAGE)
    sums = _sort(new, numbers, pulse)
    files, places = _place(folder, new, sums, earlier, pulse)
    table = Table()
    for number, each in zip(numbers, sums, strict=True):
        if each == _ZERO_SUM:
            table.add(number, ZERO, 0)
        elif each is not None:
            table.add(number, *places[each])
    shared = _shared_length(new.base.state, new.state)
    about = PagesAbout(
        base=new.base_folder.name,
        size=new.base.size,
        count=len(table.numbers),
        files=tuple(files),
        state_shared=shared,
        state_digest=digest(new.state).hex(),
    )
    write_sealed(folder / ABOUT_NAME, about, (table.to_bytes(), new.state[shared:]))


_ZERO_SUM = b""
"""Stands for a page of zeros among digests; None stands for one that is in the base already."""


def _sort(new: NewPages, numbers: "array[int]", pulse: Pulse) -> list[bytes | None]:
    """Return for each page: its digest, what stands for zeros, or None where the base has it."""
    if new.pages_fd is None:
        return []
    pages_fd, begin = new.pages_fd, pages_offset(len(numbers))
    found: list[bytes | None] = []
    with Content.open(new.base_folder / RAM_NAME, f"the memory {new.base_folder.name}") as ram:

        def one(first: int, buffer: bytearray) -> list[bytes | None]:
            batch = numbers[first : first + BATCH]
            read_whole(pages_fd, begin + first * PAGE, memoryview(buffer)[: len(batch) * PAGE])
            return _sums_of(buffer, _base_pages(ram, batch))

        for each in in_threads(one, range(0, len(numbers), BATCH), pulse):
            found += each
            pulse.beat(len(found), 2 * len(numbers))
    return found


def _sums_of(pages: bytearray, below: bytearray) -> list[bytes | None]:
    """Compare as many pages as there are of ``below``; return what ``_sort`` does of them."""
    found: list[bytes | None] = []
    view = memoryview(pages)
    for start in range(0, len(below), PAGE):
        if pages.startswith(below[start : start + PAGE], start):
            found.append(None)
        elif pages.startswith(_ZERO_PAGE, start):
            found.append(_ZERO_SUM)
        else:
            found.append(blake3(view[start : start + PAGE]).digest(SUM_SIZE))
    return found


def _base_pages(ram: Content, numbers: "array[int]") -> bytearray:
    """Return the base's pages of these numbers, read in as few pieces as can be."""
    pages = bytearray(len(numbers) * PAGE)
    view = memoryview(pages)
    for place, count in _runs(numbers):
        ram.read_into(numbers[place] * PAGE, view[place * PAGE : (place + count) * PAGE])
    return pages


def read_whole(descriptor: int, offset: int, view: memoryview) -> None:
    """Fill ``view``; raises HostFailure (``snapshot-corrupt``) where a page set ends too early."""
    while view:
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise corrupt("a page set", "it ends too early")
        view, offset = view[count:], offset + count


def _place(
    folder: Path, new: NewPages, sums: Sequence[bytes | None], earlier: Earlier, pulse: Pulse
) -> tuple[list[File], dict[bytes, Place]]:
    """Bring all pages that are to be kept into files; return these, and where each page is."""
    firsts: dict[bytes, int] = {}
    for position, each in enumerate(sums):
        if each:
            firsts.setdefault(each, position)
    files, places = _link_earlier(folder, new, firsts, earlier)
    own = [(each, position) for each, position in firsts.items() if each not in places]
    own_sums = b"".join(each for each, _ in own)
    if own:
        positions = [position for _, position in own]
        _write_own(
            folder / f"{new.memory_id}{PAGES_SUFFIX}", new, positions, len(sums), own_sums, pulse
        )
    files.insert(0, File(owner=new.memory_id, count=len(own), sums=digest(own_sums).hex()))
    places.update((each, (OWN, index)) for index, (each, _) in enumerate(own))
    return files, places


def _link_earlier(
    folder: Path, new: NewPages, firsts: dict[bytes, int], earlier: Earlier
) -> tuple[list[File], dict[bytes, Place]]:
    """Give the files that have pages of ours a name in ``folder``; return them and those pages.

    Digests find a page, its bytes decide: what was damaged since is not built upon.
    """
    by_path: dict[Path, list[tuple[bytes, int]]] = {}
    for each, (path, index) in earlier.find(set(firsts)).items():
        by_path.setdefault(path, []).append((each, index))
    files: list[File] = []
    places: dict[bytes, Place] = {}
    for path, hits in by_path.items():
        try:
            os.link(path, folder / path.name, follow_symlinks=False)
        except OSError:
            continue  # gone meanwhile, or it has as many names as a file can have
        same = _compare(folder / path.name, new, firsts, hits)
        if not same:
            (folder / path.name).unlink()
            continue
        sums = read_sums(folder / path.name)
        owner = path.name.removesuffix(PAGES_SUFFIX)
        files.append(File(owner=owner, count=len(sums) // SUM_SIZE, sums=digest(sums).hex()))
        places.update((each, (OWN + len(files), index)) for each, index in same)
    return files, places


def _compare(
    path: Path, new: NewPages, firsts: dict[bytes, int], hits: Iterable[tuple[bytes, int]]
) -> list[tuple[bytes, int]]:
    """Return those ``hits`` that are, byte by byte, what is to be stored."""
    assert new.pages_fd is not None
    count = int.from_bytes(os.pread(new.pages_fd, 8, 8), "little")
    begin = pages_offset(count)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return [
            (each, index)
            for each, index in hits
            if os.pread(descriptor, PAGE, index * PAGE)
            == os.pread(new.pages_fd, PAGE, begin + firsts[each] * PAGE)
        ]
    finally:
        os.close(descriptor)


def _write_own(
    path: Path, new: NewPages, positions: Sequence[int], total: int, sums: bytes, pulse: Pulse
) -> None:
    """Write the pages at these positions of the page set, and their digests, to a new file."""
    assert new.pages_fd is not None
    begin = pages_offset(total)
    buffer = memoryview(bytearray(PIECE))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        for first in range(0, len(positions), BATCH):
            batch = positions[first : first + BATCH]
            for start, count in _runs(batch):
                view = buffer[start * PAGE : (start + count) * PAGE]
                read_whole(new.pages_fd, begin + batch[start] * PAGE, view)
            write_all(descriptor, buffer[: len(batch) * PAGE], first * PAGE)
            pulse.beat(total + first, 2 * total)
        write_all(descriptor, memoryview(sums), len(positions) * PAGE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (place, count) of each run of numbers that follow each other."""
    place = 0
    while place < len(numbers):
        count = 1
        while place + count < len(numbers) and numbers[place + count] == numbers[place] + count:
            count += 1
        yield place, count
        place += count


def _shared_length(one: bytes, other: bytes) -> int:
    """Return how many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


# -- loading ---------------------------------------------------------------------------------------


class Reader:
    """Reads the pages of a memory, each compared with its digest."""

    def __init__(self, folder: Path, about: PagesAbout, stack: ExitStack) -> None:
        self._what = f"the memory {folder.name}"
        self._counts = [each.count for each in about.files]
        self._contents: list[Content | None] = []
        self._sums: list[bytes] = []
        for each in about.files:
            content = None
            sums = bytearray(each.count * SUM_SIZE)
            if each.count:
                path = folder / f"{each.owner}{PAGES_SUFFIX}"
                content = stack.enter_context(Content.open(path, self._what))
                if content.size != each.count * (PAGE + SUM_SIZE):
                    raise corrupt(self._what, f"{path.name} has another length")
                content.read_into(each.count * PAGE, memoryview(sums))
            if digest(sums).hex() != each.sums:
                raise corrupt(self._what, "the digests of its pages are not what was stored")
            self._contents.append(content)
            self._sums.append(bytes(sums))

    def read(self, table: Table, first: int, buffer: bytearray) -> memoryview:
        """Return a batch of pages, from the ``first`` in the table; ``snapshot-corrupt``."""
        last = min(first + BATCH, len(table.numbers))
        view = memoryview(buffer)[: (last - first) * PAGE]
        place = first
        while place < last:
            source, index = table.sources[place], table.indexes[place]
            end = place + 1
            while (
                end < last
                and table.sources[end] == source
                and (source == ZERO or table.indexes[end] == index + end - place)
            ):
                end += 1
            self._read_run(source, index, view[(place - first) * PAGE : (end - first) * PAGE])
            place = end
        return view

    def _read_run(self, source: int, index: int, view: memoryview) -> None:
        if source == ZERO:
            view[:] = bytes(len(view))
            return
        count = len(view) // PAGE
        content = self._contents[source - 1] if source <= len(self._contents) else None
        if content is None or index + count > self._counts[source - 1]:
            raise corrupt(self._what, "its table names a page that is nowhere")
        content.read_into(index * PAGE, view)
        sums = self._sums[source - 1]
        for each in range(count):
            found = blake3(view[each * PAGE : (each + 1) * PAGE]).digest(SUM_SIZE)
            if not sums.startswith(found, (index + each) * SUM_SIZE):
                raise corrupt(self._what, "a page is not what was stored")


def load_pages(
    folder: Path, about: PagesAbout, table: Table, pulse: Pulse, target: int | None
) -> None:
    """Read all pages, verified, and write them to ``target`` as a page set if there is one."""
    begin = write_numbers(target, table.numbers) if target is not None else 0
    with ExitStack() as stack:
        reader = Reader(folder, about, stack)

        def one(first: int, buffer: bytearray) -> int:
            view = reader.read(table, first, buffer)
            if target is not None:
                write_all(target, view, begin + first * PAGE)
            return first

        for first in in_threads(one, range(0, len(table.numbers), BATCH), pulse):
            pulse.beat(first, len(table.numbers))


def whole_state(folder: Path, about: PagesAbout, base: Base, tail: bytes) -> bytes:
    """Return the stream of devices, verified."""
    state = base.state[: about.state_shared] + tail
    if digest(state).hex() != about.state_digest:
        raise corrupt(f"the memory {folder.name}", "its stream of devices is not what was stored")
    return state
