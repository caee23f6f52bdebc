"""The blocking SDK: ``with serai.connect() as inn: guest = inn.launch("tiny")``.

Every method asks the daemon and waits for the answer; what goes wrong is raised as one of the
classes in ``serai.errors``. The async twin is ``serai.aio``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack, overload

from msgspec.structs import asdict

from serai.client import calls, copying
from serai.client.blocking import Connection, OnProgress
from serai.client.definitions import import_call
from serai.client.words import (
    Duration,
    ForkOptions,
    Held,
    Result,
    ScheduleOptions,
    Size,
    change_of,
    fork_words,
    read_events,
    request_of,
    result_of,
    schedule_change_of,
    seconds_of,
    spec_of,
    tell_of_cleaning,
    when_of,
)
from serai.model.catalogue import Catalogue
from serai.model.check import CheckReport
from serai.model.event import Event
from serai.model.guest import Guest as GuestView
from serai.model.image import Image
from serai.model.job import Job
from serai.model.node import DaemonStatus
from serai.model.schedule import Judgement, Keep
from serai.model.schedule import Schedule as ScheduleView
from serai.model.snapshot import Snapshot as SnapshotView
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


class Inn:
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
        wait: bool = True,
        ttl: Duration = 0.0,
        on_progress: OnProgress | None = None,
        **spec: Any,
    ) -> Guest:
        """Make a guest of an image, start it, and wait until its agent answers.

        ``spec``: name, cpus, memory ("256MiB" or bytes), disk, firmware, restart, labels. After
        ``ttl`` ("2h" or seconds; 0: never) it is deleted by itself.
        """
        call = calls.launch_guest(spec_of(image, **spec), wait_agent=wait, ttl=seconds_of(ttl))
        return self.guest(calls.guest_of(self.connection.make(call, on_progress)))

    def create(self, image: str, **spec: Any) -> Guest:
        """Make a guest and leave it stopped; ``spec`` as for ``launch``."""
        call = calls.launch_guest(spec_of(image, **spec), start=False)
        return self.guest(calls.guest_of(self.connection.make(call)))

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
