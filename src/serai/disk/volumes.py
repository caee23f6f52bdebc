"""The volumes of a guest: a writable head over immutable layers.

    guests/ID/root.qcow2        a head, as a guest is made with it
    guests/ID/root-UNIQUE.qcow2 a head that was put over a layer later
    volumes/vID.qcow2           a head of a volume that lives by itself (``disk.pools``)
    guests/ID/uefi-vars.fd      the firmware's variables, under UEFI
    layers/ID.qcow2             what a head became when it was frozen (``disk.layers``)
    images/sha256-…/disk.*      the lowest layer, shared by all guests of the image

A DISK image gets a head over its layer, a CDROM image an empty disk to install on (the medium
itself is ``plan.machine``'s business), a KERNEL image an empty disk if one was asked for. Nothing
here starts a program or waits; all of it is blocking and quick. A head that is there is never
written over: doing the same again returns what is there.

Every qcow2 file of a chain is looked at before QEMU gets it, as if it were a stranger's: a guest that
broke out of its QEMU may have written its header.
"""

import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, sync_folder, write_durably
from serai.disk.layers import LayerFolder, layer_node
from serai.disk.qcow2 import create_head, grow_head, is_empty, read_head
from serai.errors import Bug, Code, Conflict, HostFailure, Invalid
from serai.model.guest import Volume
from serai.model.image import DiskFormat, Image, ImageKind
from serai.model.machine import LayerFile
from serai.model.snapshot import Layer
from serai.plan.machine import UEFI_VARS_NAME
from serai.plan.volume import head_stem
from serai.units import GIB, MIB, format_size

ROOT = "root"
ROOT_NAME = f"{ROOT}.qcow2"
HEAD_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\.qcow2", re.ASCII)
"""A head's name without its end is the name of a node in QEMU, which has 31 characters at most."""
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


def create_volumes(folder: Path, image: Image, image_folder: Path, size: int) -> tuple[Volume, ...]:
    """Make the volumes of a new guest in its ``folder``; () for an image that needs no disk.

    Durable when it returns; a head that is there is kept. Raises as ``root_size`` does, and
    HostFailure ``disk-full``, ``image-corrupt``.
    """
    create_root(folder, image, image_folder, size)
    return find_volumes(folder, image)


def find_volumes(folder: Path, image: Image) -> tuple[Volume, ...]:
    """Return the volumes of a guest that has no layers yet, by looking at what is there.

    For guests that were stored before volumes were. Raises HostFailure (``file-failed``) when a guest
    that must have a root disk has none, or one that is not sound.
    """
    head = folder / ROOT_NAME
    if not head.exists() and image.kind is ImageKind.KERNEL:
        return ()
    return (Volume(name=ROOT, head=ROOT_NAME, size=_virtual_size(head)),)


def make_head(folder: Path, volume: Volume) -> None:
    """Make the empty head that ``volume`` names, over its layer; one that is there is kept.

    Durable when it returns; HostFailure (``disk-full``, ``permission``) leaves nothing.
    """
    backing = f"layers/{volume.layer}.qcow2" if volume.layer else ""
    head = folder / _checked(volume.head)
    with naming_disk_problems("creating a disk"):
        if not head.exists():
            create_head(
                head,
                virtual_size=volume.size,
                backing=backing,
                backing_format=DiskFormat.QCOW2,
            )


def move_head_in(made: Path, folder: Path, volume: Volume) -> None:
    """Give a converted disk the place of ``volume``'s head; copied where that is another file system.

    Durable when it returns.
    """
    target = folder / _checked(volume.head)
    with naming_disk_problems("putting the volume into its pool"):
        try:
            made.rename(target)
        except OSError:
            part = folder / f".{volume.head}.new"
            shutil.copyfile(made, part)
            part.chmod(0o600)
            part.rename(target)
        sync_folder(folder)


def new_head(folder: Path, volume: Volume, unique: str, layer: str = "") -> Volume:
    """Make an empty head to be put over ``volume``'s and return the volume as it is then.

    The head is called STEM-``unique``.qcow2. ``layer`` is the id that the old head gets as a layer;
    with "" the caller fills that in. The size is that of the old head, which the guest may have seen
    grow. Durable when it returns; on failure nothing is left.
    """
    old = folder / _checked(volume.head)
    head = f"{head_stem(volume)}-{unique}.qcow2"
    made = msgspec.structs.replace(volume, head=head, layer=layer, size=_virtual_size(old))
    make_head(folder, made)
    return made


def is_empty_head(folder: Path, volume: Volume) -> bool:
    """Tell whether nothing was ever written to a head that nothing has open."""
    with naming_disk_problems("reading a disk"):
        return is_empty(folder / _checked(volume.head))


def drop_head(folder: Path, volume: Volume) -> None:
    """Remove a head's name from ``folder`` (done already: fine); as a layer it has another."""
    with naming_disk_problems("removing a disk"):
        (folder / _checked(volume.head)).unlink(missing_ok=True)
        sync_folder(folder)


def stray_heads(folder: Path, volumes: Collection[Volume]) -> list[Path]:
    """Return the heads in ``folder`` that no volume names, sorted: left by an interrupted freeze."""
    named = {volume.head for volume in volumes}
    return sorted(
        path
        for path in folder.iterdir()
        if HEAD_NAME.fullmatch(path.name) and path.name not in named
    )


def chain_of(
    folder: Path,
    volume: Volume,
    below: Sequence[Layer],
    layers: Callable[[Layer], LayerFolder],
    image: Image | None,
    image_folder: Path,
) -> tuple[LayerFile, ...]:
    """Return the files of a volume, the head first, each with the name of its node in QEMU.

    ``below`` are the layers under the head, the newest first; ``layers`` gives the folder of each. One
    that is read only has no head. Without ``image`` it stands on none. The header of each file is read. Raises
    HostFailure: ``snapshot-corrupt`` for a layer that is gone or not sound, ``file-failed`` for such a
    head, ``image-corrupt`` for the image's disk.
    """
    chain = [layers(layer).file(layer) for layer in below]
    if not volume.read_only:
        head = folder / _checked(volume.head)
        _virtual_size(head)
        chain.insert(0, _head_file(head))
    if image is None:
        return tuple(chain)
    if below and below[-1].image_digest not in ("", image.digest):
        raise HostFailure(
            Code.SNAPSHOT_CORRUPT,
            f"the layer {below[-1].id} stands on another image than {image.name}",
        )
    if not below or below[-1].image_digest:
        chain += _layers(image, image_folder)
    return tuple(chain)


def grow_volume(folder: Path, volume: Volume, size: int) -> Volume:
    """Make a volume of a stopped guest at least ``size`` bytes (whole MiB) large; return it then.

    Raises Conflict ``shrink-refused`` and Invalid ``size-invalid`` (then nothing has changed).
    """
    head = folder / _checked(volume.head)
    with naming_disk_problems("growing a disk"):
        grow_head(head, -(-size // MIB) * MIB)
    return msgspec.structs.replace(volume, size=_virtual_size(head))


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
    return LayerFile(path=str(head), format=DiskFormat.QCOW2, read_only=False, node=head.stem)


def _checked(head: str) -> str:
    if not HEAD_NAME.fullmatch(head):
        raise Bug(Code.BUG, f"a disk can't be called {head!r}")
    return head


def _virtual_size(head: Path) -> int:
    """Return the size of the disk that a head is; HostFailure (``file-failed``) if it is not sound."""
    try:
        return read_head(head).virtual_size
    except Invalid as error:
        raise HostFailure(
            Code.FILE_FAILED, f"the disk {head} can't be used: {error.message}"
        ) from error
    except FileNotFoundError as error:
        raise HostFailure(Code.FILE_FAILED, f"the disk {head} is gone") from error
    except OSError as error:
        raise HostFailure(
            Code.FILE_FAILED, f"the disk {head} can't be read: {error.strerror}"
        ) from error


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
    node = layer_node("i", image.digest.removeprefix("sha256:"))
    return (LayerFile(path=str(path), format=image.disk_format, read_only=True, node=node),)
