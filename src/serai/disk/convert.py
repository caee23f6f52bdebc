"""Unpacking and converting untrusted images in children that can hurt nobody.

The programs run as a uid of their own when we are root, with no new privileges, limits on memory,
time and the size of what they write, and get their files as descriptors: as standard input and
output where they take that, else as ``/dev/fd/N`` (the files are lent to their uid meanwhile, the
folder stays closed to it). Formats are always named; nothing is ever probed.

What is decided here:
* a sound qcow2 is not converted, a VMDK (and a qcow2 with snapshots, bitmaps or of version 2) becomes
  a plain qcow2;
* a raw image stays raw, with holes where it has only zeros: no second copy, the fastest reads;
* at most one layer of compression is taken off.
"""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serai.disk.files import disk_full, naming_disk_problems
from serai.disk.header import ImageHeader, inspect_image
from serai.disk.magic import Look
from serai.disk.qcow2 import CLUSTER, read_head
from serai.disk.reader import refused
from serai.disk.work import run_in_thread
from serai.errors import Code, Invalid
from serai.host.process import Completed, Limits, run
from serai.model.image import DiskFormat, ImageKind
from serai.units import GIB, MIB, format_size

TIMEOUT = 6 * 3600.0
CPU_SECONDS = 3 * 3600
MEMORY = 2 * GIB
"""Address space. qemu-img has up to 64 threads with 8 MiB of stack each, and needs the rest."""
ENVIRONMENT: Mapping[str, str] = {"MALLOC_ARENA_MAX": "1"}
"""glibc would reserve 64 MiB of address space for each thread that allocates."""
OPEN_FILES = 64
TICK = 0.3
METADATA_SHARE = 64
"""A converted image may be this part larger than the disk (tables), and 16 MiB."""

UNPACKERS: Mapping[Look, tuple[str, ...]] = {
    Look.GZIP: ("gzip", "-dc"),
    Look.XZ: ("xz", "-dc", "--memlimit-decompress=512MiB"),
    Look.ZSTD: ("zstd", "-dcq", "--sparse", "--memory=512MiB"),
    Look.BZIP2: ("bzip2", "-dc"),
}
HEAD_SHAPE = f"compat=1.1,cluster_size={CLUSTER},extended_l2=on"
ANY_CODE = range(-64, 256)
_PERCENT = re.compile(r"\(([0-9]{1,3}\.[0-9]{2})/100%\)")

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What the children may do: run as ``uid`` (None: as we), write files of up to ``limit`` bytes.

    ``room`` is what the file system has to give; the smaller one counts, and decides what a child
    that reached it is told to have hit.
    """

    uid: int | None
    limit: int
    room: int

    def limits(self, size: int) -> Limits:
        """Return the limits for a child that writes one file of ``size`` bytes at most."""
        return Limits(
            memory=MEMORY,
            cpu_seconds=CPU_SECONDS,
            file_size=max(1, min(size, self.room)),
            open_files=OPEN_FILES,
        )


async def decompress(
    source: Path, target: Path, look: Look, *, shop: Workshop, report: Report
) -> None:
    """Unpack ``source`` into the new file ``target``; ``report`` counts compressed bytes.

    On failure there is no ``target``. Raises Invalid (``image-refused``) when it is damaged or
    becomes larger than the limit, HostFailure ``disk-full``, ``timeout``, ``tool-missing``.
    """
    total = source.stat().st_size
    with _opened(source, os.O_RDONLY) as untrusted, _made(target) as made:
        with _ticking(lambda: report(os.lseek(untrusted, 0, os.SEEK_CUR), total)):
            done = await run(
                UNPACKERS[look],
                timeout=TIMEOUT,
                limits=shop.limits(shop.limit),
                uid=shop.uid,
                env=ENVIRONMENT,
                ok=ANY_CODE,
                stdin_from=untrusted,
                stdout_to=made,
            )
        _check(done, shop, shop.limit, "it can't be unpacked")
    await dig_holes(target)


async def convert(
    source: Path, target: Path, header: ImageHeader, *, shop: Workshop, report: Report
) -> ImageHeader:
    """Convert a file that was inspected to a new qcow2 file; return the header of that.

    ``report`` counts bytes of the disk. The result is inspected as strictly as any stranger's
    file. On failure there is no ``target``. Raises as ``decompress`` does.
    """
    size = header.virtual_size
    bound = size + size // METADATA_SHARE + 16 * MIB
    with _opened(source, os.O_RDONLY) as untrusted, _made(target) as made:
        with lent(shop.uid, untrusted, made):
            done = await run(
                ["qemu-img", "convert", "-p", "-f", header.format, "-O", "qcow2",
                 f"/dev/fd/{untrusted}", f"/dev/fd/{made}"],
                timeout=TIMEOUT,
                limits=shop.limits(bound),
                uid=shop.uid,
                env=ENVIRONMENT,
                ok=ANY_CODE,
                pass_fds=(untrusted, made),
                on_line=lambda line: _tell(line, size, report),
            )  # fmt: skip
        _check(done, shop, bound, "it can't be converted")
        found = await run_in_thread(lambda pulse: inspect_image(made, shop.limit, pulse=pulse))
        same = found.virtual_size == size and found.kind is ImageKind.DISK and not found.convert
        if found.format is not DiskFormat.QCOW2 or not same:
            raise refused("converting it gave another disk")
    return found


async def dig_holes(path: Path) -> None:
    """Give the zeros in ``path`` back to the file system; not a failure where it can't take them."""
    with _opened(path, os.O_RDWR) as descriptor:
        await run(
            ["fallocate", "--dig-holes", f"/proc/self/fd/{descriptor}"],
            timeout=TIMEOUT,
            ok=ANY_CODE,
            pass_fds=(descriptor,),
        )


def _tell(line: str, size: int, report: Report) -> None:
    """Report what a line of ``qemu-img -p`` says."""
    match = _PERCENT.search(line)
    if match:
        report(int(float(match[1]) * size / 100), size)


def _check(done: Completed, shop: Workshop, bound: int, what: str) -> None:
    """Say why a child failed: whose fault it was, and what to do."""
    if done.code == 0:
        return
    untrusted_end = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
    if "No space left" in untrusted_end:
        raise disk_full("unpacking the image")
    if done.code == -signal.SIGXFSZ or "File too large" in untrusted_end:
        if shop.room < bound:
            raise disk_full("unpacking the image")
        raise Invalid(
            Code.IMAGE_REFUSED,
            f"the image is refused: unpacked it has more than {format_size(bound)}",
            hint="The setting image_limit raises the limit.",
        )
    if done.code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise refused(f"{what}: it takes too long")
    shown = "".join(c for c in untrusted_end if c.isprintable())[-200:]
    raise refused(f"{what}: {shown or f'{done.argv[0]} ended with {done.code}'}")


# -- descriptors -----------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[int]:
    descriptor = os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _made(path: Path) -> Iterator[int]:
    """Make a new file; remove it again when the block fails."""
    with naming_disk_problems("unpacking the image"):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def lent(uid: int | None, *descriptors: int) -> Iterator[None]:
    """Let ``uid`` own the open files for a while: /dev/fd opens them anew, with its rights."""
    if uid is None:
        yield
        return
    try:
        for descriptor in descriptors:
            os.fchown(descriptor, uid, uid)
        yield
    finally:
        for descriptor in descriptors:
            os.fchown(descriptor, os.geteuid(), os.getegid())


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` every so often while the block runs: some tools don't tell how far they are."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def again() -> None:
        tick()
        timers[:] = [loop.call_later(TICK, again)]

    timers[:] = [loop.call_later(TICK, again)]
    try:
        yield
    finally:
        timers[0].cancel()


async def convert_to_head(
    source: Path, form: DiskFormat, target: Path, size: int, *, shop: Workshop, report: Report
) -> None:
    """Convert a disk that was looked at to a new file of the shape that our heads have.

    On failure there is no ``target``. The result is read as strictly as any head. Raises as
    ``decompress`` does.
    """
    bound = size + size // METADATA_SHARE + 16 * MIB
    with _opened(source, os.O_RDONLY) as untrusted, _made(target) as made:
        with lent(shop.uid, untrusted, made):
            done = await run(
                ["qemu-img", "convert", "-p", "-f", form, "-O", "qcow2", "-o", HEAD_SHAPE,
                 f"/dev/fd/{untrusted}", f"/dev/fd/{made}"],
                timeout=TIMEOUT,
                limits=shop.limits(bound),
                uid=shop.uid,
                env=ENVIRONMENT,
                ok=ANY_CODE,
                pass_fds=(untrusted, made),
                on_line=lambda line: _tell(line, size, report),
            )  # fmt: skip
        _check(done, shop, bound, "it can't be converted")
        os.fsync(made)
        if read_head(target).virtual_size != size:
            raise refused("converting it gave another disk")
