"""A libvirt domain definition as a machine: CPUs, memory, firmware, disks, addresses of its cards. Pure.

The format is libvirt's (formatdomain). The files of disks are only named here: whoever reads the
definition decides whether they are opened, with the rights of whoever asked.
"""

from xml.etree.ElementTree import Element

from serai.model.foreign import ForeignDisk, ForeignMachine, ForeignMedia
from serai.model.guest import Firmware
from serai.plan.foreign_xml import (
    MAX_DISKS,
    MAX_NICS,
    attribute,
    child,
    children,
    definition_refused,
    listed,
    local,
    mac_of,
    memory_of,
    read_xml,
    text,
    whole_number,
)
from serai.units import SIZE_UNITS, shorten

KINDS = frozenset({"kvm", "qemu"})
SILENT = frozenset({
    "emulator", "controller", "disk", "interface", "input", "graphics", "video", "console", "serial",
    "channel", "memballoon", "rng", "audio", "panic", "hub",
})  # fmt: skip
"""Devices that a guest here has in some form as well, or that only the host's side cares about."""
FLATTEN = "{} where it comes from: qemu-img convert -O qcow2 IT NEW.qcow2; then: --disk NEW.qcow2"
DISK_FORMATS = ("qcow2", "raw", "vmdk")


def read_domain(untrusted: bytes, *, root_file: str = "") -> ForeignMachine:
    """Return what a domain definition says; Invalid (``definition-refused``) with the reason.

    ``root_file`` is the file that its first disk is now, whatever it was there.
    """
    root = read_xml(untrusted)
    if local(root.tag) != "domain":
        raise definition_refused(
            f"it is <{shorten(local(root.tag))[1:-1]}>, not a libvirt <domain>",
            hint="Get one: virsh dumpxml --inactive NAME > NAME.xml",
        )
    _check_kind(root)
    devices = child(root, "devices")
    disks = _disks(devices, root_file)
    return ForeignMachine(
        name=text(child(root, "name")),
        cpus=whole_number(text(child(root, "vcpu")) or "1", "number of CPUs"),
        memory=_memory(root),
        firmware=_firmware(root),
        macs=_macs(devices),
        disks=disks,
        notes=tuple(_notes(root, devices)),
    )


def _check_kind(root: Element) -> None:
    kind, machine = attribute(root, "type"), child(root, "os", "type")
    if kind not in KINDS or text(machine) != "hvm":
        raise definition_refused(f"it is a machine of the kind {shorten(kind)}, not kvm or qemu")
    arch = attribute(machine, "arch") or "x86_64"
    if arch not in ("x86_64", "i686"):
        raise definition_refused(f"it is a machine for {shorten(arch)}")
    if child(root, "os", "kernel") is not None:
        raise definition_refused(
            "it starts from a kernel outside of its disks",
            hint="Import the kernel: serai image import --kernel KERNEL --initrd INITRD",
        )


def _memory(root: Element) -> int:
    """Return the memory in bytes."""
    element = child(root, "memory")
    unit = attribute(element, "unit") or "KiB"
    factor = SIZE_UNITS.get(unit.lower().removesuffix("ytes").removesuffix("yte"))
    if factor is None:
        raise definition_refused(f"its memory is in {shorten(unit)}")
    if unit.lower() in ("k", "m", "g", "t"):
        factor = SIZE_UNITS[f"{unit.lower()}ib"]
    return memory_of(text(element), factor)


def _firmware(root: Element) -> Firmware:
    os = child(root, "os")
    is_flash = attribute(child(os, "loader"), "type") == "pflash"
    return Firmware.UEFI if attribute(os, "firmware") == "efi" or is_flash else Firmware.BIOS


def _macs(devices: Element | None) -> tuple[str, ...]:
    found = [
        mac_of(attribute(child(each, "mac"), "address")) for each in children(devices, "interface")
    ]
    if len(found) > MAX_NICS:
        raise definition_refused(f"it has more than {MAX_NICS} network cards")
    return tuple(found)


# -- disks -----------------------------------------------------------------------------------------


def _disks(devices: Element | None, root: str) -> tuple[ForeignDisk, ...]:
    """Return disks and media in the order of booting; the first disk must be one to take."""
    elements = list(children(devices, "disk"))
    if len(elements) > MAX_DISKS:
        raise definition_refused(f"it has more than {MAX_DISKS} disks")
    ordered = sorted(elements, key=_boot_order)
    taken = [each for each in ordered if _device(each) != "floppy"]
    first = next((each for each in taken if _device(each) == "disk"), None)
    if first is not None and not root:
        _check_source(first)
    found = [_disk(each, root if each is first else "") for each in taken]
    names = [each.name for each in found]
    if len(set(names)) != len(names):
        raise definition_refused("two of its disks have one name")
    return tuple(found)


def _boot_order(element: Element) -> int:
    order = attribute(child(element, "boot"), "order")
    return whole_number(order, "boot order") if order else MAX_DISKS + 1


def _device(element: Element) -> str:
    return attribute(element, "device") or "disk"


def _disk(element: Element, root: str) -> ForeignDisk:
    name, device = attribute(child(element, "target"), "dev"), _device(element)
    if not name or device not in ("disk", "cdrom"):
        raise definition_refused(
            f"it has a {shorten(device)} {shorten(name)}, which can't be taken"
        )
    if (
        child(element, "encryption") is not None
        or child(element, "source", "encryption") is not None
    ):
        raise definition_refused(f"its disk {shorten(name)} is encrypted")
    source = attribute(child(element, "source"), "file")
    disk_format = attribute(child(element, "driver"), "type")
    return ForeignDisk(
        name=name,
        source=root or (source if attribute(element, "type") == "file" else ""),
        media=ForeignMedia(device),
        format=disk_format if disk_format in DISK_FORMATS and not root else "",
    )


def _check_source(element: Element) -> None:
    """Refuse a disk that is not one file that stands by itself."""
    name = attribute(child(element, "target"), "dev")
    kind, source = attribute(element, "type"), attribute(child(element, "source"), "file")
    if kind != "file" or not source.startswith("/"):
        raise definition_refused(
            f"its disk {shorten(name)} is not a file on the host (its type is {shorten(kind)})",
            hint=FLATTEN.format("Copy it to a file"),
        )
    below = child(element, "backingStore")
    if below is not None and (attribute(below, "type") or child(below, "source") is not None):
        raise definition_refused(
            f"its disk {shorten(name)} stands on another file", hint=FLATTEN.format("Flatten it")
        )


# -- what is not taken over ------------------------------------------------------------------------


def _notes(root: Element, devices: Element | None) -> list[str]:
    notes = []
    others = {local(each.tag) for each in (devices if devices is not None else ())} - SILENT
    others |= {"floppy" for each in children(devices, "disk") if _device(each) == "floppy"}
    if others:
        notes.append(f"devices that are not taken over: {listed(others)}")
    loader = child(root, "os", "loader")
    if attribute(loader, "secure") == "yes":
        notes.append("secure boot is not taken over")
    if child(root, "os", "nvram") is not None:
        notes.append(
            "the firmware's variables are not taken over: UEFI looks for the boot loader anew"
        )
    special = {local(each.tag) for each in root if "}" in each.tag and "/qemu/" in each.tag}
    if special:
        notes.append("arguments for QEMU itself are not taken over")
    machine = attribute(child(root, "os", "type"), "machine")
    if machine and "q35" not in machine:
        notes.append(
            f"the machine was {shorten(machine, 40)[1:-1]} and becomes q35 with virtio devices"
        )
    buses = {attribute(child(each, "target"), "bus") for each in children(devices, "disk")
             if _device(each) == "disk"}  # fmt: skip
    if buses - {"virtio", ""}:
        notes.append(
            f"its disks were on {listed(buses - {'virtio', ''})}: the system inside needs virtio drivers"
        )
    return notes
