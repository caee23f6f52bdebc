"""An index of images that can be pulled, as it stands in ``index.json`` and is shown.

An index is published as one JSON file on any server of files, with ``index.json.sig`` beside it if it
is signed. How an entry is chosen and what makes an index fit to be trusted is ``plan.catalogue``.
"""

import msgspec

from serai.model.guest import Firmware
from serai.model.image import Expect

FORMAT = 1
"""The version of the file's form: one that is newer is refused."""


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One image in an index.

    ``url`` is absolute, or relative to the index and below its folder. Its content is pinned by
    ``sha256`` or ``sha512`` (hex), or else by the publisher's file of digests at ``sums_url``, which is
    fetched over https at the moment of pulling. ``version`` orders images of one name, the newest is
    what a bare name means. The rest is told to people, apart from ``agent`` and ``min_memory``, which
    the image keeps.
    """

    name: str
    url: str
    version: str = ""
    aliases: tuple[str, ...] = ()
    arch: str = "x86_64"
    sha256: str = ""
    sha512: str = ""
    sums_url: str = ""
    size: int = 0
    format: str = ""
    os: str = ""
    user: str = ""
    firmware: tuple[Firmware, ...] = ()
    min_memory: int = 0
    cloud_init: Expect = Expect.UNKNOWN
    agent: Expect = Expect.UNKNOWN

    @property
    def full_name(self) -> str:
        """Its name and version, as they are typed."""
        return f"{self.name}:{self.version}" if self.version else self.name

    @property
    def local_name(self) -> str:
        """What it is called here unless another name is given."""
        return f"{self.name}-{self.version}" if self.version else self.name


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list of images, as it is published."""

    format: int = FORMAT
    title: str = ""
    entries: tuple[IndexEntry, ...] = ()


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """What an index offers, and why it is believed.

    ``source`` is where it came from ("" for serai's own), ``digest`` its ``sha256:HEX``, ``trust`` a
    sentence, ``signed_by`` the fingerprint of the key whose signature was checked ("": none was).
    """

    source: str
    digest: str
    trust: str
    signed_by: str = ""
    title: str = ""
    entries: tuple[IndexEntry, ...] = ()
