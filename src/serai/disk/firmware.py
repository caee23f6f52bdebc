"""The UEFI variables that snapshots have, kept once and named by what is in them.

    firmware/SHA256        what a flash chip of variables held at that moment

A name that a snapshot's record has is its own check: what does not fit it is never used. Everything
here is blocking and quick: such a chip has half a megabyte.
"""

import hashlib

from serai.disk.files import naming_disk_problems, replace_file
from serai.disk.named import NamedFolder
from serai.errors import Code, HostFailure


def firmware_name(uefi_vars: bytes) -> str:
    """Return the name under which variables are kept; "" for those of a BIOS, which has none."""
    return hashlib.sha256(uefi_vars).hexdigest() if uefi_vars else ""


class FirmwareFolder(NamedFolder):
    """The folder of variables."""

    def put(self, uefi_vars: bytes) -> str:
        """Keep them and return their name; durable when this returns. HostFailure (``disk-full``)."""
        name = firmware_name(uefi_vars)
        if name and not self._is_sound(name):
            with naming_disk_problems("storing the UEFI variables"):
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(self.path(name), uefi_vars)
        return name

    def get(self, name: str) -> bytes:
        """Return what is kept under ``name``, b"" for ""; HostFailure (``snapshot-corrupt``)."""
        if not name:
            return b""
        try:
            found = self.path(name).read_bytes()
        except OSError as error:
            raise HostFailure(
                Code.SNAPSHOT_CORRUPT,
                f"the UEFI variables {name[:12]} can't be read: {error.strerror}",
            ) from error
        if firmware_name(found) != name:
            raise HostFailure(
                Code.SNAPSHOT_CORRUPT, f"the UEFI variables {name[:12]} are not as they were stored"
            )
        return found

    def _is_sound(self, name: str) -> bool:
        try:
            return bool(self.get(name))
        except HostFailure:
            return False
