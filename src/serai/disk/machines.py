"""The root disk of a machine that another program made, coming in: out of an OVA, or a file.

Like any import it passes the strict parser first; see ``importing`` for the phases.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems
from serai.disk.header import look_at
from serai.disk.images import NewImage
from serai.disk.importing import (
    Work,
    bring,
    check_action,
    import_disk,
    import_image,
    shown_source,
    workshop_uid,
)
from serai.disk.magic import Look
from serai.disk.ova import Ova, read_ova, unpack_disk
from serai.disk.reader import Reader
from serai.disk.work import Progress, run_in_thread
from serai.model.actions import ImportGuest, ImportImage
from serai.model.foreign import ForeignMachine
from serai.model.node import Capabilities
from serai.plan.foreign import check_machine, root_disk
from serai.plan.foreign_xml import definition_refused
from serai.settings import Settings

NO_MANIFEST = "it has no manifest: whether it was changed on the way can't be told"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedMachine:
    """A machine, and the image that its root disk became, ready to be published."""

    machine: ForeignMachine
    image: NewImage


def import_of(action: ImportGuest, name: str) -> ImportImage:
    """Return the import of its source; raises Invalid for what can't be, before anything happens."""
    wanted = ImportImage(source=action.source, name=name, sha256=action.sha256)
    check_action(wanted)
    if action.machine is not None:
        check_machine(action.machine)
        root_disk(action.machine, root_only=action.root_only)
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
    wanted = import_of(action, name)
    if action.machine is not None:
        image = await import_image(
            wanted,
            scratch=scratch,
            settings=settings,
            capabilities=capabilities,
            progress=progress,
        )
        return ImportedMachine(machine=action.machine, image=image)
    work = Work(
        action=wanted,
        scratch=scratch,
        settings=settings,
        uid=workshop_uid(settings, capabilities),
        progress=progress,
    )
    with naming_disk_problems("importing the machine"):
        return await _import_ova(work, root_only=action.root_only)


async def _import_ova(work: Work, *, root_only: bool) -> ImportedMachine:
    archive, target = work.scratch / "archive", work.scratch / "disk"
    await bring(work, work.action.source, archive.name, work.action.sha256)
    report = work.report("inspect", "looking into the archive")
    limit = work.settings.image_limit
    ova = await run_in_thread(lambda _: _read(archive, limit), report)
    disk = root_disk(ova.machine, root_only=root_only)
    work.room(ova.members[disk.source].size)
    await run_in_thread(
        lambda pulse: unpack_disk(archive, ova, disk, target, pulse),
        work.report("inspect", "unpacking its disk"),
    )
    archive.unlink()
    inner = replace(work, action=ImportImage(source=disk.source, name=work.action.name))
    image = replace(
        await import_disk(inner, target),
        name=work.action.name,
        source=shown_source(work.action.source),
    )
    notes = ova.machine.notes if ova.digests else (*ova.machine.notes, NO_MANIFEST)
    return ImportedMachine(machine=_with_notes(ova.machine, notes), image=image)


def _read(archive: Path, limit: int) -> Ova:
    with archive.open("rb") as file:
        look = look_at(Reader(file.fileno()))
    if look.look is not Look.TAR:
        raise definition_refused(
            f"it is {look.name}, neither an OVA nor a libvirt definition",
            hint="A disk or an exported image is imported by: serai image import",
        )
    return read_ova(archive, limit)


def _with_notes(machine: ForeignMachine, notes: tuple[str, ...]) -> ForeignMachine:
    return msgspec.structs.replace(machine, notes=notes)
