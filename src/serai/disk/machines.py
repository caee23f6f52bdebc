"""The disks of a machine that another program made, coming in: out of an OVA, or from files.

The first becomes an image, the others heads of volumes. Like any import each passes the strict parser
first; see ``importing`` for the phases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from serai.disk.convert import Report, Workshop, convert_to_head
from serai.disk.files import naming_disk_problems
from serai.disk.header import look_at
from serai.disk.images import NewImage
from serai.disk.importing import (
    Work,
    bring,
    check_action,
    import_disk,
    workshop_uid,
)
from serai.disk.magic import Look
from serai.disk.ova import Ova, read_ova, unpack_disk
from serai.disk.reader import Reader
from serai.disk.remote import shown
from serai.disk.work import Progress, run_in_thread
from serai.errors import Code, Invalid
from serai.model.actions import ImportGuest, ImportImage
from serai.model.foreign import ForeignDisk, ForeignMachine
from serai.model.image import ImageKind
from serai.model.node import Capabilities
from serai.plan.foreign import check_machine, disks_to_take
from serai.plan.foreign_xml import definition_refused
from serai.settings import Settings

NO_MANIFEST = "it has no manifest: whether it was changed on the way can't be told"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedDisk:
    """A disk that is to be a volume: ``name`` is the machine's for it, ``head`` a file of our shape."""

    name: str
    head: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedMachine:
    """A machine, the image that its root disk became, ready to be published, and its other disks."""

    machine: ForeignMachine
    image: NewImage
    disks: tuple[ImportedDisk, ...]


def import_of(action: ImportGuest, name: str) -> ImportImage:
    """Return the import of its source; raises Invalid for what can't be, before anything happens."""
    wanted = ImportImage(source=action.source, name=name, sha256=action.sha256)
    check_action(wanted)
    if action.machine is not None:
        check_machine(action.machine)
        for disk in disks_to_take(action.machine, root_only=action.root_only)[1:]:
            check_action(ImportImage(source=disk.source, name=name))
    return wanted


async def import_machine(
    action: ImportGuest,
    name: str,
    *,
    scratch: Path,
    settings: Settings,
    capabilities: Capabilities,
    progress: Progress,
) -> ImportedMachine:
    """Bring in what ``action`` names as an image called ``name``, with files in ``scratch``.

    Raises as ``import_image`` does, and Invalid (``definition-refused``).
    """
    work = Work(
        action=import_of(action, name),
        scratch=scratch,
        settings=settings,
        uid=workshop_uid(settings, capabilities),
        progress=progress,
    )
    with naming_disk_problems("importing the machine"):
        if action.machine is None:
            return await _import_ova(work, root_only=action.root_only)
        disks = disks_to_take(action.machine, root_only=action.root_only)
        return await _import_files(work, action.machine, disks)


async def _import_files(
    work: Work, machine: ForeignMachine, disks: Sequence[ForeignDisk]
) -> ImportedMachine:
    """Bring in a machine whose disks are files, or at URLs."""
    root = await bring(work, work.action.source, "source", work.action.sha256)
    image = await _as_image(work, root)
    others = []
    for number, disk in enumerate(disks[1:], 1):
        inner = _own_work(work, disk, number)
        path = await bring(inner, disk.source, "source")
        others.append(await _as_head(inner, disk, path))
    return ImportedMachine(machine=machine, image=image, disks=tuple(others))


async def _import_ova(work: Work, *, root_only: bool) -> ImportedMachine:
    archive = work.scratch / "archive"
    await bring(work, work.action.source, archive.name, work.action.sha256)
    report = work.report("inspect", "looking into the archive")
    limit = work.settings.image_limit
    ova = await run_in_thread(lambda _: _read(archive, limit), report)
    disks = disks_to_take(ova.machine, root_only=root_only)
    others = []
    for number, disk in enumerate(disks[1:], 1):
        inner = _own_work(work, disk, number)
        path = await _unpack(inner, archive, ova, disk)
        others.append(await _as_head(inner, disk, path))
    root = await _unpack(work, archive, ova, disks[0])
    archive.unlink()
    image = await _as_image(work, root, inside=disks[0].source)
    notes = ova.machine.notes if ova.digests else (*ova.machine.notes, NO_MANIFEST)
    machine = msgspec.structs.replace(ova.machine, notes=notes)
    return ImportedMachine(machine=machine, image=image, disks=tuple(others))


def _own_work(work: Work, disk: ForeignDisk, number: int) -> Work:
    """Return the work on a further disk, in a folder of its own."""
    folder = work.scratch / f"disk{number}"
    folder.mkdir(mode=0o700, exist_ok=True)
    action = ImportImage(source=disk.source, name=work.action.name)
    return replace(work, action=action, scratch=folder)


async def _unpack(work: Work, archive: Path, ova: Ova, disk: ForeignDisk) -> Path:
    """Take a disk out of the archive; return the file that it is then."""
    target = work.scratch / "disk"
    work.room(ova.members[disk.source].size)
    await run_in_thread(
        lambda pulse: unpack_disk(archive, ova, disk, target, pulse),
        work.report("inspect", f"unpacking {disk.name}"),
    )
    return target


async def _as_image(work: Work, path: Path, inside: str = "") -> NewImage:
    """Make an image of the root disk; ``inside`` is its name in the archive that it came in."""
    inner = work
    if inside:
        inner = replace(work, action=ImportImage(source=inside, name=work.action.name))
    new = await import_disk(inner, path)
    return replace(new, name=work.action.name, source=shown(work.action.source))


async def _as_head(work: Work, disk: ForeignDisk, path: Path) -> ImportedDisk:
    """Make a head of a volume of a further disk."""
    new = await import_disk(work, path)
    head = work.scratch / "head"
    await head_of(
        new, head, shop=work.shop(), report=work.report("convert", f"converting {disk.name}")
    )
    return ImportedDisk(name=disk.name, head=head, size=new.virtual_size)


async def head_of(new: NewImage, head: Path, *, shop: Workshop, report: Report) -> None:
    """Convert a disk that was brought in to the head of a volume, and remove what it was.

    Raises Invalid (``image-refused``) for what is no disk.
    """
    if new.kind is not ImageKind.DISK or new.disk is None:
        raise Invalid(
            Code.IMAGE_REFUSED,
            f"it is no disk, but a {new.kind}",
            hint="Import it as an image: serai image import",
        )
    await convert_to_head(
        new.disk, new.disk_format, head, new.virtual_size, shop=shop, report=report
    )
    new.disk.unlink()


def _read(archive: Path, limit: int) -> Ova:
    with archive.open("rb") as file:
        look = look_at(Reader(file.fileno()))
    if look.look is not Look.TAR:
        raise definition_refused(
            f"it is {look.name}, neither an OVA nor a libvirt definition",
            hint="A disk or an exported image is imported by: serai image import",
        )
    return read_ova(archive, limit)
