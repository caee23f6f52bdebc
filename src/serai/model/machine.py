"""The complete, frozen description of one virtual machine: what plan makes and qemu renders.

Nothing in it is left to a default of QEMU. Resources that are opened at start (sockets, files,
memory) are named by ``Slot`` here and become descriptors in ``qemu.commandline``: QEMU opens
nothing by path but its own firmware and modules.
"""

from dataclasses import dataclass
from enum import StrEnum

from serai.model.guest import Accel, Firmware
from serai.model.image import DiskFormat


class Media(StrEnum):
    """What a drive looks like to the guest."""

    DISK = "disk"
    CDROM = "cdrom"
    SEED = "seed"  # a disk that can't be written: the kernels of cloud images see no CD drive


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """One file of a volume's chain, the writable head first; ``path`` is what gets opened.

    ``node`` names it in QEMU, unique in the machine; "" lets its place in the chain name it.
    """

    path: str
    format: DiskFormat
    read_only: bool
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A volume attached to the machine. ``name`` is unique in the machine ("root", "cd0")."""

    name: str
    media: Media
    chain: tuple[LayerFile, ...]
    boot_index: int
    serial: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network port; user-mode networking for now."""

    name: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """All that is needed to build QEMU's command line, except the descriptors.

    ``memory`` is bytes. ``max_cpus`` and ``max_memory`` reserve room for live growth
    (equal to ``cpus`` and ``memory`` where there is none). Paths: kernel and initrd are opened
    by us and passed down; ``uefi_code`` is read by QEMU itself, ``uefi_vars`` is the guest's own.
    ``ram`` names the file that its memory is (a base, when ``ram_private``: then it is mapped
    copy-on-write, and the machine waits for a state to be loaded into it).
    """

    id: str
    name: str
    machine_type: str
    accel: Accel
    cpus: int
    max_cpus: int
    memory: int
    firmware: Firmware
    genid: str
    drives: tuple[Drive, ...]
    nics: tuple[Nic, ...]
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    uefi_code: str = ""
    uefi_vars: str = ""
    sandbox: bool = True
    devices: frozenset[str] = frozenset()
    ram: str = ""
    ram_private: bool = False
