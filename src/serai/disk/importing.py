"""Importing an image: from a file or URL of a stranger to files that are ready to be published.

    fetch     a copy of our own, which nobody else can change; its digest is checked
    inspect   one layer of compression is taken off, then our own parser looks (``header``, ``linux``)
    convert   what guests can't use as it is becomes qcow2
    (publish  is the caller's: ``images.ImageFolder``)

A source may be a disk (raw, qcow2, VMDK), an ISO 9660 medium, a kernel when the action says so, or
an image that serai exported. The format that is found here is recorded and never probed again.
"""

import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from serai.disk.convert import Workshop, convert, decompress, dig_holes
from serai.disk.exported import check_description, unpack_export
from serai.disk.files import check_room, copy_sparse, hash_file, naming_disk_problems
from serai.disk.header import ImageHeader, inspect_image, look_at
from serai.disk.images import NewImage
from serai.disk.linux import check_cmdline, check_initrd, inspect_kernel
from serai.disk.magic import COMPRESSED, Look, Magic
from serai.disk.reader import Reader, refused
from serai.disk.remote import check_url, digest_mismatch, fetch, is_url, shown
from serai.disk.work import Progress, Pulse, run_in_thread
from serai.errors import Code, HostFailure, Invalid, NotFound
from serai.model.actions import ImportImage
from serai.model.image import DiskFormat, Expect, ImageKind
from serai.model.node import Capabilities
from serai.settings import Settings
from serai.units import check_image_name, format_size, shorten

FICLONE = 0x40049409
"""ioctl_ficlone(2): let the copy share its blocks with the source, where the file system can."""
DIGEST_LENGTHS = {"sha256": 64, "sha512": 128}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One import on its way: what was asked, where it happens, what it may take."""

    action: ImportImage
    scratch: Path
    settings: Settings
    uid: int | None
    progress: Progress

    def report(self, phase: str, message: str) -> Callable[[int, int], None]:
        """Return what to call with (done, total) during a step."""
        self.progress(phase, 0, 0, message)
        return lambda done, total: self.progress(phase, done, total, message)

    def room(self, need: int = 0) -> int:
        """Return what may be written to scratch; ``disk-full`` when that is less than ``need``."""
        reserve = self.settings.disk_reserve
        return check_room(self.scratch, need, reserve=reserve, what="importing an image")

    def shop(self) -> Workshop:
        """Return the limits for the next child."""
        return Workshop(uid=self.uid, limit=self.settings.image_limit, room=self.room())


async def import_image(
    action: ImportImage,
    *,
    scratch: Path,
    settings: Settings,
    capabilities: Capabilities,
    progress: Progress,
) -> NewImage:
    """Bring in what ``action`` names and return it, ready to be published, with files in ``scratch``.

    ``scratch`` is an empty folder of our own (or the one of an earlier, interrupted call: a download
    goes on then); the caller removes it. Raises Invalid (``image-refused`` with the reason,
    ``image-digest-mismatch``, ``value-invalid``), NotFound (``file-failed``), HostFailure
    (``download-failed``, ``disk-full``, ``tool-missing``, ``timeout``). Whatever the source, no
    program looked into it before ``header`` did.
    """
    check_action(action)
    work = Work(
        action=action,
        scratch=scratch,
        settings=settings,
        uid=workshop_uid(settings, capabilities),
        progress=progress,
    )
    with naming_disk_problems("importing the image"):
        path = await bring(work, action.source, "source", action.sha256, action.sha512)
        new = await (_import_kernel(work, path) if action.kernel else import_disk(work, path))
    return replace(new, name=action.name, source=shown(action.source))


def check_action(action: ImportImage) -> None:
    """Refuse, before anything happens, an import that can't be; all errors are Invalid."""
    check_image_name(action.name)
    for place in (action.source, action.initrd):
        if is_url(place):
            check_url(place)
        elif place and not _is_usable_path(place):
            raise Invalid(
                Code.VALUE_INVALID, f"{shorten(place)} is neither an absolute path nor a URL"
            )
    if not action.source or (action.initrd and not action.kernel):
        raise Invalid(Code.VALUE_INVALID, "an import needs a source, and an initrd its kernel")
    if action.cmdline and not action.kernel:
        raise Invalid(Code.VALUE_INVALID, "only a kernel takes a command line")
    check_digest("sha256", action.sha256)
    check_digest("sha512", action.sha512)
    if action.agent not in list(Expect):
        raise Invalid(Code.VALUE_INVALID, f"agent is yes, no or unknown, not {action.agent!r}")
    check_cmdline(action.cmdline)


def check_digest(algorithm: str, digest: str) -> None:
    """Raise Invalid (``value-invalid``) unless ``digest`` is one in hex, or empty."""
    if not digest:
        return
    if len(digest) != DIGEST_LENGTHS[algorithm] or set(digest.lower()) - set("0123456789abcdef"):
        raise Invalid(Code.VALUE_INVALID, f"{shorten(digest)} is not a {algorithm} in hex")


def _is_usable_path(place: str) -> bool:
    return place.startswith("/") and "\0" not in place and len(place) < 4096


def workshop_uid(settings: Settings, capabilities: Capabilities) -> int | None:
    """Return the uid that looks into strangers' files: the one below the guests'; None: our own."""
    return max(1, settings.uid_base - 1) if capabilities.privileged else None


# -- fetch -----------------------------------------------------------------------------------------


async def bring(work: Work, source: str, name: str, sha256: str = "", sha512: str = "") -> Path:
    """Make a copy of ``source`` of our own in scratch, of checked digest."""
    target = work.scratch / name
    report = work.report("fetch", f"fetching {shown(source)}")
    if is_url(source):
        limit, reserve = work.settings.image_limit, work.settings.disk_reserve
        await fetch(
            source,
            target,
            limit=limit,
            sha256=sha256,
            sha512=sha512,
            reserve=reserve,
            report=report,
        )
        return target
    await run_in_thread(lambda pulse: _copy(work, source, target, sha256, pulse), report)
    if sha512:
        found = await run_in_thread(
            lambda pulse: hash_file(target, pulse, algorithm="sha512"), report
        )
        _check_found(source, f"sha512:{sha512.lower()}", found)
    return target


def _copy(work: Work, source: str, target: Path, sha256: str, pulse: Pulse) -> None:
    untrusted = open_source(source)
    try:
        size = os.fstat(untrusted).st_size
        if size > work.settings.image_limit:
            limit = format_size(work.settings.image_limit)
            raise refused(
                f"the file is larger than the limit of {limit}",
                hint="The setting image_limit raises the limit.",
            )
        target.unlink(missing_ok=True)
        found = _clone_or_copy(work, untrusted, target, size, pulse)
    finally:
        os.close(untrusted)
    if sha256:
        _check_found(source, f"sha256:{sha256.lower()}", found)


def _check_found(source: str, expected: str, found: str) -> None:
    if found != expected:
        raise digest_mismatch(source, expected.partition(":")[2], found.partition(":")[2])


def open_source(source: str) -> int:
    """Open a regular file for reading; never waits for a pipe or device."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(Code.FILE_FAILED, f"there is no file {shorten(source, 200)}") from error
    except OSError as error:
        raise HostFailure(
            Code.FILE_FAILED, f"{shorten(source, 200)} can't be opened: {error.strerror}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(Code.VALUE_INVALID, f"{shorten(source, 200)} is not a regular file")
    return descriptor


def _clone_or_copy(work: Work, source: int, target: Path, size: int, pulse: Pulse) -> str:
    """Share the blocks of the source where the file system can, else copy; return the digest."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    made = os.open(target, flags, 0o600)
    try:
        try:
            fcntl.ioctl(made, FICLONE, source)
        except OSError:
            allocated = min(size, os.fstat(source).st_blocks * 512)
            work.room(allocated)
            limit = work.settings.image_limit
            return copy_sparse(source, made, pulse, limit=limit, total=size)
    finally:
        os.close(made)
    return hash_file(target, pulse, total=size)


# -- inspect and convert ---------------------------------------------------------------------------


async def import_disk(work: Work, path: Path) -> NewImage:
    """Unpack, inspect and convert a disk, a medium or an export that is in scratch; it has no name yet."""
    name, look = work.action.source, await _look(path)
    if look.look in COMPRESSED:
        report = work.report("inspect", f"unpacking ({look.name})")
        unpacked = work.scratch / "unpacked"
        await decompress(path, unpacked, look.look, shop=work.shop(), report=report)
        path.unlink()
        path, look = unpacked, await _look(unpacked)
        name = Path(plain_name(name)).stem
        if look.look in COMPRESSED:
            raise refused(f"it is compressed twice ({look.name} inside)")
    if look.look is Look.TAR:
        return await _import_export(work, path)
    header = await _inspect(work, path, plain_name(name))
    if header.convert:
        report = work.report("convert", f"converting {header.format} to qcow2: {header.convert}")
        before, path = path, work.scratch / "converted"
        header = replace(
            await convert(before, path, header, shop=work.shop(), report=report),
            details={**header.details, "converted": header.convert},
        )
        before.unlink()
    elif header.format is DiskFormat.RAW:
        work.report("convert", "giving unused space back")
        await dig_holes(path)
    return _describe(work, path, header)


def plain_name(source: str) -> str:
    """Return the file name at the end of a path or URL, without a query."""
    return source.split("?", 1)[0].split("#", 1)[0].rsplit("/", 1)[-1]


async def _look(path: Path) -> Magic:
    return await run_in_thread(lambda _: _reading(path, look_at))


def _reading(path: Path, use: Callable[[Reader], T]) -> T:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return use(Reader(descriptor))
    finally:
        os.close(descriptor)


async def _inspect(work: Work, path: Path, name: str) -> ImageHeader:
    limit = work.settings.image_limit
    return await run_in_thread(
        lambda pulse: inspect_image(path, limit, name=name, pulse=pulse),
        work.report("inspect", "looking at its structure"),
    )


def _describe(work: Work, path: Path, header: ImageHeader) -> NewImage:
    medium = header.kind is ImageKind.CDROM
    return NewImage(
        name="",
        kind=header.kind,
        disk=path,
        disk_format=header.format,
        virtual_size=header.virtual_size,
        agent=_expected_agent(work.action.agent, installed=not medium),
        firmware=header.firmware,
        details=header.details,
    )


def _expected_agent(asked: str, *, installed: bool) -> Expect:
    """Return whether to wait for an agent. Installers and bare kernels have none unless one says so."""
    found = Expect(asked)
    return found if found is not Expect.UNKNOWN or installed else Expect.NO


async def _import_export(work: Work, path: Path) -> NewImage:
    """Take an image that a serai exported: its files are inspected like any stranger's."""
    limit, name = work.settings.image_limit, work.action.name
    work.room(path.stat().st_size)
    new = await run_in_thread(
        lambda pulse: unpack_export(path, work.scratch, name, limit, pulse),
        work.report("inspect", "unpacking an exported image"),
    )
    check_description(new)
    check_cmdline(new.cmdline)
    path.unlink()
    if new.kernel is not None:
        await run_in_thread(lambda _: _check_kernel_files(new.kernel, new.initrd))
    if new.disk is not None:
        header = await _inspect(work, new.disk, f"x.{new.disk_format}")
        found = (header.kind, header.format, header.virtual_size)
        if found != (new.kind, new.disk_format, new.virtual_size) or header.convert:
            raise refused("its disk is not what its description says")
    return new


# -- kernels -----------------------------------------------------------------------------------


async def _import_kernel(work: Work, path: Path) -> NewImage:
    action = work.action
    initrd = await bring(work, action.initrd, "initrd") if action.initrd else None
    work.report("inspect", "looking at its boot header")
    firmware, details = await run_in_thread(lambda _: _check_kernel_files(path, initrd))
    return NewImage(
        name="",
        kind=ImageKind.KERNEL,
        kernel=path,
        initrd=initrd,
        cmdline=action.cmdline,
        agent=_expected_agent(action.agent, installed=False),
        firmware=firmware,
        details=details,
    )


def _check_kernel_files(
    kernel: Path | None, initrd: Path | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Inspect both files; return what firmware the kernel boots with, and facts for people."""
    assert kernel is not None
    header = _reading(kernel, inspect_kernel)
    if initrd is not None:
        _reading(initrd, check_initrd)
    return header.firmware, {"kernel": header.version, "protocol": f"{header.protocol:#06x}"}
