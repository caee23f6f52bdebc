"""The volumes of a guest: a writable head over the immutable layers of its image.

    guests/ID/root.qcow2     the head (``qcow2``)
    guests/ID/uefi-vars.fd   the firmware's variables, under UEFI
    images/sha256-…/disk.*   the layer below, shared by all guests of the image

A DISK image gets a head over its layer, a CDROM image an empty disk to install on (the medium
itself is ``plan.machine``'s business), a KERNEL image an empty disk if one was asked for. Nothing
here starts a program or waits; all of it is blocking and quick. A head that is there is never
written over: doing the same again returns what is there.
"""

import os
from pathlib import Path

from serai.disk.files import naming_disk_problems, sync_folder, write_durably
from serai.disk.qcow2 import create_head, grow_head
from serai.errors import Code, Conflict, HostFailure, Invalid
from serai.model.image import DiskFormat, Image, ImageKind
from serai.model.machine import LayerFile
from serai.plan.machine import UEFI_VARS_NAME
from serai.units import GIB, MIB, format_size

ROOT_NAME = "root.qcow2"
EMPTY_DISK = 8 * GIB
"""What a guest of an installation medium gets when no size was asked for."""


def root_size(image: Image, size: int) -> int:
    """Return the size of the root disk for a wish of ``size`` bytes; 0: the image gets no disk.

    A wish of 0 means the image's own size. Other wishes are rounded up to whole MiB. Raises
    Conflict (``shrink-refused``) for less than the image has, Invalid (``size-invalid``) below 0.
    """
    if size < 0:
        raise Invalid(Code.SIZE_INVALID, f"a disk can't have {size} bytes")
    if size == 0:
        return EMPTY_DISK if image.kind is ImageKind.CDROM else image.virtual_size
    if size < image.virtual_size:
        raise Conflict(
            Code.SHRINK_REFUSED,
            f"the image {image.name} needs a disk of {format_size(image.virtual_size)} or more",
            hint="Leave the size away to get the image's own.",
        )
    return size if size == image.virtual_size else -(-size // MIB) * MIB


def create_root(folder: Path, image: Image, image_folder: Path, size: int) -> tuple[LayerFile, ...]:
    """Make the root volume in the guest's ``folder`` and return its chain, the head first.

    An empty chain: this guest has no disk. Durable when it returns; on failure nothing is left.
    Raises Conflict (``shrink-refused``), Invalid (``size-invalid``) and HostFailure (``disk-full``,
    ``image-corrupt`` when the layer is not what was published, ``permission``).
    """
    wanted = root_size(image, size)
    if wanted == 0:
        return ()
    layers = _layers(image, image_folder)
    head = folder / ROOT_NAME
    with naming_disk_problems("creating the root disk"):
        if not head.exists():
            create_head(
                head,
                virtual_size=wanted,
                backing=f"{image_folder.name}/{Path(layers[0].path).name}" if layers else "",
                backing_format=layers[0].format if layers else DiskFormat.RAW,
            )
    return (_head_file(head), *layers)


def find_root(folder: Path, image: Image, image_folder: Path) -> tuple[LayerFile, ...]:
    """Return the chain of a root volume that ``create_root`` made; empty when there is none.

    Raises HostFailure (``file-failed``) when a guest that must have a root disk has none.
    """
    head = folder / ROOT_NAME
    if not head.exists():
        if image.kind is ImageKind.KERNEL:
            return ()
        raise HostFailure(Code.FILE_FAILED, f"the root disk {head} is gone")
    return (_head_file(head), *_layers(image, image_folder))


def grow_root(chain: tuple[LayerFile, ...], size: int) -> None:
    """Make the root volume of a stopped guest at least ``size`` bytes (whole MiB) large.

    Raises Conflict ``shrink-refused`` and Invalid ``size-invalid`` (then nothing has changed).
    """
    with naming_disk_problems("growing the root disk"):
        grow_head(Path(chain[0].path), -(-size // MIB) * MIB)


def create_uefi_vars(folder: Path, template: str) -> Path:
    """Copy the firmware's empty variables into the guest's ``folder``, unless it has some already."""
    target = folder / UEFI_VARS_NAME
    temporary = folder / f".{UEFI_VARS_NAME}.new"
    with naming_disk_problems("creating the UEFI variables"):
        if target.exists():
            return target
        temporary.unlink(missing_ok=True)
        try:
            write_durably(temporary, Path(template).read_bytes())
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
    return target


def usage(folder: Path) -> int:
    """Return the bytes that the files in ``folder`` take on the disk (holes don't count)."""
    with os.scandir(folder) as entries:
        return sum(e.stat(follow_symlinks=False).st_blocks * 512 for e in entries if e.is_file())


def _head_file(head: Path) -> LayerFile:
    return LayerFile(path=str(head), format=DiskFormat.QCOW2, read_only=False)


def _layers(image: Image, image_folder: Path) -> tuple[LayerFile, ...]:
    """Return the layers below a head over ``image``: one for a disk, none for the other kinds."""
    if image.kind is not ImageKind.DISK or image.disk is None:
        return ()
    path = image_folder / image.disk.name
    if not path.is_file() or path.stat().st_size != image.disk.size:
        raise HostFailure(
            Code.IMAGE_CORRUPT,
            f"the disk of the image {image.name} is gone or has another size",
            hint="Import or build the image again.",
            details={"path": str(path)},
        )
    return (LayerFile(path=str(path), format=image.disk_format, read_only=True),)
