"""What new guests are made from: a guest at one moment, or all that is known of one still to come.

A moment may be taken up before it is there: a QEMU starts meanwhile, and waits for it. Either its
content is on its way (``Moment.coming``), or nobody has chosen it yet (``Promise``).
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serai.engine.jobs import error_of
from serai.errors import Code, Conflict
from serai.model.guest import GuestRecord
from serai.model.machine import Machine
from serai.model.snapshot import FrozenVolume, Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A running guest's memory at one moment: what any number of QEMUs can take up.

    ``base`` names the frozen memory, ``state_fd`` is the stream of devices, ``pages_fd`` the pages
    that differ from the base (None: none do). ``machine`` is what ran. ``quiesced``: its file systems
    are frozen in it, and its agent has to thaw them first. ``coming`` ends when what the descriptors are
    for is written, or nobody writes it any more; None: it is. ``give_up`` hurries that end.
    """

    base: str
    machine: Machine
    state_fd: int
    pages_fd: int | None
    quiesced: bool = False
    coming: asyncio.Future[None] | None = None
    give_up: Callable[[], object] | None = None

    async def come(self) -> "Moment":
        """Wait until it has, and return it; raises what came in between."""
        if self.coming is not None:
            await asyncio.shield(self.coming)
        return self

    def close(self) -> None:
        """Let go of the descriptors, once nobody writes to them; the base stays."""
        if self.coming is not None and not self.coming.done():
            self.coming.add_done_callback(lambda _: self._close())
            if self.give_up is not None:
                self.give_up()
            return
        self._close()

    def _close(self) -> None:
        os.close(self.state_fd)
        if self.pages_fd is not None:
            os.close(self.pages_fd)


@contextmanager
def bringing(coming: asyncio.Future[None]) -> Iterator[None]:
    """Tell all who wait for a moment how the block ends that writes it."""
    try:
        yield
    except BaseException as error:
        coming.set_exception(error_of(error))
        coming.exception()  # there may be nobody who waits for it
        raise
    coming.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A moment that nobody has chosen yet: of ``machine``, on ``base``. Made while a loop runs."""

    base: str
    machine: Machine
    _kept: asyncio.Future[Moment] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _awaited: asyncio.Event = field(default_factory=asyncio.Event)

    async def come(self) -> Moment:
        """Wait until it is chosen and has come, and return it; raises what came in between."""
        self._awaited.set()
        return await (await asyncio.shield(self._kept)).come()

    async def awaited(self) -> None:
        """Wait until whoever takes it up has done all that can be done without it."""
        await self._awaited.wait()

    def keep(self, moment: Moment) -> None:
        """Choose the moment; nothing happens where it is broken already."""
        if not self._kept.done():
            self._kept.set_result(moment)

    def break_off(self) -> None:
        """Say that there will be none: who waits for it gets Conflict (``job-cancelled``)."""
        if not self._kept.done():
            self._kept.set_exception(Conflict(Code.JOB_CANCELLED, "it is not needed any more"))
            self._kept.exception()  # there may be nobody who waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a new guest is like: a record, disks over layers, and a memory (None: it boots).

    ``uefi_vars`` are its firmware's variables, b"" under BIOS.
    """

    record: GuestRecord
    volumes: tuple[FrozenVolume, ...]
    moment: Moment | Promise | None
    uefi_vars: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised(Template):
    """All that is known of a new guest but the moment that it takes up."""

    moment: Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen(Template):
    """A guest at one moment: its record, its disks and, if it ran and that was wanted, its memory.

    Until it is closed its layers are held: nothing may stand on them yet.
    """

    moment: Moment | None
    layers: tuple[Layer, ...]
    holding: contextlib.ExitStack

    def close(self) -> None:
        """Let go of the memory, and of the layers."""
        self.holding.close()
        if self.moment is not None:
            self.moment.close()
