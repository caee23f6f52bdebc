"""Guests and their snapshots, as the async SDK has them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, overload

from serai.client import (
    guest_calls,
    image_calls,
    network_calls,
    snapshot_calls,
    transfers_async,
    volume_calls,
)
from serai.client.async_connection import AsyncConnection
from serai.client.calls import Call
from serai.client.network_words import Limits, limits_of, port_change_of, port_of
from serai.client.schedules_async import AsyncSchedule
from serai.client.words import (
    Duration,
    ForkOptions,
    Held,
    Result,
    ScheduleOptions,
    Size,
    change_of,
    fork_words,
    request_of,
    result_of,
    tell_of_cleaning,
    when_of,
)
from serai.model.guest import Guest as GuestView
from serai.model.image import Image
from serai.model.job import Job
from serai.model.network import PortSpec, PortView
from serai.model.snapshot import Snapshot as SnapshotView


class AsyncGuest:
    """One guest. ``info`` is how it was when it was last asked; ``refresh`` asks again.

    In a ``with`` block it is deleted at the end, whatever state it is in, and so are the forks that
    were made of it there, and theirs.
    """

    def __init__(self, connection: AsyncConnection, info: GuestView, held: Held = None) -> None:
        self._connection = connection
        self._held = held
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncGuest {self.info.name} {self.info.state}>"

    async def __aenter__(self) -> Self:
        self._held = []
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        ids = [*(self._held or ()), self.id]
        self._held = None
        deleting = (guest_calls.delete_guest(each, force=True) for each in ids)
        wrong = await self._connection.finish_all(deleting)
        tell_of_cleaning(wrong, error)

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    # blocking: @property
    async def state(self) -> str:
        """Its state now."""
        return str((await self.refresh()).info.state)

    async def refresh(self) -> Self:
        """Ask how it is."""
        self.info = await self._connection.ask(guest_calls.show_guest(self.id))
        return self

    async def _do(self, call: Call[Job]) -> Self:
        await self._connection.finish(call)
        return await self.refresh()

    async def start(self) -> Self:
        """Start it; fine if it runs."""
        return await self._do(guest_calls.do_to_guest(self.id, "start"))

    async def stop(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it: gracefully within ``timeout`` seconds, then by force; at once with ``force``."""
        return await self._do(guest_calls.stop_guest(self.id, force=force, timeout=timeout))

    async def restart(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it and start it anew."""
        return await self._do(guest_calls.restart_guest(self.id, force=force, timeout=timeout))

    async def pause(self) -> Self:
        """Hold its virtual CPUs."""
        return await self._do(guest_calls.do_to_guest(self.id, "pause"))

    async def resume(self) -> Self:
        """Let it go on."""
        return await self._do(guest_calls.do_to_guest(self.id, "resume"))

    async def rename(self, name: str) -> Self:
        """Give it another name."""
        return await self._do(guest_calls.rename_guest(self.id, name))

    async def set(
        self,
        *,
        cpus: int | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        restart: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Change it: at once where it can be, else from the next start (``info.notes`` says so)."""
        change = change_of(cpus=cpus, memory=memory, disk=disk, restart=restart, labels=labels)
        return await self._do(guest_calls.change_guest(self.id, change))

    async def delete(self, *, force: bool = False) -> None:
        """Delete it, its disks and its snapshots; with ``force`` even if it runs."""
        await self._connection.finish(guest_calls.delete_guest(self.id, force=force))

    async def insert(self, image: str, *, force: bool = False) -> Self:
        """Put an installation medium into its CD drive."""
        return await self._do(volume_calls.insert_medium(self.id, image, force=force))

    async def eject(self, *, force: bool = False) -> Self:
        """Take what is in its CD drive out."""
        return await self._do(volume_calls.eject_medium(self.id, force=force))

    async def ports(self) -> list[PortView]:
        """Return its ports, with what has passed them; one without any has QEMU's own network."""
        return (await self._connection.ask(network_calls.list_ports(self.id))).items

    async def add_port(self, network: str | PortSpec, **limits: Unpack[Limits]) -> PortView:
        """Attach it to a network, at once if it runs: ``"web"``, ``"web,address=10.20.0.10,group=www"``.

        ``limits``: rate_in, rate_out (bytes a second), burst_in, burst_out; "10MiB" or bytes.
        """
        spec = port_of(network, limits_of(limits)) if isinstance(network, str) else network
        [made] = (await self._connection.finish(network_calls.add_port(self.id, spec))).results
        return await self._connection.ask(network_calls.show_port(self.id, made))

    async def set_port(
        self, port: str, *, groups: Iterable[str] | None = None, **limits: Unpack[Limits]
    ) -> PortView:
        """Change the security groups of a port, or its limits (0 lifts one), at once."""
        shown = await self._connection.ask(network_calls.show_port(self.id, port))
        change = port_change_of(groups, limits_of(limits, shown.limits))
        await self._connection.finish(network_calls.change_port(self.id, shown.id, change))
        return await self._connection.ask(network_calls.show_port(self.id, shown.id))

    async def remove_port(self, port: str) -> None:
        """Take a port from it, at once if it runs."""
        await self._connection.finish(network_calls.remove_port(self.id, port))

    async def snapshot(
        self, name: str = "", *, memory: bool = True, quiesce: bool = False, note: str = ""
    ) -> "AsyncSnapshot":
        """Freeze it at this moment, its memory too if it runs, and let it go on.

        ``quiesce`` has its agent hold the file systems for the moment.
        """
        call = snapshot_calls.create_snapshot(
            self.id, name=name, memory=memory, quiesce=quiesce, note=note
        )
        [made] = (await self._connection.make(call)).results
        info = await self._connection.ask(snapshot_calls.show_snapshot(self.id, made))
        return AsyncSnapshot(self._connection, info, self._held)

    async def snapshots(self) -> "list[AsyncSnapshot]":
        """Return its snapshots, each after the one that it was made on."""
        found = await self._connection.all_of(partial(snapshot_calls.list_snapshots, self.id))
        return [AsyncSnapshot(self._connection, info, self._held) for info in found]

    async def restore(self, snapshot: "AsyncSnapshot | str", *, force: bool = False) -> Self:
        """Put it back to a snapshot; with ``force`` also if work that is in none is lost."""
        name = snapshot if isinstance(snapshot, str) else snapshot.id
        return await self._do(snapshot_calls.restore_snapshot(self.id, name, force=force))

    async def schedule(
        self, every: Duration, at: str = "", *, name: str = "", **how: Unpack[ScheduleOptions]
    ) -> AsyncSchedule:
        """Have snapshots of it made by themselves, and deleted again as ``keep`` says.

        ``every`` is ``hourly``, ``daily``, ``weekly`` or ``monthly``, ``at`` a time in that, UTC
        (":15", "03:30", "sun 03:30", "15 03:30"); or an interval ("15m" or seconds).
        """
        call = snapshot_calls.create_schedule(self.id, when_of(every, at), name=name, **how)
        [made] = (await self._connection.finish(call)).results
        info = await self._connection.ask(snapshot_calls.show_schedule(self.id, made))
        return AsyncSchedule(self._connection, info)

    async def schedules(self) -> list[AsyncSchedule]:
        """Return its schedules by name."""
        page = await self._connection.ask(snapshot_calls.list_schedules(self.id))
        return [AsyncSchedule(self._connection, info) for info in page.items]

    @overload
    async def fork(self, **how: Unpack[ForkOptions]) -> "AsyncGuest": ...

    @overload
    async def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[AsyncGuest]": ...

    async def fork(
        self, count: int | None = None, **how: Unpack[ForkOptions]
    ) -> "AsyncGuest | list[AsyncGuest]":
        """Make new guests of it as it is now; they share disk and memory with it, and it goes on.

        Without ``count`` one guest, with it a list of so many: ``name`` or ``name-1``, ``name-2``, ….
        ``keep_identity`` leaves each what the guest inside knows of itself, addresses too, in a bubble;
        with ``together``, other guests, so do they, and the list (``count`` is needed) has group after
        group, the forks of this guest first. ``ttl`` ("2h" or seconds) is when it is deleted by itself,
        ``wait`` false does not wait for its agent.
        """
        call = guest_calls.fork_guest(
            self.id, count=1 if count is None else count, **fork_words(**how)
        )
        forks = await _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    async def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it as it is now; with its memory a warm one, if it runs."""
        call = image_calls.publish_image(self.id, image, memory=memory, replace=replace)
        await self._connection.make(call)
        return await self._connection.ask(image_calls.show_image(image))

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 0.0,
    ) -> Result:
        """Run a command in it (a text by its shell) and return what became of it."""
        request = request_of(command, stdin=stdin, env=env, timeout=timeout)
        return result_of(await transfers_async.run(self._connection, self.id, request))

    async def push(self, source: Path | str | bytes, path: str, *, mode: int = 0o644) -> str:
        """Copy a local file or folder, or write ``bytes`` (with ``mode``); return the path there.

        A path that ends with ``/`` is a folder that gets the copy under its own name.
        """
        if isinstance(source, bytes):
            call = guest_calls.push_file(self.id, path, mode=mode, unpack=False)
            await self._connection.send(call, [source])
            return path
        return await transfers_async.push(self._connection, self.id, Path(source), path)

    async def pull(self, path: str) -> bytes:
        """Return the content of a file in it."""
        return await self._connection.collect(guest_calls.pull_file(self.id, path, pack=False))

    async def pull_to(self, path: str, target: Path | str) -> Path:
        """Copy a file or folder out of it and return where it is.

        A target that ends with ``/`` is a folder that gets the copy under its own name. What can't
        be trusted in a folder (devices, links that lead outside) is left out.
        """
        return (await transfers_async.pull(self._connection, self.id, path, str(target))).path

    async def log(self, *, tail: int | None = None) -> str:
        """Return what it printed on its serial console."""
        printed = await self._connection.collect(guest_calls.show_log(self.id, tail=tail))
        return printed.decode(errors="replace")

    async def screenshot(self) -> bytes:
        """Return what its screen shows, as PNG."""
        return await self._connection.ask(guest_calls.take_screenshot(self.id))

    @property
    def console_path(self) -> str:
        """The address of the WebSocket of its serial console, on the daemon's socket."""
        return guest_calls.console_path(self.id)

    async def vnc(self) -> str:
        """Return the path of the socket where a VNC viewer connects."""
        return (await self._connection.ask(guest_calls.show_vnc(self.id))).socket


async def _made(connection: AsyncConnection, call: Call[Job], held: Held) -> list[AsyncGuest]:
    """Return the forks that a call makes; those of a guest that is held go with it."""
    ids = (await connection.make(call)).results
    if held is not None:
        held += ids
    infos = [await connection.ask(guest_calls.show_guest(each)) for each in ids]
    return [AsyncGuest(connection, info, held) for info in infos]


class AsyncSnapshot:
    """One snapshot of a guest. ``info`` is how it was when it was last asked."""

    def __init__(self, connection: AsyncConnection, info: SnapshotView, held: Held = None) -> None:
        self._connection = connection
        self._held = held
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncSnapshot {self.info.guest}@{self.info.name} {self.info.state}>"

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name, unique in its guest."""
        return self.info.name

    async def refresh(self) -> Self:
        """Ask how it is."""
        self.info = await self._connection.ask(
            snapshot_calls.show_snapshot(self.info.guest_id, self.id)
        )
        return self

    async def rename(self, name: str) -> Self:
        """Give it another name."""
        call = snapshot_calls.change_snapshot(self.info.guest_id, self.id, name=name)
        await self._connection.finish(call)
        return await self.refresh()

    async def annotate(self, note: str) -> Self:
        """Give it another note."""
        call = snapshot_calls.change_snapshot(self.info.guest_id, self.id, note=note)
        await self._connection.finish(call)
        return await self.refresh()

    async def restore(self, *, force: bool = False) -> AsyncGuest:
        """Put its guest back to it and return that; see ``AsyncGuest.restore``."""
        guest = self.info.guest_id
        await self._connection.finish(snapshot_calls.restore_snapshot(guest, self.id, force=force))
        info = await self._connection.ask(guest_calls.show_guest(guest))
        return AsyncGuest(self._connection, info, self._held)

    async def delete(self) -> None:
        """Delete it; what others stand on stays."""
        await self._connection.finish(snapshot_calls.delete_snapshot(self.info.guest_id, self.id))

    @overload
    async def fork(self, **how: Unpack[ForkOptions]) -> "AsyncGuest": ...

    @overload
    async def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[AsyncGuest]": ...

    async def fork(
        self, count: int | None = None, **how: Unpack[ForkOptions]
    ) -> "AsyncGuest | list[AsyncGuest]":
        """Make new guests of it; as ``AsyncGuest.fork``."""
        call = guest_calls.fork_guest(
            self.info.guest_id,
            snapshot=self.id,
            count=1 if count is None else count,
            **fork_words(**how),
        )
        forks = await _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    async def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it; with its memory, if it has one, a warm one."""
        call = image_calls.publish_image(
            self.info.guest_id, image, snapshot=self.id, memory=memory, replace=replace
        )
        await self._connection.make(call)
        return await self._connection.ask(image_calls.show_image(image))
