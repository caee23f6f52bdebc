"""Merged layers, with QEMU as the judge: what was seen through two files is seen through one."""

import asyncio
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from serai.disk.header import inspect_image
from serai.disk.layers import LayerFolder
from serai.disk.qcow2 import create_head, grow_head
from serai.units import GIB, KIB, MIB

LIMIT = 64 * GIB


def node(path: Path, driver: str, below: object = None) -> dict[str, object]:
    file = {"driver": "file", "filename": str(path)}
    backing = {"backing": below} if driver == "qcow2" else {}
    return {"driver": driver, "file": file, **backing}


def chain(*paths: Path) -> str:
    """Return how QEMU is told of a chain, the highest file first; the last may be raw."""
    made: object = None
    for path in reversed(paths):
        made = node(path, "raw" if path.suffix == ".raw" else "qcow2", made)
    return "json:" + json.dumps(made)


def img(*argv: object) -> bytes:
    return subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True).stdout


def io(file: str, commands: list[str]) -> None:
    argv = ["qemu-io", *(part for command in commands for part in ("-c", command)), file]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout, done.stdout


def scribble(rng: random.Random, size: int, count: int) -> list[str]:
    """Return random writes: data, zeros (which may free what is below) and discards."""
    found = []
    for _ in range(count):
        length = rng.choice([512, 4 * KIB, 20 * KIB, 128 * KIB, 700 * KIB])
        offset = rng.randrange(0, (size - length) // 512) * 512
        kind = rng.choice(["write -P", "write -P", "write -z", "write -zu", "discard"])
        pattern = f" {rng.randrange(1, 256)}" if kind == "write -P" else ""
        found.append(f"{kind}{pattern} {offset} {length}")
    return found


def present(file: str) -> list[tuple[int, int]]:
    """Return (start, end) of what the files of a chain hold themselves, be it data or zeros."""
    found: list[tuple[int, int]] = []
    for part in json.loads(img("map", "--output=json", file)):
        start, end = part["start"], -(-(part["start"] + part["length"]) // 4096) * 4096
        if not part["present"]:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> LayerFolder:
    return LayerFolder(tmp_path / "layers")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ground", ["raw", "layer", "nothing"])
async def test_what_was_seen_is_seen(
    folder: LayerFolder, tmp_path: Path, seed: int, ground: str
) -> None:
    rng = random.Random(f"{seed} {ground}")
    size = rng.choice([3 * MIB, 5 * MIB + 512, 2 * MIB + 7 * KIB])
    below: tuple[Path, ...] = ()
    if ground == "raw":
        below = (tmp_path / "ground.raw",)
        below[0].write_bytes(rng.randbytes(2 * MIB - 1536))
    elif ground == "layer":
        below = (folder.path("ground"),)
        create_head(below[0], virtual_size=2 * MIB)
        io(chain(*below), scribble(rng, 2 * MIB, 6))
    parent, child = folder.path("parent"), folder.path("child")
    create_head(parent, virtual_size=size)
    io(chain(parent, *below), scribble(rng, size, rng.randrange(12)))
    larger = size + rng.choice([0, 512, 3 * MIB])
    create_head(child, virtual_size=larger)
    io(chain(child, parent, *below), scribble(rng, larger, rng.randrange(12)))
    before, old = tmp_path / "before.raw", tmp_path / "old.qcow2"
    os.link(child, old)
    img("convert", "-O", "raw", chain(child, parent, *below), before)

    digest = await folder.merge("child", "parent")

    img("check", "-f", "qcow2", child)
    img("compare", "-f", "raw", before, chain(child, *below))
    img("compare", "-f", "raw", before, chain(old, parent, *below))  # who has it open
    img("compare", "-f", "raw", before, chain(child, parent, *below))  # nobody told the store
    assert digest == await folder.hash("child")
    assert inspect_image(child, LIMIT).virtual_size == larger
    assert await folder.merge("child", "parent") == digest
    assert present(chain(child)) == present(chain(old, parent))  # nothing was filled in


async def test_a_merged_layer_takes_writes_above_it_and_grows(
    folder: LayerFolder, tmp_path: Path
) -> None:
    parent, child, head = folder.path("p"), folder.path("c"), tmp_path / "head.qcow2"
    create_head(parent, virtual_size=8 * MIB)
    io(chain(parent), ["write -P 1 0 8M"])
    create_head(child, virtual_size=8 * MIB)
    io(chain(child, parent), ["write -P 2 1M 4k", "write -z 2M 1M"])
    await folder.merge("c", "p")
    create_head(head, virtual_size=8 * MIB)
    grow_head(head, 9 * MIB)
    io(chain(head, child), ["write -P 3 1028k 4k"])
    io(
        chain(head, child),
        ["read -P 1 0 1M", "read -P 2 1M 4k", "read -P 3 1028k 4k", "read -P 0 2M 1M",
         "read -P 1 3M 5M", "read -P 0 8M 1M"],
    )  # fmt: skip


async def test_a_merged_layer_may_become_a_head_again(folder: LayerFolder) -> None:
    """What QEMU thinks of its refcounts: it writes to it and finds it sound."""
    create_head(folder.path("p"), virtual_size=3 * GIB)
    io(chain(folder.path("p")), ["write -P 1 0 300M", "write -P 5 2100M 1M"])
    create_head(folder.path("c"), virtual_size=3 * GIB)
    io(chain(folder.path("c"), folder.path("p")), ["write -P 2 10M 64k"])
    await folder.merge("c", "p")
    folder.path("c").chmod(0o600)
    io(chain(folder.path("c")), ["write -P 7 1G 100M", "write -z 0 1M", "discard 1M 1M"])
    img("check", "-f", "qcow2", folder.path("c"))
    io(chain(folder.path("c")), ["read -P 2 10M 64k", "read -P 7 1G 100M", "read -P 5 2100M 1M"])


async def test_two_merges_at_once(folder: LayerFolder, tmp_path: Path) -> None:
    """Neighbours of one chain, and the same pair twice."""
    names = ["d", "c", "b", "a"]
    for index, name in enumerate(reversed(names)):
        create_head(folder.path(name), virtual_size=4 * MIB)
        above = [folder.path(each) for each in names[len(names) - 1 - index :]]
        io(chain(*above), [f"write -P {index + 1} {index * 512}k 1M"])
    before = tmp_path / "before.raw"
    img("convert", "-O", "raw", chain(*(folder.path(name) for name in names)), before)
    await asyncio.gather(folder.merge("d", "c"), folder.merge("b", "a"), folder.merge("d", "c"))
    img("compare", "-f", "raw", before, chain(folder.path("d"), folder.path("b")))
    await folder.merge("d", "b")
    img("compare", "-f", "raw", before, chain(folder.path("d")))
    assert not [path for path in folder.path_of_all.iterdir() if path.name.startswith(".")]
