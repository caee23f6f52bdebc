"""Images: shown, built, imported, deleted, exported."""

import asyncio
import os
import tarfile
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
from litestar.types import ASGIApp

from serai.api.answers import BYTES, TAR, answer_json
from serai.api.bodies import (
    BuildBody,
    CatalogueQuery,
    ExportFile,
    ExportQuery,
    ImportBody,
    NoBody,
    NoQuery,
    PageQuery,
    PullBody,
    WaitQuery,
)
from serai.api.calls import Call
from serai.api.paging import page_by_name
from serai.api.streams import Stream
from serai.errors import Code, HostFailure, Invalid
from serai.model.actions import BuildImage, DeleteImage, ImportImage, PullImage
from serai.model.image import Image, ImageFile

CHUNK = 1 << 20
BLOCK = 512
END = bytes(2 * BLOCK)


async def list_images(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List images.

    Sorted by name.
    """
    images = call.room.engine.images()
    return answer_json(page_by_name(images, call.query.limit, call.query.cursor))


async def show_image(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show an image."""
    return answer_json(call.room.engine.image(call.subject))


def build_image(call: Call[WaitQuery, BuildBody]) -> BuildImage:
    """Build an image.

    `tiny` is a kernel with a guest agent and little else; `debian` is a full system, of the suite
    and with the additional packages that are named.
    """
    return msgspec.convert(call.body, BuildImage, from_attributes=True)


def import_image(call: Call[WaitQuery, ImportBody]) -> ImportImage:
    """Import an image.

    A disk (raw, qcow2, VMDK; compressed or not), an installation medium or a kernel, from a file
    on the daemon's host or from a URL.
    """
    return msgspec.convert(call.body, ImportImage, from_attributes=True)


def pull_image(call: Call[WaitQuery, PullBody]) -> PullImage:
    """Pull an image by its name in an index.

    The index is serai's own, or one that is signed by a trusted key, came over https, is a file on the
    daemon's host, or has the digest that is given. What was pulled before is not pulled again. The
    job's result is the name that the image got.
    """
    return msgspec.convert(call.body, PullImage, from_attributes=True)


async def show_catalogue(call: Call[CatalogueQuery, NoBody]) -> ASGIApp:
    """Show what an index of images offers.

    Nothing is pulled but the index itself, which must be one to be believed.
    """
    query = call.query
    return answer_json(await call.room.engine.catalogue(query.index, query.sha256, query.key))


def delete_image(call: Call[WaitQuery, NoBody]) -> DeleteImage:
    """Delete an image that no guest uses."""
    return DeleteImage(image=call.subject)


async def export_image(call: Call[ExportQuery, NoBody]) -> ASGIApp:
    """Export an image.

    A tar of `image.json`, which describes it, and of its files, named by it and with their digests
    in it; or one file as it is. The tar can be
    imported elsewhere as it is, also compressed. Of a published image it is the image that it was published
    over: neither memory nor what its guest had written to its disks is in it.
    """
    image = call.room.engine.image(call.subject)
    folder = call.room.engine.image_files(call.subject)
    chosen = call.query.file
    with ExitStack() as stack:
        if chosen is ExportFile.ALL:
            parts = [_describe(image), *(_open(folder, file, stack) for file in _files(image))]
            length = sum(part.padded_length for part in parts) + len(END)
            media, chunks = TAR, _give_tar(parts, stack.pop_all())
        else:
            part = _open(folder, _choose(image, chosen), stack)
            length, media, chunks = part.length, BYTES, _give_file(part, stack.pop_all())
    return Stream(media, chunks, headers=((b"content-length", b"%d" % length),))


def _files(image: Image) -> list[ImageFile]:
    return [file for file in (image.disk, image.kernel, image.initrd) if file is not None]


def _choose(image: Image, chosen: ExportFile) -> ImageFile:
    file: ImageFile | None = getattr(image, chosen.value)
    if file is None:
        has = ", ".join(name for name in ("disk", "kernel", "initrd") if getattr(image, name))
        raise Invalid(
            Code.VALUE_INVALID, f"{image.name} has no {chosen}", hint=f"It has: {has or 'nothing'}."
        )
    return file


@dataclass(frozen=True, slots=True)
class _Part:
    """One member of an export: its tar header, then the bytes at hand or those of a file."""

    header: bytes
    length: int
    content: bytes = b""
    fd: int = -1

    @property
    def padded_length(self) -> int:
        return len(self.header) + self.length + -self.length % BLOCK


def _describe(image: Image) -> _Part:
    content = msgspec.json.format(msgspec.json.encode(image)) + b"\n"
    return _Part(_tar_header("image.json", len(content), image), len(content), content)


def _open(folder: Path, file: ImageFile, stack: ExitStack) -> _Part:
    """Open a file before anything is sent, so that a later deletion does not hurt the export."""
    try:
        fd = os.open(folder / file.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _corrupt(f"{file.name} can't be read: {error.strerror}") from error
    stack.callback(os.close, fd)
    length = os.fstat(fd).st_size
    if length != file.size:
        raise _corrupt(f"{file.name} has {length} bytes instead of {file.size}")
    return _Part(_tar_header(file.name, length, None), length, fd=fd)


def _corrupt(message: str) -> HostFailure:
    return HostFailure(Code.IMAGE_CORRUPT, message, hint="Build or import the image anew.")


def _tar_header(name: str, length: int, image: Image | None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = length
    info.mtime = int(image.created_at) if image else 0
    return info.tobuf(tarfile.GNU_FORMAT)


async def _give_tar(parts: list[_Part], stack: ExitStack) -> AsyncGenerator[bytes, None]:
    with stack:
        for part in parts:
            yield part.header
            async for chunk in _read(part):
                yield chunk
            if padding := -part.length % BLOCK:
                yield bytes(padding)
        yield END


async def _give_file(part: _Part, stack: ExitStack) -> AsyncGenerator[bytes, None]:
    with stack:
        async for chunk in _read(part):
            yield chunk


async def _read(part: _Part) -> AsyncGenerator[bytes, None]:
    """Give a part's bytes; a disk may be slow, so files are read in a thread."""
    if part.fd < 0:
        yield part.content
        return
    offset = 0
    while offset < part.length:
        chunk = await asyncio.to_thread(os.pread, part.fd, CHUNK, offset)
        if not chunk:
            raise _corrupt("a file of the image became shorter")
        offset += len(chunk)
        yield chunk
