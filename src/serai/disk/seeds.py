"""What guests are told at their first boot: kept once, given to each as a disc.

    seeds/SHA256           what was asked for, as JSON; only the daemon's user can read it
    guests/ID/seed.iso     the disc that cloud-init in the guest finds by its label, CIDATA

The first may hold secrets and is named by a record, never shown. Guests that were forked from each
other share it; the disc is made from it for each guest, anew when what it says has changed. Everything
here is blocking and quick.
"""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, replace_file
from serai.disk.named import NamedFolder
from serai.errors import Code, HostFailure
from serai.model.firstboot import FirstBoot


def name_of(first_boot: FirstBoot) -> str:
    """Return the name under which it is kept: the same for the same."""
    return hashlib.sha256(msgspec.json.encode(first_boot)).hexdigest()


class SeedFolder(NamedFolder):
    """The folder of what was asked for."""

    def put(self, first_boot: FirstBoot) -> str:
        """Keep it and return its name; durable when this returns. HostFailure (``disk-full``)."""
        name = name_of(first_boot)
        path = self.path(name)
        if path.exists():
            return name
        with naming_disk_problems("keeping what the guest is told"):
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, msgspec.json.encode(first_boot))
        return name

    def get(self, name: str) -> FirstBoot:
        """Return what is kept under ``name``; HostFailure (``file-failed``) if it can't be read."""
        try:
            return msgspec.json.decode(self.path(name).read_bytes(), type=FirstBoot)
        except (OSError, msgspec.DecodeError) as error:
            raise HostFailure(
                Code.FILE_FAILED,
                f"what the guest is told at its first boot can't be read: {error}",
                details={"seed": name},
            ) from error


def write_disc(path: Path, documents: Mapping[str, bytes]) -> None:
    """Make the disc with these files, unless it is there already; HostFailure (``disk-full``)."""
    made = import_module("serai.disk.disc")  # late, for what it costs: 2 MB of a daemon's memory
    content: bytes = made.make_disc(documents)
    with naming_disk_problems("making the disc for the first boot"):
        if not path.exists() or path.read_bytes() != content:
            replace_file(path, content)
