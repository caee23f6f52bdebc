"""Root volumes: which chain a guest gets, what is refused, and that nothing is ever written over."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serai.disk.qcow2 import read_head, read_note
from serai.disk.volumes import (
    EMPTY_DISK,
    create_root,
    create_uefi_vars,
    find_root,
    grow_root,
    usage,
)
from serai.errors import Code, Conflict, HostFailure, Invalid, SeraiError
from serai.model.image import DiskFormat, Image, ImageFile, ImageKind
from serai.units import GIB, KIB, MIB, TIB

DIGEST = "sha256:" + "ab" * 32


def make_image(kind: ImageKind = ImageKind.DISK, **fields: object) -> Image:
    disk = None if kind is ImageKind.KERNEL else ImageFile(name="disk.raw", size=4096, digest="")
    size = 10 * MIB if kind is ImageKind.DISK else 0
    return Image(
        name="thing", digest=DIGEST, kind=kind, created_at=0.0, size=1, disk=disk, virtual_size=size, **fields
    )  # fmt: skip


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    folder = tmp_path / DIGEST.replace(":", "-")
    folder.mkdir()
    (folder / "disk.raw").write_bytes(bytes(4096))
    return folder


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    (tmp_path / "guest").mkdir()
    return tmp_path / "guest"


@pytest.mark.parametrize(
    ("size", "found"), [(0, 10 * MIB), (10 * MIB, 10 * MIB), (GIB, GIB), (10 * MIB + 1, 11 * MIB)]
)
def test_disk_image_gets_a_head_over_its_layer(
    guest: Path, image_folder: Path, size: int, found: int
) -> None:
    head, layer = create_root(guest, make_image(), image_folder, size)
    assert (head.path, head.format, head.read_only) == (
        str(guest / "root.qcow2"), DiskFormat.QCOW2, False,
    )  # fmt: skip
    assert (layer.path, layer.format, layer.read_only) == (
        str(image_folder / "disk.raw"), DiskFormat.RAW, True,
    )  # fmt: skip
    header = read_head(Path(head.path))
    assert header.virtual_size == found
    note = read_note(header)
    assert note is not None
    assert note.backing == f"{image_folder.name}/disk.raw"
    assert find_root(guest, make_image(), image_folder) == (head, layer)
    assert [path.name for path in guest.iterdir()] == ["root.qcow2"]
    assert (guest / "root.qcow2").stat().st_mode & 0o777 == 0o600


def test_medium_gets_an_empty_disk(guest: Path, image_folder: Path) -> None:
    (head,) = create_root(guest, make_image(ImageKind.CDROM), image_folder, 0)
    header = read_head(Path(head.path))
    assert header.virtual_size == EMPTY_DISK
    assert read_note(header) is None


def test_kernel_gets_a_disk_only_when_asked(guest: Path, image_folder: Path) -> None:
    image = make_image(ImageKind.KERNEL)
    assert create_root(guest, image, image_folder, 0) == ()
    assert find_root(guest, image, image_folder) == ()
    assert list(guest.iterdir()) == []
    (head,) = create_root(guest, image, image_folder, 5 * MIB)
    assert read_head(Path(head.path)).virtual_size == 5 * MIB
    assert find_root(guest, image, image_folder) == (head,)


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (10 * MIB - 1, Code.SHRINK_REFUSED),
        (1, Code.SHRINK_REFUSED),
        (-1, Code.SIZE_INVALID),
        (65 * TIB, Code.SIZE_INVALID),
    ],
)
def test_sizes_that_are_refused(guest: Path, image_folder: Path, size: int, code: Code) -> None:
    with pytest.raises(SeraiError) as caught:
        create_root(guest, make_image(), image_folder, size)
    assert caught.value.code is code
    assert list(guest.iterdir()) == []


def test_head_that_is_there_is_kept(guest: Path, image_folder: Path) -> None:
    create_root(guest, make_image(), image_folder, 0)
    before = (guest / "root.qcow2").read_bytes()
    create_root(guest, make_image(), image_folder, GIB)
    assert (guest / "root.qcow2").read_bytes() == before


def test_leftover_of_a_power_cut_is_in_nobodys_way(guest: Path, image_folder: Path) -> None:
    (guest / ".root.qcow2.new").write_bytes(b"half")
    create_root(guest, make_image(), image_folder, 0)
    assert [path.name for path in guest.iterdir()] == ["root.qcow2"]


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_layer_that_is_not_whole_is_told(guest: Path, image_folder: Path, damage: str) -> None:
    if damage == "gone":
        (image_folder / "disk.raw").unlink()
    else:
        os.truncate(image_folder / "disk.raw", 100)
    with pytest.raises(HostFailure) as caught:
        create_root(guest, make_image(), image_folder, 0)
    assert caught.value.code is Code.IMAGE_CORRUPT
    assert list(guest.iterdir()) == []


def test_head_that_is_gone_is_told(guest: Path, image_folder: Path) -> None:
    with pytest.raises(HostFailure):
        find_root(guest, make_image(), image_folder)


def test_growing(guest: Path, image_folder: Path) -> None:
    chain = create_root(guest, make_image(), image_folder, 0)
    grow_root(chain, 20 * MIB + 1)
    assert read_head(Path(chain[0].path)).virtual_size == 21 * MIB
    grow_root(chain, 3 * TIB)
    assert read_head(Path(chain[0].path)).virtual_size == 3 * TIB
    with pytest.raises(Conflict) as caught:
        grow_root(chain, 1 * TIB)
    assert caught.value.code is Code.SHRINK_REFUSED
    assert read_head(Path(chain[0].path)).virtual_size == 3 * TIB


def test_head_that_a_guest_made_hostile_is_refused(guest: Path, image_folder: Path) -> None:
    chain = create_root(guest, make_image(), image_folder, 0)
    with (guest / "root.qcow2").open("r+b") as file:
        file.seek(8)
        file.write((512).to_bytes(8, "big") + (11).to_bytes(4, "big"))
    with pytest.raises(Invalid) as caught:
        grow_root(chain, GIB)
    assert caught.value.code is Code.IMAGE_REFUSED


def test_uefi_variables(guest: Path, tmp_path: Path) -> None:
    template = tmp_path / "vars"
    template.write_bytes(b"empty" * 1000)
    made = create_uefi_vars(guest, str(template))
    assert made.name == "uefi-vars.fd"
    assert made.read_bytes() == b"empty" * 1000
    made.write_bytes(b"the guest's own")
    assert create_uefi_vars(guest, str(template)).read_bytes() == b"the guest's own"
    assert [path.name for path in guest.iterdir()] == ["uefi-vars.fd"]
    with pytest.raises(HostFailure):
        create_uefi_vars(tmp_path, str(tmp_path / "none"))


def test_usage_does_not_count_holes(guest: Path, image_folder: Path) -> None:
    create_root(guest, make_image(), image_folder, GIB)
    assert 0 < usage(guest) <= 64 * KIB


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB without any room."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    (place / "guest").mkdir()
    (place / "filler").write_bytes(bytes(64 * KIB))
    yield place
    subprocess.run(["umount", place], check=True)


def test_full_disk_leaves_nothing(full_disk: Path, image_folder: Path) -> None:
    guest = full_disk / "guest"
    with pytest.raises(HostFailure) as caught:
        create_root(guest, make_image(), image_folder, 0)
    assert caught.value.code is Code.DISK_FULL
    with pytest.raises(HostFailure) as caught:
        create_uefi_vars(guest, str(image_folder / "disk.raw"))
    assert caught.value.code is Code.DISK_FULL
    assert list(guest.iterdir()) == []
