"""Real QEMUs for the tests of ``serai.qemu``: machines, hosts, and a block that ends what it starts."""

import asyncio
import contextlib
import dataclasses
import gc
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from serai.host.process import Confinement
from serai.host.tools import find_capabilities
from serai.model.guest import Firmware
from serai.model.machine import Machine, Nic
from serai.model.node import Capabilities
from serai.qemu.agent import NOTHING
from serai.qemu.instance import Instance, InstanceEvent, InstanceEventKind
from serai.settings import read_settings
from serai.units import MIB

UID = 1_879_048_192 + 50_000
BOOT_LIMIT = 60.0
SOON = 15.0


@dataclass(frozen=True)
class Host:
    """This host, a folder for one guest that only we may enter, and a blank machine for it."""

    capabilities: Capabilities
    folder: Path
    machine: Machine

    @property
    def uid(self) -> int | None:
        """The uid that its QEMU runs as; None: ours."""
        return UID if self.capabilities.privileged else None

    @property
    def confinement(self) -> Confinement:
        """What every QEMU of a test is confined to."""
        return Confinement(uid=self.uid, setpriv=self.capabilities.setpriv_path, cgroup=None)

    @property
    def run_dir(self) -> Path:
        """Where its sockets are."""
        return self.folder / "run"

    @property
    def state_dir(self) -> Path:
        """Where its logs are."""
        return self.folder / "state"

    def serial_log(self) -> str:
        """Return what the guest has printed."""
        return (self.state_dir / "serial.log").read_text(errors="replace")

    async def start(self, machine: Machine | None = None) -> Instance:
        """Start a QEMU; the caller ends it."""
        return await Instance.start(
            machine or self.machine,
            capabilities=self.capabilities,
            run_dir=self.run_dir,
            state_dir=self.state_dir,
            confinement=self.confinement,
            timeout=30.0,
        )

    @asynccontextmanager
    async def started(
        self, machine: Machine | None = None, **more: object
    ) -> AsyncIterator[Instance]:
        """Start a QEMU that is gone after the block."""
        changed = dataclasses.replace(machine or self.machine, **more)  # type: ignore[arg-type]
        instance = await self.start(changed)
        try:
            yield instance
        finally:
            await instance.end(0.0)
            await instance.close()


async def find_host(tiny_state: Path, folder: Path) -> Host:
    """Return this host with ``folder`` for a guest."""
    folder.chmod(0o700)
    (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    settings = read_settings({}, Path("/nonexistent"))
    capabilities = await find_capabilities(settings, tiny_state / "capabilities.json")
    machine = Machine(
        id="0a1b2c3d-0000-4000-8000-000000000000",
        name="blank",
        machine_type=capabilities.machine_type,
        accel=capabilities.accel,
        cpus=1,
        max_cpus=2,
        memory=128 * MIB,
        firmware=Firmware.BIOS,
        genid="00000000-0000-4000-8000-000000000001",
        drives=(),
        nics=(Nic(name="net0", mac="52:54:00:00:00:01"),),
        sandbox=capabilities.sandbox,
        devices=capabilities.devices,
        birth_port=True,
        queues=1,
    )
    return Host(capabilities, folder, machine)


def tiny_machine(host: Host, tiny_state: Path, **more: object) -> Machine:
    """Return the machine that boots the tiny image."""
    (folder,) = (tiny_state / "images").iterdir()
    image = json.loads((folder / "image.json").read_text())
    return dataclasses.replace(
        host.machine,
        name="tiny",
        kernel=str(folder / "kernel"),
        initrd=str(folder / "initrd"),
        cmdline=image["cmdline"],
        **more,  # type: ignore[arg-type]
    )


async def wait_event(
    instance: Instance, kind: InstanceEventKind, timeout: float = SOON
) -> InstanceEvent:
    """Read events until one of ``kind`` comes."""
    async with asyncio.timeout(timeout):
        while (event := await instance.next_event()).kind is not kind:
            pass
    return event


async def ping(instance: Instance, timeout: float) -> None:
    """Ask the agent inside the least that can be asked."""
    await instance.agent.wire.call("guest-ping", NOTHING, timeout=timeout)


async def wait_inside(instance: Instance) -> Instance:
    """Wait until the agent of a booting guest answers."""
    await wait_event(instance, InstanceEventKind.AGENT_OPENED, BOOT_LIMIT)
    await ping(instance, SOON)
    return instance


def own_children() -> set[str]:
    """Return the ids of the children of this process, also of those that nobody has waited for."""
    found = set[str]()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has ended meanwhile
            found.update((task / "children").read_text().split())
    return found


def descriptors_of(pid: int) -> dict[Path, str]:
    """Return what a process has open, by its place in ``/proc``."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[path] = os.readlink(path)
    return found


def lasting_descriptors(pid: int) -> list[str]:
    """Return what a QEMU has open, but no eventfds: those come and go with the guest's drivers."""
    return sorted(name for name in descriptors_of(pid).values() if name != "anon_inode:[eventfd]")


def memory_file(pid: int) -> os.stat_result:
    """Return the state of the guest's memory, which QEMU has open as a memfd."""
    found = [path for path, name in descriptors_of(pid).items() if "/memfd:serai-ram-" in name]
    return found[0].stat()


def own_descriptors() -> list[str]:
    """Return what this process has open, in words, without the list itself.

    What nobody refers to any more is not open: an earlier test may have left such.
    """
    gc.collect()
    found = []
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return found
