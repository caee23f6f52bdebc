"""The files of images: one folder an image, named by the digest of its content.

    images/
      sha256-HEX/          published, complete, never changed again
        image.json         the Image as it was when first published
        disk.qcow2 …       its files, mode 0444 (the folder is closed)
        kernel.unpacked    its kernel as it runs, for who starts it (qemu.resources); may be missing
      .new-RANDOM/         being published: nobody's yet
      .gone-RANDOM/        being deleted

A folder appears by one atomic rename after everything in it was synced, and disappears by one.
So whatever the moment of a power cut, an image is there in full or not at all, and what begins with
a dot is rubbish (``sweep``).

The digest is taken over what a guest gets to see (kind, formats, command line, the files' digests),
not over the name: two images with the same content share the folder, so the folder of an image may
be deleted only when no other image has its digest. Which images there are is in the database; a
guest finds its files through ``folder``. Not for: looking into images (``header``), making them
(``importing``, ``build_tiny``, ``build_debian``).
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serai.disk.files import (
    EVERYTHING,
    copy_sparse,
    hash_file,
    naming_disk_problems,
    sync_file,
    sync_folder,
    write_durably,
)
from serai.disk.work import Progress, Pulse, no_progress, run_in_thread
from serai.errors import Code, HostFailure
from serai.model.image import UNPACKED, DiskFormat, Expect, Image, ImageFile, ImageKind

DESCRIPTION = "image.json"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """An image that is ready to be published: its files, still in scratch, and what they are.

    ``publish`` takes the files away from where they are (it moves them where it can). The fields
    mean what they mean in ``Image``. A DISK has ``disk``, a KERNEL ``kernel`` and perhaps
    ``initrd``, a CDROM ``disk`` (the medium). ``unpacked`` is the kernel once more, as it runs: no part of
    the image, it goes with the folder.
    """

    name: str
    kind: ImageKind
    disk: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    unpacked: Path | None = None
    disk_format: DiskFormat = DiskFormat.RAW
    virtual_size: int = 0
    cmdline: str = ""
    agent: Expect = Expect.UNKNOWN
    cloud_init: Expect = Expect.UNKNOWN
    firmware: tuple[str, ...] = ("bios",)
    min_memory: int = 0
    source: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """Return the files by their role."""
        found = {"disk": self.disk, "kernel": self.kernel, "initrd": self.initrd}
        return {role: path for role, path in found.items() if path is not None}

    def name_in_folder(self, role: str) -> str:
        """Return what the file is called once published."""
        if role != "disk":
            return role
        return "disk.iso" if self.kind is ImageKind.CDROM else f"disk.{self.disk_format}"


def image_files(image: Image) -> dict[str, ImageFile]:
    """Return the files of ``image`` by their role: disk, kernel, initrd."""
    found = {"disk": image.disk, "kernel": image.kernel, "initrd": image.initrd}
    return {role: file for role, file in found.items() if file is not None}


def content_digest(image: Image) -> str:
    """Return the digest that names everything a guest sees of ``image``. Pure."""
    parts: list[object] = [image.kind, image.disk_format, image.virtual_size, image.cmdline]
    parts += [[role, file.size, file.digest] for role, file in sorted(image_files(image).items())]
    return "sha256:" + hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class ImageFolder:
    """The folder of all images. ``path`` is made when it is missing, for us alone (0700)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, image: Image) -> Path:
        """Return the folder of ``image``; it need not be there."""
        return self.path / image.digest.replace(":", "-")

    async def publish(
        self, new: NewImage, *, now: float, progress: Progress = no_progress
    ) -> Image:
        """Hash the files, put them in place for good, and return the Image.

        ``now`` becomes its ``created_at``. Durable when it returns. The same content published
        again costs nothing and mends the folder if its files were damaged. On failure (also when
        cancelled) nothing is left in the image folder; the caller's scratch may have lost files.
        Raises HostFailure ``disk-full``, ``permission`` or ``file-failed``.
        """

        def report(done: int, total: int) -> None:
            progress("publish", done, total, "hashing and storing")

        return await run_in_thread(lambda pulse: self._publish(new, now, pulse), report)

    async def verify(self, image: Image, *, progress: Progress = no_progress) -> None:
        """Hash all files of ``image`` anew; raises HostFailure (``image-corrupt``) that names the
        first one that is missing, linked elsewhere, or not what was published."""

        def report(done: int, total: int) -> None:
            progress("verify", done, total, "hashing")

        await run_in_thread(lambda pulse: self._verify(image, pulse), report)

    def delete(self, image: Image) -> None:
        """Delete the files of ``image`` (done already: fine). No other image may share its digest."""
        gone = self.path / f".gone-{secrets.token_hex(8)}"
        with naming_disk_problems(f"deleting the image {image.name}"):
            try:
                self.folder(image).rename(gone)
            except FileNotFoundError:
                return
            sync_folder(self.path)
            shutil.rmtree(gone)

    def orphans(self, known: Collection[Image]) -> list[Path]:
        """Return the published folders that no image in ``known`` is named by, sorted."""
        wanted = {self.folder(image) for image in known}
        return sorted(p for p in self.path.iterdir() if p.name[0] != "." and p not in wanted)

    def sweep(self) -> list[Path]:
        """Remove what an interrupted publish or delete left; return what it was.

        Call it when nothing is being published: when the daemon starts.
        """
        left = sorted(p for p in self.path.iterdir() if p.name.startswith((".new-", ".gone-")))
        for path in left:
            shutil.rmtree(path)
        return left

    def read(self, digest: str) -> Image | None:
        """Return the Image as it was first published under ``digest``; None where there is none.

        Raises HostFailure (``image-corrupt``) when its description can't be read.
        """
        path = self.path / digest.replace(":", "-") / DESCRIPTION
        if not DIGEST.fullmatch(digest):
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Image)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise HostFailure(Code.IMAGE_CORRUPT, f"{path} can't be read: {error}") from error

    def _publish(self, new: NewImage, now: float, pulse: Pulse) -> Image:
        temporary = self.path / f".new-{secrets.token_hex(8)}"
        with naming_disk_problems(f"publishing the image {new.name}"):
            temporary.mkdir(mode=0o700)
            try:
                image = _fill(temporary, new, now, pulse)
                self._put_in_place(temporary, image, pulse)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return image

    def _put_in_place(self, temporary: Path, image: Image, pulse: Pulse) -> None:
        final = self.folder(image)
        try:
            temporary.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._keep_or_mend(temporary, image, pulse)
        sync_folder(self.path)

    def _keep_or_mend(self, temporary: Path, image: Image, pulse: Pulse) -> None:
        """Leave what was published before, unless its files were damaged since.

        An unpacked kernel is taken anew: there is no digest that would tell.
        """
        unpacked = f"kernel{UNPACKED}"
        try:
            self._verify(image, pulse)
        except HostFailure:
            damaged = self.path / f".gone-{secrets.token_hex(8)}"
            self.folder(image).rename(damaged)
            temporary.rename(self.folder(image))
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            if (temporary / unpacked).exists():
                (temporary / unpacked).replace(self.folder(image) / unpacked)
                sync_folder(self.folder(image))

    def _verify(self, image: Image, pulse: Pulse) -> None:
        total = sum(file.size for file in image_files(image).values())
        done = 0
        for file in image_files(image).values():
            path = self.folder(image) / file.name
            try:
                digest = hash_file(path, pulse, done=done, total=total)
            except OSError as error:
                digest = str(error.strerror)
            if digest != file.digest:
                raise HostFailure(
                    Code.IMAGE_CORRUPT,
                    f"{file.name} of the image {image.name} is not what was published",
                    hint="Delete the image and import or build it again.",
                    details={"path": str(path), "expected": file.digest, "found": digest},
                )
            done += file.size


def _fill(folder: Path, new: NewImage, now: float, pulse: Pulse) -> Image:
    """Bring the files of ``new`` into ``folder``, describe them there, sync all of it."""
    files: dict[str, ImageFile] = {}
    total = sum(path.stat().st_size for path in new.files().values())
    done = 0
    for role, path in new.files().items():
        target = folder / new.name_in_folder(role)
        _take(path, target, pulse)
        size = target.stat().st_size
        digest = hash_file(target, pulse, done=done, total=total)
        files[role] = ImageFile(name=target.name, size=size, digest=digest)
        done += size
    if new.unpacked is not None:
        _take(new.unpacked, folder / f"kernel{UNPACKED}", pulse)
    allocated = sum((folder / file.name).stat().st_blocks * 512 for file in files.values())
    image = _describe(new, files, now, allocated)
    write_durably(folder / DESCRIPTION, msgspec.json.encode(image), mode=0o400)
    sync_folder(folder)
    return image


def _take(path: Path, target: Path, pulse: Pulse) -> None:
    """Move ``path`` to ``target``, over a border between file systems if need be; read-only, synced."""
    if path.is_symlink() or not path.is_file():
        raise HostFailure(Code.FILE_FAILED, f"{path} is not a regular file")
    if path.stat().st_dev == target.parent.stat().st_dev:
        path.rename(target)
    else:
        with path.open("rb") as source, target.open("xb") as copy:
            copy_sparse(source.fileno(), copy.fileno(), pulse, limit=EVERYTHING)
        path.unlink()
    if os.geteuid() == 0:
        os.chown(target, 0, 0)  # an unprivileged child may have made it
    target.chmod(0o444)  # QEMU opens a kernel anew, as another uid; the folder is ours alone
    sync_file(target)


def _describe(new: NewImage, files: Mapping[str, ImageFile], now: float, allocated: int) -> Image:
    image = Image(
        name=new.name,
        digest="",
        kind=new.kind,
        created_at=now,
        size=allocated,
        virtual_size=new.virtual_size,
        disk=files.get("disk"),
        disk_format=new.disk_format,
        kernel=files.get("kernel"),
        initrd=files.get("initrd"),
        cmdline=new.cmdline,
        agent=new.agent,
        cloud_init=new.cloud_init,
        firmware=new.firmware,
        min_memory=new.min_memory,
        source=new.source,
        details=dict(new.details),
    )
    return msgspec.structs.replace(image, digest=content_digest(image))
