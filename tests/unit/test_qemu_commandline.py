"""The command line of sample machines, word for word: a change is seen as a diff.

``SERAI_GOLDEN=write pytest tests/unit/test_qemu_commandline.py`` (or ``make golden``) writes the
files beside this one anew. One line an option, quoted as a shell would need it.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from serai.model.guest import Accel, Firmware
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Machine, Media, Nic
from serai.qemu.commandline import READ_ONLY, build_argv, build_options, in_fdset
from serai.units import GIB, MIB

GOLDEN = Path(__file__).parent / "golden"
QEMU = "/usr/bin/qemu-system-x86_64"


def a_layer(name: str, *, head: bool = False, raw: bool = False) -> LayerFile:
    disk_format = DiskFormat.RAW if raw else DiskFormat.QCOW2
    return LayerFile(path=f"/srv/{name}", format=disk_format, read_only=not head)


TINY = Machine(
    id="0a1b2c3d-0000-4000-8000-000000000000",
    name="web1",
    machine_type="pc-q35-7.2",
    accel=Accel.TCG,
    cpus=1,
    max_cpus=2,
    memory=256 * MIB,
    firmware=Firmware.BIOS,
    genid="11111111-2222-4333-8444-555555555555",
    drives=(),
    nics=(Nic(name="net0", mac="52:54:00:00:00:01"),),
    kernel="/srv/kernel",
    initrd="/srv/initrd",
    cmdline="console=ttyS0 quiet",
    birth_port=True,
    queues=2,
)
ROOT = Drive(
    name="root",
    media=Media.DISK,
    chain=(a_layer("head.qcow2", head=True), a_layer("disk.qcow2")),
    boot_index=1,
    serial="0a1b2c3d-000-0",
)
DISK = dataclasses.replace(TINY, drives=(ROOT,), kernel="", initrd="", cmdline="")
MACHINES: Mapping[str, Machine] = {
    "tiny": TINY,
    "taps": dataclasses.replace(
        TINY,
        nics=(
            Nic(name="net0", mac="02:00:00:00:00:01", tap="st0", place="spare0"),
            Nic(name="net1", mac="02:00:00:00:00:02", place="spare2"),
        ),
        spares=4,
    ),
    "prepared": dataclasses.replace(
        TINY,
        ram="99999999-2222-4333-8444-555555555555",
        ram_private=True,
        drives=(
            dataclasses.replace(
                ROOT,
                chain=(
                    dataclasses.replace(a_layer("root-5.qcow2", head=True), node="root-5"),
                    dataclasses.replace(a_layer("layer.qcow2"), node="l0123456789abcdef"),
                    a_layer("disk.qcow2"),
                ),
            ),
        ),
    ),
    "bios-disk": DISK,
    "bios-medium": dataclasses.replace(
        DISK,
        drives=(
            *DISK.drives,
            Drive(
                name="cd0", media=Media.SCSI_CDROM, chain=(a_layer("i", raw=True),), boot_index=3
            ),
        ),
    ),
    "uefi-kvm-installer": dataclasses.replace(
        DISK,
        accel=Accel.KVM,
        cpus=4,
        max_cpus=8,
        memory=3 * GIB,
        firmware=Firmware.UEFI,
        uefi_code="/usr/share/OVMF/OVMF_CODE_4M.fd",
        uefi_vars="/srv/uefi-vars.fd",
        drives=(
            Drive(name="root", media=Media.DISK, chain=(a_layer("h", head=True),), boot_index=1),
            Drive(name="data1", media=Media.DISK, chain=(a_layer("d", head=True),), boot_index=2),
            Drive(name="cd0", media=Media.CDROM, chain=(a_layer("i", raw=True),), boot_index=3),
            Drive(name="seed", media=Media.SEED, chain=(a_layer("s", raw=True),), boot_index=4),
        ),
        nics=(
            Nic(name="net0", mac="52:54:00:00:00:01"),
            Nic(name="net1", mac="52:54:00:00:00:02"),
        ),
    ),
    "bare-qemu": dataclasses.replace(
        TINY,
        nics=(),
        sandbox=False,
        devices=frozenset({"virtio-rng-pci", "isa-serial"}),
        birth_port=False,
    ),
    "nasty": dataclasses.replace(
        TINY,
        name='a,b=c "d"\n\'é😀\\',
        cmdline='x="a,b" \n y=é',
        machine_type="pc-q35-7.2,usb=on",
        nics=(Nic(name="net0", mac='52",\n'),),
    ),
}


def descriptors(machine: Machine) -> dict[str, int]:
    """Return the descriptors of a start, numbered from 10 in the order in which they are opened."""
    names = ["memory", "qmp", "agent", *(["birth"] if machine.birth_port else []), "console", "log"]
    for drive in machine.drives:
        for index, layer in enumerate(drive.chain):
            names += [f"{drive.name}/{index}"]
            names += [] if layer.read_only else [f"{drive.name}/{index}{READ_ONLY}"]
    for name, path in (
        ("kernel", machine.kernel),
        ("initrd", machine.initrd),
        ("uefi-vars", machine.uefi_vars),
    ):
        names += [name] if path else []
    names += [f"tap:{nic.name}" for nic in machine.nics if nic.tap or nic.place]
    return {name: 10 + index for index, name in enumerate(names)}


def argv_of(machine: Machine) -> list[str]:
    return build_argv(machine, descriptors(machine), QEMU)


def rendered(argv: list[str]) -> str:
    """Return a command line as text, an option a line."""
    lines = [shlex.quote(argv[0])]
    for word in argv[1:]:
        if word.startswith("-") and word[1:2].isalpha():
            lines.append(word)
        else:
            lines[-1] += " " + shlex.quote(word)
    return "\n".join(lines) + "\n"


def options(machine: Machine, flag: str) -> list[Any]:
    """Return the values of all options ``flag``: JSON decoded, else as they stand."""
    argv = argv_of(machine)
    values = [argv[at + 1] for at, word in enumerate(argv[:-1]) if word == f"-{flag}"]
    return [json.loads(value) if value.startswith("{") else value for value in values]


@pytest.mark.parametrize("name", MACHINES)
def test_the_command_line_is_as_written(name: str) -> None:
    path = GOLDEN / f"{name}.argv"
    text = rendered(argv_of(MACHINES[name]))
    if os.environ.get("SERAI_GOLDEN") == "write":
        path.write_text(text)
    assert path.read_text() == text


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.argv")} == set(MACHINES)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_descriptor_is_used(machine: Machine) -> None:
    fds = descriptors(machine)
    argv = argv_of(machine)
    for name, fd in fds.items():
        if name.endswith(READ_ONLY):
            assert f"fd={fd},set={fds[name.removesuffix(READ_ONLY)]},opaque={name}" in argv
            continue
        where = f"/dev/fdset/{fd}" if in_fdset(name) else f"/proc/self/fd/{fd}"
        ways = where, f"fd={fd},", f'"fd":"{fd}"'
        used = [word for word in argv if any(way in word for way in ways)]
        assert used, f"{name} is passed for nothing"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_no_path_of_ours_reaches_qemu(machine: Machine) -> None:
    """QEMU opens nothing by path but its own firmware; our folders are closed to it."""
    text = " ".join(argv_of(machine))
    assert "/srv/" not in text


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_ids_and_places_are_unique(machine: Machine) -> None:
    devices = options(machine, "device")
    assert len({device["id"] for device in devices}) == len(devices)
    places = [device["addr"] for device in devices if "addr" in device]
    assert len(set(places)) == len(places)


def test_a_machine_looks_the_same_whatever_else_it_has() -> None:
    """What a guest has seen at a place stays there when drives and NICs come and go."""

    def places(machine: Machine) -> dict[str, str]:
        return {each["id"]: each.get("addr", "") for each in options(machine, "device")}

    full, less = places(MACHINES["uefi-kvm-installer"]), places(TINY)
    assert less == {name: full[name] for name in less}


def test_the_sandbox_is_complete() -> None:
    assert options(TINY, "sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]
    assert options(MACHINES["bare-qemu"], "sandbox") == []


def test_the_end_of_a_chain_has_no_backing_whatever_its_header_says() -> None:
    (root,) = options(DISK, "blockdev")
    assert root["backing"]["node-name"] == "root-1"
    assert root["backing"]["backing"] is None
    assert (root["read-only"], root["backing"]["read-only"]) == (False, True)


def test_a_layer_has_the_name_that_it_was_given() -> None:
    prepared = MACHINES["prepared"]
    (root,) = options(prepared, "blockdev")
    assert root["node-name"] == "root-5"
    assert root["backing"]["node-name"] == "l0123456789abcdef"
    assert root["backing"]["backing"]["node-name"] == "root-2"
    (disk,) = [each for each in options(prepared, "device") if each["id"] == "root-device"]
    assert disk["drive"] == "root-5"


def test_one_that_takes_up_a_state_waits_with_private_memory() -> None:
    prepared = MACHINES["prepared"]
    assert options(prepared, "incoming") == ["defer"]
    assert "-S" in argv_of(prepared)
    assert options(prepared, "object")[0]["share"] is False
    assert "reboot=shutdown" in options(prepared, "action")[0]
    disk_only = dataclasses.replace(prepared, kernel="", initrd="", cmdline="")
    assert "reboot=reset" in options(disk_only, "action")[0]


def test_only_a_full_disk_holds_a_guest() -> None:
    (disk,) = [each for each in options(DISK, "device") if each["driver"] == "virtio-blk-pci"]
    assert (disk["werror"], disk["rerror"]) == ("enospc", "report")


def test_memory_is_exact() -> None:
    odd = dataclasses.replace(TINY, memory=256 * MIB + 4096)
    assert options(odd, "m") == [f"size={odd.memory}B"]
    assert options(odd, "object")[0]["size"] == odd.memory


def test_a_device_that_qemu_lacks_is_left_out() -> None:
    drivers = {each["driver"] for each in options(MACHINES["bare-qemu"], "device")}
    assert drivers == {"isa-serial", "virtio-serial-pci", "virtserialport", "virtio-rng-pci"}


def test_a_name_is_one_value() -> None:
    (name,) = options(MACHINES["nasty"], "name")
    assert name == 'guest=a,,b=c "d"\n\'é😀\\,debug-threads=on'
    (append,) = options(MACHINES["nasty"], "append")
    assert append == 'x="a,b" \n y=é'
    (machine_type,) = options(MACHINES["nasty"], "machine")
    assert machine_type.startswith("pc-q35-7.2,,usb=on,memory-backend=")


def test_too_many_drives_are_our_own_mistake() -> None:
    many = tuple(dataclasses.replace(ROOT, name=f"d{number}") for number in range(9))
    machine = dataclasses.replace(DISK, drives=many)
    with pytest.raises(AssertionError):
        build_options(machine, descriptors(machine))
    fine = dataclasses.replace(DISK, drives=many[:8])
    build_options(fine, descriptors(fine))
