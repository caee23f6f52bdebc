"""An OVA of a stranger: a tar of an OVF descriptor, its disks, and perhaps a manifest of digests.

Nothing in it is believed further than needed: members are plain files with plain names, each name once,
all together no more than the limit; the descriptor and the manifest are small; each file that the
descriptor lists is there with the size that it says. A manifest, where there is one, must list
what is used, and its digests must be right. A name is never used as a path: the root disk is written
under a name of ours and then looked at like any import.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serai.disk.files import copy_sparse
from serai.disk.reader import Reader
from serai.disk.tar import OLD_REGULAR, REGULAR, Member, read_members
from serai.disk.work import Pulse
from serai.errors import Invalid
from serai.model.foreign import ForeignDisk, ForeignMachine
from serai.plan.foreign_xml import MAX_XML, definition_refused
from serai.plan.ovf import is_file_name, read_manifest, read_ovf
from serai.units import format_size, shorten

MAX_MEMBERS = 200
MAX_MANIFEST = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Ova:
    """What is in an archive; ``digests`` is the manifest, empty where there is none."""

    machine: ForeignMachine
    members: Mapping[str, Member]
    digests: Mapping[str, str]


def read_ova(archive: Path, limit: int) -> Ova:
    """Read all of an archive but its disks.

    Raises Invalid: ``definition-refused``, or ``image-refused`` where it is no proper tar.
    """
    descriptor = _open(archive)
    try:
        reader = Reader(descriptor)
        members = _members(reader, limit)
        ovf = _only(members, ".ovf")
        if ovf is None or next(iter(members)) != ovf.name:
            raise definition_refused("it is no OVA: its first file is no OVF descriptor")
        if ovf.size > MAX_XML:
            raise definition_refused(f"its descriptor has more than {MAX_XML} bytes")
        content = reader.read(ovf.offset, ovf.size, "the descriptor")
        digests = _read_manifest(reader, _only(members, ".mf"))
    finally:
        os.close(descriptor)
    if digests:
        _check_digest(ovf.name, digests, content)
    found = read_ovf(content)
    _check_files(found.files, members)
    return Ova(machine=found.machine, members=members, digests=digests)


def unpack_disk(archive: Path, ova: Ova, disk: ForeignDisk, target: Path, pulse: Pulse) -> None:
    """Write a disk of the archive to the new file ``target``, of checked digest where there is one."""
    member = ova.members[disk.source]
    source = _open(archive)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    made = os.open(target, flags, 0o600)
    try:
        os.lseek(source, member.offset, os.SEEK_SET)
        found = copy_sparse(
            source, made, pulse, limit=member.size, length=member.size, total=member.size
        )
        expected = _expected(disk.source, ova.digests) if ova.digests else found
        algorithm = expected.partition(":")[0]
        if algorithm != "sha256":
            found = _hash(made, algorithm, pulse)
    finally:
        os.close(made)
        os.close(source)
    if found != expected:
        raise _changed(disk.source)


def _open(archive: Path) -> int:
    return os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _members(reader: Reader, limit: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    taken: set[str] = set()
    for member in read_members(reader):
        if member.kind not in (REGULAR, OLD_REGULAR) or not is_file_name(member.name):
            raise definition_refused(
                f"it has the member {shorten(member.name)}, which is no plain file in its own folder"
            )
        if member.name.casefold() in taken or len(found) >= MAX_MEMBERS:
            raise definition_refused(f"it has {shorten(member.name)} twice, or too many members")
        taken.add(member.name.casefold())
        found[member.name] = member
    if sum(member.size for member in found.values()) > limit:
        raise definition_refused(
            f"its files are larger than the limit of {format_size(limit)}",
            hint="The setting image_limit raises the limit.",
        )
    return found


def _only(members: Mapping[str, Member], suffix: str) -> Member | None:
    found = [each for name, each in members.items() if name.lower().endswith(suffix)]
    if len(found) > 1:
        raise definition_refused(f"it has more than one file {suffix}")
    return found[0] if found else None


def _read_manifest(reader: Reader, member: Member | None) -> dict[str, str]:
    if member is None:
        return {}
    if member.size > MAX_MANIFEST:
        raise definition_refused(f"its manifest has more than {MAX_MANIFEST} bytes")
    found = read_manifest(reader.read(member.offset, member.size, "the manifest"))
    if not found:
        raise definition_refused("its manifest is empty")
    return found


def _check_files(files: Mapping[str, int | None], members: Mapping[str, Member]) -> None:
    for name, size in files.items():
        if name not in members:
            raise definition_refused(f"its file {shorten(name)} is not in the archive")
        if size not in (None, members[name].size):
            raise definition_refused(
                f"its file {shorten(name)} has {members[name].size} bytes, not the {size} that it says"
            )


def _expected(name: str, digests: Mapping[str, str]) -> str:
    if name not in digests:
        raise definition_refused(f"its manifest does not list {shorten(name)}")
    return digests[name]


def _check_digest(name: str, digests: Mapping[str, str], content: bytes) -> None:
    expected = _expected(name, digests)
    algorithm = expected.partition(":")[0]
    if f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}" != expected:
        raise _changed(name)


def _changed(name: str) -> Invalid:
    return definition_refused(
        f"{shorten(name)} is not what its manifest says: it was changed on the way"
    )


def _hash(descriptor: int, algorithm: str, pulse: Pulse) -> str:
    digest = hashlib.new(algorithm)
    os.lseek(descriptor, 0, os.SEEK_SET)
    while piece := os.read(descriptor, 1 << 20):
        digest.update(piece)
        pulse.beat()
    return f"{algorithm}:{digest.hexdigest()}"
