"""The program that tells a copied machine who it is, from inside: made of ``recipes/reborn.c``.

It is compiled while an image is built, by a compiler that is downloaded as a package like all else
and never installed. The same source and packages give the same bytes.
"""

from importlib.resources import as_file, files
from pathlib import Path

from serai.disk.packages import download, unpack
from serai.disk.work import Progress
from serai.errors import Code, HostFailure
from serai.host.process import run

COMPILER = ("tcc", "libc6")
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "lib64/ld-linux-x86-64.so.2"
TCC = "usr/bin/tcc"
COMPILE_TIMEOUT = 60.0


async def build_reborn(scratch: Path, progress: Progress) -> Path:
    """Make the program in a folder of its own, compiler and all; return where it is.

    Raises HostFailure ``build-failed`` with what to do when apt can't give the packages.
    """
    downloaded = await download(COMPILER, scratch / "compiler-debs", progress)
    tree = scratch / "compiler"
    await unpack(downloaded, tree, progress)
    return await compile_reborn(tree, scratch / "reborn")


async def compile_reborn(tree: Path, to: Path) -> Path:
    """Make the program by the compiler in ``tree``, where ``COMPILER`` is unpacked; return ``to``.

    The compiler works in the tree, on the tree's own libraries, so that no character in the tree's own
    path means anything to them. Raises HostFailure ``build-failed`` with its words.
    """
    with as_file(files("serai.disk") / "recipes" / "reborn.c") as source:
        (tree / "reborn.c").write_bytes(source.read_bytes())
    done = await run(
        [
            str(tree / LOADER), "--library-path", ":".join(LIBRARY_FOLDERS), TCC,
            "-static", "-nostdlib", "-nostdinc", "-Wall", "-Werror", "-o", "reborn", "reborn.c",
        ],
        cwd=tree,
        timeout=COMPILE_TIMEOUT,
        ok=(0, 1),
    )  # fmt: skip
    if done.code:
        words = done.stderr.decode(errors="replace").strip()
        raise HostFailure(Code.BUILD_FAILED, f"reborn.c could not be compiled: {words[:400]}")
    (tree / "reborn").rename(to)
    return to
