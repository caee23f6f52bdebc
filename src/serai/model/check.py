"""What a check of the storage finds, as it is kept with its job and shown to everybody."""

from enum import StrEnum

import msgspec


class Fault(StrEnum):
    """What is wrong."""

    DANGLING = "dangling"  # a record names something that no record is of
    MISSING = "missing"  # a record names a file that is not there
    DAMAGED = "damaged"  # a file, or a record, is not what was stored
    ORPHAN = "orphan"  # a file that no record names: it takes room, and harms nothing


class FindingKind(StrEnum):
    """What it is wrong with."""

    GUEST = "guest"
    SNAPSHOT = "snapshot"
    LAYER = "layer"
    MEMORY = "memory"
    IMAGE = "image"
    VOLUME = "volume"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong.

    ``id`` is that of the guest, snapshot, layer or memory, the digest of the image, or the name of a
    folder or file that is no guest's and no volume's; ``name`` is the file's, where it is about one of several. ``guests`` and ``snapshots`` (as GUEST@SNAPSHOT) stand on
    it, the first few. ``mendable``: without losing what somebody may want; ``mended``: it was.
    """

    fault: Fault
    kind: FindingKind
    id: str
    message: str
    name: str = ""
    guests: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    mendable: bool = False
    mended: bool = False

    @property
    def is_unsound(self) -> bool:
        """True when something that is needed is not as it was stored."""
        return self.fault is not Fault.ORPHAN


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a check looked at, and what it found: the worst first, at most so many.

    ``unsound``, ``orphans`` and ``mended`` count all of them, also the ``left_out``; an orphan that was
    mended is gone, and counted as mended only.
    """

    layers: int
    memories: int
    images: int
    snapshots: int
    findings: tuple[Finding, ...] = ()
    left_out: int = 0
    unsound: int = 0
    orphans: int = 0
    mended: int = 0

    @property
    def is_sound(self) -> bool:
        """True when everything that is needed is there and as it was stored."""
        return not self.unsound

    def sentence(self) -> str:
        """Return all of it in one sentence, without its full stop."""
        seen = ", ".join(
            (
                _count(self.layers, "layer", "layers"),
                _count(self.memories, "memory", "memories"),
                _count(self.snapshots, "snapshot", "snapshots"),
            )
        )
        told = [f"{self.unsound} not sound" if self.unsound else "all sound"]
        if self.mended:
            told.append(f"{_count(self.mended, 'orphan', 'orphans')} deleted")
        if self.orphans:
            told.append(f"{_count(self.orphans, 'orphan', 'orphans')} left")
        return f"{seen}: {', '.join(told)}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
