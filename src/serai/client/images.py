# Made of images_async.py by scripts/make_blocking.py: change that file, then `make blocking`.
"""Images, as the blocking SDK has them."""

from pathlib import Path
from typing import Any

from serai.client import copying, image_calls
from serai.client.blocking import Connection
from serai.client.job_calls import OnProgress
from serai.model.catalogue import Catalogue
from serai.model.image import Image


class ImageShelf:
    """What an inn does with images."""

    connection: Connection

    def images(self) -> list[Image]:
        """Return all images by name."""
        return self.connection.all_of(image_calls.list_images)

    def image(self, name: str) -> Image:
        """Return an image; NotFound."""
        return self.connection.ask(image_calls.show_image(name))

    def build_image(
        self, recipe: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Build ``tiny`` or ``debian``; ``more``: name, suite, include, replace."""
        call = image_calls.build_image(recipe, **more)
        return self.image(self.connection.finish(call, on_progress).subject)

    def import_image(
        self, source: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import an image; ``more``: name, sha256, kernel, initrd, cmdline, agent."""
        call = image_calls.import_image(source, **more)
        return self.image(self.connection.finish(call, on_progress).subject)

    def catalogue(self, index: str = "", *, sha256: str = "", key: str = "") -> Catalogue:
        """Return what an index of images offers; without one, what serai's own does.

        ``index`` is a URL or an absolute path, ``key`` the PEM text of the key that must have signed it.
        """
        return self.connection.ask(image_calls.show_catalogue(index=index, sha256=sha256, key=key))

    def pull_image(
        self, image: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import what an index has under ``NAME[:VERSION]``, unless it is there already.

        ``more``: index, index_sha256, key, name, replace.
        """
        job = self.connection.finish(image_calls.pull_image(image, **more), on_progress)
        return self.image(job.results[0])

    def delete_image(self, name: str) -> None:
        """Delete an image that no guest is built on."""
        self.connection.finish(image_calls.delete_image(name))

    def export_image(self, name: str, target: Path | str, file: str = "all") -> None:
        """Write all of an image as a tar to ``target``, or one file of it (``disk``, ``kernel``)."""
        with copying.written_whole(Path(target)) as written:
            for chunk in self.connection.stream(image_calls.export_image(name, file)):
                written.write(chunk)
