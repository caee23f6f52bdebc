"""Volumes as the database keeps them: their heads, their chains, what is refused of them."""

import struct
from pathlib import Path

import pytest
from msgspec.structs import replace
from test_disk_volumes import DIGEST, make_image

from serai.disk.layers import LayerFolder
from serai.disk.qcow2 import create_head, grow_head, read_head, read_note
from serai.disk.volumes import (
    ROOT,
    chain_of,
    create_root,
    create_volumes,
    drop_head,
    find_volumes,
    grow_volume,
    make_head,
    new_head,
    stray_heads,
)
from serai.errors import Bug, Code, Conflict, HostFailure
from serai.model.guest import Volume
from serai.model.image import DiskFormat, ImageKind
from serai.model.snapshot import Layer
from serai.units import GIB, MIB

IDS = ("0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7")


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


@pytest.fixture
def layers(tmp_path: Path) -> LayerFolder:
    return LayerFolder(tmp_path / "layers")


def stack(layers: LayerFolder, digest: str = DIGEST) -> tuple[Layer, Layer]:
    """Make two layers over the image and return them, the newest first."""
    for each in IDS:
        create_head(layers.path(each), virtual_size=10 * MIB)
    lower = Layer(id=IDS[1], image_digest=digest, virtual_size=10 * MIB, created_at=0.0)
    upper = Layer(id=IDS[0], parent=IDS[1], virtual_size=10 * MIB, created_at=1.0)
    return upper, lower


def test_a_new_guest_gets_its_volumes(guest: Path, image_folder: Path) -> None:
    image = make_image()
    for _ in range(2):
        (volume,) = create_volumes(guest, image, image_folder, 11 * MIB)
        assert volume == Volume(name="root", head="root.qcow2", size=11 * MIB)
    assert find_volumes(guest, image) == (volume,)
    assert create_volumes(guest, make_image(ImageKind.KERNEL), image_folder, 0) == (volume,)


def test_a_guest_without_a_disk(guest: Path, image_folder: Path) -> None:
    assert create_volumes(guest, make_image(ImageKind.KERNEL), image_folder, 0) == ()
    with pytest.raises(HostFailure) as caught:
        find_volumes(guest, make_image())
    assert caught.value.code is Code.FILE_FAILED


def test_the_chain_of_a_fresh_volume(guest: Path, image_folder: Path, layers: LayerFolder) -> None:
    image = make_image()
    (volume,) = create_volumes(guest, image, image_folder, 0)
    head, disk = chain_of(guest, volume, (), lambda _: layers, image, image_folder)
    assert (head.node, disk.node) == ("root", "i" + "ab" * 8)
    assert (head.read_only, disk.read_only) == (False, True)
    assert disk.format is DiskFormat.RAW
    assert (head, disk) == create_root(guest, image, image_folder, 0)


def test_the_chain_over_layers(guest: Path, image_folder: Path, layers: LayerFolder) -> None:
    below = stack(layers)
    volume = Volume(name=ROOT, head="root-abc123.qcow2", layer=IDS[0], size=10 * MIB)
    for _ in range(2):
        make_head(guest, volume)
    chain = chain_of(guest, volume, below, lambda _: layers, make_image(), image_folder)
    assert [file.node for file in chain] == [
        "root-abc123", "l0f8fad5bd9cb469f", "l7c9e6679742540de", "i" + "ab" * 8,
    ]  # fmt: skip
    assert all(len(file.node) <= 31 for file in chain)
    assert len({file.node for file in chain}) == 4
    note = read_note(read_head(guest / volume.head))
    assert note is not None
    assert note.backing == f"layers/{IDS[0]}.qcow2"


def test_layers_that_stand_on_nothing(guest: Path, image_folder: Path, layers: LayerFolder) -> None:
    below = stack(layers, digest="")
    volume = Volume(name=ROOT, head="root.qcow2", layer=IDS[0], size=10 * MIB)
    make_head(guest, volume)
    assert len(chain_of(guest, volume, below, lambda _: layers, make_image(), image_folder)) == 3
    with pytest.raises(HostFailure) as caught:
        other = stack(layers_elsewhere(layers), digest="sha256:cd")
        chain_of(guest, volume, other, lambda _: layers, make_image(), image_folder)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT


def layers_elsewhere(layers: LayerFolder) -> LayerFolder:
    return LayerFolder(layers.path_of_all.with_name("elsewhere"))


@pytest.mark.parametrize("harm", ["layer gone", "layer size", "head gone", "head hostile"])
def test_a_chain_that_is_not_sound_is_refused(
    guest: Path, image_folder: Path, layers: LayerFolder, harm: str
) -> None:
    below = stack(layers)
    volume = Volume(name=ROOT, head="root.qcow2", layer=IDS[0], size=10 * MIB)
    make_head(guest, volume)
    match harm:
        case "layer gone":
            layers.path(IDS[1]).unlink()
        case "layer size":
            below = (replace(below[0], virtual_size=9 * MIB), below[1])
        case "head gone":
            (guest / "root.qcow2").unlink()
        case "head hostile":
            with (guest / "root.qcow2").open("r+b") as file:
                file.seek(8)
                file.write(struct.pack(">QI", 600, 11))
    with pytest.raises(HostFailure) as caught:
        chain_of(guest, volume, below, lambda _: layers, make_image(), image_folder)
    layer = harm.startswith("layer")
    assert caught.value.code is (Code.SNAPSHOT_CORRUPT if layer else Code.FILE_FAILED)


def test_a_new_head_is_as_large_as_the_old_one_is_now(guest: Path, image_folder: Path) -> None:
    (volume,) = create_volumes(guest, make_image(), image_folder, 0)
    grow_head(guest / volume.head, GIB)  # the guest was running then: the record does not know
    made = new_head(guest, volume, "0f8fad5b", layer="x")
    assert made == Volume(name="root", head="root-0f8fad5b.qcow2", layer="x", size=GIB)
    assert read_head(guest / made.head).virtual_size == GIB
    assert stray_heads(guest, [volume]) == [guest / "root-0f8fad5b.qcow2"]
    assert stray_heads(guest, [volume, made]) == []
    for _ in range(2):
        drop_head(guest, volume)
    assert [path.name for path in guest.iterdir()] == ["root-0f8fad5b.qcow2"]


def test_other_files_are_no_heads(guest: Path) -> None:
    for name in ("uefi-vars.fd", ".root.qcow2.new", "Root.qcow2", "x.QCOW2", "serial.log"):
        (guest / name).touch()
    assert stray_heads(guest, []) == []


@pytest.mark.parametrize("head", ["", "../x.qcow2", "root", "r" * 32 + ".qcow2", ".x.qcow2"])
def test_heads_that_lead_elsewhere_are_refused(guest: Path, head: str) -> None:
    volume = Volume(name=ROOT, head=head, size=MIB)
    for work in (make_head, drop_head):
        with pytest.raises(Bug):
            work(guest, volume)


def test_growing_a_volume(guest: Path, image_folder: Path) -> None:
    (volume,) = create_volumes(guest, make_image(), image_folder, 0)
    grown = grow_volume(guest, volume, 20 * MIB + 1)
    assert grown == replace(volume, size=21 * MIB)
    with pytest.raises(Conflict) as caught:
        grow_volume(guest, grown, MIB)
    assert caught.value.code is Code.SHRINK_REFUSED
