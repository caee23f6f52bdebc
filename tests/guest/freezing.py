"""Guests that are frozen and forked, for the tests of ``serai.qemu``: a family and its parts."""

import contextlib
import dataclasses
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from instances import SOON, UID, Host, find_host, ping, tiny_machine, wait_inside

from serai.host.process import Confinement
from serai.host.supervise import wait_until
from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Machine, Media
from serai.model.talk import ExecRequest
from serai.qemu.instance import Instance, seal_memory
from serai.units import MIB

DISK = 32 * MIB


async def says(instance: Instance, script: str) -> str:
    """Return what a script prints in the guest."""
    request = ExecRequest(argv=["sh", "-c", script], timeout=SOON)
    result = await instance.agent.execute(request)
    assert result.code == 0, (script, result)
    return result.stdout.decode().strip()


@dataclass(frozen=True)
class Moment:
    """A guest's memory at one moment, as the engine keeps it."""

    state_fd: int
    pages_fd: int | None


@dataclass(frozen=True)
class Frozen:
    """A booted guest, frozen and gone: its memory, and the state of its devices."""

    machine: Machine
    base: int
    base_state: int

    def close(self) -> None:
        """Let go of both."""
        os.close(self.base)
        os.close(self.base_state)


@dataclass
class Family:
    """Everything that comes from one booted guest. ``base`` is its memory, once it is frozen."""

    host: Host
    tiny_state: Path
    machine: Machine
    base: int = -1
    base_state: int = -1
    _alive: list[Instance] = field(default_factory=list)
    _fds: list[int] = field(default_factory=list)
    _count: int = 0

    def folder(self) -> Host:
        """Make the folders of one more QEMU."""
        self._count += 1
        made = dataclasses.replace(self.host, folder=self.host.folder / str(self._count))
        made.run_dir.mkdir(mode=0o700, parents=True)
        made.state_dir.mkdir(mode=0o700)
        return made

    def memfd(self, name: str) -> int:
        """Make a file that lasts as long as the family."""
        self._fds.append(os.memfd_create(name, os.MFD_CLOEXEC))
        return self._fds[-1]

    def disk(self, *below: LayerFile, name: str = "root") -> Drive:
        """Make a drive with a new, empty head over the layers ``below``."""
        head = self.head(name)
        index = 1 if name == "root" else 2
        return Drive(name=name, media=Media.DISK, chain=(head, *below), boot_index=index)

    def head(self, name: str) -> LayerFile:
        """Make a new, empty head with a node name of its own."""
        self._count += 1
        path = self.host.folder / f"{name}-{self._count}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(DISK)], check=True)
        return LayerFile(path=str(path), format=DiskFormat.QCOW2, read_only=False, node=path.stem)

    async def boot(self, **more: object) -> Instance:
        """Boot the first of the family and wait for its agent."""
        self.machine = dataclasses.replace(self.machine, **more)  # type: ignore[arg-type]
        instance = await self.folder().start(self.machine)
        self._alive.append(instance)
        return await wait_inside(instance)

    async def prepare(self, machine: Machine, memory_fd: int, number: int = 0) -> Instance:
        """Start a QEMU that waits; ``number`` gives it a user of its own."""
        folder = self.folder()
        privileged = folder.capabilities.privileged
        confinement = Confinement(
            uid=UID + number if privileged else None,
            setpriv=folder.capabilities.setpriv_path,
            cgroup=None,
        )
        instance = await Instance.prepare(
            machine,
            memory_fd=memory_fd,
            taps={},
            capabilities=folder.capabilities,
            run_dir=folder.run_dir,
            state_dir=folder.state_dir,
            confinement=confinement,
            timeout=30.0,
        )
        self._alive.append(instance)
        return instance

    async def end(self, instance: Instance) -> None:
        """End one of the family."""
        self._alive.remove(instance)
        await instance.end(0.0)
        await instance.close()

    async def freeze_shared(self, old: Instance, **more: object) -> Instance:
        """Make a base of a booted guest's memory; return the QEMU that goes on with it."""
        self.base = old.memory_fd()
        self._fds.append(self.base)
        self.base_state = self.memfd("base state")
        machine = dataclasses.replace(old.machine, **more)  # type: ignore[arg-type]
        upcoming = await self.prepare(machine, self.base)
        async with old.agent.quiet(SOON):
            await old.freeze_shared(self.base_state, SOON)
            await upcoming.take_state(self.base_state, None, SOON)
            await upcoming.go_on()
            upcoming.take_agent(old)
        await self.end(old)
        seal_memory(self.base)
        return upcoming

    async def take_up(self, frozen: Frozen) -> Instance:
        """Let a frozen guest go on: as ``freeze_shared`` leaves it, without the boot."""
        self.machine = frozen.machine
        self.base, self.base_state = os.dup(frozen.base), os.dup(frozen.base_state)
        self._fds += [self.base, self.base_state]
        instance = await self.prepare(self.machine, self.base)
        await instance.take_state(self.base_state, None, SOON)
        await instance.go_on()
        await ping(instance, SOON)
        return instance

    async def freeze_private(
        self, instance: Instance, heads: dict[str, LayerFile] | None = None
    ) -> Moment:
        """Freeze a guest that has its memory privately; it goes on."""
        moment = Moment(self.memfd("state"), self.memfd("pages"))
        assert moment.pages_fd is not None
        async with instance.agent.quiet(SOON), instance.saving(SOON) as saving:
            await saving.catch_up()
            await instance.hold()
            if heads:
                await instance.switch_heads(heads)
            await saving.take(moment.pages_fd)
            await instance.go_on()
            await saving.finish(self.base_state, moment.state_fd, moment.pages_fd)
        return moment

    async def fork(
        self, moment: Moment | None, number: int = 1, *, drives: tuple[Drive, ...] = ()
    ) -> Instance:
        """Make a new guest of a moment, or of the base; its agent is asked for a sign of life."""
        machine = dataclasses.replace(
            self.machine, id=str(uuid.uuid4()), genid=str(uuid.uuid4()), drives=drives
        )
        moment = moment or Moment(self.base_state, None)
        instance = await self.prepare(machine, self.base, number)
        await instance.take_state(moment.state_fd, moment.pages_fd, SOON)
        await instance.go_on()
        await ping(instance, SOON)
        return instance

    async def close(self) -> None:
        """End all of the family."""
        for instance in list(self._alive):
            await self.end(instance)
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)


@asynccontextmanager
async def a_family(tiny_state: Path, folder: Path, **more: object) -> AsyncIterator[Family]:
    """Give a family that is gone after the block."""
    host = await find_host(tiny_state, folder)
    machine = tiny_machine(host, tiny_state, ram=str(uuid.uuid4()), **more)
    family = Family(host, tiny_state, machine)
    try:
        yield family
    finally:
        await family.close()


async def freeze_once(tiny_state: Path, folder: Path) -> Frozen:
    """Boot a guest and freeze it; what is returned is to be closed."""
    async with a_family(tiny_state, folder) as family:
        source = await family.freeze_shared(await family.boot())
        return Frozen(source.machine, os.dup(family.base), os.dup(family.base_state))


async def wait_for_disk(instance: Instance) -> Instance:
    """Wait until the guest has its disk."""

    async def is_there() -> bool:
        return await says(instance, "test -b /dev/vda && echo yes || echo no") == "yes"

    await wait_until("the disk", is_there, timeout=SOON, every=0.1)
    return instance
