"""libvirt's domain definitions: what is read of them, and what hostile ones can't do."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.model.foreign import ForeignDisk, ForeignMachine, ForeignMedia
from serai.model.guest import Firmware
from serai.model.image import Image, ImageKind
from serai.plan.domain_xml import read_domain
from serai.plan.foreign import check_machine, disks_to_take, guest_name_from, plan_guest
from serai.units import GIB, MIB

DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
  <source file='/var/lib/libvirt/images/web.qcow2'/><backingStore/><target dev='vda' bus='virtio'/></disk>"""
CD = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
NIC = (
    "<interface type='network'><mac address='52:54:00:8C:2e:11'/><source network='x'/></interface>"
)
HVM = "<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>"


def domain(devices: str = DISK, *, os: str = HVM, kind: str = "kvm", more: str = "", before: str = "") -> bytes:  # fmt: skip
    return f"""{before}<domain type='{kind}'><name>web 1</name><memory unit='KiB'>2097152</memory>
    <vcpu placement='static'>2</vcpu><os>{os}</os>{more}<devices>{devices}</devices></domain>""".encode()


def why_refused(content: bytes, root_file: str = "") -> str:
    with pytest.raises(Invalid) as caught:
        read_domain(content, root_file=root_file)
    assert caught.value.code is Code.DEFINITION_REFUSED
    return caught.value.message


def test_a_machine_as_virsh_prints_it() -> None:
    noise = (
        "<controller type='pci'/><graphics type='vnc'/><memballoon/><rng/><emulator>/x</emulator>"
    )
    machine = read_domain(domain(noise + CD + DISK + NIC))
    assert (machine.name, machine.cpus, machine.memory) == ("web 1", 2, 2 * GIB)
    assert (machine.firmware, machine.macs) == (Firmware.BIOS, ("52:54:00:8c:2e:11",))
    disk = ForeignDisk(name="vda", source="/var/lib/libvirt/images/web.qcow2", format="qcow2")
    assert disks_to_take(machine, root_only=False) == (disk,)
    assert machine.notes == ()


@pytest.mark.parametrize(
    ("memory", "size"),
    [("<memory>1048576</memory>", GIB), ("<memory unit='GiB'>3</memory>", 3 * GIB),
     ("<memory unit='M'>5</memory>", 5 * MIB), ("<memory unit='bytes'>2097152</memory>", 2 * MIB),
     ("<memory unit='b'>1</memory>", MIB), ("<memory unit='MB'>1000</memory>", 953 * MIB)],
)  # fmt: skip
def test_memory_in_every_unit(memory: str, size: int) -> None:
    content = domain().replace(b"<memory unit='KiB'>2097152</memory>", memory.encode())
    assert read_domain(content).memory == size


@pytest.mark.parametrize(
    "os",
    [f"<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>{HVM}"],
)
def test_uefi_is_seen(os: str) -> None:
    assert read_domain(domain(os=os)).firmware is Firmware.UEFI
    by_attribute = domain().replace(b"<os>", b"<os firmware='efi'>")
    assert read_domain(by_attribute).firmware is Firmware.UEFI


def test_the_order_of_booting_counts() -> None:
    second = DISK.replace("vda", "vdb").replace("web", "two")
    first = second.replace("<target", "<boot order='1'/><target")
    machine = read_domain(domain(DISK + first))
    assert [each.name for each in machine.disks] == ["vdb", "vda"]


def test_what_is_not_taken_over_is_said() -> None:
    devices = "<hostdev mode='subsystem'/><tpm/><sound/>" + DISK.replace("virtio", "ide")
    os = "<type arch='x86_64' machine='pc-i440fx-9.0'>hvm</type><nvram>/x</nvram>"
    more = "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>"
    notes = read_domain(domain(devices, os=os, more=more)).notes
    assert notes == (
        "devices that are not taken over: hostdev, sound, tpm",
        "the firmware's variables are not taken over: UEFI looks for the boot loader anew",
        "arguments for QEMU itself are not taken over",
        "the machine was pc-i440fx-9.0 and becomes q35 with virtio devices",
        "its disks were on ide: the system inside needs virtio drivers",
    )


BLOCK = DISK.replace("type='file'", "type='block'").replace("file=", "dev=")
CHAIN = DISK.replace(
    "<backingStore/>", "<backingStore type='file'><source file='/b'/></backingStore>"
)
REFUSED = {
    "not XML": (b"<domain", "no XML"),
    "another document": (b"<network/>", "not a libvirt"),
    "containers": (domain(kind="lxc"), "'lxc'"),
    "another processor": (domain(os="<type arch='aarch64'>hvm</type>"), "aarch64"),
    "paravirtual": (domain(os="<type>xen</type>"), "of the kind"),
    "a kernel outside": (domain(os=f"{HVM}<kernel>/boot/vmlinuz</kernel>"), "kernel"),
    "no memory": (domain().replace(b"2097152", b""), "memory"),
    "endless memory": (domain().replace(b"2097152", b"9" * 19), "memory"),
    "too much memory": (domain().replace(b"2097152", b"9" * 12), "memory"),
    "an unknown unit": (domain().replace(b"KiB", b"acre"), "acre"),
    "no CPUs": (domain().replace(b">2<", b">0<"), "CPUs"),
    "a block device": (domain(BLOCK), "not a file"),
    "a relative path": (domain(DISK.replace("'/var", "'var")), "not a file"),
    "no source": (domain(DISK.replace("<source", "<nothing")), "not a file"),
    "a chain": (domain(CHAIN), "stands on another"),
    "encrypted": (domain(DISK.replace("<backingStore/>", "<encryption/>")), "encrypted"),
    "a passed-through drive": (domain(DISK.replace("device='disk'", "device='lun'")), "lun"),
    "one name twice": (domain(DISK * 2), "one name"),
    "too many disks": (domain(DISK * 65), "disks"),
    "too many cards": (domain(DISK + NIC * 65), "cards"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_taken_is_refused(name: str) -> None:
    content, said = REFUSED[name]
    assert said in why_refused(content)


def test_a_disk_that_is_elsewhere_by_now_is_not_looked_for() -> None:
    for each in (BLOCK, CHAIN):
        machine = read_domain(domain(each), root_file="/srv/new.qcow2")
        (disk,) = disks_to_take(machine, root_only=False)
        assert disk.source == "/srv/new.qcow2"


@pytest.mark.parametrize(
    "dtd",
    ['<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/shadow">]>', "<!DOCTYPE a>",
     '<!DOCTYPE a [<!ENTITY a "a"><!ENTITY b "&a;&a;&a;&a;&a;">]>'],
)  # fmt: skip
def test_entities_are_refused(dtd: str) -> None:
    content = domain(before=dtd).replace(b"web 1", b"&x;")
    assert "DTD or entities" in why_refused(content)


PIECES = st.sampled_from([
    DISK, CD, NIC, BLOCK, CHAIN, "<disk/>", "<disk device='floppy'/>", "<interface/>", "<x", "/>", "&x;", "\0",
    "<disk type='file'><boot order='-1'/></disk>", "<mac address='x'/>",
])  # fmt: skip


@given(st.lists(PIECES, max_size=6), st.sampled_from(["", HVM, "<type>hvm</type>", "<loader/>"]))
def test_any_mixture_is_a_machine_or_refused(devices: list[str], os: str) -> None:
    try:
        machine = read_domain(domain("".join(devices), os=os))
    except Invalid as error:
        assert error.code is Code.DEFINITION_REFUSED
        return
    disks = [each for each in machine.disks if each.media is ForeignMedia.DISK]
    assert not disks or disks[0].source.startswith("/")
    check_machine(machine)


# -- what it becomes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [("Web_01.example", "web-01-example"), ("01-x", "x"), ("Größe", "gr-e"), ("---", ""), ("", ""),
     ("x" * 99, "x" * 63), ("a" * 62 + "-b", "a" * 62)],
)  # fmt: skip
def test_names_become_guests_names(text: str, name: str) -> None:
    assert guest_name_from(text) == name


def image(**changes: object) -> Image:
    facts = {"name": "web", "digest": "", "kind": ImageKind.DISK, "created_at": 0.0, "size": 1}
    return Image(**{**facts, **changes})  # type: ignore[arg-type]


MACHINE = ForeignMachine(
    cpus=2, memory=GIB, disks=(ForeignDisk(name="vda", source="/x"),), macs=("52:54:00:00:00:01",)
)


def test_a_machine_becomes_a_guest() -> None:
    spec, notes = plan_guest(MACHINE, image(), name="web", cpus=0, memory=0)
    assert (spec.name, spec.image, spec.cpus, spec.memory) == ("web", "web", 2, GIB)
    assert (spec.firmware, notes) == (Firmware.BIOS, ())
    spec, _ = plan_guest(MACHINE, image(), name="web", cpus=1, memory=64 * MIB)
    assert (spec.cpus, spec.memory) == (1, 64 * MIB)


def test_what_is_different_is_said() -> None:
    machine = ForeignMachine(
        memory=MIB,
        disks=(*MACHINE.disks, ForeignDisk(name="vdb"), ForeignDisk(name="sda", source="/i", media=ForeignMedia.CDROM)),
    )  # fmt: skip
    spec, notes = plan_guest(machine, image(firmware=("uefi",)), name="web", cpus=0, memory=0)
    assert (spec.firmware, spec.memory) == (Firmware.UEFI, 16 * MIB)
    assert notes == (
        "its disk does not start with bios: it gets uefi",
        "its memory is raised to 16 MiB",
        "disks that are not taken over: vdb",
        "what is in its CD drive is not taken over",
        "it has no network card, and gets one",
    )


def test_disks_that_become_volumes_are_taken_over() -> None:
    machine = msgspec.structs.replace(
        MACHINE, disks=tuple(ForeignDisk(name=name, source="/x") for name in ("vda", "vdb", "vdc"))
    )
    _, notes = plan_guest(machine, image(), name="web", cpus=0, memory=0, taken=["vdb"])
    assert notes == ("disks that are not taken over: vdc",)


def test_a_medium_is_no_root_disk() -> None:
    with pytest.raises(Invalid, match="medium"):
        plan_guest(MACHINE, image(kind=ImageKind.CDROM), name="web", cpus=0, memory=0)


@pytest.mark.parametrize("note", ["x" * 5000, "a\x1b[2J"])
def test_a_machine_that_came_over_the_api_is_looked_at(note: str) -> None:
    with pytest.raises(Invalid):
        check_machine(ForeignMachine(notes=(note,)))
