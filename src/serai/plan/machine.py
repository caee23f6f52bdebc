"""From a guest's record to the complete description of its machine: pure, nothing left open.

Every default is filled here: how many CPUs may be plugged later, which drives there are and in
which order they boot. What is opened at start (memory, sockets, files) is named by path or not at
all; ``qemu.commandline`` renders the result.
"""

from pathlib import PurePath

from serai.errors import Code, Conflict, HostFailure
from serai.model.guest import Firmware, GuestRecord
from serai.model.image import DiskFormat, Image, ImageKind
from serai.model.machine import Drive, LayerFile, Machine, Media, Nic
from serai.model.node import Capabilities

UEFI_VARS_NAME = "uefi-vars.fd"
SEED_NAME = "seed.iso"


def uid_of(record: GuestRecord, capabilities: Capabilities, uid_base: int) -> int | None:
    """Return the uid that the guest's QEMU runs as; None: the daemon's own (unprivileged mode)."""
    return uid_base + record.number if capabilities.privileged else None


def check_fit(image: Image, firmware: Firmware, memory: int, capabilities: Capabilities) -> None:
    """Raise where this image cannot start with this firmware and memory on this host."""
    if firmware not in image.firmware:
        known = " and ".join(image.firmware)
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} does not start with {firmware}",
            hint=f"It starts with {known}: use --firmware {image.firmware[0]}.",
        )
    if memory < image.min_memory:
        raise Conflict(
            Code.IMAGE_UNFIT,
            f"the image {image.name} needs at least {image.min_memory >> 20} MiB of memory",
            hint=f"Use --memory {image.min_memory >> 20}MiB or more.",
        )
    if firmware is Firmware.UEFI and not capabilities.uefi_code:
        raise HostFailure(
            Code.FIRMWARE_MISSING,
            "this host has no UEFI firmware",
            hint="Install it: apt-get install ovmf",
        )


def plan_machine(
    record: GuestRecord,
    image: Image,
    volumes: tuple[tuple[LayerFile, ...], ...],
    *,
    capabilities: Capabilities,
    image_folder: PurePath,
    guest_folder: PurePath,
    ram: str = "",
) -> Machine:
    """Complete the description of the guest's machine; ``ram`` names the memory that it gets.

    ``volumes`` are the guest's writable volumes, the root first. A kernel image is loaded by QEMU
    itself; an installation medium is a drive after the empty root, so that the machine boots from
    it only until something is installed. The disc for the first boot comes last.
    """
    uefi = record.spec.firmware is Firmware.UEFI
    return Machine(
        id=record.id,
        name=record.spec.name,
        machine_type=record.machine_type,
        accel=capabilities.accel,
        cpus=record.spec.cpus,
        max_cpus=max(record.spec.cpus, capabilities.cpus),
        memory=record.spec.memory,
        firmware=record.spec.firmware,
        genid=record.genid,
        drives=_plan_drives(record, image, volumes, image_folder, guest_folder),
        nics=(Nic(name="net0", mac=record.mac),),
        kernel=str(image_folder / image.kernel.name) if image.kernel else "",
        initrd=str(image_folder / image.initrd.name) if image.initrd else "",
        cmdline=image.cmdline,
        uefi_code=capabilities.uefi_code if uefi else "",
        uefi_vars=str(guest_folder / UEFI_VARS_NAME) if uefi else "",
        sandbox=capabilities.sandbox,
        devices=capabilities.devices,
        ram=ram,
    )


def _plan_drives(
    record: GuestRecord,
    image: Image,
    volumes: tuple[tuple[LayerFile, ...], ...],
    image_folder: PurePath,
    guest_folder: PurePath,
) -> tuple[Drive, ...]:
    drives = [
        Drive(
            name="root" if index == 0 else f"data{index}",
            media=Media.DISK,
            chain=chain,
            boot_index=index + 1,
            serial=f"{record.id[:12]}-{index}",
        )
        for index, chain in enumerate(volumes)
    ]
    if image.kind is ImageKind.CDROM and image.disk is not None:
        medium = LayerFile(
            path=str(image_folder / image.disk.name), format=image.disk_format, read_only=True
        )
        drives.append(
            Drive(name="cd0", media=Media.CDROM, chain=(medium,), boot_index=len(drives) + 1)
        )
    if record.seed:
        disc = LayerFile(path=str(guest_folder / SEED_NAME), format=DiskFormat.RAW, read_only=True)
        drives.append(
            Drive(name="seed", media=Media.SEED, chain=(disc,), boot_index=len(drives) + 1)
        )
    return tuple(drives)
