"""The requests about images as values."""

from serai.client.calls import Call, Page, get, guest_path, page, post, segment
from serai.model.catalogue import Catalogue
from serai.model.image import Image
from serai.model.job import Job


def _image(name: str) -> str:
    return f"/v1/images/{segment(name)}"


def list_images(cursor: str = "") -> Call[Page[Image]]:
    """Images by name."""
    return page("/v1/images", Page[Image], cursor)


def show_image(name: str) -> Call[Image]:
    """One image."""
    return get(_image(name), Image)


def build_image(
    recipe: str,
    *,
    name: str = "",
    suite: str = "",
    include: tuple[str, ...] = (),
    replace: bool = False,
) -> Call[Job]:
    """Build an image by one of our recipes."""
    body = {"recipe": recipe, "name": name, "suite": suite, "include": include, "replace": replace}
    return post("/v1/images/build", Job, body)


def import_image(
    source: str,
    *,
    name: str = "",
    sha256: str = "",
    sha512: str = "",
    kernel: bool = False,
    initrd: str = "",
    cmdline: str = "",
    agent: str = "unknown",
) -> Call[Job]:
    """Import an image from a file on the daemon's host, or a URL."""
    body = {
        "source": source, "name": name, "sha256": sha256, "sha512": sha512,
        "kernel": kernel, "initrd": initrd, "cmdline": cmdline, "agent": agent,
    }  # fmt: skip
    return post("/v1/images/import", Job, body)


def pull_image(
    image: str,
    *,
    index: str = "",
    index_sha256: str = "",
    key: str = "",
    name: str = "",
    replace: bool = False,
) -> Call[Job]:
    """Import what an index has under ``NAME[:VERSION]``; the job's result is its name here."""
    body = {
        "image": image, "index": index, "index_sha256": index_sha256, "key": key,
        "name": name, "replace": replace,
    }  # fmt: skip
    return post("/v1/images/pull", Job, body)


def publish_image(
    guest: str, image: str, *, snapshot: str = "", memory: bool = True, replace: bool = False
) -> Call[Job]:
    """Make an image of a guest as it is, or of its snapshot."""
    body = {"image": image, "snapshot": snapshot, "memory": memory, "replace": replace}
    return post(f"{guest_path(guest)}/publish", Job, body)


def delete_image(name: str) -> Call[Job]:
    """Delete an image."""
    return Call(method="DELETE", path=_image(name), kind=Job)


def export_image(name: str, file: str = "all") -> Call[bytes]:
    """All of an image as a tar, or one of its files."""
    return Call(method="GET", path=f"{_image(name)}/export", query={"file": file}, timeout=None)


def show_catalogue(*, index: str = "", sha256: str = "", key: str = "") -> Call[Catalogue]:
    """What an index offers."""
    wanted = {"index": index, "sha256": sha256, "key": key}
    return get("/v1/catalogue", Catalogue, **{k: text for k, text in wanted.items() if text})
