"""OVF descriptors and manifests: what is read of them, and what hostile ones can't do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.model.foreign import ForeignDisk, ForeignMachine, ForeignMedia
from serai.model.guest import Firmware
from serai.plan.foreign import MOST_DISKS, disks_to_take, first_mac
from serai.plan.foreign_xml import MAX_XML
from serai.plan.ovf import Descriptor, is_file_name, read_manifest, read_ovf
from serai.units import GIB, MIB

RASD = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"


def item(kind: int, *, config: str = "", **values: object) -> str:
    inner = "".join(f"<rasd:{name}>{value}</rasd:{name}>" for name, value in values.items())
    where = f' ovf:configuration="{config}"' if config else ""
    return f"<Item{where}>{inner}<rasd:ResourceType>{kind}</rasd:ResourceType></Item>"


CPUS = item(3, VirtualQuantity=2)
MEMORY = item(4, AllocationUnits="byte * 2^20", VirtualQuantity=1024)
DRIVE = item(17, HostResource="ovf:/disk/d1", Parent=3, AddressOnParent=0)
FILES = '<File ovf:id="f1" ovf:href="web-disk1.vmdk" ovf:size="70144"/>'
DISKS = (
    '<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="8" ovf:capacityAllocationUnits="byte * 2^30"'
    ' ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>'
)


def ovf(
    items: str = CPUS + MEMORY + DRIVE,
    *,
    files: str = FILES,
    disks: str = DISKS,
    extra: str = "",
    before: str = "",
    system: str = "<Name>Web</Name>",
) -> bytes:
    return f"""<?xml version="1.0"?>{before}
    <Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
      xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="{RASD}"
      xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
      <References>{files}</References><DiskSection>{disks}</DiskSection>{extra}
      <VirtualSystem ovf:id="web">{system}<VirtualHardwareSection>{items}</VirtualHardwareSection>
      </VirtualSystem></Envelope>""".encode()


def why_refused(content: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        read_ovf(content)
    assert caught.value.code is Code.DEFINITION_REFUSED
    return caught.value.message


def test_a_machine_as_vmware_writes_it() -> None:
    nic = item(10, Address="00:50:56:AA:bb:cc", ResourceSubType="VmxNet3")
    firmware = '<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>'
    found = read_ovf(ovf(CPUS + MEMORY + item(6) + DRIVE + nic + item(15) + firmware))
    machine = found.machine
    assert (machine.name, machine.cpus, machine.memory) == ("Web", 2, GIB)
    assert (machine.firmware, machine.macs) == (Firmware.UEFI, ("00:50:56:aa:bb:cc",))
    disk, medium = machine.disks
    assert (disk.source, disk.size, disk.format) == ("web-disk1.vmdk", 8 * GIB, "vmdk")
    assert (medium.media, medium.source) == (ForeignMedia.CDROM, "")
    assert found.files == {"web-disk1.vmdk": 70144}
    assert disks_to_take(machine, root_only=False) == (disk,)


def test_a_machine_as_virtualbox_writes_it() -> None:
    """Storage items of their own kind, disks of capacity in bytes, its own section beside ours."""
    drive = item(17, HostResource="/disk/d1").replace("Item", "StorageItem")
    memory = item(4, AllocationUnits="MegaBytes", VirtualQuantity=512)
    disks = DISKS.replace(' ovf:capacityAllocationUnits="byte * 2^30"', "")
    adapters = '<Adapter slot="0" enabled="true" MACAddress="080027ABCDEF"/><Adapter slot="1" enabled="false"/>'
    hardware = f'<Firmware type="EFI"/><Network>{adapters}</Network>'
    system = f"<vbox:Machine><Hardware>{hardware}</Hardware></vbox:Machine>"
    items = CPUS + memory + drive + item(10, AutomaticAllocation="true")
    machine = read_ovf(ovf(items, disks=disks, system=system)).machine
    assert machine.macs == ("08:00:27:ab:cd:ef",)
    assert (machine.name, machine.memory, machine.firmware) == ("web", 512 * MIB, Firmware.UEFI)
    assert machine.disks[0].size == 8


def test_of_several_configurations_the_default_is_taken() -> None:
    extra = (
        '<DeploymentOptionSection><Configuration ovf:id="small"/>'
        '<Configuration ovf:id="big" ovf:default="true"/></DeploymentOptionSection>'
    )
    both = item(3, config="small", VirtualQuantity=1) + item(3, config="big", VirtualQuantity=8)
    assert read_ovf(ovf(both + MEMORY + DRIVE, extra=extra)).machine.cpus == 8


def test_disks_are_ordered_by_controller_and_place() -> None:
    files = FILES + '<File ovf:id="f2" ovf:href="two.vmdk"/>'
    disks = DISKS + '<Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="9"/>'
    second = item(17, HostResource="ovf:/disk/d2", Parent=3, AddressOnParent=1)
    machine = read_ovf(ovf(CPUS + MEMORY + second + DRIVE, files=files, disks=disks)).machine
    assert [each.source for each in machine.disks] == ["web-disk1.vmdk", "two.vmdk"]
    assert disks_to_take(machine, root_only=False) == machine.disks
    assert disks_to_take(machine, root_only=True) == machine.disks[:1]


def test_no_disk_is_left_out_in_silence() -> None:
    disk = ForeignDisk(name="disk0", source="x.vmdk")
    many = ForeignMachine(disks=(disk,) * (MOST_DISKS + 1))
    absent = ForeignMachine(disks=(disk, ForeignDisk(name="disk1")))
    for machine, why in ((many, "10 disks, and a guest"), (absent, "'disk1' is not a file")):
        with pytest.raises(Invalid, match=why) as caught:
            disks_to_take(machine, root_only=False)
        assert "--root-only" in caught.value.hint
        assert disks_to_take(machine, root_only=True) == (disk,)
    with pytest.raises(Invalid, match="no disk"):
        disks_to_take(ForeignMachine(disks=(ForeignDisk(name="disk0"), disk)), root_only=True)


def test_what_is_not_taken_over_is_said() -> None:
    machine = read_ovf(ovf(CPUS + MEMORY + DRIVE + item(35) + item(14) + item(23))).machine
    assert machine.notes[0] == "devices that are not taken over: USB, a floppy drive, sound"


@pytest.mark.parametrize("address", ["", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x", "00:50:56"])
def test_an_address_that_is_none_is_not_kept(address: str) -> None:
    machine = read_ovf(ovf(CPUS + MEMORY + DRIVE + item(10, Address=address))).machine
    assert first_mac(machine) == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no XML"),
        (b"<a" + b"b" * MAX_XML, "more than"),
        (b"<domain/>", "not an OVF"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "no XML"),
        (ovf(files=FILES * 2), "beside it"),
        (ovf(files=FILES.replace("web-disk1.vmdk", "../../etc/shadow")), "beside it"),
        (ovf(files=FILES.replace("web-disk1.vmdk", "http://h/x.vmdk")), "beside it"),
        (ovf(files=FILES.replace("web-disk1.vmdk", "")), "beside it"),
        (ovf(files=FILES.replace("70144", "-1")), "size of"),
        (ovf(files=FILES.replace("/>", ' ovf:compression="gzip"/>')), "compressed"),
        (ovf(files=FILES.replace("/>", ' ovf:chunkSize="1"/>')), "pieces"),
        (ovf(files=FILES + FILES.replace("f1", "f2")), "twice"),
        (ovf(disks=DISKS.replace("/>", ' ovf:parentRef="d0"/>')), "change on another"),
        (ovf(disks=DISKS.replace('ovf:fileRef="f1"', "")), "no file"),
        (ovf(disks=DISKS.replace("2^30", "2^99")), "counts in"),
        (ovf(disks=DISKS.replace("byte * 2^30", "furlong")), "furlong"),
        (ovf(disks=""), "described nowhere"),
        (ovf(CPUS + DRIVE), "memory"),
        (ovf(CPUS + item(4, VirtualQuantity="9" * 30) + DRIVE), "memory"),
        (ovf(CPUS + item(4, VirtualQuantity="9" * 15) + DRIVE), "memory"),
        (ovf(item(3, VirtualQuantity=0) + MEMORY + DRIVE), "CPUs"),
        (ovf(item(3, VirtualQuantity="²") + MEMORY + DRIVE), "CPUs"),
        (ovf(CPUS + MEMORY + DRIVE * 2), "one file"),
        (ovf(CPUS + MEMORY + item(10) * 65 + DRIVE), "network cards"),
        (ovf(CPUS + MEMORY + DRIVE * 501), "devices"),
        (ovf(system=f"<Name>{'x' * 5000}</Name>"), "without an end"),
        (ovf().replace(b"VirtualSystem", b"VirtualSystemCollection"), "several machines"),
        (ovf().replace(b"VirtualHardwareSection", b"Other"), "hardware"),
    ],
)  # fmt: skip
def test_what_can_not_be_taken_is_refused(content: bytes, said: str) -> None:
    assert said in why_refused(content)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
DTDS = {
    "external": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/shadow">]>',
    "laughs": f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]>',
    "parameter": '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>',
    "public": '<!DOCTYPE a PUBLIC "x" "http://127.0.0.1:9/x">',
    "empty": "<!DOCTYPE a>",
}


@pytest.mark.parametrize("name", DTDS)
def test_entities_are_refused(name: str) -> None:
    assert "DTD or entities" in why_refused(ovf(before=DTDS[name], system="<Name>&l9;</Name>"))


def test_a_document_that_nests_without_end_ends() -> None:
    """What the reader of XML makes of it must also be freed again."""
    deep = b"<a>" * (MAX_XML // 8)
    assert "no XML" in why_refused(deep)
    assert "not an OVF" in why_refused(deep + b"</a>" * (MAX_XML // 8))


PIECES = st.sampled_from([
    CPUS, MEMORY, DRIVE, FILES, DISKS, item(10), item(17), item(4), item(3, VirtualQuantity="1e9"),
    "<Item/>", "<Item>", "</Item>", "&amp;", "&#0;", "<!--", "-->", "<![CDATA[", "]]>", "\ufffe", "<ovf:x/>",
])  # fmt: skip


@given(st.lists(PIECES, max_size=8), st.lists(PIECES, max_size=4), st.lists(PIECES, max_size=4))
def test_any_mixture_is_a_machine_or_refused(
    items: list[str], files: list[str], disks: list[str]
) -> None:
    content = ovf("".join(items), files="".join(files), disks="".join(disks))
    try:
        found = read_ovf(content)
    except Invalid as error:
        assert error.code is Code.DEFINITION_REFUSED
    else:
        check(found)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_machine_or_refused(content: bytes) -> None:
    try:
        read_ovf(content)
    except Invalid as error:
        assert error.code is Code.DEFINITION_REFUSED


def check(found: Descriptor) -> None:
    assert found.machine.memory % MIB == 0 < found.machine.memory
    assert all(is_file_name(name) for name in found.files)
    assert all(disk.source in {"", *found.files} for disk in found.machine.disks)


# -- the manifest ----------------------------------------------------------------------------------


def test_manifests_as_they_are_written() -> None:
    text = f"SHA256(a.ovf)= {'AB' * 32}\r\nSHA1 (b c.vmdk) = {'0' * 40}\n\nSHA512(d)= {'1' * 128}\n"
    assert read_manifest(text.encode()) == {
        "a.ovf": f"sha256:{'ab' * 32}", "b c.vmdk": f"sha1:{'0' * 40}", "d": f"sha512:{'1' * 128}",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["nonsense", f"SHA256(a)= {'0' * 40}", f"MD5(a)= {'0' * 32}", "\xff",
     f"SHA1(a)= {'0' * 40}\nSHA1(a)= {'1' * 40}"],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_manifest(text.encode("latin-1"))
    assert caught.value.code is Code.DEFINITION_REFUSED
