"""One running QEMU, and all that can be done with it.

How it begins and ends is in ``life``. Not for: deciding anything about the guest (``engine``).
"""

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from serai.errors import Busy, Code, Conflict, HostFailure, SeraiError
from serai.host.borrow import borrow_taps
from serai.host.sockets import connect_unix
from serai.host.supervise import Supervisor
from serai.host.threads import in_own_thread
from serai.model.machine import Drive, LayerFile, Nic
from serai.model.volume import Limits
from serai.qemu import commands, drives, heads, nics
from serai.qemu.ahead import open_ahead
from serai.qemu.commandline import device_name, nic_device_name, node_name
from serai.qemu.commands import TIMEOUT, RunState
from serai.qemu.events import STREAM_DONE, InstanceEvent, InstanceEventKind
from serai.qemu.life import EARLY_END, Life
from serai.qemu.memory import (
    close_to_new_writers,
    open_ram,
    open_ram_file,
    ram_name,
    seal_base,
    seal_memory,
)
from serai.qemu.qmp import Monitor
from serai.qemu.resources import memory_name, socket_path
from serai.qemu.saving import Saving
from serai.qemu.screen import take_picture
from serai.qemu.words import gist

__all__ = [
    "Instance",
    "InstanceEvent",
    "InstanceEventKind",
    "RunState",
    "memory_name",
    "seal_memory",
]

STATE = "state"


class Instance(Life):
    """One running QEMU. Make it with ``start``, ``prepare`` or ``adopt``."""

    async def status(self, timeout: float = TIMEOUT) -> RunState:
        """Return what the guest is doing; Interrupted (``qmp-lost``) when QEMU does not say."""
        return await commands.query_status(await self._connected(timeout), timeout)

    async def go_on(self, timeout: float = TIMEOUT) -> None:
        """Let the virtual CPUs run."""
        monitor = await self._connected(timeout)
        await commands.cont(monitor, timeout)
        await self._lent.close_left(monitor, timeout)

    async def hold(self, timeout: float = TIMEOUT) -> None:
        """Hold the virtual CPUs."""
        await commands.stop(await self._connected(timeout), timeout)

    async def press_power(self, timeout: float = TIMEOUT) -> None:
        """Press the power button."""
        await commands.press_power(await self._connected(timeout), timeout)

    async def resize_drive(self, name: str, size: int, timeout: float = TIMEOUT) -> None:
        """Grow a drive to ``size`` bytes."""
        (drive,) = (drive for drive in self.machine.drives if drive.name == name)
        node = node_name(drive, 0)
        await commands.resize_block(await self._connected(timeout), node, size, timeout)

    async def set_balloon(self, size: int, timeout: float = TIMEOUT) -> None:
        """Ask the guest to live with ``size`` bytes of memory; ``memory`` says how far it is."""
        await commands.set_balloon(await self._connected(timeout), size, timeout)

    async def memory(self, timeout: float = TIMEOUT) -> int:
        """Return how many bytes of memory the guest has now, its balloon taken off."""
        return await commands.query_balloon(await self._connected(timeout), timeout)

    async def plug_cpus(self, count: int, timeout: float = TIMEOUT) -> None:
        """Plug CPUs in until there are ``count``; those that are there stay. ``machine`` counts them.

        The guest may still have to bring them up (``Agent.online_cpus``).
        """
        monitor = await self._connected(timeout)
        empty = await self._count_cpus(timeout)
        for slot in empty[: max(0, count - self.machine.cpus)]:
            await commands.plug_cpu(monitor, slot, timeout)
            self.machine = dataclasses.replace(self.machine, cpus=self.machine.cpus + 1)

    # -- the network -------------------------------------------------------------------------------

    async def plug_nic(self, nic: Nic, tap_fd: int, timeout: float = TIMEOUT) -> Nic:
        """Plug a NIC with this tap in, where there is room; ``machine`` has it. Return it with its place.

        The guest sees it when it looks. Raises Conflict (``needs-stop``) with no PCIe port free.
        """
        place = nics.free_place(self.machine)
        if not place:
            raise Conflict(
                Code.NEEDS_STOP,
                f"{self.machine.name} has no free place for another network port while it runs",
                hint=f"Stop it first, then it gets new ones: serai stop {self.machine.name}",
            )
        nic = dataclasses.replace(nic, place=place)
        await nics.plug(await self._connected(timeout), nic, tap_fd, timeout)
        self.machine = dataclasses.replace(self.machine, nics=(*self.machine.nics, nic))
        return nic

    async def unplug_nic(self, name: str, timeout: float = TIMEOUT) -> None:
        """Pull a NIC, once the guest has let go of it; ``machine`` has it no more."""
        (nic,) = (nic for nic in self.machine.nics if nic.name == name)
        device = nic_device_name(name)
        gone = self._leaving.setdefault(device, asyncio.Event())
        try:
            await nics.unplug(await self._connected(timeout), nic, gone, timeout)
        finally:
            self._leaving.pop(device, None)
        left = tuple(each for each in self.machine.nics if each.name != name)
        self.machine = dataclasses.replace(self.machine, nics=left)

    @contextmanager
    def tap_fds(self) -> Iterator[dict[str, int]]:
        """Share the taps that it has open, by interface, with a QEMU that is to go on in its place.

        Until that goes on it may take a packet from each, and delivers it then. Raises HostFailure
        (``permission``).
        """
        names = {nic.tap for nic in self.machine.nics if nic.tap}
        taps = borrow_taps(self.process.pid, names)
        try:
            yield taps
        finally:
            for fd in taps.values():
                os.close(fd)

    async def set_links(self, up: bool, timeout: float = TIMEOUT) -> None:
        """Pull the cables of all NICs that have a tap, or put them back."""
        monitor = await self._connected(timeout)
        for nic in self.machine.nics:
            if nic.tap:
                await commands.set_link(monitor, nic.name, up, timeout)

    async def set_user_links(self, up: bool, timeout: float = TIMEOUT) -> None:
        """Pull the cables of all NICs at QEMU's own network, or put them back."""
        monitor = await self._connected(timeout)
        for nic in self.machine.nics:
            if not nic.tap and not nic.place:
                await commands.set_link(monitor, nic.name, up, timeout)

    async def forward(self, netdev: str, forward: str, timeout: float = TIMEOUT) -> None:
        """Have QEMU's own network forward a port of the host (``tcp:ADDRESS:PORT-:PORT``)."""
        monitor = await self._connected(timeout)
        said = await commands.add_user_forward(monitor, netdev, forward, timeout)
        if said:
            raise HostFailure(
                Code.FORWARD_FAILED,
                f"QEMU can't forward {forward}: {said}",
                hint="Another program has the port, or it is below 1024 and QEMU is not root.",
            )

    async def end_forward(self, netdev: str, forward: str, timeout: float = TIMEOUT) -> None:
        """End such a forward; one that is not there has ended."""
        monitor = await self._connected(timeout)
        await commands.remove_user_forward(monitor, netdev, forward, timeout)

    # -- disks -------------------------------------------------------------------------------------

    async def switch_heads(self, new: Mapping[str, LayerFile], timeout: float = TIMEOUT) -> None:
        """Put a new, empty head over each drive named; ``machine`` says so afterwards.

        All at one moment, or none. The guest may run. Each head's ``node`` must be new in this
        machine, of 31 characters at most. On failure (HostFailure ``qmp-failed``,
        ``snapshot-unfit``) all is as before; after Interrupted (``qmp-lost``) ``active_nodes``
        tells.
        """
        monitor = await self._connected(timeout)
        self.machine = await heads.switch_heads(monitor, self._lent, self.machine, new, timeout)

    async def finish_switch(self, new: Mapping[str, LayerFile], timeout: float = TIMEOUT) -> bool:
        """Do as ``switch_heads``, where that may have been interrupted anywhere by our own end.

        Returns whether there was anything to do.
        """
        monitor, before = await self._connected(timeout), self.machine
        self.machine = await heads.finish_switch(monitor, self._lent, before, new, timeout)
        return self.machine != before

    async def active_nodes(self, timeout: float = TIMEOUT) -> dict[str, str]:
        """Return, for each drive, the name of the node that it reads and writes now."""
        return await heads.active_nodes(await self._connected(timeout), self.machine, timeout)

    async def busy_ports(self, timeout: float = TIMEOUT) -> set[str]:
        """Return the spare ports that nothing more can be plugged into."""
        return await drives.busy_ports(await self._connected(timeout), timeout)

    async def has_drive(self, name: str, timeout: float = TIMEOUT) -> bool:
        """Tell whether the device of a drive is in the machine, as QEMU has it."""
        return await drives.is_plugged(await self._connected(timeout), name, timeout)

    async def plugged_drives(self, timeout: float = TIMEOUT) -> set[str]:
        """Return the names of the drives that are plugged into ports, as QEMU has it."""
        return await drives.plugged(await self._connected(timeout), timeout)

    async def plug_drive(self, drive: Drive, timeout: float = TIMEOUT) -> None:
        """Plug a disk in; one that is there stays. ``machine`` says so afterwards.

        On failure (HostFailure ``qmp-failed``, ``file-failed``) all is as before.
        """
        monitor = await self._connected(timeout)
        if not await drives.is_plugged(monitor, drive.name, timeout):
            await drives.plug(monitor, self._lent, drive, self.machine.queues, timeout)
        others = tuple(each for each in self.machine.drives if each.name != drive.name)
        self.machine = dataclasses.replace(self.machine, drives=(*others, drive))

    async def unplug_drive(self, name: str, timeout: float) -> None:
        """Have the guest let a disk go and close its files; one that is gone is gone already.

        Raises Conflict (``volume-held``) when the guest does not let it go within ``timeout``; it may
        still do so later, and asking again finishes it then.
        """
        monitor = await self._connected(TIMEOUT)
        if await drives.is_plugged(monitor, name, TIMEOUT):
            await self._ask_to_let_go(monitor, device_name(name), timeout)
        for drive in self.machine.drives:
            if drive.name == name:
                await drives.close_chain(monitor, self._lent, drive, TIMEOUT)
        others = tuple(each for each in self.machine.drives if each.name != name)
        self.machine = dataclasses.replace(self.machine, drives=others)

    async def _ask_to_let_go(self, monitor: Monitor, device: str, timeout: float) -> None:
        gone = self._unplugging[device] = asyncio.get_running_loop().create_future()
        try:
            with contextlib.suppress(HostFailure):  # it is on its way already: wait for that
                await commands.unplug_device(monitor, device, TIMEOUT)
            async with asyncio.timeout(timeout):
                if await gone:
                    return
        except TimeoutError:
            pass
        finally:
            del self._unplugging[device]
        raise Conflict(
            Code.VOLUME_HELD,
            f"the guest did not let the disk go within {timeout:g} s",
            hint="Does its system run, and is the disk unmounted? Ask again, or stop the guest.",
        )

    async def limit_drive(self, name: str, limits: Limits, timeout: float = TIMEOUT) -> None:
        """Let a disk do so much a second from now on."""
        monitor = await self._connected(timeout)
        await commands.limit_device(monitor, device_name(name), limits, timeout)
        self.machine = dataclasses.replace(
            self.machine,
            drives=tuple(
                dataclasses.replace(each, limits=limits) if each.name == name else each
                for each in self.machine.drives
            ),
        )

    async def change_medium(self, drive: Drive, timeout: float, *, force: bool) -> None:
        """Have in a CD drive what ``drive`` has, perhaps nothing; ``machine`` says so afterwards.

        Raises Conflict (``volume-held``) when the guest has locked it, unless ``force``.
        """
        monitor = await self._connected(timeout)
        old = next(each for each in self.machine.drives if each.name == drive.name)
        await drives.change_medium(monitor, self._lent, old, drive, timeout, force=force)
        kept = tuple(drive if each is old else each for each in self.machine.drives)
        self.machine = dataclasses.replace(self.machine, drives=kept)

    # -- freezing and taking up --------------------------------------------------------------------

    @property
    def _ram_name(self) -> str:
        return ram_name(self.machine.ram or self.machine.id)

    def memory_fd(self) -> int:
        """Return a new descriptor of its memory file; the caller closes it.

        Of a guest that has its memory privately it is the base. Raises HostFailure
        (``permission``, ``snapshot-unfit``).
        """
        return open_ram_file(
            self.process.pid,
            self._ram_name,
            self.machine.memory,
            private=self.machine.ram_private,
        )

    def seal_base(self) -> None:
        """Seal the base that it has its memory on, where our own end came in between.

        Done already: fine. Raises HostFailure (``permission``, ``snapshot-unfit``).
        """
        seal_base(self.process.pid, self._ram_name, self.machine.memory)

    async def freeze_shared(self, state_fd: int, timeout: float) -> None:
        """Hold the guest and write its devices into ``state_fd``; its memory is frozen as it is.

        For a guest that was booted. The file's former content is gone; its offset is not used.
        Afterwards nobody else can get to write to its memory; ``seal_memory`` shuts this QEMU out
        too, once it has ended. On failure (HostFailure ``snapshot-unfit``, ``qmp-failed``,
        ``timeout``) the guest is held. In either case ``go_on`` lets it go on.
        """
        assert not self.machine.ram_private
        monitor = await self._connected(timeout)
        memory_fd = self.memory_fd()
        try:
            await commands.set_up_migration(monitor, timeout)
            await _give(monitor, state_fd, os.O_WRONLY, timeout)
            await self.hold(timeout)
            try:
                async with self._stream_over(monitor, timeout) as end:
                    await commands.save_stream(monitor, STATE, timeout)
            except BaseException:
                with contextlib.suppress(SeraiError):
                    await commands.cancel_stream(monitor, timeout)
                raise
            await _check_saved(monitor, end, timeout)
            close_to_new_writers(memory_fd)
        finally:
            os.close(memory_fd)

    async def take_state(self, state_fd: int, pages_fd: int | None, timeout: float) -> None:
        """Take a guest up: its changed pages, then its devices. It is held; ``go_on`` lets it run.

        For one that ``prepare`` made, once. Any number may read the same descriptors at once. On
        failure (HostFailure ``snapshot-corrupt``, ``snapshot-unfit`` with QEMU's words,
        ``permission``, ``timeout``) it is of no more use.
        """
        assert self.machine.ram_private
        monitor = await self._connected(timeout)
        if pages_fd is not None:
            with open_ram(self.process.pid, self._ram_name, self.machine.memory) as ram:
                await in_own_thread(ram.load, pages_fd)
        await _give(monitor, state_fd, os.O_RDONLY, timeout)
        async with self._stream_over(monitor, timeout) as end:
            await commands.load_stream(monitor, STATE, timeout)
        if end != [STREAM_DONE]:
            raise await self._not_taken_up()

    @asynccontextmanager
    async def saving(self, timeout: float) -> AsyncIterator[Saving]:
        """Save the guest, which has its memory privately; what to do within is told by ``Saving``.

        Much of its memory is copied already when this begins, if it has changed much. Raises HostFailure
        (``snapshot-unfit``, ``permission``, ``disk-full``).
        """
        assert self.machine.ram_private
        monitor = await self._connected(timeout)
        stack = contextlib.ExitStack()
        try:
            size = self.machine.memory
            ram = stack.enter_context(open_ram(self.process.pid, self._ram_name, size))
            saving = Saving(monitor, self._lent, ram, stack.enter_context(open_ahead(ram)), timeout)
            await saving.begin()
            yield saving
        finally:
            stack.close()  # without the caller's error: that is not one of looking into QEMU

    @asynccontextmanager
    async def _stream_over(self, monitor: Monitor, timeout: float) -> AsyncIterator[list[str]]:
        """Wait after the block until a stream has ended; how is in the list, if QEMU told it.

        Raises HostFailure (``timeout``).
        """
        told: list[str] = []
        async with Supervisor() as tasks:
            self._stream_end = asyncio.get_running_loop().create_future()
            try:
                yield told
                lost = tasks.start(monitor.wait_lost(), name="lost")
                ways: set[asyncio.Future[str] | asyncio.Task[None]] = {self._stream_end, lost}
                done, _ = await asyncio.wait(
                    ways, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                if self._stream_end.done():
                    told.append(self._stream_end.result())
            finally:
                self._stream_end = None
        if not done:
            raise HostFailure(
                Code.TIMEOUT, f"the state of the guest's devices took more than {timeout:g} s"
            )

    async def _not_taken_up(self) -> HostFailure:
        """Return the error for a state that QEMU refused; it ends then, and says why."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EARLY_END):
                await self.process.wait()
        words = self.last_words()
        return HostFailure(
            Code.SNAPSHOT_UNFIT,
            ": ".join(["QEMU can't take the guest's state up", *gist(words)]),
            details={"stderr": words},
        )

    def say_reborn(self, line: str) -> None:
        """Tell a guest that was taken up who it is; what waits for that in it reads it once it runs."""
        if self.machine.birth_port:
            self._birth.say(line)

    async def hear_reborn(self, nonce: str, timeout: float) -> None:
        """Wait until the guest, which runs, is who it was said to be (``BirthWire.hear``).

        Raises Busy (``agent-unavailable``) where it has no port for that.
        """
        if not self.machine.birth_port:
            raise Busy(Code.AGENT_UNAVAILABLE, "the guest has no port to be told at who it is")
        await self._birth.hear(nonce, timeout)

    async def waits_to_be_told(self) -> bool:
        """Tell whether something in the guest waits to be told who it is.

        Known once the guest runs in all its parts: until then it may be so in spite of False.
        """
        if self._is_birth_open or not self.machine.birth_port:
            return self._is_birth_open
        # it may have been opened while nobody listened
        return await commands.is_port_open(await self._connected(TIMEOUT), "birth", TIMEOUT)

    # -- looking -----------------------------------------------------------------------------------

    async def screenshot(self, timeout: float = TIMEOUT) -> bytes:
        """Return what the screen shows, as PNG."""
        return await take_picture(await self._connected(timeout), self._lent, timeout)

    async def add_vnc_client(self, viewer: socket.socket, timeout: float = TIMEOUT) -> None:
        """Let QEMU serve the connected VNC ``viewer``; the caller closes its own copy.

        From then on nothing of it goes through us: it stays when the daemon goes.
        """
        monitor = await self._connected(timeout)
        await commands.add_vnc_client(monitor, viewer.fileno(), timeout)

    async def open_console(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the serial console; one at a time is served, others wait."""
        return await connect_unix(socket_path(self.run_dir, "console"))


async def _give(monitor: Monitor, fd: int, flags: int, timeout: float) -> None:
    """Give QEMU a file to write or read from its beginning, apart from how far others are."""
    if flags == os.O_WRONLY:
        os.ftruncate(fd, 0)
    own = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    try:
        await commands.give_fd(monitor, STATE, own, timeout)
    finally:
        os.close(own)


async def _check_saved(monitor: Monitor, end: list[str], timeout: float) -> None:
    if end != [STREAM_DONE]:
        why = ""
        with contextlib.suppress(SeraiError):
            why = await commands.why_stream_failed(monitor, timeout)
        raise HostFailure(
            Code.SNAPSHOT_UNFIT,
            ": ".join(["QEMU did not write the guest's state", *([why] if why else [])]),
        )
