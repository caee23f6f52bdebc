"""The keeper of images: which there are, and the jobs that build, import, pull and delete them.

The store says which images exist; ``disk.images`` holds their files. A name may move to newer
content (``replace``); the files of the older stay as long as a guest is built on them.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace as with_fields
from pathlib import Path

import msgspec

from serai.disk.build_debian import build_debian
from serai.disk.build_tiny import build_tiny
from serai.disk.files import check_room
from serai.disk.images import NewImage
from serai.disk.importing import import_image
from serai.disk.pulling import (
    PULLED,
    Chosen,
    IndexRequest,
    check_request,
    choose_image,
    import_of,
    labelled,
    open_index,
    request_of,
)
from serai.engine.house import House
from serai.engine.jobs import LiveJob, error_of
from serai.errors import Busy, Code, Conflict, HostFailure, Invalid, NotFound, SeraiError
from serai.model.actions import BuildImage, DeleteImage, ImportImage, PullImage
from serai.model.catalogue import Catalogue
from serai.model.event import EventKind
from serai.model.image import Image
from serai.model.job import Job
from serai.store.changes import DropImage, PutImage
from serai.units import check_image_name, shorten

log = logging.getLogger(__name__)

BUILD_PHASES = ("packages", "system", "pack", "publish")
IMPORT_PHASES = ("fetch", "inspect", "convert", "publish")
PULL_PHASES = ("index", *IMPORT_PHASES)
DELETE_PHASES = ("delete",)
RECIPES = ("tiny", "debian")
AT_ONCE = 2
WAITING_LIMIT = 32

Work = Callable[[LiveJob, Path], Awaitable[NewImage | Image]]
"""Makes an image in a scratch folder, or finds one that is there already."""


class ImageKeeper:
    """All images by name. ``in_use`` tells the digests that guests are built on; a published image
    that is deleted has its snapshot forgotten by ``forget_snapshot``."""

    def __init__(
        self,
        house: House,
        in_use: Callable[[], set[str]],
        forget_snapshot: Callable[[str], Awaitable[None]],
    ) -> None:
        self._house = house
        self._forget_snapshot = forget_snapshot
        self._images: dict[str, Image] = {}
        self._in_use = in_use
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._coming: dict[str, LiveJob] = {}
        self._names_coming: dict[str, str] = {}

    def fill(self, images: Iterable[Image]) -> None:
        """Know the images that the store has."""
        self._images = {image.name: image for image in images}

    def all(self) -> list[Image]:
        """Return all images by name."""
        return sorted(self._images.values(), key=lambda image: image.name)

    def find(self, name: str) -> Image:
        """Return an image; NotFound (``image-not-found``)."""
        image = self._images.get(name)
        if image is None:
            raise NotFound(
                Code.IMAGE_NOT_FOUND,
                f"there is no image {shorten(name)}",
                hint=_how_to_get(name),
            )
        return image

    def has(self, name: str) -> bool:
        """Tell whether there is an image of that name, or one is on its way."""
        return name in self._images or name in self._names_coming

    def keep(self, image: Image) -> None:
        """Keep an image that was stored just now."""
        self._images[image.name] = image

    def reserve(self, name: str, owner: str) -> None:
        """Let nobody but ``owner`` make an image of that name until it is released; Conflict."""
        if self.has(name):
            raise _exists(name, "Give the guest another name: its image is called like it.")
        self._names_coming[name] = owner

    def release(self, owner: str) -> None:
        """Free the names that ``owner`` had reserved."""
        coming = self._names_coming
        self._names_coming = {name: each for name, each in coming.items() if each != owner}

    async def take_back(self, image: Image) -> None:
        """Forget an image that was kept just now and that nothing came of, with its files."""
        self._images.pop(image.name, None)
        await self._house.journal.commit(DropImage(image.name))
        await self._drop_unused(image)

    async def catalogue(self, request: IndexRequest) -> Catalogue:
        """Return what an index offers, as ``pull`` would see it."""
        scratch = self._house.places.scratch / self._house.new_id()
        scratch.mkdir(mode=0o700, parents=True)
        try:
            return await open_index(
                request,
                scratch=scratch,
                keys=self._house.places.keys,
                settings=self._house.settings,
            )
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def by_digest(self, digest: str) -> Image | None:
        """Return the image of this content, under whatever name it has or had."""
        for image in self._images.values():
            if image.digest == digest:
                return image
        try:
            return self._house.images.read(digest)
        except HostFailure as error:
            log.warning("%s", error.message)
            return None

    # -- doing -----------------------------------------------------------------------------------

    async def build(self, action: BuildImage, key: str) -> Job:
        """Build ``tiny`` or ``debian`` as a job."""
        if action.recipe not in RECIPES:
            raise Invalid(
                Code.VALUE_INVALID,
                f"there is no recipe {shorten(action.recipe)}",
                hint="Build one of: " + ", ".join(RECIPES),
            )
        name = check_image_name(action.name or action.recipe)

        async def work(job: LiveJob, scratch: Path) -> NewImage:
            progress = self._progress(job)
            if action.recipe == "tiny":
                built = await build_tiny(scratch, progress)
            else:
                built = await build_debian(scratch, action.suite, action.include, progress)
            return with_fields(built, name=name)

        return await self._begin(action, name, BUILD_PHASES, work, key, replace=action.replace)

    async def import_(self, action: ImportImage, key: str) -> Job:
        """Import an image as a job."""
        name = check_image_name(action.name or _name_from(action.source))

        async def work(job: LiveJob, scratch: Path) -> NewImage:
            return await import_image(
                msgspec.structs.replace(action, name=name),
                scratch=scratch,
                settings=self._house.settings,
                capabilities=self._house.capabilities,
                progress=self._progress(job),
            )

        return await self._begin(action, name, IMPORT_PHASES, work, key, replace=False)

    async def pull(self, action: PullImage, key: str) -> Job:
        """Pull an image by its name in an index, as a job; its result is the name that it got."""
        check_request(request_of(action))
        name = check_image_name(action.name) if action.name else ""
        check_image_name(action.image.partition(":")[0])

        async def work(job: LiveJob, scratch: Path) -> NewImage | Image:
            chosen = await choose_image(
                action,
                scratch=scratch,
                keys=self._house.places.keys,
                settings=self._house.settings,
            )
            local = name or check_image_name(chosen.entry.local_name)
            there = self._pulled_before(chosen, local)
            if there is None or there.name != local:
                self._claim(job, local, replace=action.replace)
            if there is not None:
                return msgspec.structs.replace(there, name=local)
            new = await import_image(
                import_of(chosen, local),
                scratch=scratch,
                settings=self._house.settings,
                capabilities=self._house.capabilities,
                progress=self._progress(job),
            )
            return labelled(new, chosen)

        return await self._begin(
            action, "", PULL_PHASES, work, key, replace=True, subject=name or action.image
        )

    def _pulled_before(self, chosen: Chosen, name: str) -> Image | None:
        """Return an image made of the very file that is meant, best one called ``name``."""
        digest = str(chosen.digest)
        plain = [each for each in self._images.values() if not each.snapshot]
        same = [each for each in plain if each.details.get(PULLED) == digest]
        return min(same, key=lambda each: each.name != name, default=None)

    def _claim(self, job: LiveJob, name: str, *, replace: bool) -> None:
        """Let nobody else make an image of that name until the job has ended, or raise Conflict."""
        owner = self._names_coming.get(name, job.id)
        if owner != job.id or (name in self._images and not replace):
            raise _exists(name)
        self._names_coming[name] = job.id

    async def delete(self, action: DeleteImage, key: str) -> Job:
        """Delete an image that no guest is built on."""
        image = self.find(action.image)
        shared = any(i.digest == image.digest for i in self._images.values() if i is not image)
        if image.digest in self._in_use() and not shared and not image.snapshot:
            raise Conflict(
                Code.IMAGE_IN_USE,
                f"guests are built on the image {image.name}",
                hint="Delete them first; see which: serai list",
            )
        del self._images[image.name]  # before anything is waited for: nobody launches it any more
        self._names_coming[image.name] = ""
        try:
            job = await self._house.jobs.open(action, image.name, DELETE_PHASES, key=key)
            await self._delete(job, image, shared=shared or image.digest in self._in_use())
        except BaseException:
            self._images[image.name] = image
            raise
        finally:
            self._names_coming.pop(image.name, None)
        if image.snapshot:
            await self._forget_snapshot(image.name)
        return job.job

    async def _delete(self, job: LiveJob, image: Image, *, shared: bool) -> None:
        """Delete files and name. If that fails, the image is still there, to be deleted again."""
        event = self._house.journal.event(EventKind.IMAGE_DELETED, image.name, image.digest)
        try:
            if not shared:
                await asyncio.to_thread(self._house.images.delete, image)
        except Exception as error:
            await job.fail(error_of(error))
            raise
        await job.finish(DropImage(image.name), events=(event,))

    def cancel(self, job_id: str) -> bool:
        """Cancel a build or import; False when it is not one that is on its way."""
        job = self._coming.get(job_id)
        if job is not None:
            job.break_off()
        return job is not None

    async def _begin(
        self,
        action: BuildImage | ImportImage | PullImage,
        name: str,
        phases: tuple[str, ...],
        work: Work,
        key: str,
        *,
        replace: bool,
        subject: str = "",
    ) -> Job:
        """Open the job and let it run. ``name`` is the image's, "" where that is not known yet."""
        if name in self._names_coming or (name in self._images and not replace):
            raise _exists(name)
        if len(self._coming) >= WAITING_LIMIT:
            raise Busy(Code.QUEUE_FULL, "too many images are on their way")
        check_room(
            self._house.places.scratch,
            0,
            reserve=self._house.settings.disk_reserve,
            what="making an image",
        )
        if name:
            self._names_coming[name] = ""
        try:
            job = await self._house.jobs.open(action, name or subject, phases, key=key)
        except BaseException:
            self._names_coming.pop(name, None)
            raise
        if name:
            self._names_coming[name] = job.id
        run = self._carry_out(job, work)
        self._coming[job.id] = job
        job.belongs_to(self._house.supervisor.start(run, name=f"image {name or subject}"))
        return job.job

    async def _carry_out(self, job: LiveJob, work: Work) -> None:
        """Make the image in a scratch folder, publish it, end the job; leave nothing on failure."""
        scratch = self._house.places.scratch / job.id
        try:
            async with self._slots:
                await job.enter(job.job.phases[0])
                scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
                made = await work(job, scratch)
                if isinstance(made, NewImage):
                    await self._publish(job, made)
                else:
                    await self._name(job, made)
        except asyncio.CancelledError as error:
            if not self._house.closing.is_set():
                await job.fail(error_of(error))
        except Exception as error:  # the one place where a failed build becomes an answer
            await job.fail(error_of(error))
        finally:
            self._coming.pop(job.id, None)
            self.release(job.id)
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def _publish(self, job: LiveJob, new: NewImage) -> None:
        await job.enter("publish")
        journal = self._house.journal
        image = await self._house.images.publish(
            new, now=journal.now(), progress=self._progress(job)
        )
        before = self._images.get(image.name)
        event = journal.event(EventKind.IMAGE_CREATED, image.name, image.digest)
        await job.finish(
            PutImage(image),
            events=(event,),
            results=(image.name,) if isinstance(job.action, PullImage) else (),
            then=lambda: self._take(image),
        )
        if before is not None:
            await self._drop_unused(before)

    async def _name(self, job: LiveJob, image: Image) -> None:
        """End the job with an image whose content is there already, under this name or another."""
        before = self._images.get(image.name)
        if before == image:
            await job.finish(message=f"{image.name} is there already", results=(image.name,))
            return
        self._take(image)  # before anything is waited for: its files are in use now
        try:
            await job.finish(
                PutImage(image),
                events=(self._house.journal.event(
                    EventKind.IMAGE_CREATED, image.name, image.digest
                ),),
                message=f"{image.name} has what is there already",
                results=(image.name,),
            )  # fmt: skip
        except BaseException:
            self._images.pop(image.name)
            if before is not None:
                self._take(before)
            raise
        if before is not None:
            await self._drop_unused(before)

    def _take(self, image: Image) -> None:
        self._images[image.name] = image

    async def _drop_unused(self, image: Image) -> None:
        """Delete the files of content that no name and no guest has any more."""
        named = {each.digest for each in self._images.values()}
        if image.digest not in named | self._in_use():
            await asyncio.to_thread(self._house.images.delete, image)

    def _progress(self, job: LiveJob) -> Callable[[str, int, int, str], None]:
        def progress(phase: str, done: int, total: int, message: str) -> None:
            job.progress(done, total, message, phase=phase)

        return progress

    # -- at the daemon's start ---------------------------------------------------------------------

    async def take_up(self, job: Job) -> str:
        """End a job that an earlier daemon left; return a sentence that says how.

        A deletion is finished. What a build or import had made is gone, and can be asked anew.
        """
        live = self._house.jobs.resume(job) if job.kind == "image-delete" else None
        if live is None or not isinstance(live.action, DeleteImage):
            await self._house.jobs.give_up(job)
            return f"image {job.subject}: {job.kind} was undone"
        try:
            await self._finish_delete(live, live.action)
        except SeraiError as error:
            return f"image {job.subject}: its deletion could not be finished: {error.message}"
        return f"image {job.subject}: its deletion was finished"

    def tidy(self) -> None:
        """Remove what belongs to no image and to no job: a killed daemon leaves some."""
        folder = self._house.images
        for left in self._house.places.scratch.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        try:
            folder.sweep()
        except OSError as error:
            log.warning("%s was not tidied: %s", folder.path, error.strerror)
        if not self._house.shelf.is_whole:
            return  # what can't be read may name any of them
        kept = [*self._images.values()]
        for orphan in folder.orphans(kept):
            if orphan.name.replace("sha256-", "sha256:") not in self._in_use():
                shutil.rmtree(orphan, ignore_errors=True)

    async def _finish_delete(self, job: LiveJob, action: DeleteImage) -> None:
        image = self._images.pop(action.image, None)
        if image is not None:
            await self._drop_unused(image)
        await job.finish(DropImage(action.image))


def _exists(
    name: str,
    hint: str = "Choose another name with --name, or use --replace where there is one.",
) -> Conflict:
    return Conflict(
        Code.IMAGE_EXISTS, f"there is an image {name} already, or it is on its way", hint=hint
    )


def _how_to_get(name: str) -> str:
    if name in RECIPES:
        return f"Build it: serai image build {name}"
    return "See which there are: serai image list"


def _name_from(source: str) -> str:
    """Make an image's name from a file's name: ``/x/Debian-12.qcow2.xz`` gives ``debian-12``."""
    name = source.rstrip("/").rsplit("/", 1)[-1].split("?", 1)[0].lower()
    for _ in range(2):
        stem, dot, suffix = name.rpartition(".")
        if dot and suffix in (
            "qcow2",
            "raw",
            "img",
            "vmdk",
            "iso",
            "gz",
            "xz",
            "zst",
            "bz2",
            "tar",
            "bin",
        ):
            name = stem
    return name
