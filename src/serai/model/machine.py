"""The complete, frozen description of one virtual machine: what plan makes and qemu renders.

Nothing in it is left to a default of QEMU. Resources that are opened at start (sockets, files,
memory) are named by ``Slot`` here and become descriptors in ``qemu.commandline``: QEMU opens
nothing by path but its own firmware and modules.
"""

from dataclasses import dataclass
from enum import StrEnum

from serai.model.guest import Accel, Firmware
from serai.model.image import DiskFormat
from serai.model.volume import NO_LIMITS, Limits

SPARE = "spare"
"""How the PCIe ports are called into which devices can be plugged: this and a number from 0."""


class Media(StrEnum):
    """What a drive looks like to the guest."""

    DISK = "disk"
    CDROM = "cdrom"  # by SATA: every firmware and every installer knows it
    SCSI_CDROM = "scsi-cdrom"  # by virtio-scsi: the kernels of cloud images have no driver for SATA
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
    """A volume attached to the machine. ``name`` is unique in the machine ("root", "cd0").

    ``boot_index`` 0: the firmware does not look at it. ``port`` names the root port that it is plugged
    into; "" where it has a fixed place. A CD drive with no ``chain`` is empty.
    """

    name: str
    media: Media
    chain: tuple[LayerFile, ...]
    boot_index: int
    serial: str = ""
    port: str = ""
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network port. ``tap`` is its interface on the host, "" for QEMU's own user-mode network.

    ``place`` names the PCIe port that it is plugged into ("spare0"); without one it sits on the root
    bus and can't be pulled. One that has a place and no tap is a NIC without a cable.
    """

    name: str
    mac: str
    tap: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """All that is needed to build QEMU's command line, except the descriptors.

    ``memory`` is bytes. ``max_cpus`` and ``max_memory`` reserve room for live growth
    (equal to ``cpus`` and ``memory`` where there is none). Paths: kernel and initrd are opened
    by us and passed down; ``uefi_code`` is read by QEMU itself, ``uefi_vars`` is the guest's own.
    ``ram`` names the file that its memory is (a base, when ``ram_private``: then it is mapped
    copy-on-write, and the machine waits for a state to be loaded into it). ``boots``: it was frozen
    before it was known to be up, so it may still have to load its kernel. ``spares`` counts the PCIe
    ports into which devices are plugged: "spare0", "spare1", …. ``birth_port``: it has the port at which
    a guest that was copied is told who it is; those that were frozen before there was one have none.
    ``queues`` is how many queues each disk has: as many as there were CPUs when it was started, however
    many are plugged in later (0: QEMU counts them itself, which fits no machine with plugged ones).
    ``sata``: it has the SATA controller of its machine type, as all had that were frozen before it was left out.
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
    boots: bool = False
    spares: int = 2
    birth_port: bool = False
    queues: int = 0
    sata: bool = True
