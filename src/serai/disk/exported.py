"""Images that a serai exported, coming in: a tar of ``image.json`` and the files that it names.

The archive is ustar (POSIX.1-1988; sizes over 8 GiB as GNU tar writes them). Coming in it is a
stranger's file: exactly the members that ``api.images`` writes are taken, in its order, regular files
only, each with the size and the digest that ``image.json`` says; then each is inspected like any
other import. No name in it is ever used as a path.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from serai.disk.files import copy_sparse
from serai.disk.images import DESCRIPTION, NewImage, image_files
from serai.disk.reader import Reader, refused
from serai.disk.tar import REGULAR, Member, read_members
from serai.disk.work import Pulse
from serai.model.image import DiskFormat, Image, ImageFile, ImageKind

MAX_DESCRIPTION = 1 << 20
NAMES = frozenset({"disk.raw", "disk.qcow2", "disk.iso", "kernel", "initrd"})


def unpack_export(archive: Path, folder: Path, name: str, limit: int, pulse: Pulse) -> NewImage:
    """Unpack an export of ours into ``folder`` and return it under ``name``, yet to be inspected.

    Raises Invalid (``image-refused``) for whatever no serai has written.
    """
    descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        reader = Reader(descriptor)
        members = list(_members(reader))
        image = _read_description(reader, members[0] if members else None)
        files = image_files(image)
        _check_members(members[1:], list(files.values()), limit)
        paths = {}
        for (role, file), member in zip(files.items(), members[1:], strict=True):
            paths[role] = folder / f"unpacked-{role}"
            _unpack(descriptor, member, paths[role], file, pulse)
    finally:
        os.close(descriptor)
    return NewImage(
        name=name,
        kind=image.kind,
        disk=paths.get("disk"),
        kernel=paths.get("kernel"),
        initrd=paths.get("initrd"),
        disk_format=image.disk_format,
        virtual_size=image.virtual_size,
        cmdline=image.cmdline,
        agent=image.agent,
        cloud_init=image.cloud_init,
        firmware=tuple(image.firmware),
        min_memory=image.min_memory,
        source=image.source,
        details=image.details,
    )


def _members(reader: Reader) -> Iterator[Member]:
    for member in read_members(reader):
        if member.kind != REGULAR or member.name not in NAMES | {DESCRIPTION}:
            raise refused(
                f"it is a tar archive that serai did not export (it has {member.name[:60]!r})",
                hint="An OVA becomes a guest: serai import FILE. Else unpack it and import the disk in it.",
            )
        yield member


def _read_description(reader: Reader, member: Member | None) -> Image:
    if member is None or member.name != DESCRIPTION or member.size > MAX_DESCRIPTION:
        raise refused("it is a tar archive that serai did not export")
    try:
        content = reader.read(member.offset, member.size, DESCRIPTION)
        return msgspec.json.decode(content, type=Image)
    except msgspec.MsgspecError as error:
        raise refused(f"its {DESCRIPTION} can't be read: {error}") from error


def _check_members(members: list[Member], files: list[ImageFile], limit: int) -> None:
    """Refuse an archive whose members are not those that its description lists."""
    if [(m.name, m.size) for m in members] != [(f.name, f.size) for f in files] or not files:
        raise refused(f"its files are not those that its {DESCRIPTION} lists")
    if sum(member.size for member in members) > limit:
        raise refused("it is larger than the limit")


def _unpack(archive: int, member: Member, target: Path, file: ImageFile, pulse: Pulse) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(target, flags, 0o600)
    try:
        os.lseek(archive, member.offset, os.SEEK_SET)
        digest = copy_sparse(archive, descriptor, pulse, limit=member.size, length=member.size)
    finally:
        os.close(descriptor)
    if digest != file.digest:
        raise refused(
            f"{member.name} is not what its {DESCRIPTION} says: it was changed on the way"
        )


def check_description(new: NewImage) -> None:
    """Refuse a description whose parts don't go together."""
    wanted = {
        ImageKind.DISK: {"disk"},
        ImageKind.CDROM: {"disk"},
        ImageKind.KERNEL: {"kernel"},
    }[new.kind]
    if set(new.files()) - {"initrd"} != wanted or new.disk_format is DiskFormat.VMDK:
        raise refused(f"its {DESCRIPTION} describes no image that can be")
    if new.initrd is not None and new.kind is not ImageKind.KERNEL:
        raise refused(f"its {DESCRIPTION} describes no image that can be")
