"""From record to machine: everything is filled, nothing is left to a default of QEMU."""

from dataclasses import fields
from pathlib import PurePath

import msgspec
import pytest
from msgspec import structs

from serai.errors import Code, SeraiError
from serai.model.guest import Accel, Firmware, GuestRecord, GuestSpec, Medium
from serai.model.image import DiskFormat, Image, ImageFile, ImageKind
from serai.model.machine import LayerFile, Media, Nic
from serai.model.network import Port
from serai.model.node import Capabilities
from serai.plan.machine import check_fit, nic_of, plan_machine, uid_of
from serai.plan.reborn import macs_of
from serai.plan.volume import PORTS
from serai.units import MIB

HOST = Capabilities(
    qemu_path="/usr/bin/qemu-system-x86_64",
    qemu_version="7.2.0",
    machine_type="pc-q35-7.2",
    accel=Accel.TCG,
    accel_reason="",
    uefi_code="/fw/code.fd",
    uefi_vars="/fw/vars.fd",
    sandbox=True,
    privileged=True,
    cpus=4,
)


def a_file(name: str) -> ImageFile:
    return ImageFile(name=name, size=1, digest="sha256:00")


def an_image(kind: ImageKind) -> Image:
    return Image(
        name="x",
        digest="sha256:ab",
        kind=kind,
        created_at=0.0,
        size=1,
        virtual_size=0 if kind is ImageKind.KERNEL else 64 * MIB,
        disk=None if kind is ImageKind.KERNEL else a_file("disk.qcow2"),
        kernel=a_file("kernel") if kind is ImageKind.KERNEL else None,
        initrd=a_file("initrd") if kind is ImageKind.KERNEL else None,
        cmdline="quiet" if kind is ImageKind.KERNEL else "",
        firmware=("bios", "uefi"),
        min_memory=64 * MIB,
    )


def a_record(**spec: object) -> GuestRecord:
    return GuestRecord(
        id="0a1b2c3d-0000-4000-8000-000000000000",
        number=7,
        version=1,
        created_at=0.0,
        spec=GuestSpec(image="x", name="web1", **spec),  # type: ignore[arg-type]
        image_digest="sha256:ab",
        machine_type="pc-q35-7.1",
        mac="52:54:00:00:00:07",
        genid="00000000-0000-4000-8000-000000000001",
    )


def plan(record: GuestRecord, image: Image, *volumes: tuple[LayerFile, ...]):
    return plan_machine(
        record,
        image,
        volumes,
        capabilities=HOST,
        image_folder=PurePath("/images/ab"),
        guest_folder=PurePath("/guests/7"),
    )


HEAD = LayerFile(path="/guests/7/root.qcow2", format=DiskFormat.QCOW2, read_only=False)
BASE = LayerFile(path="/images/ab/disk.qcow2", format=DiskFormat.QCOW2, read_only=True)


def test_a_kernel_image_is_loaded_by_qemu():
    machine = plan(a_record(), an_image(ImageKind.KERNEL))
    assert machine.kernel == "/images/ab/kernel"
    assert machine.initrd == "/images/ab/initrd"
    assert machine.cmdline == "quiet"
    assert machine.drives == ()


def test_the_machine_type_is_the_one_pinned_in_the_record():
    assert plan(a_record(), an_image(ImageKind.KERNEL)).machine_type == "pc-q35-7.1"


def test_a_disk_image_boots_from_its_root():
    machine = plan(a_record(), an_image(ImageKind.DISK), (HEAD, BASE))
    (root,) = machine.drives
    assert (root.name, root.media, root.boot_index) == ("root", Media.DISK, 1)
    assert root.chain == (HEAD, BASE)


def test_an_installation_medium_comes_after_the_empty_root():
    machine = plan(a_record(), an_image(ImageKind.CDROM), (HEAD,))
    assert [(drive.name, drive.boot_index) for drive in machine.drives] == [("root", 1), ("cd0", 2)]
    assert all(layer.read_only for layer in machine.drives[1].chain)


@pytest.mark.parametrize("kind", [ImageKind.DISK, ImageKind.KERNEL])
def test_a_system_that_is_there_has_its_drive_where_cloud_kernels_see_it(kind: ImageKind):
    record = structs.replace(a_record(), medium=Medium())
    drive = plan(record, an_image(kind), (HEAD,)).drives[-1]
    assert (drive.name, drive.media, drive.chain) == ("cd0", Media.SCSI_CDROM, ())


def test_what_is_told_at_the_first_boot_is_a_disk_of_its_own_and_the_last_to_boot_from():
    record = structs.replace(a_record(), seed="told")
    machine = plan(record, an_image(ImageKind.CDROM), (HEAD,))
    assert [(drive.name, drive.media) for drive in machine.drives] == [
        ("root", Media.DISK),
        ("cd0", Media.CDROM),
        ("seed", Media.SEED),
    ]
    seed = machine.drives[-1]
    assert seed.boot_index == 3
    assert [(layer.path, layer.read_only) for layer in seed.chain] == [("/guests/7/seed.iso", True)]


def test_cpus_can_grow_to_what_the_host_has():
    assert plan(a_record(cpus=1), an_image(ImageKind.KERNEL)).max_cpus == 4
    assert plan(a_record(cpus=8), an_image(ImageKind.KERNEL)).max_cpus == 8


def test_uefi_brings_firmware_and_variables_and_bios_none():
    uefi = plan(a_record(firmware=Firmware.UEFI), an_image(ImageKind.DISK), (HEAD,))
    assert (uefi.uefi_code, uefi.uefi_vars) == ("/fw/code.fd", "/guests/7/uefi-vars.fd")
    bios = plan(a_record(), an_image(ImageKind.DISK), (HEAD,))
    assert (bios.uefi_code, bios.uefi_vars) == ("", "")


def test_every_field_is_filled():
    machine = plan(a_record(), an_image(ImageKind.DISK), (HEAD,))
    assert all(getattr(machine, field.name) is not None for field in fields(machine))


def test_each_guest_has_a_uid_of_its_own_only_where_the_daemon_is_root():
    assert uid_of(a_record(), HOST, 1000) == 1007
    assert uid_of(a_record(), Capabilities(**{**as_dict(HOST), "privileged": False}), 1000) is None


def as_dict(capabilities: Capabilities) -> dict[str, object]:
    return {name: getattr(capabilities, name) for name in capabilities.__struct_fields__}


@pytest.mark.parametrize(
    ("firmware", "memory", "uefi_code", "code"),
    [
        (Firmware.BIOS, 32 * MIB, "/fw", Code.IMAGE_UNFIT),
        (Firmware.UEFI, 64 * MIB, "", Code.FIRMWARE_MISSING),
    ],
)
def test_what_does_not_fit_is_refused(firmware, memory, uefi_code, code):
    host = Capabilities(**{**as_dict(HOST), "uefi_code": uefi_code})
    with pytest.raises(SeraiError) as caught:
        check_fit(an_image(ImageKind.DISK), firmware, memory, host)
    assert caught.value.code is code
    assert caught.value.hint


def a_port(name: str, number: int) -> Port:
    return Port(
        id=f"p{number}",
        name=name,
        network="n",
        mac=f"02:00:00:00:00:{number:02x}",
        tap=f"st{number}",
    )


def test_each_port_can_be_pulled_and_there_is_room_for_more() -> None:
    record = msgspec.structs.replace(a_record(), ports=(a_port("net0", 1), a_port("net3", 2)))
    machine = plan(record, an_image(ImageKind.KERNEL))
    assert [(nic.name, nic.tap, nic.place) for nic in machine.nics] == [
        ("net0", "st1", "spare0"),
        ("net3", "st2", "spare1"),
    ]
    assert machine.spares == len(PORTS)
    alone = plan(a_record(), an_image(ImageKind.KERNEL))
    assert alone.nics == (Nic(name="net0", mac="52:54:00:00:00:07"),) and alone.spares == len(PORTS)


def test_a_frozen_nic_belongs_to_the_port_of_its_name() -> None:
    record = msgspec.structs.replace(a_record(), ports=(a_port("net0", 9),))
    frozen = Nic(name="net0", mac="02:00:00:00:00:01", tap="st1", place="spare1")
    assert nic_of(frozen, record) == Nic(
        name="net0", mac="02:00:00:00:00:09", tap="st9", place="spare1"
    )
    gone = Nic(name="net5", mac="02:00:00:00:00:05", tap="st5", place="spare0")
    assert nic_of(gone, record) == Nic(name="net5", mac=gone.mac, place="spare0")
    user = Nic(name="net0", mac="52:54:00:00:00:01")
    assert nic_of(user, record) == Nic(name="net0", mac="52:54:00:00:00:07")


def test_a_fork_gives_each_nic_its_own_address() -> None:
    parent = msgspec.structs.replace(a_record(), ports=(a_port("net0", 1), a_port("net1", 2)))
    child = msgspec.structs.replace(parent, mac="52:54:00:00:00:08", ports=(a_port("net0", 9),))
    assert macs_of(parent, child) == {
        "02:00:00:00:00:01": "02:00:00:00:00:09",
        "52:54:00:00:00:07": "52:54:00:00:00:08",
    }
