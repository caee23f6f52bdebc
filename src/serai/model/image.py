"""Images: read-only starting points with a name and a digest."""

from enum import StrEnum

import msgspec

UNPACKED = ".unpacked"
"""What follows the name of an image's kernel in that of the same kernel as it runs."""


class ImageKind(StrEnum):
    """How a guest starts from the image."""

    DISK = "disk"  # a root disk; each guest gets a copy-on-write head over it
    KERNEL = "kernel"  # a kernel and perhaps an initramfs, loaded by QEMU
    CDROM = "cdrom"  # an installation medium; each guest gets an empty disk beside it


class DiskFormat(StrEnum):
    """Recorded at import by our own parser and never probed again."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"


class Expect(StrEnum):
    """Tri-state: does the image contain a thing?"""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class ImageFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an image, relative to the image's folder. Digests are ``sha256:HEX``."""

    name: str
    size: int
    digest: str


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored and shown of an image.

    ``digest`` names the whole content; the files live in a folder named by it. ``size`` is what
    the files take, ``virtual_size`` what a guest sees as its root disk (0 without one).
    ``snapshot`` is the id of the snapshot that a published image is: then the files are those of the
    image that its guest was made from. ``warm``: that snapshot has memory, and guests of the image run
    from where it was frozen. ``cloud_init`` says whether a guest of it can be told anything at its
    first boot.
    """

    name: str
    digest: str
    kind: ImageKind
    created_at: float
    size: int
    virtual_size: int = 0
    disk: ImageFile | None = None
    disk_format: DiskFormat = DiskFormat.RAW
    kernel: ImageFile | None = None
    initrd: ImageFile | None = None
    cmdline: str = ""
    agent: Expect = Expect.UNKNOWN
    cloud_init: Expect = Expect.UNKNOWN
    firmware: tuple[str, ...] = ("bios",)
    min_memory: int = 0
    source: str = ""
    details: dict[str, str] = {}
    snapshot: str = ""
    warm: bool = False
