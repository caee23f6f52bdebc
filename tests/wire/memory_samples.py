"""RAM, page sets and what is compared of them, for the tests of stored memory."""

import os
import random
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serai.host.pages import PAGE, pages_offset, read_numbers, write_numbers
from serai.units import MIB

SIZE = 3 * MIB + 5 * PAGE
STATE = random.Random(0).randbytes(70_000)

Pages = Mapping[int, bytes]


def page(seed: object) -> bytes:
    """Return a page that is the same for the same seed; 0 gives zeros."""
    return bytes(PAGE) if seed == 0 else random.Random(str(seed)).randbytes(PAGE)


def a_ram(pages: Pages, size: int = SIZE) -> int:
    """Return a memory file with these pages and zeros elsewhere."""
    made = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.truncate(made, size)
    for number, content in pages.items():
        os.pwrite(made, content, number * PAGE)
    return made


def a_page_set(pages: Pages) -> int:
    """Return a page set of these pages."""
    made = os.memfd_create("pages", os.MFD_CLOEXEC)
    offset = write_numbers(made, array("I", sorted(pages)))
    os.pwrite(made, b"".join(pages[number] for number in sorted(pages)), offset)
    return made


def take_all(descriptor: int) -> bytes:
    """Return the whole content of a descriptor, and close it."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def take_pages(descriptor: int, size: int = SIZE) -> dict[int, bytes]:
    """Return the pages of a page set by number, and close it."""
    numbers = read_numbers(descriptor, pages=size // PAGE)
    content = take_all(descriptor)[pages_offset(len(numbers)) :]
    return {n: content[i * PAGE : (i + 1) * PAGE] for i, n in enumerate(numbers)}


def ram_bytes(pages: Pages, size: int = SIZE) -> bytes:
    """Return what a RAM with these pages is."""
    found = bytearray(size)
    for number, content in pages.items():
        found[number * PAGE : (number + 1) * PAGE] = content
    return bytes(found)


def files_in(folder: Path) -> list[str]:
    """Return the paths of all files and folders in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextmanager
def two_files() -> Iterator[tuple[int, int]]:
    """Two empty files, for a page set and a stream of devices."""
    files = os.memfd_create("pages"), os.memfd_create("state")
    try:
        yield files
    finally:
        for each in files:
            os.close(each)
