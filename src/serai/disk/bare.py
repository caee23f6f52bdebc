"""Small programs that images get from us, made of C without a C library: ``recipes/bare.h`` and what uses it.

They are compiled while an image is built, by a compiler that is downloaded as a package like all else
and never installed. The same source and packages give the same bytes.
"""

from importlib.resources import files
from pathlib import Path, PurePath

from serai.disk.packages import download, unpack
from serai.disk.work import Progress
from serai.errors import Code, HostFailure
from serai.host.process import run

COMPILER = ("tcc", "libc6")
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "lib64/ld-linux-x86-64.so.2"
TCC = "usr/bin/tcc"
COMPILE_TIMEOUT = 60.0


async def build_program(source: str, scratch: Path, progress: Progress) -> Path:
    """Make a program in a folder of its own, compiler and all; return where it is.

    ``source`` is a file in ``recipes``; the program is called as it is, without ``.c``. Raises
    HostFailure ``build-failed`` with what to do when apt can't give the packages.
    """
    downloaded = await download(COMPILER, scratch / "compiler-debs", progress)
    tree = scratch / "compiler"
    await unpack(downloaded, tree, progress)
    return await compile_program(source, tree, scratch)


async def compile_program(source: str, tree: Path, folder: Path) -> Path:
    """Make a program by the compiler in ``tree``, where ``COMPILER`` is unpacked; return it in ``folder``.

    The compiler works in the tree, on the tree's own libraries, so that no character in the tree's own
    path means anything to them. Raises HostFailure ``build-failed`` with its words.
    """
    recipes = files("serai.disk") / "recipes"
    (tree / "bare.h").write_bytes((recipes / "bare.h").read_bytes())
    (tree / "source.c").write_bytes((recipes / source).read_bytes())
    done = await run(
        [
            str(tree / LOADER), "--library-path", ":".join(LIBRARY_FOLDERS), TCC,
            "-static", "-nostdlib", "-nostdinc", "-Wall", "-Werror", "-o", "program", "source.c",
        ],
        cwd=tree,
        timeout=COMPILE_TIMEOUT,
        ok=(0, 1),
    )  # fmt: skip
    if done.code:
        words = done.stderr.decode(errors="replace").strip()
        raise HostFailure(Code.BUILD_FAILED, f"{source} could not be compiled: {words[:400]}")
    return (tree / "program").rename(folder / PurePath(source).stem)
