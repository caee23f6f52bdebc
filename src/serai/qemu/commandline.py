"""From a complete machine and open descriptors to QEMU's command line: pure.

One small function a device. Descriptors are named as ``resources`` opened them: ``memory``, ``qmp``,
``agent``, ``birth``, ``console``, ``log``, ``kernel``, ``initrd``, ``uefi-vars``, ``tap:NIC`` for the taps, and
``DRIVE/LAYER`` for the files of a drive's chain (``root/0`` is the writable head, ``root/0:read-only`` the same once more). What QEMU opens as a file is given as an
fdset with the descriptor's own number (docs/design/0010). PCI places are fixed here, so that a
machine looks the same to its guest at every start; 0x10 and up are ports kept free for later.
Small devices that a QEMU was built without are left out; the machine says which it has.
"""

from collections.abc import Mapping

from serai.model.guest import Accel, Firmware
from serai.model.machine import SPARE, Drive, LayerFile, Machine, Media, Nic
from serai.qemu.events import AGENT_PORT_ID, BIRTH_PORT_ID
from serai.qemu.options import Option, Value

Fds = Mapping[str, int]

READ_ONLY = ":read-only"
"""Ends the name of a second descriptor of a file, with which QEMU makes it read-only later."""
AGENT_PORT = "org.qemu.guest_agent.0"
BIRTH_PORT = "org.serai.birth"
TCG_BUFFER_MIB = 256

PLACE_VGA = 0x1
PLACE_RNG = 0x2
PLACE_BALLOON = 0x3
PLACE_SERIAL_BUS = 0x4
PLACE_FIRST_NIC = 0x5
PLACE_FIRST_DISK = 0x8
PLACE_SPARE = 0x10
PORT_FIRST_CDROM = 2
PLACE_TABLET = 0x12
PLACE_SCSI = 0x1D
PLACE_SEED = 0x1E
SCSI = "scsi0"
NICS_LIMIT = PLACE_FIRST_DISK - PLACE_FIRST_NIC
DISKS_LIMIT = PLACE_SPARE - PLACE_FIRST_DISK
CDROMS_LIMIT = 4
SPARES_LIMIT = 12


def build_argv(machine: Machine, fds: Fds, qemu_path: str) -> list[str]:
    """Return the whole command line. Needs a descriptor for everything the machine has."""
    argv = [qemu_path]
    for option in build_options(machine, fds):
        argv += option.argv()
    return argv


def build_options(machine: Machine, fds: Fds) -> list[Option]:
    """Return all options in the order in which QEMU gets them."""
    options = [
        *_base(machine),
        *_memory_and_cpus(machine, fds),
        *_fdsets(fds),
        *_firmware(machine, fds),
        *_monitor(fds),
        *_console(fds),
        *_agent(fds),
        *(_birth_port(fds) if machine.birth_port else []),
        *_small_devices(machine),
    ]
    disks = [drive for drive in machine.drives if drive.media is Media.DISK]
    cdroms = [drive for drive in machine.drives if drive.media is Media.CDROM]
    assert sum(not disk.port for disk in disks) <= DISKS_LIMIT and len(cdroms) <= CDROMS_LIMIT
    on_root_bus = [nic for nic in machine.nics if not nic.place]
    assert len(on_root_bus) <= NICS_LIMIT and machine.spares <= SPARES_LIMIT
    for index, drive in enumerate(sorted(disks, key=lambda disk: bool(disk.port))):
        options += _disk(machine, drive, fds, PLACE_FIRST_DISK + index)
    for index, drive in enumerate(cdroms):
        options += _cdrom(drive, fds, PORT_FIRST_CDROM + index)
    options += _scsi_cdroms(machine, fds)
    for drive in machine.drives:
        options += _seed(machine, drive, fds) if drive.media is Media.SEED else []
    for index, nic in enumerate(on_root_bus):
        options += _nic(nic, fds, hex(PLACE_FIRST_NIC + index))
    for nic in machine.nics:
        if nic.place:
            options += _nic(nic, fds)
    return options + _kernel(machine, fds)


def in_fdset(name: str) -> bool:
    """Tell whether QEMU opens this descriptor by path (``/dev/fdset/N``) as it would a file."""
    return "/" in name or name in ("log", "uefi-vars")


def _base(machine: Machine) -> list[Option]:
    sandbox = {
        "obsolete": "deny",
        "elevateprivileges": "deny",
        "spawn": "deny",
        "resourcecontrol": "deny",
    }
    return [
        Option("name", {"guest": machine.name, "debug-threads": True}),
        Option("uuid", first=machine.id),
        Option("nodefaults"),
        Option("no-user-config"),
        Option("display", first="none"),
        Option("vnc", first="none"),
        Option("action", {"shutdown": "pause", "panic": "pause", "reboot": _on_reset(machine)}),
        Option("msg", {"timestamp": True}),
        *([Option("sandbox", sandbox, first="on")] if machine.sandbox else []),
        *([Option("S"), Option("incoming", first="defer")] if machine.ram_private else []),
    ]


def _on_reset(machine: Machine) -> str:
    """One that takes up a state has only the beginning of its kernel: it can't boot that again."""
    return "shutdown" if machine.ram_private and machine.kernel else "reset"


def _memory_and_cpus(machine: Machine, fds: Fds) -> list[Option]:
    keys: dict[str, Value] = {
        "memory-backend": "memory",
        "vmport": False,
        "dump-guest-core": False,
        "usb": False,
        # the description after a stream of devices is for people; nobody reads it here
        "suppress-vmdesc": True,
        "sata": machine.sata,
    }
    if machine.firmware is Firmware.UEFI:
        keys |= {"pflash0": "uefi-code", "pflash1": "uefi-vars"}
    memory: dict[str, Value] = {
        "qom-type": "memory-backend-file",
        "id": "memory",
        "mem-path": f"/proc/self/fd/{fds['memory']}",
        "size": machine.memory,
        "share": not machine.ram_private,
    }
    cpus = {"cpus": machine.cpus, "maxcpus": machine.max_cpus}
    return [
        Option("object", memory),
        Option("machine", keys, first=machine.machine_type),
        *_accel(machine.accel),
        Option("smp", {**cpus, "sockets": 1, "cores": machine.max_cpus, "threads": 1}),
        Option("m", {"size": f"{machine.memory}B"}),
        Option("rtc", {"base": "utc", "driftfix": "slew"}),
    ]


def _accel(accel: Accel) -> list[Option]:
    if accel is Accel.KVM:
        return [Option("accel", first="kvm"), Option("cpu", {"migratable": True}, first="host")]
    return [
        Option("accel", {"thread": "multi", "tb-size": TCG_BUFFER_MIB}, first="tcg"),
        # five-level paging makes each miss of the emulated TLB dearer, and nobody needs it
        Option("cpu", {"la57": False}, first="max"),
    ]


def _fdsets(fds: Fds) -> list[Option]:
    return [
        Option("add-fd", {"fd": fd, "set": fds[name.removesuffix(READ_ONLY)], "opaque": name})
        for name, fd in fds.items()
        if in_fdset(name)
    ]


def _firmware(machine: Machine, fds: Fds) -> list[Option]:
    if machine.firmware is not Firmware.UEFI:
        return []
    code: dict[str, Value] = {"driver": "file", "filename": machine.uefi_code}
    return [
        Option(
            "blockdev", {"driver": "raw", "node-name": "uefi-code", "read-only": True, "file": code}
        ),
        Option(
            "blockdev",
            {"driver": "raw", "node-name": "uefi-vars", "file": _file("uefi-vars", fds)},
        ),
    ]


def _file(name: str, fds: Fds) -> dict[str, Value]:
    return {"driver": "file", "filename": f"/dev/fdset/{fds[name]}"}


def _monitor(fds: Fds) -> list[Option]:
    return [_listening("qmp", fds), Option("mon", {"chardev": "qmp", "mode": "control"})]


def _listening(name: str, fds: Fds, **more: Value) -> Option:
    keys: dict[str, Value] = {"id": name, "fd": fds[name], "server": True, "wait": False, **more}
    return Option("chardev", keys, first="socket")


def _console(fds: Fds) -> list[Option]:
    log: dict[str, Value] = {"logfile": f"/dev/fdset/{fds['log']}", "logappend": True}
    return [
        _listening("console", fds, **log),
        Option("device", {"driver": "isa-serial", "chardev": "console", "id": "serial0"}),
    ]


def _agent(fds: Fds) -> list[Option]:
    bus: dict[str, Value] = {
        "driver": "virtio-serial-pci",
        "id": "serial-bus",
        "addr": hex(PLACE_SERIAL_BUS),
    }
    port: dict[str, Value] = {
        "driver": "virtserialport",
        "chardev": "agent",
        "id": AGENT_PORT_ID,
        "name": AGENT_PORT,
    }
    return [_listening("agent", fds), Option("device", bus), Option("device", port)]


def _birth_port(fds: Fds) -> list[Option]:
    port: dict[str, Value] = {
        "driver": "virtserialport",
        "chardev": "birth",
        "id": BIRTH_PORT_ID,
        "name": BIRTH_PORT,
    }
    return [_listening("birth", fds), Option("device", port)]


def _small_devices(machine: Machine) -> list[Option]:
    rng: dict[str, Value] = {"rng": "entropy", "id": "rng", "addr": hex(PLACE_RNG)}
    balloon: dict[str, Value] = {
        "id": "balloon",
        "deflate-on-oom": True,
        "free-page-reporting": True,
        "addr": hex(PLACE_BALLOON),
    }
    return [
        Option("object", {"qom-type": "rng-builtin", "id": "entropy"}),
        Option("object", {"qom-type": "iothread", "id": "io0"}),
        *_if_built_in(machine, "VGA", {"id": "vga", "addr": hex(PLACE_VGA)}),
        *_if_built_in(machine, "virtio-rng-pci", rng),
        *_if_built_in(machine, "virtio-balloon-pci", balloon),
        *_if_built_in(machine, "vmgenid", {"guid": machine.genid, "id": "genid"}),
        *_if_built_in(machine, "pvpanic", {"id": "panic"}),
        # without it a VNC viewer's pointer runs away; a USB one would make every boot longer
        *_if_built_in(machine, "virtio-tablet-pci", {"id": "tablet", "addr": hex(PLACE_TABLET)}),
        *(option for index in range(machine.spares) for option in _spare_port(machine, index)),
    ]


def _if_built_in(machine: Machine, driver: str, values: Mapping[str, Value]) -> list[Option]:
    """Give the device, unless it is known that this QEMU has none."""
    if machine.devices and driver not in machine.devices:
        return []
    return [Option("device", {"driver": driver, **values})]


def _spare_port(machine: Machine, index: int) -> list[Option]:
    """A port kept free, so that a device can be plugged into the running machine."""
    port: dict[str, Value] = {
        "id": f"{SPARE}{index}",
        "chassis": index + 1,
        "addr": hex(_place_of_spare(index)),
    }
    return _if_built_in(machine, "pcie-root-port", port)


def _place_of_spare(index: int) -> int:
    """The first two have their places from the first day; the tablet sits between them and the rest."""
    return PLACE_SPARE + index + (PLACE_SPARE + index >= PLACE_TABLET)


def _disk(machine: Machine, drive: Drive, fds: Fds, place: int) -> list[Option]:
    where: dict[str, Value] = {} if drive.port else {"addr": hex(place)}
    device = disk_device(drive, machine.queues) | where
    return [Option("blockdev", describe_chain(drive, fds)), Option("device", device)]


def disk_device(drive: Drive, queues: int) -> dict[str, Value]:
    """Describe the device of a disk (``Machine.queues``); one without a port still needs its address."""
    device: dict[str, Value] = {
        **_block_device(drive, queues),
        # a full host disk holds the guest until there is room; other errors are the guest's to see
        "werror": "enospc",
        "rerror": "report",
    }
    return device | ({"bus": drive.port} if drive.port else {})


def _cdrom(drive: Drive, fds: Fds, port: int) -> list[Option]:
    return _cd_drive(drive, fds, {"driver": "ide-cd", "bus": f"ide.{port}"})


def _cd_drive(drive: Drive, fds: Fds, where: dict[str, Value]) -> list[Option]:
    medium = [Option("blockdev", describe_chain(drive, fds))] if drive.chain else []
    return [*medium, Option("device", {**_attached(drive), **where})]


def _scsi_cdroms(machine: Machine, fds: Fds) -> list[Option]:
    """The drives by virtio-scsi, and their controller where there is one."""
    drives = [drive for drive in machine.drives if drive.media is Media.SCSI_CDROM]
    if not drives:
        return []
    bus: dict[str, Value] = {"driver": "virtio-scsi-pci", "id": SCSI, "addr": hex(PLACE_SCSI)}
    options = [Option("device", bus | ({"num_queues": machine.queues} if machine.queues else {}))]
    for number, drive in enumerate(drives):
        where: dict[str, Value] = {"driver": "scsi-cd", "bus": f"{SCSI}.0", "scsi-id": number}
        options += _cd_drive(drive, fds, where)
    return options


def _seed(machine: Machine, drive: Drive, fds: Fds) -> list[Option]:
    """Behind everything else, so that it comes and goes without moving anything."""
    device = _block_device(drive, machine.queues) | {"addr": hex(PLACE_SEED)}
    return [Option("blockdev", _chain(drive, fds, 0)), Option("device", device)]


def _block_device(drive: Drive, queues: int) -> dict[str, Value]:
    device: dict[str, Value] = {
        **_attached(drive),
        "driver": "virtio-blk-pci",
        "iothread": "io0",
    }
    return device | ({"num-queues": queues} if queues else {})


def _attached(drive: Drive) -> dict[str, Value]:
    values: dict[str, Value] = {"id": device_name(drive.name)}
    if drive.chain:
        values["drive"] = node_name(drive, 0)
    if drive.boot_index:
        values["bootindex"] = drive.boot_index
    return values | ({"serial": drive.serial} if drive.serial else {})


def describe_chain(drive: Drive, fds: Fds) -> dict[str, Value]:
    """Describe all layers of a drive, each inside the one above."""
    return _chain(drive, fds, 0)


def _chain(drive: Drive, fds: Fds, index: int) -> dict[str, Value]:
    """Describe a layer and, inside it, the one below; the last has no backing, whatever it says."""
    layer: LayerFile = drive.chain[index]
    node = block_node(layer, node_name(drive, index), fds[f"{drive.name}/{index}"])
    if index + 1 < len(drive.chain):
        node["backing"] = _chain(drive, fds, index + 1)
    return node


def block_node(layer: LayerFile, name: str, fdset: int) -> dict[str, Value]:
    """Describe one layer alone, to be opened from an fdset."""
    file: dict[str, Value] = {
        "driver": "file",
        "filename": f"/dev/fdset/{fdset}",
        "discard": "unmap",
        "aio": "threads",
    }
    node: dict[str, Value] = {
        "driver": str(layer.format),
        "node-name": name,
        "read-only": layer.read_only,
        "file": file,
    }
    if layer.read_only:
        file |= {
            "locking": "off"
        }  # it never changes, and who wrote to it once may still hold a lock
    else:
        node |= {"discard": "unmap", "detect-zeroes": "unmap"}
    if str(layer.format) == "qcow2":
        node["backing"] = None
    return node


def node_name(drive: Drive, index: int) -> str:
    """Return what a layer of a drive's chain is called in QEMU."""
    return drive.chain[index].node or (drive.name if index == 0 else f"{drive.name}-{index}")


def device_name(drive: str) -> str:
    """Return what the device of a drive is called in QEMU."""
    return f"{drive}-device"


def _nic(nic: Nic, fds: Fds, addr: str = "") -> list[Option]:
    netdev, device = build_netdev(nic, str(fds.get(tap_name(nic), ""))), build_nic(nic)
    return [Option("netdev", netdev), Option("device", device | ({"addr": addr} if addr else {}))]


def tap_name(nic: Nic) -> str:
    """Return the name of the descriptor of a NIC's tap."""
    return f"tap:{nic.name}"


def nic_device_name(nic: str) -> str:
    """Return what the device of a NIC is called in QEMU."""
    return f"{nic}-device"


def build_netdev(nic: Nic, fd: str) -> dict[str, Value]:
    """Describe the host's side of a NIC; ``fd`` is what QEMU knows the descriptor of its tap by."""
    if nic.tap or nic.place:
        return {"type": "tap", "id": nic.name, "fd": fd}
    return {"type": "user", "id": nic.name}


def build_nic(nic: Nic) -> dict[str, Value]:
    """Describe the guest's side of a NIC."""
    device: dict[str, Value] = {
        "driver": "virtio-net-pci",
        "netdev": nic.name,
        "id": nic_device_name(nic.name),
        "mac": nic.mac,
        "romfile": "",
    }
    return device | ({"bus": nic.place} if nic.place else {})


def _kernel(machine: Machine, fds: Fds) -> list[Option]:
    options = []
    if machine.kernel:
        options.append(Option("kernel", first=f"/proc/self/fd/{fds['kernel']}"))
    if machine.initrd:
        options.append(Option("initrd", first=f"/proc/self/fd/{fds['initrd']}"))
    if machine.cmdline:
        options.append(Option("append", first=machine.cmdline))
    return options
