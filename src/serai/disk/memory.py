"""The folder of memories: bases, and what differs from them.

    memory/
      ID/            a base (``memory_base``) or a memory over one (``memory_pages``); complete
      .new-RANDOM/   being stored: nobody's yet
      .gone-RANDOM/  being deleted

A folder appears by one rename after all in it was synced, and disappears by one. What is read was
verified on the way: one flipped bit anywhere is HostFailure ``snapshot-corrupt``. What is shared
between memories of one base is shared by hard links, so any of them can be deleted at any time; a base
only when nothing is over it. Not for: deciding what is deleted or compressed when.
"""

import asyncio
import errno
import os
import re
import secrets
import shutil
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from serai.disk.content import SUFFIX, compress_file
from serai.disk.digests import PIECE, data_pieces
from serai.disk.families import Families
from serai.disk.files import check_room, naming_disk_problems, sync_folder
from serai.disk.memory_base import (
    RAM_NAME,
    STATE_LIMIT,
    check_ram,
    load_base,
    read_base,
    write_base,
)
from serai.disk.memory_pages import (
    PAGES_SUFFIX,
    Earlier,
    NewPages,
    load_pages,
    peek_files,
    read_about,
    whole_state,
    write_pages,
)
from serai.disk.sealed import corrupt
from serai.disk.work import Pulse, run_in_thread
from serai.errors import Bug, Code, Conflict, HostFailure, SeraiError
from serai.host.pages import PAGE, write_all, write_numbers

MEMORY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}", re.ASCII)
RECENT = 16
"""How many of the latest memories of a base are searched for pages that are stored already."""
WORTH_IT = 0.9
"""What is not smaller than this part of itself, compressed, stays as it is."""

Report = Callable[[int, int], None]

T = TypeVar("T", int, tuple[int, int])


class Sizes(NamedTuple):
    """Bytes on the disk: what would be free without it, and what it shares with others."""

    own: int
    shared: int


class MemoryFolder:
    """The folder of all memories. ``path`` is made when it is missing, for us alone (0700).

    ``reserve`` bytes of the file system stay free. What is not ``async`` is blocking and quick.
    """

    def __init__(self, path: Path, *, reserve: int = 0) -> None:
        self.path = path
        self._reserve = reserve
        self._storing = asyncio.Lock()
        self._families = Families(lambda: [self._folder(each) for each in self.memories()])
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- storing -----------------------------------------------------------------------------------

    async def store_base(
        self,
        base_id: str,
        ram_fd: int,
        size: int,
        state: bytes | int,
        report: Report | None = None,
    ) -> int:
        """Store the RAM of a frozen guest and its stream of devices; return the bytes it takes.

        ``state`` is the stream or a descriptor of it. Durable when it returns; a base that is there,
        and sound as far as its description goes, is left as it is. On failure, also when cancelled,
        nothing is left. Raises HostFailure (``disk-full``, ``permission``, ``file-failed``).
        """
        async with self._storing:
            return await run_in_thread(
                lambda pulse: self._store_base(base_id, ram_fd, size, state, pulse), report
            )

    async def store(
        self,
        memory_id: str,
        base_id: str,
        pages_fd: int | None,
        state: bytes | int,
        report: Report | None = None,
    ) -> int:
        """Store what differs from the stored base ``base_id``: a page set (None: nothing does) and
        the stream of devices; return the bytes that it takes by itself.

        As ``store_base`` in everything else; raises ``snapshot-corrupt`` too, for the base and for a
        page set that is none.
        """
        async with self._storing:
            return await run_in_thread(
                lambda pulse: self._store(memory_id, base_id, pages_fd, state, pulse), report
            )

    def _store_base(
        self, base_id: str, ram_fd: int, size: int, state: bytes | int, pulse: Pulse
    ) -> int:
        folder = self._folder(base_id)
        with suppress(SeraiError):
            read_base(folder)
            return self.sizes(base_id).own
        if size <= 0 or size % PAGE or os.fstat(ram_fd).st_size < size:
            raise Bug(Code.BUG, f"no RAM of {size} bytes")
        with naming_disk_problems("storing memory"):
            check_room(
                self.path,
                len(data_pieces(ram_fd, size)) * PIECE,
                reserve=self._reserve,
                what="storing memory",
            )
            content = _state_bytes(state)
            self._put(folder, lambda new: write_base(new, ram_fd, size, content, pulse))
        return self.sizes(base_id).own

    def _store(
        self, memory_id: str, base_id: str, pages_fd: int | None, state: bytes | int, pulse: Pulse
    ) -> int:
        folder, base_folder = self._folder(memory_id), self._folder(base_id)
        base = read_base(base_folder)
        need = 0 if pages_fd is None else os.fstat(pages_fd).st_size
        with naming_disk_problems("storing memory"):
            check_room(self.path, need, reserve=self._reserve, what="storing memory")
            new = NewPages(
                memory_id=memory_id,
                base_folder=base_folder,
                base=base,
                pages_fd=pages_fd,
                state=_state_bytes(state),
            )
            earlier = self._earlier(base_id)
            self._put(folder, lambda made: write_pages(made, new, earlier, pulse))
        self._families.add(base_id, memory_id)
        return self.sizes(memory_id).own

    def _put(self, folder: Path, fill: Callable[[Path], None]) -> None:
        """Have a new folder filled, and put it in place; nothing is left of it on failure."""
        made = self.path / f".new-{secrets.token_hex(8)}"
        made.mkdir(mode=0o700)
        try:
            fill(made)
            sync_folder(made)
            if folder.exists():
                self._remove(folder)
            made.rename(folder)
            sync_folder(self.path)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _earlier(self, base_id: str) -> Earlier:
        earlier = Earlier()
        for memory_id in reversed(self._families.over(base_id)[-RECENT:]):
            with suppress(OSError):
                for path in peek_files(self._folder(memory_id)):
                    earlier.offer(path)
        return earlier

    # -- loading -----------------------------------------------------------------------------------

    async def load_base(self, base_id: str, report: Report | None = None) -> int:
        """Return a descriptor of a sealed memory file, ``serai-ram-ID``, with the RAM of a base.

        All of it was verified on the way. Raises HostFailure (``snapshot-corrupt``).
        """

        def work(pulse: Pulse) -> int:
            folder = self._folder(base_id)
            with _reading(base_id):
                return load_base(folder, read_base(folder), pulse)

        return await _giving(work, report)

    async def load_base_state(self, base_id: str) -> int:
        """Return a descriptor of the stream of devices of a base, verified."""

        def work(_: Pulse) -> int:
            with _reading(base_id):
                return _memory_file("serai-state", read_base(self._folder(base_id)).state)

        return await _giving(work, None)

    async def load(self, memory_id: str, pages_fd: int, state_fd: int) -> None:
        """Write the page set and the stream of devices of a memory to two empty files, verified.

        Of a base: an empty page set and its own stream. Raises HostFailure (``snapshot-corrupt``).
        """

        def work(pulse: Pulse) -> None:
            with _reading(memory_id):
                write_all(state_fd, self._read(memory_id, pulse, pages_fd), 0)

        await run_in_thread(work, None)

    def _read(self, memory_id: str, pulse: Pulse, target: int | None) -> bytes:
        """Read and verify a memory, but not its base's RAM; return its stream of devices."""
        folder = self._folder(memory_id)
        if self._is_base(memory_id):
            if target is not None:
                write_numbers(target, array("I"))
            return read_base(folder).state
        about, table, tail = read_about(folder)
        base = read_base(self._folder(about.base))
        if base.size != about.size:
            raise corrupt(f"the memory {memory_id}", "its base has another size")
        load_pages(folder, about, table, pulse, target)
        return whole_state(folder, about, base, tail)

    async def verify(self, memory_id: str, report: Report | None = None) -> None:
        """Read everything of a base or a memory (not of its base, but that there is one).

        Raises HostFailure (``snapshot-corrupt``) for the first thing that is not what was stored.
        """

        def work(pulse: Pulse) -> None:
            with _reading(memory_id):
                self._read(memory_id, pulse, None)
                if self._is_base(memory_id):
                    folder = self._folder(memory_id)
                    check_ram(folder, read_base(folder), pulse)

        await run_in_thread(work, report)

    # -- what is there -----------------------------------------------------------------------------

    def bases(self) -> dict[str, int]:
        """Return the stored bases and the bytes that each takes."""
        return {each: self.sizes(each).own for each in self._stored() if self._is_base(each)}

    def memories(self) -> set[str]:
        """Return the ids of the stored memories that are no bases."""
        return {each for each in self._stored() if not self._is_base(each)}

    def sizes(self, memory_id: str) -> Sizes:
        """Return what a base or a memory takes on the disk; zeros when it is not there."""
        own = shared = 0
        with suppress(FileNotFoundError):
            for path in self._folder(memory_id).iterdir():
                facts = path.stat(follow_symlinks=False)
                if facts.st_nlink == 1:
                    own += facts.st_blocks * 512
                else:
                    shared += facts.st_blocks * 512
        return Sizes(own, shared)

    def orphans(self, known: Collection[str]) -> list[str]:
        """Return what is stored and neither in ``known`` nor the base of something that is, sorted."""
        return sorted(self._stored() - set(known) - self._families.bases_of(set(known)))

    # -- deleting ----------------------------------------------------------------------------------

    def delete(self, memory_id: str) -> None:
        """Delete a memory (done already: fine); what others share with it stays with them."""
        if self._is_base(memory_id):
            return self.delete_base(memory_id)
        folder = self._folder(memory_id)
        with naming_disk_problems("deleting memory"):
            self._remove(folder)
        self._families.drop(memory_id)
        return None

    def delete_base(self, base_id: str) -> None:
        """Delete a base (done already: fine).

        Raises Conflict (``snapshot-state``) when a stored memory is over it.
        """
        over = [each for each in self._families.over(base_id) if self._folder(each).exists()]
        if over:
            raise Conflict(
                Code.SNAPSHOT_STATE,
                f"{len(over)} stored memories are over the base {base_id}",
                details={"memory": over[0]},
            )
        with naming_disk_problems("deleting memory"):
            self._remove(self._folder(base_id))
        self._families.drop(base_id)

    def sweep(
        self, memories: Collection[str] | None = None, bases: Collection[str] | None = None
    ) -> list[str]:
        """Remove what interrupted work left; given what is known, the rest too. Returns names.

        A base that a known memory is over stays. Call it when nothing is being stored or deleted.
        """
        left = sorted(path for path in self.path.iterdir() if path.name.startswith("."))
        for path in left:
            shutil.rmtree(path)
        swept = [path.name for path in left]
        for folder in map(self._folder, self._stored()):
            for path in sorted(folder.iterdir()):
                if path.name.startswith(".") or _is_second_form(path):
                    path.unlink()
                    swept.append(f"{folder.name}/{path.name}")
        if memories is None and bases is None:
            return swept
        gone = self.orphans({*(memories or ()), *(bases or ())})
        for memory_id in sorted(gone, key=self._is_base):
            self.delete(memory_id)
        return swept + gone

    def _remove(self, folder: Path) -> None:
        gone = self.path / f".gone-{secrets.token_hex(8)}"
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return
        sync_folder(self.path)
        shutil.rmtree(gone)

    # -- compressing -------------------------------------------------------------------------------

    def is_compressed(self, memory_id: str) -> bool:
        """Tell whether there is nothing left that ``compress`` would look at."""
        return not (self._folder(memory_id) / self._own_file(memory_id)).exists()

    def _own_file(self, memory_id: str) -> str:
        """Return the name of the file with what a base or a memory keeps by itself, uncompressed."""
        return RAM_NAME if self._is_base(memory_id) else f"{memory_id}{PAGES_SUFFIX}"

    async def compress(self, memory_id: str, report: Report | None = None) -> int:
        """Compress what a base or a memory keeps by itself; return the bytes that became free.

        Loading works as before, if slower, also while this is under way. Done again, or where it is
        not worth it, it changes nothing. Memories that share pages with this one get the compressed
        file too.
        """
        return await run_in_thread(lambda pulse: self._compress(memory_id, pulse), report)

    def _compress(self, memory_id: str, pulse: Pulse) -> int:
        folder = self._folder(memory_id)
        name = self._own_file(memory_id)
        plain, packed = folder / name, folder / f"{name}{SUFFIX}"
        made = folder / f".{name}.new"
        with naming_disk_problems("compressing memory"):
            if not plain.exists():
                return 0
            before = plain.stat().st_blocks * 512
            made.unlink(missing_ok=True)
            try:
                if compress_file(plain, made, pulse) > before * WORTH_IT:
                    return 0
                made.rename(packed)
            finally:
                made.unlink(missing_ok=True)
            sync_folder(folder)
            for other in self._linked(memory_id, name):
                with suppress(FileExistsError, FileNotFoundError):
                    os.link(packed, other / packed.name)
                sync_folder(other)
                if (other / packed.name).exists():
                    (other / name).unlink(missing_ok=True)
            plain.unlink()
            sync_folder(folder)
            return before - packed.stat().st_blocks * 512

    def _linked(self, memory_id: str, name: str) -> list[Path]:
        """Return the folders of other memories that have this one's file, too."""
        others = map(self._folder, self._families.siblings(memory_id))
        return [folder for folder in others if (folder / name).exists()]

    # -- ids ---------------------------------------------------------------------------------------

    def _folder(self, memory_id: str) -> Path:
        if not MEMORY_ID.fullmatch(memory_id):
            raise Bug(Code.BUG, f"a memory can't be called {memory_id!r}")
        return self.path / memory_id

    def _stored(self) -> set[str]:
        return {path.name for path in self.path.iterdir() if MEMORY_ID.fullmatch(path.name)}

    def _is_base(self, memory_id: str) -> bool:
        ram = self._folder(memory_id) / RAM_NAME
        return ram.exists() or ram.with_name(RAM_NAME + SUFFIX).exists()


def _is_second_form(path: Path) -> bool:
    """Tell whether this is the compressed form of a file whose plain form is still there."""
    return path.name.endswith(SUFFIX) and path.with_name(path.name.removesuffix(SUFFIX)).exists()


def _state_bytes(state: bytes | int) -> bytes:
    """Return a stream of devices that is given as bytes or as a descriptor."""
    if isinstance(state, bytes):
        return state
    size = os.fstat(state).st_size
    if size > STATE_LIMIT:
        raise Bug(Code.BUG, f"a stream of devices of {size} bytes")
    content = os.pread(state, size, 0)
    if len(content) != size:
        raise Bug(Code.BUG, "the stream of devices is still being written")
    return content


def _memory_file(name: str, content: bytes) -> int:
    made = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        write_all(made, content, 0)
    except BaseException:
        os.close(made)
        raise
    return made


@contextmanager
def _reading(memory_id: str) -> Iterator[None]:
    """Name what goes wrong with the files of a memory, or with getting memory for them."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise HostFailure(
                Code.MEMORY_SHORT, f"there is not enough memory to load {memory_id}"
            ) from error
        raise corrupt(f"the memory {memory_id}", error.strerror or str(error)) from error


async def _giving(work: Callable[[Pulse], int], report: Report | None) -> int:
    """Run work that returns a descriptor; it is closed when nobody takes it any more."""
    given: list[int] = []

    def keep(pulse: Pulse) -> int:
        given.append(work(pulse))
        return given[0]

    try:
        return await run_in_thread(keep, report)
    except BaseException:
        for each in given:
            os.close(each)
        raise
