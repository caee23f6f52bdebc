"""The async SDK: ``async with serai.aio.connect() as inn: guest = await inn.launch("tiny")``.

The twin of ``inn``: the same calls, results and errors, over ``httpx``.

This file is long because it has every call that there is, one after the other.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

from msgspec.structs import asdict

from serai.client import calls, copying, volume_calls
from serai.client.async_connection import AsyncConnection
from serai.client.blocking import OnProgress
from serai.client.calls import Call
from serai.client.definitions import import_call
from serai.client.files import pack_folder, read_pieces
from serai.client.network_words import (
    Limits,
    limits_of,
    network_change_of,
    network_of,
    port_change_of,
    port_of,
    ports_of,
    rules_of,
)
from serai.client.volumes_async import AsyncVolumeShelf
from serai.client.words import (
    Duration,
    EventReader,
    ForkOptions,
    Held,
    Result,
    ScheduleOptions,
    Size,
    change_of,
    choice_of,
    first_boot_of,
    fork_words,
    request_of,
    result_of,
    schedule_change_of,
    seconds_of,
    spec_of,
    tell_of_cleaning,
    when_of,
    wishes_of,
)
from serai.errors import SeraiError
from serai.model.catalogue import Catalogue
from serai.model.check import CheckReport
from serai.model.event import Event
from serai.model.firstboot import WaitFor
from serai.model.guest import Guest as GuestView
from serai.model.image import Image
from serai.model.job import Job
from serai.model.network import (
    Forward,
    ForwardSpec,
    Group,
    GroupChange,
    GroupSpec,
    Network,
    PortSpec,
    PortView,
    Protocol,
    Rule,
)
from serai.model.node import DaemonStatus
from serai.model.schedule import Judgement, Keep
from serai.model.schedule import Schedule as ScheduleView
from serai.model.snapshot import Snapshot as SnapshotView
from serai.model.volume import VolumeWish
from serai.settings import current_places
from serai.units import split_source


class AsyncGuest:
    """One guest; see ``serai.client.inn.Guest``."""

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
        deleting = (calls.delete_guest(each, force=True) for each in ids)
        tell_of_cleaning(await self._connection.finish_all(deleting), error)

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    async def state(self) -> str:
        """Ask for its state (of the blocking twin it is a property)."""
        return str((await self.refresh()).info.state)

    async def refresh(self) -> Self:
        """Ask how it is."""
        self.info = await self._connection.ask(calls.show_guest(self.id))
        return self

    async def _do(self, call: Call[Job]) -> Self:
        await self._connection.finish(call)
        return await self.refresh()

    async def start(self) -> Self:
        """Start it; fine if it runs."""
        return await self._do(calls.do_to_guest(self.id, "start"))

    async def stop(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it: gracefully within ``timeout`` seconds, then by force; at once with ``force``."""
        return await self._do(calls.stop_guest(self.id, force=force, timeout=timeout))

    async def restart(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it and start it anew."""
        return await self._do(calls.restart_guest(self.id, force=force, timeout=timeout))

    async def pause(self) -> Self:
        """Hold its virtual CPUs."""
        return await self._do(calls.do_to_guest(self.id, "pause"))

    async def resume(self) -> Self:
        """Let it go on."""
        return await self._do(calls.do_to_guest(self.id, "resume"))

    async def rename(self, name: str) -> Self:
        """Give it another name."""
        return await self._do(calls.rename_guest(self.id, name))

    async def set(
        self,
        *,
        cpus: int | None = None,
        memory: Size | None = None,
        disk: Size | None = None,
        restart: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Change it: at once where it can be, else from the next start."""
        change = change_of(cpus=cpus, memory=memory, disk=disk, restart=restart, labels=labels)
        return await self._do(calls.change_guest(self.id, change))

    async def delete(self, *, force: bool = False) -> None:
        """Delete it and its volumes; with ``force`` even if it runs."""
        await self._connection.finish(calls.delete_guest(self.id, force=force))

    async def insert(self, image: str, *, force: bool = False) -> Self:
        """Put an installation medium into its CD drive."""
        return await self._do(volume_calls.insert_medium(self.id, image, force=force))

    async def eject(self, *, force: bool = False) -> Self:
        """Take what is in its CD drive out."""
        return await self._do(volume_calls.eject_medium(self.id, force=force))

    async def ports(self) -> list[PortView]:
        """Return its ports, with what has passed them; one without any has QEMU's own network."""
        return (await self._connection.ask(calls.list_ports(self.id))).items

    async def add_port(self, network: str | PortSpec, **limits: Unpack[Limits]) -> PortView:
        """Attach it to a network, at once if it runs: ``"web"``, ``"web,address=10.20.0.10,group=www"``.

        ``limits``: rate_in, rate_out (bytes a second), burst_in, burst_out; "10MiB" or bytes.
        """
        spec = port_of(network, limits_of(limits)) if isinstance(network, str) else network
        [made] = (await self._connection.finish(calls.add_port(self.id, spec))).results
        return await self._connection.ask(calls.show_port(self.id, made))

    async def set_port(
        self, port: str, *, groups: Iterable[str] | None = None, **limits: Unpack[Limits]
    ) -> PortView:
        """Change the security groups of a port, or its limits (0 lifts one), at once."""
        shown = await self._connection.ask(calls.show_port(self.id, port))
        change = port_change_of(groups, limits_of(limits, shown.limits))
        await self._connection.finish(calls.change_port(self.id, shown.id, change))
        return await self._connection.ask(calls.show_port(self.id, shown.id))

    async def remove_port(self, port: str) -> None:
        """Take a port from it, at once if it runs."""
        await self._connection.finish(calls.remove_port(self.id, port))

    async def snapshot(
        self, name: str = "", *, memory: bool = True, quiesce: bool = False, note: str = ""
    ) -> "AsyncSnapshot":
        """Freeze it at this moment, its memory too if it runs, and let it go on."""
        call = calls.create_snapshot(self.id, name=name, memory=memory, quiesce=quiesce, note=note)
        [made] = (await self._connection.make(call)).results
        info = await self._connection.ask(calls.show_snapshot(self.id, made))
        return AsyncSnapshot(self._connection, info, self._held)

    async def snapshots(self) -> "list[AsyncSnapshot]":
        """Return its snapshots, each after the one that it was made on."""
        found: list[AsyncSnapshot] = []
        cursor = ""
        while True:
            page = await self._connection.ask(calls.list_snapshots(self.id, cursor))
            found += [AsyncSnapshot(self._connection, info, self._held) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    async def restore(self, snapshot: "AsyncSnapshot | str", *, force: bool = False) -> Self:
        """Put it back to a snapshot; with ``force`` also if work that is in none is lost."""
        name = snapshot if isinstance(snapshot, str) else snapshot.id
        return await self._do(calls.restore_snapshot(self.id, name, force=force))

    async def schedule(
        self, every: Duration, at: str = "", *, name: str = "", **how: Unpack[ScheduleOptions]
    ) -> "AsyncSchedule":
        """Have snapshots of it made by themselves; see ``serai.client.inn.Guest.schedule``."""
        call = calls.create_schedule(self.id, when_of(every, at), name=name, **how)
        [made] = (await self._connection.finish(call)).results
        info = await self._connection.ask(calls.show_schedule(self.id, made))
        return AsyncSchedule(self._connection, info)

    async def schedules(self) -> "list[AsyncSchedule]":
        """Return its schedules by name."""
        page = await self._connection.ask(calls.list_schedules(self.id))
        return [AsyncSchedule(self._connection, info) for info in page.items]

    @overload
    async def fork(self, **how: Unpack[ForkOptions]) -> "AsyncGuest": ...

    @overload
    async def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[AsyncGuest]": ...

    async def fork(
        self, count: int | None = None, **how: Unpack[ForkOptions]
    ) -> "AsyncGuest | list[AsyncGuest]":
        """Make new guests of it as it is now: one, or with ``count`` a list; see the twin."""
        call = calls.fork_guest(self.id, count=1 if count is None else count, **fork_words(**how))
        forks = await _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    async def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it as it is now; with its memory a warm one, if it runs."""
        call = calls.publish_image(self.id, image, memory=memory, replace=replace)
        await self._connection.make(call)
        return await self._connection.ask(calls.show_image(image))

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
        if len(request.stdin) > copying.INLINE_INPUT:
            path, from_file = copying.with_input_file(request)
            await self.push(request.stdin, path, mode=0o600)
            request = from_file
        return result_of(await self._connection.ask(calls.run_command(self.id, request)))

    async def push(self, source: Path | str | bytes, path: str, *, mode: int = 0o644) -> str:
        """Copy a local file or folder, or write ``bytes`` (with ``mode``); return the path there.

        A path that ends with ``/`` is a folder that gets the copy under its own name.
        """
        if isinstance(source, bytes):
            await self._push([source], path, mode=mode)
            return path
        local = Path(source)
        copying.must_exist(local)
        target = copying.target_in_guest(local, path)
        if local.is_dir():
            await self._push(pack_folder(local, _ignore), target, mode=0o755, unpack=True)
            return target
        try:
            await self._push_file(local, target)
        except SeraiError as error:
            if not copying.may_be_folder(error, path) or not await self._is_folder(path):
                raise
            target = copying.target_in_guest(local, f"{path}/")
            await self._push_file(local, target)
        return target

    async def _push_file(self, local: Path, target: str) -> None:
        with local.open("rb") as file:
            await self._push(read_pieces(file), target, mode=local.stat().st_mode & 0o777)

    async def _push(
        self, pieces: Iterable[bytes], path: str, *, mode: int, unpack: bool = False
    ) -> None:
        call = calls.push_file(self.id, path, mode=mode, unpack=unpack)
        await self._connection.send(call, _one_by_one(pieces))

    async def _is_folder(self, path: str) -> bool:
        request = copying.ask_whether_folder(path)
        return (await self._connection.ask(calls.run_command(self.id, request))).code == 0

    async def pull(self, path: str) -> bytes:
        """Return the content of a file in it."""
        return b"".join([chunk async for chunk in self._pieces(path, pack=False)])

    def _pieces(self, path: str, *, pack: bool) -> AsyncIterator[bytes]:
        return self._connection.stream(calls.pull_file(self.id, path, pack=pack))

    async def pull_to(self, path: str, target: Path | str) -> Path:
        """Copy a file or folder out of it and return where it is.

        A target that ends with ``/`` is a folder that gets the copy under its own name. What can't
        be trusted in a folder (devices, links that lead outside) is left out.
        """
        try:
            if not path.endswith("/"):
                with copying.receiving_file(path, str(target)) as (file, pulled):
                    async for chunk in self._pieces(path, pack=False):
                        file.write(chunk)
                return pulled.path
        except SeraiError as error:
            if not copying.may_be_folder(error, path) or not await self._is_folder(path):
                raise
        with copying.receiving_folder(path, str(target)) as (archive, pulled):
            async for chunk in self._pieces(path, pack=True):
                archive.write(chunk)
        return pulled.path

    async def log(self, *, tail: int | None = None) -> str:
        """Return what it printed on its serial console."""
        call = calls.show_log(self.id, tail=tail)
        pieces = [chunk async for chunk in self._connection.stream(call)]
        return b"".join(pieces).decode(errors="replace")

    async def screenshot(self) -> bytes:
        """Return what its screen shows, as PNG."""
        return await self._connection.ask(calls.take_screenshot(self.id))

    @property
    def console_path(self) -> str:
        """The address of the WebSocket of its serial console, on the daemon's socket."""
        return calls.console_path(self.id)

    async def vnc(self) -> str:
        """Return the path of the socket where a VNC viewer connects."""
        return (await self._connection.ask(calls.show_vnc(self.id))).socket


async def _made(connection: AsyncConnection, call: Call[Job], held: Held) -> list[AsyncGuest]:
    """Return the forks that a call makes; those of a guest that is held go with it."""
    ids = (await connection.make(call)).results
    if held is not None:
        held += ids
    infos = [await connection.ask(calls.show_guest(each)) for each in ids]
    return [AsyncGuest(connection, info, held) for info in infos]


class AsyncSnapshot:
    """One snapshot of a guest; see ``serai.client.inn.Snapshot``."""

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
        self.info = await self._connection.ask(calls.show_snapshot(self.info.guest_id, self.id))
        return self

    async def rename(self, name: str) -> Self:
        """Give it another name."""
        call = calls.change_snapshot(self.info.guest_id, self.id, name=name)
        await self._connection.finish(call)
        return await self.refresh()

    async def annotate(self, note: str) -> Self:
        """Give it another note."""
        call = calls.change_snapshot(self.info.guest_id, self.id, note=note)
        await self._connection.finish(call)
        return await self.refresh()

    async def restore(self, *, force: bool = False) -> AsyncGuest:
        """Put its guest back to it and return that; see ``AsyncGuest.restore``."""
        guest = self.info.guest_id
        await self._connection.finish(calls.restore_snapshot(guest, self.id, force=force))
        info = await self._connection.ask(calls.show_guest(guest))
        return AsyncGuest(self._connection, info, self._held)

    async def delete(self) -> None:
        """Delete it; what others stand on stays."""
        await self._connection.finish(calls.delete_snapshot(self.info.guest_id, self.id))

    @overload
    async def fork(self, **how: Unpack[ForkOptions]) -> "AsyncGuest": ...

    @overload
    async def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[AsyncGuest]": ...

    async def fork(
        self, count: int | None = None, **how: Unpack[ForkOptions]
    ) -> "AsyncGuest | list[AsyncGuest]":
        """Make new guests of it: one, or with ``count`` a list; see the twin."""
        call = calls.fork_guest(
            self.info.guest_id,
            snapshot=self.id,
            count=1 if count is None else count,
            **fork_words(**how),
        )
        forks = await _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    async def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it; with its memory, if it has one, a warm one."""
        call = calls.publish_image(
            self.info.guest_id, image, snapshot=self.id, memory=memory, replace=replace
        )
        await self._connection.make(call)
        return await self._connection.ask(calls.show_image(image))


class AsyncSchedule:
    """One schedule of a guest; see ``serai.client.inn.Schedule``."""

    def __init__(self, connection: AsyncConnection, info: ScheduleView) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncSchedule {self.info.guest} {self.info.name}>"

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
        self.info = await self._connection.ask(calls.show_schedule(self.info.guest_id, self.id))
        return self

    async def set(self, every: Duration = "", at: str = "", **how: Unpack[ScheduleOptions]) -> Self:
        """Change it; what is not given stays as it is."""
        return await self._change(every=every, at=at, **how)

    async def pause(self) -> Self:
        """Hold it."""
        return await self._change(paused=True)

    async def resume(self) -> Self:
        """Let it go on; what it missed is not caught up."""
        return await self._change(paused=False)

    async def _change(self, **change: Any) -> Self:
        call = calls.set_schedule(self.info.guest_id, self.id, schedule_change_of(**change))
        await self._connection.finish(call)
        return await self.refresh()

    async def run(self) -> str:
        """Do now what it does when it is due; return what was done, in a sentence."""
        job = await self._connection.finish(calls.run_schedule(self.info.guest_id, self.id))
        return job.message

    async def preview(self, keep: Keep | None = None) -> list[Judgement]:
        """Return which of its snapshots would stay, by its rules or by ``keep``; deletes nothing."""
        counts = {} if keep is None else asdict(keep)
        call = calls.judge_schedule(self.info.guest_id, self.id, **counts)
        return (await self._connection.ask(call)).items

    async def delete(self) -> None:
        """Delete it; the snapshots that it made stay."""
        await self._connection.finish(calls.delete_schedule(self.info.guest_id, self.id))


class AsyncInn(AsyncVolumeShelf):
    """A daemon, as the async SDK sees it; see ``serai.client.inn.Inn``."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connection."""
        await self.connection.close()

    async def status(self) -> DaemonStatus:
        """Return how the daemon is."""
        return await self.connection.ask(calls.show_system())

    async def guest(self, name: str) -> AsyncGuest:
        """Return a guest by name or id; NotFound."""
        return AsyncGuest(self.connection, await self.connection.ask(calls.show_guest(name)))

    async def guests(self, labels: Mapping[str, str] | None = None) -> list[AsyncGuest]:
        """Return all guests by name; only those with all of ``labels`` if some are given."""
        wanted = [f"{key}={value}" for key, value in (labels or {}).items()]
        found: list[AsyncGuest] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_guests(cursor, labels=wanted))
            found += [AsyncGuest(self.connection, info) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    async def snapshot(self, source: str) -> AsyncSnapshot:
        """Return a snapshot by ``GUEST@SNAPSHOT``; NotFound."""
        guest, name = split_source(source)
        info = await self.connection.ask(calls.show_snapshot(guest, name))
        return AsyncSnapshot(self.connection, info)

    async def schedules(self) -> list[AsyncSchedule]:
        """Return the schedules of all guests, by guest and name."""
        found: list[AsyncSchedule] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_schedules(cursor=cursor))
            found += [AsyncSchedule(self.connection, info) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    async def launch(
        self,
        image: str,
        *,
        ssh_keys: Sequence[Path | str] = (),
        user_data: Path | str = "",
        hostname: str = "",
        wait: bool = True,
        wait_for: str = "agent",
        ttl: Duration = 0.0,
        volumes: Sequence[str | VolumeWish] = (),
        networks: Iterable[str | PortSpec] = (),
        on_progress: OnProgress | None = None,
        **spec: Any,
    ) -> AsyncGuest:
        """Make a guest of an image, start it, and wait until its agent answers."""
        call = calls.launch_guest(
            spec_of(image, **spec),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
            wait_agent=wait,
            wait_for=choice_of(WaitFor, wait_for),
            ttl=seconds_of(ttl),
            volumes=wishes_of(volumes),
        )
        job = await self.connection.make(call, on_progress)
        return await self.guest(calls.guest_of(job))

    async def create(
        self,
        image: str,
        *,
        volumes: Sequence[str | VolumeWish] = (),
        networks: Iterable[str | PortSpec] = (),
        ssh_keys: Sequence[Path | str] = (),
        user_data: Path | str = "",
        hostname: str = "",
        **spec: Any,
    ) -> AsyncGuest:
        """Make a guest and leave it stopped; all as for ``launch``."""
        call = calls.launch_guest(
            spec_of(image, **spec),
            start=False,
            volumes=wishes_of(volumes),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
        )
        return await self.guest(calls.guest_of(await self.connection.make(call)))

    async def networks(self) -> list[Network]:
        """Return all networks by name."""
        found: list[Network] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_networks(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    async def network(self, name: str) -> Network:
        """Return a network; NotFound."""
        return await self.connection.ask(calls.show_network(name))

    async def create_network(self, name: str, **spec: Any) -> Network:
        """Make a network; ``spec``: mode ("nat", "bridge=br0", …), subnet, subnet6, dns, labels."""
        call = calls.create_network(network_of(name, **spec))
        return await self.network((await self.connection.make(call)).results[0])

    async def set_network(self, name: str, **change: Any) -> Network:
        """Change a network: dns, subnet6, labels."""
        call = calls.change_network(name, network_change_of(**change))
        return await self.network((await self.connection.finish(call)).results[0])

    async def delete_network(self, name: str) -> None:
        """Delete a network in which nobody is."""
        await self.connection.finish(calls.delete_network(name))

    async def groups(self) -> list[Group]:
        """Return all security groups by name."""
        found: list[Group] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_groups(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    async def group(self, name: str) -> Group:
        """Return a security group; NotFound."""
        return await self.connection.ask(calls.show_group(name))

    async def create_group(
        self, name: str, *, inward: Sequence[str] = (), outward: Sequence[str] = (), note: str = ""
    ) -> Group:
        """Make a security group; rules are written like ``tcp:80`` or ``any@group:web``."""
        spec = GroupSpec(name=name, rules=rules_of(inward, outward), note=note)
        job = await self.connection.make(calls.create_group(spec))
        return await self.group(job.results[0])

    async def change_group(
        self, name: str, *, add: Iterable[Rule] = (), remove: Iterable[Rule] = ()
    ) -> Group:
        """Let rules of a security group come and go, in one step, at all ports in it."""
        change = GroupChange(add=tuple(add), remove=tuple(remove))
        await self.connection.finish(calls.change_group(name, change))
        return await self.group(name)

    async def delete_group(self, name: str) -> None:
        """Delete a security group that nothing uses."""
        await self.connection.finish(calls.delete_group(name))

    async def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""
        return (await self.connection.ask(calls.list_forwards())).items

    async def add_forward(
        self,
        guest: str,
        host_port: int,
        guest_port: int = 0,
        *,
        protocol: str = "tcp",
        host_address: str = "",
        port: str = "",
    ) -> Forward:
        """Let a port of the host lead into a guest (the same number there, unless it is given)."""
        spec = ForwardSpec(
            guest=guest,
            host_port=host_port,
            guest_port=guest_port,
            protocol=choice_of(Protocol, protocol),
            host_address=host_address,
            port=port,
        )
        [made] = (await self.connection.finish(calls.add_forward(spec))).results
        return next(each for each in await self.forwards() if each.id == made)

    async def remove_forward(self, forward: str) -> None:
        """End a forward, given by its id."""
        await self.connection.finish(calls.remove_forward(forward))

    async def images(self) -> list[Image]:
        """Return all images by name."""
        found: list[Image] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_images(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    async def image(self, name: str) -> Image:
        """Return an image; NotFound."""
        return await self.connection.ask(calls.show_image(name))

    async def build_image(
        self, recipe: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Build ``tiny`` or ``debian``; ``more``: name, suite, include, replace."""
        call = calls.build_image(recipe, **more)
        return await self.image((await self.connection.finish(call, on_progress)).subject)

    async def import_image(
        self, source: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import an image; ``more``: name, sha256, kernel, initrd, cmdline, agent."""
        call = calls.import_image(source, **more)
        return await self.image((await self.connection.finish(call, on_progress)).subject)

    async def catalogue(self, index: str = "", *, sha256: str = "", key: str = "") -> Catalogue:
        """Return what an index of images offers; without one, what serai's own does.

        ``index`` is a URL or an absolute path, ``key`` the PEM text of the key that must have signed it.
        """
        return await self.connection.ask(calls.show_catalogue(index=index, sha256=sha256, key=key))

    async def pull_image(
        self, image: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import what an index has under ``NAME[:VERSION]``, unless it is there already.

        ``more``: index, index_sha256, key, name, replace.
        """
        job = await self.connection.finish(calls.pull_image(image, **more), on_progress)
        return await self.image(job.results[0])

    async def import_guest(
        self, source: Path | str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> AsyncGuest:
        """Define a guest from an OVA (file or URL) or from a libvirt domain's XML, and return it stopped.

        ``more``: name, disk (the root disk's file, where the XML names another), cpus, memory (bytes),
        root_only, sha256. A definition and its disk are opened here, with the rights of this process.
        """
        call = import_call(str(source), **more)
        return await self.guest(calls.guest_of(await self.connection.make(call, on_progress)))

    async def delete_image(self, name: str) -> None:
        """Delete an image that no guest is built on."""
        await self.connection.finish(calls.delete_image(name))

    async def export_image(self, name: str, target: Path | str, file: str = "all") -> None:
        """Write all of an image as a tar to ``target``, or one file of it (``disk``, ``kernel``)."""
        with copying.written_whole(Path(target)) as written:
            async for chunk in self.connection.stream(calls.export_image(name, file)):
                written.write(chunk)

    async def check(
        self, *, repair: bool = False, on_progress: OnProgress | None = None
    ) -> CheckReport:
        """Read everything that is stored and return what is wrong; see the twin."""
        call = calls.check_storage(repair=repair)
        return calls.report_of(await self.connection.finish(call, on_progress))

    async def jobs(self, state: str = "") -> list[Job]:
        """Return the newest jobs."""
        return (await self.connection.ask(calls.list_jobs(state))).items

    async def job(self, job_id: str) -> Job:
        """Return a job; NotFound."""
        return await self.connection.ask(calls.show_job(job_id))

    async def wait_job(self, job_id: str, *, on_progress: OnProgress | None = None) -> Job:
        """Wait for the end of a job and return it; raises the problem that ended it."""
        return await self.connection.finish(calls.show_job(job_id), on_progress)

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early, and return it as it is now."""
        return await self.connection.ask(calls.cancel_job(job_id))

    async def events(self, after: int = 0) -> list[Event]:
        """Return stored events with a number above ``after``."""
        return (await self.connection.ask(calls.list_events(after))).items

    async def watch(self, after: int | None = None) -> AsyncIterator[Event]:
        """Give events as they happen, those after ``after`` first; ends when the daemon ends."""
        reader = EventReader()
        async for chunk in self.connection.stream(calls.follow_events(after)):
            for event in reader.feed(chunk):
                yield event


def _ignore(_: str) -> None:
    """Take no notice of what is no file and was left out."""


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Give pieces of local files; reading them blocks for as long as the disk takes."""
    for piece in pieces:
        yield piece


def connect(socket: Path | str | None = None) -> AsyncInn:
    """Return the daemon of this environment (``SERAI_HOME``), or the one whose socket is given."""
    return AsyncInn(AsyncConnection(Path(socket) if socket else current_places().socket))
