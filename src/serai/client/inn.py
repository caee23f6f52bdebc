"""The blocking SDK: ``with serai.connect() as inn: guest = inn.launch("tiny")``.

Every method asks the daemon and waits for the answer; what goes wrong is raised as one of the
classes in ``serai.errors``. The async twin is ``serai.aio``.
This file is long because it has every call that there is, one after the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

from msgspec.structs import asdict

from serai.client import calls, copying, volume_calls
from serai.client.blocking import Connection, OnProgress
from serai.client.definitions import import_call
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
from serai.client.volumes import VolumeShelf
from serai.client.words import (
    Duration,
    ForkOptions,
    Held,
    Result,
    ScheduleOptions,
    Size,
    change_of,
    choice_of,
    first_boot_of,
    fork_words,
    read_events,
    request_of,
    result_of,
    schedule_change_of,
    seconds_of,
    spec_of,
    tell_of_cleaning,
    when_of,
    wishes_of,
)
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


class Guest:
    """One guest. ``info`` is how it was when it was last asked; ``refresh`` asks again.

    In a ``with`` block it is deleted at the end, whatever state it is in, and so are the forks that
    were made of it there, and theirs.
    """

    def __init__(self, connection: Connection, info: GuestView, held: Held = None) -> None:
        self._connection = connection
        self._held = held
        self.info = info

    def __repr__(self) -> str:
        return f"<Guest {self.info.name} {self.info.state}>"

    def __enter__(self) -> Self:
        self._held = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        ids = [*(self._held or ()), self.id]
        self._held = None
        wrong = self._connection.finish_all(calls.delete_guest(each, force=True) for each in ids)
        tell_of_cleaning(wrong, error)

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def state(self) -> str:
        """Its state now."""
        return str(self.refresh().info.state)

    def refresh(self) -> Self:
        """Ask how it is."""
        self.info = self._connection.ask(calls.show_guest(self.id))
        return self

    def _do(self, call: calls.Call[Job]) -> Self:
        self._connection.finish(call)
        return self.refresh()

    def start(self) -> Self:
        """Start it; fine if it runs."""
        return self._do(calls.do_to_guest(self.id, "start"))

    def stop(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it: gracefully within ``timeout`` seconds, then by force; at once with ``force``."""
        return self._do(calls.stop_guest(self.id, force=force, timeout=timeout))

    def restart(self, *, force: bool = False, timeout: float = 0.0) -> Self:
        """Stop it and start it anew."""
        return self._do(calls.restart_guest(self.id, force=force, timeout=timeout))

    def pause(self) -> Self:
        """Hold its virtual CPUs."""
        return self._do(calls.do_to_guest(self.id, "pause"))

    def resume(self) -> Self:
        """Let it go on."""
        return self._do(calls.do_to_guest(self.id, "resume"))

    def rename(self, name: str) -> Self:
        """Give it another name."""
        return self._do(calls.rename_guest(self.id, name))

    def set(
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
        return self._do(calls.change_guest(self.id, change))

    def delete(self, *, force: bool = False) -> None:
        """Delete it and its volumes; with ``force`` even if it runs."""
        self._connection.finish(calls.delete_guest(self.id, force=force))

    def insert(self, image: str, *, force: bool = False) -> Self:
        """Put an installation medium into its CD drive."""
        return self._do(volume_calls.insert_medium(self.id, image, force=force))

    def eject(self, *, force: bool = False) -> Self:
        """Take what is in its CD drive out."""
        return self._do(volume_calls.eject_medium(self.id, force=force))

    def ports(self) -> list[PortView]:
        """Return its ports, with what has passed them; one without any has QEMU's own network."""
        return self._connection.ask(calls.list_ports(self.id)).items

    def add_port(self, network: str | PortSpec, **limits: Unpack[Limits]) -> PortView:
        """Attach it to a network, at once if it runs: ``"web"``, ``"web,address=10.20.0.10,group=www"``.

        ``limits``: rate_in, rate_out (bytes a second), burst_in, burst_out; "10MiB" or bytes.
        """
        spec = port_of(network, limits_of(limits)) if isinstance(network, str) else network
        [made] = (self._connection.finish(calls.add_port(self.id, spec))).results
        return self._connection.ask(calls.show_port(self.id, made))

    def set_port(
        self, port: str, *, groups: Iterable[str] | None = None, **limits: Unpack[Limits]
    ) -> PortView:
        """Change the security groups of a port, or its limits (0 lifts one), at once."""
        shown = self._connection.ask(calls.show_port(self.id, port))
        change = port_change_of(groups, limits_of(limits, shown.limits))
        self._connection.finish(calls.change_port(self.id, shown.id, change))
        return self._connection.ask(calls.show_port(self.id, shown.id))

    def remove_port(self, port: str) -> None:
        """Take a port from it, at once if it runs."""
        self._connection.finish(calls.remove_port(self.id, port))

    def snapshot(
        self, name: str = "", *, memory: bool = True, quiesce: bool = False, note: str = ""
    ) -> "Snapshot":
        """Freeze it at this moment, its memory too if it runs, and let it go on.

        ``quiesce`` has its agent hold the file systems for the moment.
        """
        call = calls.create_snapshot(self.id, name=name, memory=memory, quiesce=quiesce, note=note)
        [made] = self._connection.make(call).results
        info = self._connection.ask(calls.show_snapshot(self.id, made))
        return Snapshot(self._connection, info, self._held)

    def snapshots(self) -> "list[Snapshot]":
        """Return its snapshots, each after the one that it was made on."""
        found: list[Snapshot] = []
        cursor = ""
        while True:
            page = self._connection.ask(calls.list_snapshots(self.id, cursor))
            found += [Snapshot(self._connection, info, self._held) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    def restore(self, snapshot: "Snapshot | str", *, force: bool = False) -> Self:
        """Put it back to a snapshot; with ``force`` also if work that is in none is lost."""
        name = snapshot if isinstance(snapshot, str) else snapshot.id
        return self._do(calls.restore_snapshot(self.id, name, force=force))

    def schedule(
        self, every: Duration, at: str = "", *, name: str = "", **how: Unpack[ScheduleOptions]
    ) -> "Schedule":
        """Have snapshots of it made by themselves, and deleted again as ``keep`` says.

        ``every`` is ``hourly``, ``daily``, ``weekly`` or ``monthly``, ``at`` a time in that, UTC
        (":15", "03:30", "sun 03:30", "15 03:30"); or an interval ("15m" or seconds).
        """
        call = calls.create_schedule(self.id, when_of(every, at), name=name, **how)
        [made] = self._connection.finish(call).results
        return Schedule(self._connection, self._connection.ask(calls.show_schedule(self.id, made)))

    def schedules(self) -> "list[Schedule]":
        """Return its schedules by name."""
        page = self._connection.ask(calls.list_schedules(self.id))
        return [Schedule(self._connection, info) for info in page.items]

    @overload
    def fork(self, **how: Unpack[ForkOptions]) -> "Guest": ...

    @overload
    def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[Guest]": ...

    def fork(self, count: int | None = None, **how: Unpack[ForkOptions]) -> "Guest | list[Guest]":
        """Make new guests of it as it is now; they share disk and memory with it, and it goes on.

        Without ``count`` one guest, with it a list of so many: ``name`` or ``name-1``, ``name-2``, ….
        ``keep_identity`` leaves each what the guest inside knows of itself, ``ttl`` ("2h" or seconds)
        is when it is deleted by itself, ``wait`` false does not wait for its agent.
        """
        call = calls.fork_guest(self.id, count=1 if count is None else count, **fork_words(**how))
        forks = _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it as it is now; with its memory a warm one, if it runs."""
        call = calls.publish_image(self.id, image, memory=memory, replace=replace)
        self._connection.make(call)
        return self._connection.ask(calls.show_image(image))

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 0.0,
    ) -> Result:
        """Run a command in it (a text by its shell) and return what became of it."""
        request = request_of(command, stdin=stdin, env=env, timeout=timeout)
        if len(request.stdin) <= copying.INLINE_INPUT:
            return result_of(self._connection.ask(calls.run_command(self.id, request)))
        path, from_file = copying.with_input_file(request)
        self.push(request.stdin, path, mode=0o600)
        return result_of(self._connection.ask(calls.run_command(self.id, from_file)))

    def push(self, source: Path | str | bytes, path: str, *, mode: int = 0o644) -> str:
        """Copy a local file or folder, or write ``bytes`` (with ``mode``); return the path there.

        A path that ends with ``/`` is a folder that gets the copy under its own name.
        """
        if isinstance(source, bytes):
            call = calls.push_file(self.id, path, mode=mode, unpack=False)
            self._connection.send(call, [source])
            return path
        return copying.push(self._connection, self.id, Path(source), path, _ignore)

    def pull(self, path: str) -> bytes:
        """Return the content of a file in it."""
        return b"".join(self._connection.stream(calls.pull_file(self.id, path, pack=False)))

    def pull_to(self, path: str, target: Path | str) -> Path:
        """Copy a file or folder out of it and return where it is.

        A target that ends with ``/`` is a folder that gets the copy under its own name. What can't
        be trusted in a folder (devices, links that lead outside) is left out.
        """
        return copying.pull(self._connection, self.id, path, str(target)).path

    def log(self, *, tail: int | None = None) -> str:
        """Return what it printed on its serial console."""
        return b"".join(self._connection.stream(calls.show_log(self.id, tail=tail))).decode(
            errors="replace"
        )

    def screenshot(self) -> bytes:
        """Return what its screen shows, as PNG."""
        return self._connection.ask(calls.take_screenshot(self.id))

    @property
    def console_path(self) -> str:
        """The address of the WebSocket of its serial console, on the daemon's socket."""
        return calls.console_path(self.id)

    def vnc(self) -> str:
        """Return the path of the socket where a VNC viewer connects."""
        return self._connection.ask(calls.show_vnc(self.id)).socket


def _made(connection: Connection, call: calls.Call[Job], held: Held) -> list[Guest]:
    """Return the forks that a call makes; those of a guest that is held go with it."""
    ids = connection.make(call).results
    if held is not None:
        held += ids
    return [Guest(connection, connection.ask(calls.show_guest(each)), held) for each in ids]


class Snapshot:
    """One snapshot of a guest. ``info`` is how it was when it was last asked."""

    def __init__(self, connection: Connection, info: SnapshotView, held: Held = None) -> None:
        self._connection = connection
        self._held = held
        self.info = info

    def __repr__(self) -> str:
        return f"<Snapshot {self.info.guest}@{self.info.name} {self.info.state}>"

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name, unique in its guest."""
        return self.info.name

    def refresh(self) -> Self:
        """Ask how it is."""
        self.info = self._connection.ask(calls.show_snapshot(self.info.guest_id, self.id))
        return self

    def rename(self, name: str) -> Self:
        """Give it another name."""
        call = calls.change_snapshot(self.info.guest_id, self.id, name=name)
        self._connection.finish(call)
        return self.refresh()

    def annotate(self, note: str) -> Self:
        """Give it another note."""
        call = calls.change_snapshot(self.info.guest_id, self.id, note=note)
        self._connection.finish(call)
        return self.refresh()

    def restore(self, *, force: bool = False) -> Guest:
        """Put its guest back to it and return that; see ``Guest.restore``."""
        guest = self.info.guest_id
        self._connection.finish(calls.restore_snapshot(guest, self.id, force=force))
        return Guest(self._connection, self._connection.ask(calls.show_guest(guest)), self._held)

    def delete(self) -> None:
        """Delete it; what others stand on stays."""
        self._connection.finish(calls.delete_snapshot(self.info.guest_id, self.id))

    @overload
    def fork(self, **how: Unpack[ForkOptions]) -> "Guest": ...

    @overload
    def fork(self, count: int, **how: Unpack[ForkOptions]) -> "list[Guest]": ...

    def fork(self, count: int | None = None, **how: Unpack[ForkOptions]) -> "Guest | list[Guest]":
        """Make new guests of it; as ``Guest.fork``."""
        call = calls.fork_guest(
            self.info.guest_id,
            snapshot=self.id,
            count=1 if count is None else count,
            **fork_words(**how),
        )
        forks = _made(self._connection, call, self._held)
        return forks[0] if count is None else forks

    def publish(self, image: str, *, memory: bool = True, replace: bool = False) -> Image:
        """Make an image of it; with its memory, if it has one, a warm one."""
        call = calls.publish_image(
            self.info.guest_id, image, snapshot=self.id, memory=memory, replace=replace
        )
        self._connection.make(call)
        return self._connection.ask(calls.show_image(image))


class Schedule:
    """One schedule of a guest. ``info`` is how it was when it was last asked."""

    def __init__(self, connection: Connection, info: ScheduleView) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<Schedule {self.info.guest} {self.info.name}>"

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name, unique in its guest."""
        return self.info.name

    def refresh(self) -> Self:
        """Ask how it is."""
        self.info = self._connection.ask(calls.show_schedule(self.info.guest_id, self.id))
        return self

    def set(self, every: Duration = "", at: str = "", **how: Unpack[ScheduleOptions]) -> Self:
        """Change it; what is not given stays as it is."""
        return self._change(every=every, at=at, **how)

    def pause(self) -> Self:
        """Hold it."""
        return self._change(paused=True)

    def resume(self) -> Self:
        """Let it go on; what it missed is not caught up."""
        return self._change(paused=False)

    def _change(self, **change: Any) -> Self:
        call = calls.set_schedule(self.info.guest_id, self.id, schedule_change_of(**change))
        self._connection.finish(call)
        return self.refresh()

    def run(self) -> str:
        """Do now what it does when it is due; return what was done, in a sentence."""
        return self._connection.finish(calls.run_schedule(self.info.guest_id, self.id)).message

    def preview(self, keep: Keep | None = None) -> list[Judgement]:
        """Return which of its snapshots would stay, by its rules or by ``keep``; deletes nothing."""
        counts = {} if keep is None else asdict(keep)
        call = calls.judge_schedule(self.info.guest_id, self.id, **counts)
        return self._connection.ask(call).items

    def delete(self) -> None:
        """Delete it; the snapshots that it made stay."""
        self._connection.finish(calls.delete_schedule(self.info.guest_id, self.id))


class Inn(VolumeShelf):
    """A daemon, as the SDK sees it. Make it with ``serai.connect()``."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self.connection.close()

    def status(self) -> DaemonStatus:
        """Return how the daemon is."""
        return self.connection.ask(calls.show_system())

    def guest(self, name: str) -> Guest:
        """Return a guest by name or id; NotFound."""
        return Guest(self.connection, self.connection.ask(calls.show_guest(name)))

    def guests(self, labels: Mapping[str, str] | None = None) -> list[Guest]:
        """Return all guests by name; only those with all of ``labels`` if some are given."""
        wanted = [f"{key}={value}" for key, value in (labels or {}).items()]
        found: list[Guest] = []
        cursor = ""
        while True:
            page = self.connection.ask(calls.list_guests(cursor, labels=wanted))
            found += [Guest(self.connection, info) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    def snapshot(self, source: str) -> Snapshot:
        """Return a snapshot by ``GUEST@SNAPSHOT``; NotFound."""
        guest, name = split_source(source)
        return Snapshot(self.connection, self.connection.ask(calls.show_snapshot(guest, name)))

    def schedules(self) -> list[Schedule]:
        """Return the schedules of all guests, by guest and name."""
        found: list[Schedule] = []
        cursor = ""
        while True:
            page = self.connection.ask(calls.list_schedules(cursor=cursor))
            found += [Schedule(self.connection, info) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    def launch(
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
    ) -> Guest:
        """Make a guest of an image, start it, and wait until its agent answers.

        ``spec``: name, cpus, memory ("256MiB" or bytes), disk, firmware, restart, labels. After
        ``ttl`` ("2h" or seconds; 0: never) it is deleted by itself. ``volumes`` are attached to it before
        it starts: each as ``--volume`` takes it, like "data,read-only" or "size=10GiB". ``networks`` are
        written like "web" or "web,address=10.20.0.10,group=www"; without any it has QEMU's own.
        ``ssh_keys`` (public ones, texts or files), ``user_data`` (a text or file) and ``hostname`` are
        for the image's cloud-init; ``wait_for`` is "agent", "ssh" or "cloud-init".
        """
        call = calls.launch_guest(
            spec_of(image, **spec),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
            wait_agent=wait,
            wait_for=choice_of(WaitFor, wait_for),
            ttl=seconds_of(ttl),
            volumes=wishes_of(volumes),
        )
        return self.guest(calls.guest_of(self.connection.make(call, on_progress)))

    def create(
        self,
        image: str,
        *,
        volumes: Sequence[str | VolumeWish] = (),
        networks: Iterable[str | PortSpec] = (),
        ssh_keys: Sequence[Path | str] = (),
        user_data: Path | str = "",
        hostname: str = "",
        **spec: Any,
    ) -> Guest:
        """Make a guest and leave it stopped; all as for ``launch``."""
        call = calls.launch_guest(
            spec_of(image, **spec),
            start=False,
            volumes=wishes_of(volumes),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
        )
        return self.guest(calls.guest_of(self.connection.make(call)))

    def networks(self) -> list[Network]:
        """Return all networks by name."""
        found: list[Network] = []
        cursor = ""
        while True:
            page = self.connection.ask(calls.list_networks(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    def network(self, name: str) -> Network:
        """Return a network; NotFound."""
        return self.connection.ask(calls.show_network(name))

    def create_network(self, name: str, **spec: Any) -> Network:
        """Make a network; ``spec``: mode ("nat", "bridge=br0", …), subnet, subnet6, dns, labels."""
        call = calls.create_network(network_of(name, **spec))
        return self.network((self.connection.make(call)).results[0])

    def set_network(self, name: str, **change: Any) -> Network:
        """Change a network: dns, subnet6, labels."""
        call = calls.change_network(name, network_change_of(**change))
        return self.network((self.connection.finish(call)).results[0])

    def delete_network(self, name: str) -> None:
        """Delete a network in which nobody is."""
        self.connection.finish(calls.delete_network(name))

    def groups(self) -> list[Group]:
        """Return all security groups by name."""
        found: list[Group] = []
        cursor = ""
        while True:
            page = self.connection.ask(calls.list_groups(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    def group(self, name: str) -> Group:
        """Return a security group; NotFound."""
        return self.connection.ask(calls.show_group(name))

    def create_group(
        self, name: str, *, inward: Sequence[str] = (), outward: Sequence[str] = (), note: str = ""
    ) -> Group:
        """Make a security group; rules are written like ``tcp:80`` or ``any@group:web``."""
        spec = GroupSpec(name=name, rules=rules_of(inward, outward), note=note)
        job = self.connection.make(calls.create_group(spec))
        return self.group(job.results[0])

    def change_group(
        self, name: str, *, add: Iterable[Rule] = (), remove: Iterable[Rule] = ()
    ) -> Group:
        """Let rules of a security group come and go, in one step, at all ports in it."""
        change = GroupChange(add=tuple(add), remove=tuple(remove))
        self.connection.finish(calls.change_group(name, change))
        return self.group(name)

    def delete_group(self, name: str) -> None:
        """Delete a security group that nothing uses."""
        self.connection.finish(calls.delete_group(name))

    def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""
        return (self.connection.ask(calls.list_forwards())).items

    def add_forward(
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
        [made] = (self.connection.finish(calls.add_forward(spec))).results
        return next(each for each in self.forwards() if each.id == made)

    def remove_forward(self, forward: str) -> None:
        """End a forward, given by its id."""
        self.connection.finish(calls.remove_forward(forward))

    def images(self) -> list[Image]:
        """Return all images by name."""
        found: list[Image] = []
        cursor = ""
        while True:
            page = self.connection.ask(calls.list_images(cursor))
            found += page.items
            cursor = page.next
            if not cursor:
                return found

    def image(self, name: str) -> Image:
        """Return an image; NotFound."""
        return self.connection.ask(calls.show_image(name))

    def build_image(
        self, recipe: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Build ``tiny`` or ``debian``; ``more``: name, suite, include, replace."""
        call = calls.build_image(recipe, **more)
        return self.image(self.connection.finish(call, on_progress).subject)

    def import_image(
        self, source: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import an image; ``more``: name, sha256, kernel, initrd, cmdline, agent."""
        call = calls.import_image(source, **more)
        return self.image(self.connection.finish(call, on_progress).subject)

    def catalogue(self, index: str = "", *, sha256: str = "", key: str = "") -> Catalogue:
        """Return what an index of images offers; without one, what serai's own does.

        ``index`` is a URL or an absolute path, ``key`` the PEM text of the key that must have signed it.
        """
        return self.connection.ask(calls.show_catalogue(index=index, sha256=sha256, key=key))

    def pull_image(
        self, image: str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Image:
        """Import what an index has under ``NAME[:VERSION]``, unless it is there already.

        ``more``: index, index_sha256, key, name, replace.
        """
        job = self.connection.finish(calls.pull_image(image, **more), on_progress)
        return self.image(job.results[0])

    def import_guest(
        self, source: Path | str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> Guest:
        """Define a guest from an OVA (file or URL) or from a libvirt domain's XML, and return it stopped.

        ``more``: name, disk (the root disk's file, where the XML names another), cpus, memory (bytes),
        root_only, sha256. A definition and its disk are opened here, with the rights of this process.
        """
        call = import_call(str(source), **more)
        return self.guest(calls.guest_of(self.connection.make(call, on_progress)))

    def delete_image(self, name: str) -> None:
        """Delete an image that no guest is built on."""
        self.connection.finish(calls.delete_image(name))

    def export_image(self, name: str, target: Path | str, file: str = "all") -> None:
        """Write all of an image as a tar to ``target``, or one file of it (``disk``, ``kernel``)."""
        with copying.written_whole(Path(target)) as written:
            for chunk in self.connection.stream(calls.export_image(name, file)):
                written.write(chunk)

    def check(self, *, repair: bool = False, on_progress: OnProgress | None = None) -> CheckReport:
        """Read everything that is stored and return what is wrong, if anything is.

        With ``repair`` files that nobody has are deleted. Snapshots that can't be used become broken.
        """
        call = calls.check_storage(repair=repair)
        return calls.report_of(self.connection.finish(call, on_progress))

    def jobs(self, state: str = "") -> list[Job]:
        """Return the newest jobs."""
        return self.connection.ask(calls.list_jobs(state)).items

    def job(self, job_id: str) -> Job:
        """Return a job; NotFound."""
        return self.connection.ask(calls.show_job(job_id))

    def wait_job(self, job_id: str, *, on_progress: OnProgress | None = None) -> Job:
        """Wait for the end of a job and return it; raises the problem that ended it."""
        return self.connection.finish(calls.show_job(job_id), on_progress)

    def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early, and return it as it is now."""
        return self.connection.ask(calls.cancel_job(job_id))

    def events(self, after: int = 0) -> list[Event]:
        """Return stored events with a number above ``after``."""
        return self.connection.ask(calls.list_events(after)).items

    def watch(self, after: int | None = None) -> Iterator[Event]:
        """Give events as they happen, those after ``after`` first; ends when the daemon ends."""
        yield from read_events(self.connection.stream(calls.follow_events(after)))


def _ignore(_: str) -> None:
    """Take no notice of what is no file and was left out."""


def connect(socket: Path | str | None = None) -> Inn:
    """Return the daemon of this environment (``SERAI_HOME``), or the one whose socket is given.

    Nothing is sent yet; the first call says so when no daemon is there.
    """
    return Inn(Connection(Path(socket) if socket else current_places().socket))
