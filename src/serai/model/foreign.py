"""A machine as another program defines it: what of an OVF or a libvirt domain serai understands."""

from enum import StrEnum

import msgspec

from serai.model.guest import Firmware


class ForeignMedia(StrEnum):
    """What a disk of a foreign machine is."""

    DISK = "disk"
    CDROM = "cdrom"


class ForeignDisk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One disk: ``source`` is the file as the definition names it, "" for an empty drive.

    ``size`` is what the machine sees, in bytes (0: not said), ``format`` qcow2, raw or vmdk ("": not
    said). Neither is believed: the file is looked at.
    """

    name: str
    source: str = ""
    media: ForeignMedia = ForeignMedia.DISK
    size: int = 0
    format: str = ""


class ForeignMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is taken over of a machine, its disks in the order in which it boots from them.

    ``notes`` are sentences about what serai can't represent, or does in another way.
    """

    name: str = ""
    cpus: int = 1
    memory: int = 0
    firmware: Firmware = Firmware.BIOS
    macs: tuple[str, ...] = ()
    disks: tuple[ForeignDisk, ...] = ()
    notes: tuple[str, ...] = ()
