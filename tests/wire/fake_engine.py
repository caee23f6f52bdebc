"""An engine in memory: the contract's interface, no QEMU, no disk, every answer at once.

Actions are done when they are submitted, unless ``hold`` is set: then their jobs stay queued until
``finish`` is called. ``fail_next`` makes the next call of a method raise.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from fake_fabric import FakeFabric, OfNetworks
from fake_shelf import FakeShelf
from fake_timetable import FakeTimetable, OfSchedule
from fake_volumes import OF_VOLUMES, FakeVolumes

from serai.engine.ports import find_port
from serai.errors import Bug, Code, Conflict, Invalid, NotFound, Problem
from serai.model.actions import (
    AddForward,
    AnyAction,
    BuildImage,
    ChangeSnapshot,
    CheckStorage,
    CreateGuest,
    CreateSnapshot,
    DeleteGuest,
    DeleteImage,
    DeleteSnapshot,
    ForkGuest,
    GuestAction,
    ImportGuest,
    ImportImage,
    LaunchGuest,
    PauseGuest,
    PublishImage,
    PullImage,
    RenameGuest,
    RestoreSnapshot,
    ResumeGuest,
    SetGuest,
    StopGuest,
    kind_of,
)
from serai.model.catalogue import Catalogue, IndexEntry
from serai.model.check import CheckReport
from serai.model.event import Event, EventKind
from serai.model.guest import Accel, AgentState, ExitReason, Guest, GuestSpec
from serai.model.image import Expect, Image, ImageFile, ImageKind
from serai.model.job import Job, JobState
from serai.model.lifecycle import ON_STATES, GuestState
from serai.model.network import Forward, Group, Network, PortView
from serai.model.node import Capabilities, DaemonStatus
from serai.model.schedule import Judgement, Keep, Schedule
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import Pool, VolumeInfo
from serai.plan.snapshot import fork_names, group_names
from serai.units import check_guest_name, check_image_name, check_labels, shorten

NOW = 1_700_000_000.5
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
WATCH_LIMIT = 100
ENDLESS = 50_000
OF_SNAPSHOT = CreateSnapshot | ChangeSnapshot | DeleteSnapshot | RestoreSnapshot


def make_guest(name: str, number: int, **changes: object) -> Guest:
    """Return a guest as the engine would show it."""
    guest = Guest(
        name=name,
        id=f"{number:032x}",
        kind="vm",
        state=GuestState.RUNNING,
        accel=Accel.TCG,
        image="tiny",
        cpus=1,
        memory=256 << 20,
        created_at=NOW,
        disk=0,
        firmware="bios",
        restart="no",
        labels={},
        version=1,
        image_digest="sha256:" + "0" * 64,
        machine_type="pc-q35-7.2",
        mac="52:54:00:00:00:01",
        last_exit=ExitReason.NEVER_STARTED,
        agent=AgentState.ANSWERING,
        pid=4000 + number,
        started_at=NOW,
        restarts=0,
        problem=None,
    )
    return msgspec.structs.replace(guest, **changes)


@dataclass
class FakeSsh:
    """A connection to an ssh server that has greeted."""

    greeting: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class FakeEngine:
    """Fulfils ``serai.api.ports.EngineLike``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all_guests: dict[str, Guest] = {}
        self.all_images: dict[str, Image] = {"tiny": self._make_image("tiny")}
        self.all_jobs: dict[str, Job] = {}
        self.shelf = FakeShelf()
        self.fabric = FakeFabric()
        self.report = CheckReport(layers=37, memories=4, images=1, snapshots=12)
        self.timetable = FakeTimetable(NOW)
        self.rack = FakeVolumes(self.guest)
        self.all_events: list[Event] = []
        self.actions: list[AnyAction] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.hold = False
        self.failures: dict[str, Exception] = {}
        self.watchers = 0
        self.given = 0
        self.running: set[str] = set()
        self.ended = asyncio.Event()
        self._news = asyncio.Condition()
        self._numbers = 1 << 20

    def fail_next(self, method: str, error: Exception) -> None:
        """Let the next call of ``method`` raise ``error``."""
        self.failures[method] = error

    def _check(self, method: str) -> None:
        if method in self.failures:
            raise self.failures.pop(method)

    def add_guests(self, count: int) -> None:
        """Add guests g0, g1, …"""
        for number in range(count):
            self.all_guests[f"g{number}"] = make_guest(f"g{number}", number)

    def _make_image(self, name: str) -> Image:
        files = self.image_files(name)
        files.mkdir(parents=True, exist_ok=True)
        made = {}
        for part, content in (("kernel", b"K" * 1000), ("initrd", b"I" * 3_000_000)):
            (files / part).write_bytes(content)
            made[part] = ImageFile(name=part, size=len(content), digest="sha256:" + "1" * 64)
        return Image(
            name=name, digest="sha256:" + "0" * 64, kind=ImageKind.KERNEL, created_at=NOW,
            size=3_001_000, agent=Expect.YES, **made,
        )  # fmt: skip

    # shows

    def guests(self) -> list[Guest]:
        self._check("guests")
        return list(self.all_guests.values())

    def guest(self, name_or_id: str) -> Guest:
        self._check("guest")
        for guest in self.all_guests.values():
            if name_or_id in (guest.name, guest.id):
                return guest
        raise NotFound(Code.GUEST_NOT_FOUND, f"there is no guest {shorten(name_or_id)}")

    def snapshots(self, guest: str) -> list[Snapshot]:
        self._check("snapshots")
        return self.shelf.tree(self.guest(guest))

    def snapshot(self, guest: str, name_or_id: str) -> Snapshot:
        self._check("snapshot")
        return self.shelf.find(self.guest(guest), name_or_id)

    def networks(self) -> list[Network]:
        self._check("networks")
        return [self.fabric.show_network(each) for each in self.fabric.networks.values()]

    def network(self, name_or_id: str) -> Network:
        return self.fabric.show_network(self.fabric.network(name_or_id))

    async def ports(self, guest: str) -> list[PortView]:
        self._check("ports")
        record = self.fabric.of(self.guest(guest))
        return [self.fabric.show_port(record, port) for port in record.ports]

    async def port(self, guest: str, name_or_id: str) -> PortView:
        record = self.fabric.of(self.guest(guest))
        return self.fabric.show_port(record, find_port(record, name_or_id))

    def groups(self) -> list[Group]:
        return [self.fabric.show_group(each) for each in self.fabric.groups.values()]

    def group(self, name_or_id: str) -> Group:
        return self.fabric.show_group(self.fabric.group(name_or_id))

    def forwards(self) -> list[Forward]:
        names = {guest.id: guest.name for guest in self.all_guests.values()}
        found = self.fabric.forwards.values()
        return [self.fabric.show_forward(each, names[each.guest_id]) for each in found]

    def schedules(self, guest: str = "") -> list[Schedule]:
        self._check("schedules")
        if guest:
            return self.timetable.of(self.guest(guest))
        return [each for one in self.all_guests.values() for each in self.timetable.of(one)]

    def schedule(self, guest: str, name_or_id: str) -> Schedule:
        self._check("schedule")
        return self.timetable.find(self.guest(guest), name_or_id)

    def judge_schedule(self, guest: str, name_or_id: str, keep: Keep | None) -> list[Judgement]:
        found = self.schedule(guest, name_or_id)
        return self.timetable.judge(self.snapshots(guest), keep or found.keep)

    def volumes(self) -> list[VolumeInfo]:
        self._check("volumes")
        return list(self.rack.volumes.values())

    def volume(self, name_or_id: str) -> VolumeInfo:
        self._check("volume")
        return self.rack.volume(name_or_id)

    def pools(self) -> list[Pool]:
        self._check("pools")
        return list(self.rack.pools.values())

    def pool(self, name: str) -> Pool:
        self._check("pool")
        return self.rack.pool(name)

    def images(self) -> list[Image]:
        return list(self.all_images.values())

    def image(self, name: str) -> Image:
        if name not in self.all_images:
            raise NotFound(Code.IMAGE_NOT_FOUND, f"there is no image {shorten(name)}")
        return self.all_images[name]

    async def catalogue(self, index: str, sha256: str, key: str) -> Catalogue:
        self._check("catalogue")
        entries = (IndexEntry(name="debian", version="12", url="d.qcow2", sha256="ab" * 32),)
        return Catalogue(
            source=index, digest="sha256:" + "0" * 64, trust="part of serai", entries=entries
        )

    def image_files(self, name: str) -> Path:
        return self.folder / "images" / name

    def status(self) -> DaemonStatus:
        self._check("status")
        return DaemonStatus(
            pid=1, version="0.1.0", started_at=NOW, home="", socket="/run/serai/api.sock",
            guests=len(self.all_guests), running=0,
            capabilities=Capabilities(
                qemu_path="/usr/bin/qemu-system-x86_64", qemu_version="7.2", machine_type="pc-q35-7.2",
                accel=Accel.TCG, accel_reason="no KVM",
            ),
        )  # fmt: skip

    # actions

    async def submit(self, action: AnyAction, *, key: str = "") -> Job:
        self._check("submit")
        if key and (job := self._find_by_key(key, action)):
            return job
        subject, *results = self._apply(action)
        self.actions.append(action)
        job = Job(
            id=f"{len(self.all_jobs):06d}",
            kind=kind_of(action),
            subject=subject,
            state=JobState.QUEUED if self.hold else JobState.DONE,
            created_at=NOW,
            updated_at=NOW,
            action=msgspec.json.encode(action).decode(),
            key=key,
            results=tuple(results),
            report=self.report if isinstance(action, CheckStorage) else None,
        )
        self.all_jobs[job.id] = job
        await self.tell(EventKind.JOB_CHANGED, subject)
        return job

    def _find_by_key(self, key: str, action: AnyAction) -> Job | None:
        for job in self.all_jobs.values():
            if job.key == key:
                if job.action != msgspec.json.encode(action).decode():
                    raise Conflict(Code.IDEMPOTENCY_REUSED, "this key was used for another request")
                return job
        return None

    def _apply(self, action: AnyAction) -> list[str]:
        """Do it; return its subject and the ids of what it made."""
        if isinstance(action, LaunchGuest | CreateGuest):
            ttl = action.ttl if isinstance(action, LaunchGuest) else 0.0
            name = self._create(action.spec, isinstance(action, LaunchGuest), ttl)
            guest = self.all_guests[name]
            ports = self.fabric.brief(self.fabric.attach(guest, action.ports))
            self.all_guests[name] = msgspec.structs.replace(guest, ports=ports)
            is_fork = self.all_images[action.spec.image].warm
            return [action.spec.image, self.all_guests[name].id] if is_fork else [name]
        if isinstance(action, OF_SNAPSHOT):
            guest = self.guest(action.guest)
            return [guest.name, *self.shelf.apply(guest, action)]
        if isinstance(action, OfSchedule):
            guest = self.guest(action.guest)
            return [guest.name, *self.timetable.apply(guest, action)]
        if isinstance(action, OF_VOLUMES):
            return self.rack.apply(action)
        if isinstance(action, ForkGuest):
            return self._fork(self.guest(action.guest), action)
        if isinstance(action, PublishImage):
            return [self._publish(self.guest(action.guest), action)]
        if isinstance(action, OfNetworks):
            of = (
                action.spec.guest
                if isinstance(action, AddForward)
                else getattr(action, "guest", None)
            )
            return self.fabric.apply(action, None if of is None else self.guest(of))
        if isinstance(action, GuestAction):
            return [self._change(self.guest(action.guest), action)]
        if isinstance(action, BuildImage):
            if action.recipe not in ("tiny", "debian"):
                raise Invalid(Code.VALUE_INVALID, f"{shorten(action.recipe)} is no recipe")
            return [action.name or action.recipe]
        if isinstance(action, CheckStorage):
            return ["storage"]
        if isinstance(action, ImportImage):
            return [action.name or "imported"]
        if isinstance(action, PullImage):
            name = check_image_name(action.name or action.image.replace(":", "-"))
            self.all_images[name] = self._make_image(name)
            return [action.image, name]
        if isinstance(action, ImportGuest):
            spec = GuestSpec(image="tiny", name=check_guest_name(action.name or "imported"))
            name = self._create(spec, False, 0.0)
            return [name, self.all_guests[name].id]
        assert isinstance(action, DeleteImage)
        self.image(action.image)
        return [action.image]

    def _fork(self, source: Guest, action: ForkGuest) -> list[str]:
        origin = self.shelf.find(source, action.snapshot).id if action.snapshot else ""
        name = action.name or f"fork-{len(self.all_guests)}"
        names = fork_names(name, action.count)
        if action.together:
            sources = [source.name, *action.together]
            names = [each for group in group_names(name, action.count, sources) for each in group]
        for name in names:
            if name in self.all_guests:
                raise Conflict(Code.GUEST_EXISTS, f"there is a guest {name} already")
        for name in names:
            self.all_guests[name] = msgspec.structs.replace(
                source, name=name, id=f"{self._next_number():032x}", origin=origin, version=1,
                expires_at=NOW + action.ttl if action.ttl else 0.0,
            )  # fmt: skip
        if origin:
            self.shelf.count_forks(origin, len(names))
        return [source.name, *(self.all_guests[name].id for name in names)]

    def _publish(self, guest: Guest, action: PublishImage) -> str:
        if action.snapshot:
            self.shelf.find(guest, action.snapshot)
        if check_image_name(action.image) in self.all_images and not action.replace:
            raise Conflict(Code.IMAGE_EXISTS, f"there is an image {action.image} already")
        warm = action.memory and guest.state in ON_STATES
        image = self._make_image(action.image)
        self.all_images[action.image] = msgspec.structs.replace(image, warm=warm)
        return guest.name

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _create(self, spec: GuestSpec, start: bool, ttl: float) -> str:
        name = check_guest_name(spec.name or f"guest-{len(self.all_guests)}")
        self.image(spec.image)
        if name in self.all_guests:
            raise Conflict(Code.GUEST_EXISTS, f"there is a guest {name} already")
        if not 1 <= spec.cpus <= 255 or not 0 < spec.memory <= 1 << 50 or spec.disk < 0:
            raise Invalid(Code.SIZE_INVALID, "a size is out of range")
        state = GuestState.RUNNING if start else GuestState.STOPPED
        self.all_guests[name] = make_guest(
            name, len(self.all_guests), state=state, cpus=spec.cpus, memory=spec.memory,
            labels=check_labels(spec.labels), expires_at=NOW + ttl if ttl else 0.0,
        )  # fmt: skip
        return name

    def _change(self, guest: Guest, action: GuestAction) -> str:
        states = {
            StopGuest: GuestState.STOPPED,
            PauseGuest: GuestState.PAUSED,
            ResumeGuest: GuestState.RUNNING,
        }
        changes: dict[str, object] = {"version": guest.version + 1}
        if type(action) in states:
            changes["state"] = states[type(action)]
        if isinstance(action, SetGuest):
            if action.version not in (0, guest.version):
                raise Conflict(Code.VERSION_CONFLICT, f"it is at {guest.version}")
            if action.change.memory is not msgspec.UNSET:
                changes["memory"] = action.change.memory
        if isinstance(action, RenameGuest):
            changes["name"] = check_guest_name(action.name)
        del self.all_guests[guest.name]
        if not isinstance(action, DeleteGuest):
            changed = msgspec.structs.replace(guest, **changes)
            self.all_guests[changed.name] = changed
        return guest.name

    async def finish(self, job_id: str, problem: Problem | None = None) -> None:
        """End a job that was held."""
        state = JobState.FAILED if problem else JobState.DONE
        job = msgspec.structs.replace(self.all_jobs[job_id], state=state, problem=problem)
        self.all_jobs[job_id] = job
        await self.tell(EventKind.JOB_CHANGED, job.subject)

    async def wait_job(self, job_id: str, timeout: float) -> Job:
        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: self.all_jobs[job_id].is_final)
        except TimeoutError:
            pass
        return self.all_jobs[job_id]

    async def jobs(self, *, state: JobState | None, limit: int, before: str) -> list[Job]:
        newest = [job for job in reversed(self.all_jobs.values()) if state in (None, job.state)]
        return [job for job in newest if not before or job.id < before][:limit]

    async def job(self, job_id: str) -> Job:
        if job_id not in self.all_jobs:
            raise NotFound(Code.JOB_NOT_FOUND, f"there is no job {shorten(job_id)}")
        return self.all_jobs[job_id]

    async def cancel_job(self, job_id: str) -> Job:
        job = await self.job(job_id)
        if job.is_final:
            raise Conflict(Code.JOB_NOT_CANCELLABLE, "it has ended")
        self.all_jobs[job_id] = msgspec.structs.replace(job, state=JobState.CANCELLED)
        await self.tell(EventKind.JOB_CHANGED, job.subject)
        return self.all_jobs[job_id]

    # talk

    async def execute(self, guest: str, request: ExecRequest) -> ExecResult:
        self._check("execute")
        self.guest(guest)
        if request.argv[:1] == ["sleep"]:
            self.running.add(guest)
            try:
                await asyncio.sleep(3600)
            finally:
                self.running.discard(guest)
                self.ended.set()
        return ExecResult(code=0, stdout=" ".join(request.argv).encode(), stderr=request.stdin)

    async def push(
        self, guest: str, path: str, chunks: AsyncIterator[bytes], *, mode: int, unpack: bool
    ) -> None:
        self._check("push")
        name = self.guest(guest).name
        if path == "/too-large":
            await anext(chunks)
            raise Conflict(Code.FILE_FAILED, "no space is left in the guest")
        content = b"".join([chunk async for chunk in chunks])
        self.files[name, path] = content

    async def pull(self, guest: str, path: str, *, pack: bool) -> AsyncIterator[bytes]:
        self._check("pull")
        name = self.guest(guest).name
        if path == "/endless":
            self.running.add(name)
            try:
                for self.given in range(ENDLESS):
                    yield bytes(1 << 16)
            finally:
                self.running.discard(name)
                self.ended.set()
        if (name, path) not in self.files:
            raise NotFound(Code.FILE_FAILED, "there is no such file in the guest")
        yield self.files[name, path]
        if path == "/broken":
            raise Bug(Code.AGENT_PROTOCOL, "the agent lies")

    async def find_ssh(self, guest: str) -> SshAddress:
        self._check("find_ssh")
        alias = f"serai-{self.guest(guest).id}"
        return SshAddress(user="root", alias=alias, known_hosts="/k n/own%", is_known=True)

    async def open_ssh(self, guest: str) -> "FakeSsh":
        self._check("open_ssh")
        self.guest(guest)
        both = await asyncio.open_unix_connection(self.folder / "console.sock")
        return FakeSsh(b"SSH-2.0-fake\r\n", *both)

    async def open_console(self, guest: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._check("open_console")
        self.guest(guest)
        return await asyncio.open_unix_connection(self.folder / "console.sock")

    def log_path(self, guest: str) -> Path:
        return self.folder / f"{self.guest(guest).id}.log"

    async def screenshot(self, guest: str) -> bytes:
        self._check("screenshot")
        self.guest(guest)
        return PNG

    def vnc(self, guest: str) -> VncAddress:
        return VncAddress(socket=f"/run/serai/guests/{self.guest(guest).id}/vnc.sock")

    # events

    async def tell(self, kind: EventKind, subject: str = "") -> None:
        """Let something happen."""
        event = Event(seq=len(self.all_events) + 1, at=NOW, kind=kind, subject=subject)
        async with self._news:
            self.all_events.append(event)
            self._news.notify_all()

    async def events(self, *, after: int, limit: int) -> list[Event]:
        return [event for event in self.all_events if event.seq > after][:limit]

    async def watch(self, *, after: int | None) -> AsyncIterator[Event]:
        seen = len(self.all_events) if after is None else after

        def has_news() -> bool:
            return len(self.all_events) > seen

        self.watchers += 1
        try:
            while True:
                async with self._news:
                    await self._news.wait_for(has_news)
                waiting = self.all_events[seen:]
                if len(waiting) > WATCH_LIMIT:
                    yield Event(seq=waiting[-1].seq, at=NOW, kind=EventKind.MISSED)
                    seen = len(self.all_events)
                    continue
                for event in waiting:
                    seen = event.seq
                    yield event
        finally:
            self.watchers -= 1
