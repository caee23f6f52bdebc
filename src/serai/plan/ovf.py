"""An OVF descriptor as a machine, and the manifest beside it. Pure.

The format is DMTF's DSP0243 in its versions 1 and 2, as VMware, VirtualBox and others write it. Of several
configurations the default one is taken.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from serai.model.foreign import ForeignDisk, ForeignMachine, ForeignMedia
from serai.model.guest import Firmware
from serai.plan.foreign_xml import (
    MAX_DISKS,
    MAX_NICS,
    MAX_NUMBER,
    attribute,
    child,
    children,
    definition_refused,
    listed,
    local,
    mac_of,
    memory_of,
    plain,
    read_xml,
    text,
    whole_number,
)
from serai.units import GIB, KIB, MIB, shorten

CPU, MEMORY, NIC, FLOPPY, CD, DVD, DISK = "3", "4", "10", "14", "15", "16", "17"
SILENT = frozenset({"5", "6", "7", "8", "9", "20", "13", "24"})
"""Controllers, keyboards and screens: a guest here has its own."""
NAMED = {"1": "another device", "11": "a network card of another kind", "12": "InfiniBand", "19": "a partition",
         "21": "a serial port", "22": "a parallel port", "23": "USB", "35": "sound"}  # fmt: skip
ITEMS = ("Item", "StorageItem", "EthernetPortItem")
MAX_ITEMS = 500

_UNITS = {"byte": 1, "bytes": 1, "kilobytes": KIB, "kb": KIB, "megabytes": MIB, "mb": MIB, "gigabytes": GIB, "gb": GIB}  # fmt: skip
_POWER = re.compile(r"byte(?:s)? ?\* ?(2|10) ?\^ ?([0-9]|[1-4][0-9])", re.ASCII)
_MANIFEST = re.compile(r"(SHA1|SHA256|SHA512) ?\(([^()]+)\) ?= ?([0-9A-Fa-f]{40,128})", re.ASCII)
_LENGTHS = {"sha1": 40, "sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What an OVF says: the machine, and the size of each file that it lists (None: not said)."""

    machine: ForeignMachine
    files: Mapping[str, int | None]


def read_ovf(untrusted: bytes) -> Descriptor:
    """Return what a descriptor says; Invalid (``definition-refused``) with the reason."""
    root = read_xml(untrusted)
    if local(root.tag) != "Envelope":
        raise definition_refused(f"it is <{shorten(local(root.tag))[1:-1]}>, not an OVF <Envelope>")
    system = child(root, "VirtualSystem")
    if system is None or child(root, "VirtualSystemCollection") is not None:
        raise definition_refused(
            "it describes several machines or none",
            hint="Export each machine on its own.",
        )
    files = _files(root)
    items = list(_items(root, system))
    machine = ForeignMachine(
        name=text(child(system, "Name")) or attribute(system, "id"),
        cpus=_cpus(items),
        memory=_memory(items),
        firmware=_firmware(system),
        macs=_macs(system, items),
        disks=_disks(root, items, {key: href for key, (href, _) in files.items()}),
        notes=tuple(_notes(system, items)),
    )
    return Descriptor(machine, dict(files.values()))


def _files(root: Element) -> dict[str, tuple[str, int | None]]:
    """Return name and size of each file by its id."""
    found: dict[str, tuple[str, int | None]] = {}
    for each in children(child(root, "References"), "File"):
        key, href, size = attribute(each, "id"), attribute(each, "href"), attribute(each, "size")
        if not key or not is_file_name(href) or key in found:
            raise definition_refused(
                f"it lists the file {shorten(href)}, which can't be one beside it"
            )
        if attribute(each, "compression") not in ("", "identity"):
            raise definition_refused(f"its file {shorten(href)} is compressed, which few can read")
        if attribute(each, "chunkSize"):
            raise definition_refused(f"its file {shorten(href)} is in several pieces")
        found[key] = (href, whole_number(size, f"size of {href[:60]}") if size else None)
    if len(found) > MAX_DISKS or len({href for href, _ in found.values()}) != len(found):
        raise definition_refused("it lists a file twice, or too many")
    return found


def is_file_name(name: str) -> bool:
    """Tell whether that is the plain name of a file in the same folder: no path, nothing odd."""
    return (
        0 < len(name) <= 200
        and name.isprintable()
        and not set(name) & set("/\\:")
        and name not in (".", "..")
    )


def _items(root: Element, system: Element) -> Iterator[Element]:
    """Yield the items of the hardware in the default configuration."""
    hardware = list(children(system, "VirtualHardwareSection"))
    if len(hardware) != 1:
        raise definition_refused("it has no hardware section, or several")
    chosen = _configuration(root)
    found = [each for each in hardware[0] if local(each.tag) in ITEMS]
    if len(found) > MAX_ITEMS:
        raise definition_refused(f"it has more than {MAX_ITEMS} devices")
    for each in found:
        wanted = attribute(each, "configuration").split()
        if not wanted or chosen in wanted:
            yield each


def _configuration(root: Element) -> str:
    found = list(children(child(root, "DeploymentOptionSection"), "Configuration"))
    default = [each for each in found if attribute(each, "default") in ("true", "1")]
    return attribute(next(iter(default or found), None), "id")


def _of_kind(items: list[Element], *kinds: str) -> list[Element]:
    return [each for each in items if text(child(each, "ResourceType")) in kinds]


def _cpus(items: list[Element]) -> int:
    found = _of_kind(items, CPU)
    return whole_number(text(child(found[0], "VirtualQuantity")), "number of CPUs") if found else 1


def _memory(items: list[Element]) -> int:
    """Return the memory in bytes."""
    found = next(iter(_of_kind(items, MEMORY)), None)
    if found is None:
        raise definition_refused("it says nothing about its memory")
    unit = text(child(found, "AllocationUnits"))
    return memory_of(text(child(found, "VirtualQuantity")), _factor(unit or "byte * 2^20"))


def _factor(unit: str) -> int:
    if match := _POWER.fullmatch(unit):
        factor: int = int(match[1]) ** int(match[2])
        return factor
    if unit.lower() not in _UNITS:
        raise definition_refused(f"it counts in {shorten(unit)}")
    return _UNITS[unit.lower()]


def _firmware(system: Element) -> Firmware:
    """Return what VMware or VirtualBox says of the firmware; a descriptor itself has no word for it."""
    for each in system.iter():
        name = local(each.tag)
        if name == "Config" and attribute(each, "key") == "firmware":
            return Firmware.UEFI if attribute(each, "value").lower() == "efi" else Firmware.BIOS
        if name == "Firmware" and attribute(each, "type").upper().startswith("EFI"):
            return Firmware.UEFI
    return Firmware.BIOS


def _macs(system: Element, items: list[Element]) -> tuple[str, ...]:
    """Return the cards' addresses; VirtualBox has them, without colons, in a section of its own."""
    found = _of_kind(items, NIC)
    if len(found) > MAX_NICS:
        raise definition_refused(f"it has more than {MAX_NICS} network cards")
    theirs = [
        attribute(each, "MACAddress")
        for each in system.iter()
        if local(each.tag) == "Adapter" and attribute(each, "enabled") == "true"
    ]
    macs = [mac_of(text(child(each, "Address"))) for each in found]
    if not any(macs) and len(theirs) == len(macs):
        macs = [mac_of(":".join(re.findall("..", each))) for each in theirs]
    return tuple(macs)


# -- disks -----------------------------------------------------------------------------------------


def _disks(
    root: Element, items: list[Element], files: Mapping[str, str]
) -> tuple[ForeignDisk, ...]:
    """Return disks by controller and place on it, then media."""
    known = {
        attribute(each, "diskId"): each for each in children(child(root, "DiskSection"), "Disk")
    }
    drives = sorted(_of_kind(items, DISK), key=_place)
    media = _of_kind(items, CD, DVD)
    if len(drives) + len(media) > MAX_DISKS:
        raise definition_refused(f"it has more than {MAX_DISKS} disks")
    found = [_disk(f"disk{n}", each, known, files) for n, each in enumerate(drives)]
    used = [each.source for each in found]
    if len(set(used)) != len(used):
        raise definition_refused("two of its disks are one file")
    return (*found, *(_medium(f"cd{n}", each, files) for n, each in enumerate(media)))


def _place(item: Element) -> tuple[int, int]:
    return _number(text(child(item, "Parent"))), _number(text(child(item, "AddressOnParent")))


def _number(found: str) -> int:
    return int(found) if found.isascii() and found.isdigit() and len(found) < 10 else 0


def _resource(item: Element) -> tuple[str, str]:
    """Return what a drive is made of: ``disk`` or ``file``, and its id; "" where nothing is said."""
    resource = text(child(item, "HostResource")).removeprefix("ovf:").strip("/")
    kind, _, key = resource.partition("/")
    return kind, key


def _disk(
    name: str, item: Element, known: Mapping[str, Element], files: Mapping[str, str]
) -> ForeignDisk:
    kind, key = _resource(item)
    element = known.get(key) if kind == "disk" else None
    if element is None:
        raise definition_refused(f"its disk {name} is described nowhere")
    if attribute(element, "parentRef"):
        raise definition_refused(f"its disk {name} is a change on another disk")
    source = files.get(attribute(element, "fileRef"), "")
    if not source:
        raise definition_refused(
            f"its disk {name} has no file",
            hint="An empty disk is not taken over: export the machine without it.",
        )
    return ForeignDisk(name=name, source=source, size=_capacity(element), format=_format(element))


def _capacity(element: Element) -> int:
    capacity = attribute(element, "capacity")
    if capacity.startswith("${"):
        return 0
    factor = _factor(attribute(element, "capacityAllocationUnits") or "byte")
    return min(MAX_NUMBER, whole_number(capacity, "capacity of a disk") * factor)


def _format(element: Element) -> str:
    return "vmdk" if "vmdk" in attribute(element, "format").lower() else ""


def _medium(name: str, item: Element, files: Mapping[str, str]) -> ForeignDisk:
    kind, key = _resource(item)
    source = files.get(key, "") if kind == "file" else ""
    return ForeignDisk(name=name, source=source, media=ForeignMedia.CDROM)


# -- what is not taken over ------------------------------------------------------------------------


def _notes(system: Element, items: list[Element]) -> Iterator[str]:
    taken = {CPU, MEMORY, NIC, CD, DVD, DISK}
    kinds = {text(child(each, "ResourceType")) for each in items} - SILENT - taken
    others = {
        "a floppy drive" if kind == FLOPPY else NAMED.get(kind, f"device type {kind}")
        for kind in kinds
    }
    if others:
        yield f"devices that are not taken over: {listed(others)}"
    keys = {attribute(each, "key").lower(): attribute(each, "value").lower() for each in system.iter()
            if local(each.tag) == "Config"}  # fmt: skip
    if (
        keys.get("uefi.secureboot.enabled") in ("true", "1")
        or keys.get("bootoptions.efisecurebootenabled") == "true"
    ):
        yield "secure boot is not taken over"
    if any(local(each.tag) == "PropertySection" or (local(each.tag) == "ProductSection" and child(each, "Property") is not None)
           for each in system):  # fmt: skip
        yield "the properties of its product section are not taken over"
    yield "its devices become virtio ones: the system inside needs drivers for them"


# -- the manifest ----------------------------------------------------------------------------------


def read_manifest(untrusted: bytes) -> dict[str, str]:
    """Return ``ALGORITHM:HEX`` of each file that a manifest lists; refuse what is none."""
    found: dict[str, str] = {}
    try:
        lines = untrusted.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise definition_refused("its manifest is no text") from error
    for line in lines:
        if not line.strip():
            continue
        match = _MANIFEST.fullmatch(line.strip())
        algorithm = match[1].lower() if match else ""
        if match is None or len(match[3]) != _LENGTHS[algorithm] or match[2] in found:
            raise definition_refused(f"its manifest says {shorten(plain(line))}")
        found[match[2].strip()] = f"{algorithm}:{match[3].lower()}"
    return found
