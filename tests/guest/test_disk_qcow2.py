"""QEMU's own tools as the judge: of heads that we write, and of what our parsers take and refuse."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from serai.disk.header import inspect_image
from serai.disk.qcow2 import create_head, grow_head, read_head, read_note
from serai.errors import Code, Conflict, Invalid
from serai.model.image import DiskFormat
from serai.units import GIB, KIB, MIB, TIB

LIMIT = 64 * GIB


def img(*argv: object) -> bytes:
    return subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True).stdout


def io(file: str, *commands: str, options: tuple[str, ...] = ()) -> str:
    argv = ["qemu-io", *options, *(part for c in commands for part in ("-c", c)), file]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


def over(head: Path, layer: Path, layer_format: str = "raw") -> str:
    """Return how QEMU is told of a head and its layer, as serai tells it."""
    below = {"driver": layer_format, "file": {"driver": "file", "filename": str(layer)}}
    top = {"driver": "qcow2", "backing": below, "file": {"driver": "file", "filename": str(head)}}
    return "json:" + json.dumps(top)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A raw layer of 3 MiB, all different."""
    path = tmp_path / "layer.raw"
    path.write_bytes(os.urandom(3 * MIB))
    return path


@pytest.mark.parametrize("size", [512, 3 * MIB, 10 * GIB, 2 * TIB, 20 * TIB, 64 * TIB])
def test_head_is_sound(tmp_path: Path, size: int) -> None:
    head = tmp_path / "head.qcow2"
    create_head(head, virtual_size=size, backing="sha256-abc/disk.raw")
    img("check", "-f", "qcow2", head)
    info = json.loads(img("info", "--output=json", "-f", "qcow2", head))
    assert info["virtual-size"] == size
    assert "backing-filename" not in info
    assert info["format-specific"]["data"]["extended-l2"] is True
    assert head.stat().st_blocks * 512 <= 64 * KIB


def test_head_shows_its_layer_and_zeros_behind_it(tmp_path: Path, layer: Path) -> None:
    head = tmp_path / "head.qcow2"
    create_head(head, virtual_size=8 * MIB, backing="x")
    whole = tmp_path / "whole.raw"
    img("convert", "-O", "raw", over(head, layer), whole)
    assert whole.read_bytes() == layer.read_bytes() + bytes(5 * MIB)
    assert all(part["depth"] > 0 for part in map_of(over(head, layer)) if part["data"])


def map_of(file: str) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads(img("map", "--output=json", file))
    return found


def test_small_write_copies_nothing_and_leaves_the_layer_alone(tmp_path: Path, layer: Path) -> None:
    head, before = tmp_path / "head.qcow2", layer.read_bytes()
    create_head(head, virtual_size=8 * MIB, backing="x")
    io(over(head, layer), "write -P 7 8k 4k", "write -P 8 7M 4k")
    io(over(head, layer), "read -P 7 8k 4k", "read -P 8 7M 4k", "read -P 0 6M 512k")
    assert layer.read_bytes() == before
    assert (
        sum(p["length"] for p in map_of(over(head, layer)) if p["depth"] == 0 and p["data"])
        == 8 * KIB
    )
    img("check", "-f", "qcow2", head)
    inspect_image(head, LIMIT)  # what QEMU wrote passes our parser


def test_note_survives_qemu(tmp_path: Path, layer: Path) -> None:
    head = tmp_path / "head.qcow2"
    create_head(head, virtual_size=8 * MIB, backing="sha256-abc/disk.raw")
    io(over(head, layer), "write -P 7 0 1M")
    img("resize", "-f", "qcow2", head, 5 * GIB)
    note = read_note(read_head(head))
    assert note is not None
    assert (note.backing, note.format) == ("sha256-abc/disk.raw", DiskFormat.RAW)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("size", [8 * MIB, 9 * MIB, 100 * GIB, 16 * TIB])
def test_growing(tmp_path: Path, layer: Path, size: int, written: bool) -> None:
    head = tmp_path / "head.qcow2"
    create_head(head, virtual_size=8 * MIB, backing="x")
    if written:
        io(over(head, layer), "write -P 7 7M 64k")
    grow_head(head, size)
    img("check", "-f", "qcow2", head)
    assert json.loads(img("info", "--output=json", "-f", "qcow2", head))["virtual-size"] == size
    end = f"{size - 64 * KIB}"
    io(over(head, layer), f"write -P 9 {end} 64k")
    io(
        over(head, layer),
        f"read -P 9 {end} 64k",
        *(["read -P 7 7M 64k"] if written and size > 8 * MIB else []),
    )
    img("check", "-f", "qcow2", head)


def test_growing_too_far_and_shrinking_are_refused(tmp_path: Path) -> None:
    head = tmp_path / "head.qcow2"
    create_head(head, virtual_size=8 * MIB)
    before = head.read_bytes()
    with pytest.raises(Conflict) as shrunk:
        grow_head(head, 4 * MIB)
    with pytest.raises(Invalid) as too_far:
        grow_head(head, 17 * TIB)
    assert (shrunk.value.code, too_far.value.code) == (Code.SHRINK_REFUSED, Code.SIZE_INVALID)
    assert head.read_bytes() == before


OPTIONS = {
    "plain": [],
    "old": ["compat=0.10"],
    "small clusters": ["cluster_size=4k"],
    "large clusters": ["cluster_size=2M"],
    "subclusters": ["extended_l2=on"],
    "lazy": ["lazy_refcounts=on"],
    "wide refcounts": ["refcount_bits=64"],
    "narrow refcounts": ["refcount_bits=1"],
    "zstd": ["compression_type=zstd"],
    "metadata": ["preallocation=metadata"],
    "full": ["preallocation=falloc"],
}


MADE = [(kind, False) for kind in OPTIONS] + [
    (kind, True) for kind, options in OPTIONS.items() if "preallocation" not in str(options)
]


@pytest.mark.parametrize(("kind", "compressed"), MADE)
def test_what_qemu_makes_is_taken(tmp_path: Path, kind: str, compressed: bool) -> None:
    source, made = tmp_path / "s.raw", tmp_path / "x.qcow2"
    with source.open("wb") as file:
        file.write(b"\xfa" + bytes(509) + b"\x55\xaa" + b"compress me" * 200_000)
        file.seek(20 * MIB)
        file.write(os.urandom(100_000))
        file.truncate(40 * MIB + 512)
    options = [part for option in OPTIONS[kind] for part in ("-o", option)]
    img("convert", *(["-c"] if compressed else []), "-O", "qcow2", *options, source, made)
    found = inspect_image(made, LIMIT)
    assert found.virtual_size == 40 * MIB + 512
    assert bool(found.convert) == (kind == "old")
    assert found.firmware == (("bios", "uefi") if compressed and kind == "zstd" else ("bios",))


def test_snapshots_and_bitmaps_make_it_convert(tmp_path: Path) -> None:
    made = tmp_path / "x.qcow2"
    img("create", "-f", "qcow2", made, "10M")
    io(str(made), "write -P 7 1M 1M", options=("-f", "qcow2"))
    img("snapshot", "-c", "one", made)
    assert "snapshots" in inspect_image(made, LIMIT).convert
    img("snapshot", "-d", "one", made)
    assert not inspect_image(made, LIMIT).convert
    img("bitmap", "--add", "-f", "qcow2", made, "changes")
    assert "bitmaps" in inspect_image(made, LIMIT).convert


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
def test_vmdk_that_qemu_makes_is_taken(tmp_path: Path, layer: Path, subformat: str) -> None:
    made = tmp_path / "x.vmdk"
    img("convert", "-O", "vmdk", "-o", f"subformat={subformat}", layer, made)
    found = inspect_image(made, LIMIT)
    assert (found.format, found.virtual_size) == (DiskFormat.VMDK, 3 * MIB)


def attack(tmp_path: Path, kind: str) -> Path:
    """Make an image that shows a host file (or more) to whoever opens it with plain QEMU tools."""
    secret, made = tmp_path / "secret.raw", tmp_path / "evil"
    secret.write_bytes(b"top secret".ljust(MIB, b"."))
    if kind == "backing":
        img("create", "-f", "qcow2", "-b", secret, "-F", "raw", made)
    elif kind == "protocol":
        img("create", "-f", "qcow2", "-u", "-b", "nbd://127.0.0.1:1/x", "-F", "raw", made, "1M")
    elif kind == "json":
        img(
            "create",
            "-f",
            "qcow2",
            "-u",
            "-b",
            f'json:{{"driver":"file","filename":"{secret}"}}',
            "-F",
            "raw",
            made,
            "1M",
        )
    elif kind == "external":
        img("create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", made, "1M")
    elif kind == "flat":
        img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", made, "1M")
        made.write_text(made.read_text().replace("evil-flat.vmdk", str(secret)))
    elif kind == "child":
        parent = tmp_path / "parent.vmdk"
        img("create", "-f", "vmdk", parent, "1M")
        img("create", "-f", "vmdk", "-b", parent, "-F", "vmdk", made)
    elif kind == "luks":
        # Written by hand: qemu-img measures its processor first, and gives up on a shared one.
        img("create", "-f", "qcow2", made, "1M")
        with made.open("r+b") as file:
            file.seek(32)
            file.write((2).to_bytes(4, "big"))
    elif kind == "bomb":
        img("create", "-f", "qcow2", "-o", "cluster_size=2M", made, "63T")
    return made


@pytest.mark.parametrize(
    "kind", ["backing", "protocol", "json", "external", "flat", "child", "luks", "bomb"]
)
def test_attack_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Invalid) as caught:
        inspect_image(attack(tmp_path, kind), LIMIT)
    assert caught.value.code is Code.IMAGE_REFUSED


def test_raw_disk_into_which_a_guest_wrote_a_header_is_refused(tmp_path: Path) -> None:
    evil = attack(tmp_path, "backing").rename(tmp_path / "guest.raw")
    with pytest.raises(Invalid, match="called a raw disk"):
        inspect_image(evil, LIMIT)
