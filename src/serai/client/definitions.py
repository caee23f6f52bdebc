"""Definitions of other programs' machines, read here: by the caller, with the caller's rights.

A libvirt domain names its disks by paths. The daemon opens none of them on the word of a document: the
document is read here, the disks are opened here to see that the caller may, and only then do their
paths go to the daemon, as that of an image import does. An OVA has its disks inside and goes as it is.
"""

import os
import stat
from pathlib import Path

from serai.client.calls import Call
from serai.client.guest_calls import import_guest
from serai.errors import Code, HostFailure, Invalid, NotFound
from serai.model.foreign import ForeignDisk
from serai.model.job import Job
from serai.plan.domain_xml import read_domain
from serai.plan.foreign import ROOT_ONLY, disks_to_take, guest_name_from
from serai.plan.foreign_xml import MAX_XML, definition_refused
from serai.units import shorten

BOM = b"\xef\xbb\xbf"


def import_call(
    source: str,
    *,
    name: str = "",
    disk: str = "",
    cpus: int = 0,
    memory: int = 0,
    root_only: bool = False,
    sha256: str = "",
) -> Call[Job]:
    """Return the call that imports what ``source`` is: an OVA (file or URL), or a domain definition.

    ``disk`` is the file of the root disk, where it is not where the definition says. Raises Invalid
    (``definition-refused``, ``value-invalid``), NotFound and HostFailure (``file-failed``).
    """
    if "://" in source:
        content = b""
    else:
        source = str(Path(source).absolute())
        content = _read_beginning(source)
    if not content.removeprefix(BOM).lstrip().startswith(b"<"):
        if disk:
            raise Invalid(
                Code.VALUE_INVALID, "an OVA has its disks inside", hint="Leave --disk out."
            )
        return import_guest(
            source, name=name, cpus=cpus, memory=memory, root_only=root_only, sha256=sha256
        )
    machine = read_domain(content, root_file=str(Path(disk).absolute()) if disk else "")
    root, *others = disks_to_take(machine, root_only=root_only)
    check_readable(root.source)
    for each in others:
        _check_other(each)
    return import_guest(
        root.source,
        name=name or guest_name_from(machine.name) or guest_name_from(Path(source).stem),
        machine=machine,
        sha256=sha256,
        cpus=cpus,
        memory=memory,
        root_only=root_only,
    )


def _read_beginning(path: str) -> bytes:
    """Return all of a definition, or the beginning of what is none."""
    with os.fdopen(_open(path), "rb") as file:
        content = file.read(MAX_XML + 1)
    if len(content) > MAX_XML and content.lstrip().startswith(b"<"):
        raise definition_refused(f"it has more than {MAX_XML} bytes")
    return content


def _check_other(disk: ForeignDisk) -> None:
    """Refuse a further disk that the caller may not read."""
    if not disk.source.startswith("/"):
        raise definition_refused(
            f"its disk {shorten(disk.name)} has no absolute path", hint=ROOT_ONLY
        )
    check_readable(disk.source)


def check_readable(path: str) -> None:
    """Raise unless this process may read the regular file at ``path``."""
    os.close(_open(path))


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(
            Code.FILE_FAILED,
            f"there is no file {shorten(path, 200)}",
            hint="If it is elsewhere by now: --disk FILE",
        ) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise HostFailure(
            Code.FILE_FAILED, f"{shorten(path, 200)} can't be opened: {why}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(Code.VALUE_INVALID, f"{shorten(path, 200)} is not a regular file")
    return descriptor
