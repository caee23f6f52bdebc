"""Every request of the API as a value: pure builders, shared by the blocking and the async client.

A ``Call`` says what to send and what comes back; who sends it is ``blocking`` or ``asynchronous``.
This file is long because it has every call that there is, one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from serai.errors import (
    Bug,
    Code,
    Conflict,
    Interrupted,
    Invalid,
    NotFound,
    Problem,
    SeraiError,
    error_from_problem,
)
from serai.model.catalogue import Catalogue
from serai.model.check import CheckReport
from serai.model.event import Event
from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.foreign import ForeignMachine
from serai.model.guest import Guest, GuestChange, GuestSpec
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.network import (
    Forward,
    ForwardSpec,
    Group,
    GroupChange,
    GroupSpec,
    Network,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortSpec,
    PortView,
)
from serai.model.node import DaemonStatus
from serai.model.schedule import (
    NAME_AS,
    Judgement,
    Keep,
    Schedule,
    ScheduleChange,
    When,
)
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import VolumeWish

T = TypeVar("T")

Query = Mapping[str, str | Sequence[str]]

JSON = "application/json"
BYTES = "application/octet-stream"
PAGE = 10_000
"""How many guests or images are asked for at a time: the most that the API gives."""
NOTHING_TOLD = FirstBoot()
LONG_POLL = 30.0
CANCEL_LIMIT = 20.0
"""For how long the end of a cancelled job is waited for, in seconds."""
SLACK = 30.0
"""How much longer than the server's own limit a client waits for an answer, in seconds."""


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; ``next`` is empty on the last."""

    items: list[T]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request. ``kind`` is the type of the answer's JSON, ``timeout`` seconds for an answer."""

    method: str
    path: str
    kind: Any = None
    query: Query = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = 60.0

    @property
    def target(self) -> str:
        """Return path and query as they stand in the request line."""
        return f"{self.path}?{urlencode(self.query, doseq=True)}" if self.query else self.path

    def decode(self, untrusted_body: bytes) -> T:
        """Return the answer as a value; the bytes themselves if the call names no type.

        Raises Bug when the answer is none that this version understands.
        """
        if self.kind is None:
            return untrusted_body  # type: ignore[return-value]
        try:
            value: T = msgspec.json.decode(untrusted_body, type=self.kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Bug(
                Code.BUG,
                f"the daemon's answer is not understood: {error}",
                hint="Are the daemon and this program of one version? serai daemon status",
                details={"request": f"{self.method} {self.path}"},
            ) from error
        return value

    def with_query(self, **more: str) -> "Call[T]":
        """Return the call with more in its query."""
        return replace(self, query={**self.query, **more})


class Asking(Protocol):
    """Sends a call and gives its answer."""

    def ask(self, call: Call[T]) -> T:
        """Return the answer."""


def all_of(daemon: Asking, pages: Callable[[str], Call[Page[T]]]) -> list[T]:
    """Return all items of a list, however many pages it has."""
    found, cursor = list[T](), ""
    while True:
        page = daemon.ask(pages(cursor))
        found += page.items
        cursor = page.next
        if not cursor:
            return found


def problem_in(status: int, untrusted_body: bytes) -> SeraiError:
    """Return what an answer of 400 or more says."""
    try:
        return error_from_problem(msgspec.json.decode(untrusted_body, type=Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Interrupted(
            Code.DAEMON_UNREACHABLE,
            f"the daemon answered with {status} and nothing that can be read",
            hint="See its log: serai daemon status",
        )


def unreachable(path: Path) -> NotFound:
    """Return the error for a daemon that is not there."""
    return NotFound(
        Code.DAEMON_UNREACHABLE,
        f"no daemon answers at {path}",
        hint="Start it: serai daemon start",
    )


def not_allowed(path: Path) -> NotFound:
    """Return the error for a daemon that lets nobody in but its owner."""
    return NotFound(
        Code.DAEMON_UNREACHABLE,
        f"you may not talk to the daemon at {path}",
        hint="It belongs to another user: use its account, or a daemon of your own.",
    )


def lost(call: "Call[Any]") -> Interrupted:
    """Return the error for a daemon that went away before it answered."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        "the daemon went away before it answered; it is not known whether it was done",
        hint="Look at what is there before you repeat it.",
        details={"request": f"{call.method} {call.path}"},
    )


def cut(call: "Call[Any]") -> Interrupted:
    """Return the error for an answer that ended before its end."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        "the answer was cut off before its end; its first part is all there is",
        hint="The daemon's log says why, or it went away: serai daemon status",
        details={"request": f"{call.method} {call.path}"},
    )


def too_late(call: "Call[Any]") -> Interrupted:
    """Return the error for a daemon that is there and does not answer."""
    return Interrupted(
        Code.TIMEOUT,
        f"the daemon did not answer within {call.timeout or 0:g} s",
        hint="It is not known whether it was done: look before you repeat it.",
        details={"request": f"{call.method} {call.path}"},
    )


def lost_job(job: Job) -> Interrupted:
    """Return the error for a daemon that went away while a job of it was waited for."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        f"the daemon went away while it was busy with {job.subject or 'the job'} ({job.kind})",
        hint=f"The next daemon ends the job or undoes it, and says which: serai job wait {job.id}",
        details={"job": job.id},
    )


def outcome(job: Job) -> Job:
    """Return a job that is done; raise the problem of one that is not."""
    if job.problem is not None:
        raise error_from_problem(job.problem)
    if job.state is JobState.CANCELLED:
        raise Conflict(Code.JOB_CANCELLED, f"the job was cancelled: {job.kind} {job.subject}")
    return job


def keyed(call: Call[Job], key: str) -> Call[Job]:
    """Let a call, sent again, give the job of the first time."""
    return replace(call, headers={**call.headers, "Idempotency-Key": key})


def guest_of(job: Job) -> str:
    """Return the id or name of the guest that a finished launch has made.

    The subject of a job is not always what it makes: a warm image is launched by forking it.
    """
    return job.results[0] if job.results else job.subject


def undoing(job: Job) -> list[Call[Job]]:
    """Return what removes all that a finished job has made, where that is guests or snapshots."""
    if job.state is not JobState.DONE:
        return []
    if job.kind in ("launch", "create", "guest-import"):
        return [delete_guest(guest_of(job), force=True)]
    if job.kind == "fork":
        return [delete_guest(each, force=True) for each in job.results]
    if job.kind == "network-create":
        return [delete_network(each) for each in job.results]
    if job.kind == "snapshot-create":
        return [delete_snapshot(job.subject, each) for each in job.results]
    return []


def get(path: str, kind: Any, **query: str | Sequence[str]) -> Call[Any]:
    """Ask for what is at ``path``."""
    return Call(method="GET", path=path, kind=kind, query=query)


def page(path: str, kind: Any, cursor: str, **query: Sequence[str]) -> Call[Any]:
    """Ask for a part of a list."""
    wanted: dict[str, str | Sequence[str]] = {"limit": str(PAGE), "cursor": cursor, **query}
    return get(path, kind, **{name: value for name, value in wanted.items() if value})


def post(path: str, kind: Any, value: object = None, timeout: float | None = 60.0) -> Call[Any]:
    """Send a value, or nothing, to ``path``."""
    body = msgspec.json.encode(value) if value is not None else b""
    return Call(method="POST", path=path, kind=kind, body=body, timeout=timeout)


def guest_path(name: str) -> str:
    """Return where a guest is."""
    return f"/v1/guests/{segment(name)}"


def _snapshot(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/snapshots/{segment(name)}"


def _schedule(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/schedules/{segment(name)}"


def _image(name: str) -> str:
    return f"/v1/images/{segment(name)}"


def _job(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"


def _network(name: str) -> str:
    return f"/v1/networks/{segment(name)}"


def _port(guest: str, name: str) -> str:
    return f"{guest_path(guest)}/ports/{segment(name)}"


def _group(name: str) -> str:
    return f"/v1/groups/{segment(name)}"


def _patch(path: str, change: msgspec.Struct) -> Call[Job]:
    return Call(method="PATCH", path=path, kind=Job, body=msgspec.json.encode(change))


def segment(name: str) -> str:
    """Return a name as one segment of a path; one that would be none names another thing."""
    if name in ("", ".", ".."):
        raise Invalid(Code.NAME_INVALID, f"{name!r} is no name")
    return quote(name, safe="")


def waiting(call: Call[Job], seconds: float) -> Call[Job]:
    """Let the daemon answer when the job has ended, or after ``seconds``."""
    return replace(call.with_query(wait=f"{seconds:g}"), timeout=seconds + SLACK)


# -- daemon, jobs, events --------------------------------------------------------------------------


def show_system() -> Call[DaemonStatus]:
    """How the daemon is."""
    return get("/v1/system", DaemonStatus)


def check_storage(*, repair: bool = False) -> Call[Job]:
    """Read everything that is stored."""
    return post("/v1/check", Job, {"repair": repair})


def report_of(job: Job) -> CheckReport:
    """Return what a check that is done has found."""
    if job.report is None:
        raise Bug(Code.BUG, f"the job {job.id} has no report")
    return job.report


def list_jobs(state: str = "", limit: int = 100) -> Call[Page[Job]]:
    """Jobs, the newest first."""
    query = {"state": state} if state else {}
    return get("/v1/jobs", Page[Job], limit=str(limit), **query)


def show_job(job_id: str) -> Call[Job]:
    """One job."""
    return get(_job(job_id), Job)


def cancel_job(job_id: str) -> Call[Job]:
    """Ask a job to end early."""
    return post(f"{_job(job_id)}/cancel", Job)


def list_events(after: int = 0, limit: int = 1000) -> Call[Page[Event]]:
    """Stored events, the oldest first."""
    return get("/v1/events", Page[Event], after=str(after), limit=str(limit))


def follow_events(after: int | None) -> Call[bytes]:
    """Events as they happen (text/event-stream)."""
    query = {} if after is None else {"after": str(after)}
    headers = {"Accept": "text/event-stream"}
    return Call(method="GET", path="/v1/events", query=query, headers=headers, timeout=None)


# -- guests ----------------------------------------------------------------------------------------


def list_guests(cursor: str = "", *, labels: Sequence[str] = ()) -> Call[Page[Guest]]:
    """Guests by name; only those that have all of ``labels`` (``k=v``)."""
    return page("/v1/guests", Page[Guest], cursor, label=labels)


def show_guest(name: str) -> Call[Guest]:
    """One guest."""
    return get(guest_path(name), Guest)


def launch_guest(
    spec: GuestSpec,
    *,
    ports: Sequence[PortSpec] = (),
    volumes: Sequence[VolumeWish] = (),
    first_boot: FirstBoot = NOTHING_TOLD,
    start: bool = True,
    wait_agent: bool = True,
    wait_for: WaitFor = WaitFor.AGENT,
    ttl: float = 0.0,
) -> Call[Job]:
    """Make a guest of an image and start it, with ports and volumes."""
    how = {"start": start, "wait_agent": wait_agent, "wait_for": str(wait_for), "ttl": ttl}
    body = {**msgspec.to_builtins(spec), **msgspec.to_builtins(first_boot), **how}
    if volumes:
        body["volumes"] = list(volumes)
    if ports:
        body["ports"] = list(ports)
    return post("/v1/guests", Job, body)


def import_guest(
    source: str,
    *,
    name: str = "",
    machine: ForeignMachine | None = None,
    sha256: str = "",
    cpus: int = 0,
    memory: int = 0,
    root_only: bool = False,
) -> Call[Job]:
    """Define a guest from an OVA, or from its root disk and a machine that was read already."""
    body = {
        "source": source, "name": name, "sha256": sha256, "cpus": cpus, "memory": memory,
        "root_only": root_only, "machine": machine,
    }  # fmt: skip
    return post("/v1/imports", Job, body)


def change_guest(name: str, change: GuestChange, version: int = 0) -> Call[Job]:
    """Change size, policy or labels; with ``version`` only if nobody did so meanwhile."""
    headers = {"If-Match": f'"{version}"'} if version else {}
    body = msgspec.json.encode(change)
    return Call(method="PATCH", path=guest_path(name), kind=Job, body=body, headers=headers)


def delete_guest(name: str, *, force: bool = False) -> Call[Job]:
    """Delete a guest and its volumes."""
    query = {"force": "true"} if force else {}
    return Call(method="DELETE", path=guest_path(name), kind=Job, query=query)


def do_to_guest(name: str, verb: str) -> Call[Job]:
    """``start``, ``pause`` or ``resume``."""
    return post(f"{guest_path(name)}/{verb}", Job)


def stop_guest(name: str, *, force: bool = False, timeout: float = 0.0) -> Call[Job]:
    """Stop a guest."""
    return post(f"{guest_path(name)}/stop", Job, {"force": force, "timeout": timeout})


def restart_guest(name: str, *, force: bool = False, timeout: float = 0.0) -> Call[Job]:
    """Stop a guest and start it anew."""
    return post(f"{guest_path(name)}/restart", Job, {"force": force, "timeout": timeout})


def rename_guest(name: str, new: str) -> Call[Job]:
    """Give a guest another name."""
    return post(f"{guest_path(name)}/rename", Job, {"name": new})


def run_command(name: str, request: ExecRequest) -> Call[ExecResult]:
    """Run a command in a guest."""
    timeout = request.timeout + SLACK if request.timeout else None
    return post(f"{guest_path(name)}/exec", ExecResult, request, timeout=timeout)


def pull_file(name: str, path: str, *, pack: bool) -> Call[bytes]:
    """Read a file, or a folder as a tar."""
    query = {"path": path} | ({"pack": "true"} if pack else {})
    return Call(method="GET", path=f"{guest_path(name)}/files", query=query, timeout=None)


def push_file(name: str, path: str, *, mode: int, unpack: bool) -> Call[None]:
    """Write a file, or unpack a tar into a folder; the content is sent along."""
    query = {"path": path, "mode": f"{mode:04o}"} | ({"unpack": "true"} if unpack else {})
    files = f"{guest_path(name)}/files"
    return Call(method="PUT", path=files, query=query, content_type=BYTES, timeout=None)


def show_log(name: str, *, follow: bool = False, tail: int | None = None) -> Call[bytes]:
    """The serial log."""
    query = {"follow": "true"} if follow else {}
    if tail is not None:
        query["tail"] = str(tail)
    return Call(method="GET", path=f"{guest_path(name)}/log", query=query, timeout=None)


def take_screenshot(name: str) -> Call[bytes]:
    """What the screen shows, as PNG."""
    return Call(method="GET", path=f"{guest_path(name)}/screenshot")


def show_vnc(name: str) -> Call[VncAddress]:
    """Where a VNC viewer connects."""
    return get(f"{guest_path(name)}/vnc", VncAddress)


def show_ssh(name: str) -> Call[SshAddress]:
    """How ssh gets into a guest."""
    return get(f"{guest_path(name)}/ssh", SshAddress)


def ssh_path(name: str) -> str:
    """Return the address of the WebSocket that leads to the guest's ssh server."""
    return f"{guest_path(name)}/ssh/stream"


def console_path(name: str) -> str:
    """Return the address of the console's WebSocket."""
    return f"{guest_path(name)}/console"


# -- snapshots and forks ---------------------------------------------------------------------------


def list_snapshots(guest: str, cursor: str = "") -> Call[Page[Snapshot]]:
    """The snapshots of a guest, each after its parent."""
    return page(f"{guest_path(guest)}/snapshots", Page[Snapshot], cursor)


def show_snapshot(guest: str, name: str) -> Call[Snapshot]:
    """One snapshot of a guest."""
    return get(_snapshot(guest, name), Snapshot)


def create_snapshot(
    guest: str, *, name: str = "", memory: bool = True, quiesce: bool = False, note: str = ""
) -> Call[Job]:
    """Freeze a guest; it goes on."""
    body = {"name": name, "memory": memory, "quiesce": quiesce, "note": note}
    return post(f"{guest_path(guest)}/snapshots", Job, body)


def change_snapshot(
    guest: str, snapshot: str, *, name: str | None = None, note: str | None = None
) -> Call[Job]:
    """Give a snapshot another name or note."""
    given = {key: text for key, text in (("name", name), ("note", note)) if text is not None}
    path, body = _snapshot(guest, snapshot), msgspec.json.encode(given)
    return Call(method="PATCH", path=path, kind=Job, body=body)


def delete_snapshot(guest: str, name: str) -> Call[Job]:
    """Delete a snapshot; what others stand on stays."""
    return Call(method="DELETE", path=_snapshot(guest, name), kind=Job)


def restore_snapshot(guest: str, name: str, *, force: bool = False) -> Call[Job]:
    """Put a guest back to a snapshot."""
    return post(f"{_snapshot(guest, name)}/restore", Job, {"force": force})


def list_schedules(guest: str = "", cursor: str = "") -> Call[Page[Schedule]]:
    """The schedules of a guest, or of all, by guest and name."""
    path = f"{guest_path(guest)}/schedules" if guest else "/v1/schedules"
    return page(path, Page[Schedule], cursor)


def show_schedule(guest: str, name: str) -> Call[Schedule]:
    """One schedule of a guest."""
    return get(_schedule(guest, name), Schedule)


def judge_schedule(guest: str, name: str, **counts: int | None) -> Call[Page[Judgement]]:
    """What its rules, or those of ``counts`` if one is given, say of each of its snapshots."""
    given = {rule: str(count) for rule, count in counts.items() if count is not None}
    return get(f"{_schedule(guest, name)}/preview", Page[Judgement], **given)


def create_schedule(
    guest: str,
    when: When,
    *,
    name: str = "",
    keep: Keep = Keep(),  # noqa: B008 - it is frozen
    memory: bool = True,
    quiesce: bool = False,
    name_as: str = NAME_AS,
) -> Call[Job]:
    """Have snapshots made by themselves."""
    body = {
        "when": when, "name": name, "keep": keep,
        "memory": memory, "quiesce": quiesce, "name_as": name_as,
    }  # fmt: skip
    return post(f"{guest_path(guest)}/schedules", Job, body)


def set_schedule(guest: str, name: str, change: ScheduleChange) -> Call[Job]:
    """Change a schedule."""
    body = msgspec.json.encode(change)
    return Call(method="PATCH", path=_schedule(guest, name), kind=Job, body=body)


def run_schedule(guest: str, name: str) -> Call[Job]:
    """Do now what it does when it is due."""
    return post(f"{_schedule(guest, name)}/run", Job)


def delete_schedule(guest: str, name: str) -> Call[Job]:
    """Delete a schedule; its snapshots stay."""
    return Call(method="DELETE", path=_schedule(guest, name), kind=Job)


def fork_guest(
    guest: str,
    *,
    snapshot: str = "",
    name: str = "",
    count: int = 1,
    keep_identity: bool = False,
    ttl: float = 0.0,
    wait_agent: bool = True,
) -> Call[Job]:
    """Make new guests from one as it is, or from its snapshot."""
    body = {
        "snapshot": snapshot, "name": name, "count": count,
        "keep_identity": keep_identity, "ttl": ttl, "wait_agent": wait_agent,
    }  # fmt: skip
    return post(f"{guest_path(guest)}/fork", Job, body)


def publish_image(
    guest: str, image: str, *, snapshot: str = "", memory: bool = True, replace: bool = False
) -> Call[Job]:
    """Make an image of a guest as it is, or of its snapshot."""
    body = {"image": image, "snapshot": snapshot, "memory": memory, "replace": replace}
    return post(f"{guest_path(guest)}/publish", Job, body)


# -- networks --------------------------------------------------------------------------------------


def list_networks(cursor: str = "") -> Call[Page[Network]]:
    """Networks by name."""
    return page("/v1/networks", Page[Network], cursor)


def show_network(name: str) -> Call[Network]:
    """One network."""
    return get(_network(name), Network)


def create_network(spec: NetworkSpec) -> Call[Job]:
    """Make a network."""
    return post("/v1/networks", Job, spec)


def change_network(name: str, change: NetworkChange) -> Call[Job]:
    """Change a network."""
    return _patch(_network(name), change)


def delete_network(name: str) -> Call[Job]:
    """Delete a network in which nobody is."""
    return Call(method="DELETE", path=_network(name), kind=Job)


def list_ports(guest: str, cursor: str = "") -> Call[Page[PortView]]:
    """The ports of a guest."""
    return page(f"{guest_path(guest)}/ports", Page[PortView], cursor)


def show_port(guest: str, port: str) -> Call[PortView]:
    """One port of a guest."""
    return get(_port(guest, port), PortView)


def add_port(guest: str, spec: PortSpec) -> Call[Job]:
    """Attach a guest to a network."""
    return post(f"{guest_path(guest)}/ports", Job, spec)


def change_port(guest: str, port: str, change: PortChange) -> Call[Job]:
    """Change groups or limits of a port."""
    return _patch(_port(guest, port), change)


def remove_port(guest: str, port: str) -> Call[Job]:
    """Take a port from a guest."""
    return Call(method="DELETE", path=_port(guest, port), kind=Job)


def list_groups(cursor: str = "") -> Call[Page[Group]]:
    """Security groups by name."""
    return page("/v1/groups", Page[Group], cursor)


def show_group(name: str) -> Call[Group]:
    """One security group."""
    return get(_group(name), Group)


def create_group(spec: GroupSpec) -> Call[Job]:
    """Make a security group."""
    return post("/v1/groups", Job, spec)


def change_group(name: str, change: GroupChange) -> Call[Job]:
    """Change the rules of a security group, in one step."""
    return _patch(_group(name), change)


def delete_group(name: str) -> Call[Job]:
    """Delete a security group that nothing uses."""
    return Call(method="DELETE", path=_group(name), kind=Job)


def list_forwards(cursor: str = "") -> Call[Page[Forward]]:
    """Forwards by the host's port."""
    return page("/v1/forwards", Page[Forward], cursor)


def add_forward(spec: ForwardSpec) -> Call[Job]:
    """Let a port of the host lead into a guest."""
    return post("/v1/forwards", Job, spec)


def remove_forward(forward: str) -> Call[Job]:
    """End a forward."""
    return Call(method="DELETE", path=f"/v1/forwards/{segment(forward)}", kind=Job)


# -- images ----------------------------------------------------------------------------------------


def list_images(cursor: str = "") -> Call[Page[Image]]:
    """Images by name."""
    return page("/v1/images", Page[Image], cursor)


def show_image(name: str) -> Call[Image]:
    """One image."""
    return get(_image(name), Image)


def build_image(
    recipe: str,
    *,
    name: str = "",
    suite: str = "",
    include: tuple[str, ...] = (),
    replace: bool = False,
) -> Call[Job]:
    """Build an image by one of our recipes."""
    body = {"recipe": recipe, "name": name, "suite": suite, "include": include, "replace": replace}
    return post("/v1/images/build", Job, body)


def import_image(
    source: str,
    *,
    name: str = "",
    sha256: str = "",
    sha512: str = "",
    kernel: bool = False,
    initrd: str = "",
    cmdline: str = "",
    agent: str = "unknown",
) -> Call[Job]:
    """Import an image from a file on the daemon's host, or a URL."""
    body = {
        "source": source, "name": name, "sha256": sha256, "sha512": sha512,
        "kernel": kernel, "initrd": initrd, "cmdline": cmdline, "agent": agent,
    }  # fmt: skip
    return post("/v1/images/import", Job, body)


def pull_image(
    image: str,
    *,
    index: str = "",
    index_sha256: str = "",
    key: str = "",
    name: str = "",
    replace: bool = False,
) -> Call[Job]:
    """Import what an index has under ``NAME[:VERSION]``; the job's result is its name here."""
    body = {
        "image": image, "index": index, "index_sha256": index_sha256, "key": key,
        "name": name, "replace": replace,
    }  # fmt: skip
    return post("/v1/images/pull", Job, body)


def show_catalogue(*, index: str = "", sha256: str = "", key: str = "") -> Call[Catalogue]:
    """What an index offers."""
    wanted = {"index": index, "sha256": sha256, "key": key}
    return get("/v1/catalogue", Catalogue, **{k: text for k, text in wanted.items() if text})


def delete_image(name: str) -> Call[Job]:
    """Delete an image."""
    return Call(method="DELETE", path=_image(name), kind=Job)


def export_image(name: str, file: str = "all") -> Call[bytes]:
    """All of an image as a tar, or one of its files."""
    return Call(method="GET", path=f"{_image(name)}/export", query={"file": file}, timeout=None)
