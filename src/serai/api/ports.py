"""What the API needs of an engine, and nothing more.

The daemon passes the engine, the tests a fake in memory. The errors are those of ``serai.errors``;
what each method promises is said in ``engine.engine``.
"""

from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from serai.model.actions import AnyAction
from serai.model.catalogue import Catalogue
from serai.model.event import Event
from serai.model.guest import Guest
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.network import Forward, Group, Network, PortView
from serai.model.node import DaemonStatus
from serai.model.schedule import Judgement, Keep, Schedule
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import Pool, VolumeInfo


class SshStreamLike(Protocol):
    """A connection to an ssh server, which has greeted already."""

    @property
    def greeting(self) -> bytes:
        """What it said first."""

    @property
    def reader(self) -> StreamReader:
        """What it says next."""

    @property
    def writer(self) -> StreamWriter:
        """What is said to it."""


class EngineLike(Protocol):
    """Shows what is, and takes actions."""

    def guests(self) -> list[Guest]:
        """Return all guests, in any order."""

    def guest(self, name_or_id: str) -> Guest:
        """Return one guest; NotFound (``guest-not-found``)."""

    def snapshots(self, guest: str) -> list[Snapshot]:
        """Return a guest's snapshots as a tree: each after its parent; NotFound."""

    def snapshot(self, guest: str, name_or_id: str) -> Snapshot:
        """Return one snapshot of a guest; NotFound (``snapshot-not-found``), also for a foreign one."""

    def networks(self) -> list[Network]:
        """Return all networks, in any order."""

    def network(self, name_or_id: str) -> Network:
        """Return one network; NotFound (``network-not-found``)."""

    async def ports(self, guest: str) -> list[PortView]:
        """Return the ports of a guest, with what has passed them; NotFound."""

    async def port(self, guest: str, name_or_id: str) -> PortView:
        """Return one port of a guest; NotFound (``port-not-found``)."""

    def groups(self) -> list[Group]:
        """Return all security groups, in any order."""

    def group(self, name_or_id: str) -> Group:
        """Return one security group; NotFound (``group-not-found``)."""

    def forwards(self) -> list[Forward]:
        """Return all forwards, by the host's port."""

    def schedules(self, guest: str = "") -> list[Schedule]:
        """Return a guest's schedules by name, or everybody's, by guest and name; NotFound."""

    def schedule(self, guest: str, name_or_id: str) -> Schedule:
        """Return one schedule of a guest; NotFound (``schedule-not-found``), also for a foreign one."""

    def judge_schedule(self, guest: str, name_or_id: str, keep: Keep | None) -> list[Judgement]:
        """Return which snapshots of a schedule would stay now, by its own rules or by ``keep``."""

    def images(self) -> list[Image]:
        """Return all images, in any order."""

    def image(self, name: str) -> Image:
        """Return one image; NotFound (``image-not-found``)."""

    def image_files(self, name: str) -> Path:
        """Return the folder that holds an image's files."""

    def volumes(self) -> list[VolumeInfo]:
        """Return all volumes, in any order."""

    def volume(self, name_or_id: str) -> VolumeInfo:
        """Return one volume; NotFound (``volume-not-found``)."""

    def pools(self) -> list[Pool]:
        """Return all pools, in any order."""

    def pool(self, name: str) -> Pool:
        """Return one pool; NotFound (``pool-not-found``)."""

    async def catalogue(self, index: str, sha256: str, key: str) -> Catalogue:
        """Return what an index of images offers; Invalid (``index-refused``) if it is not believed."""

    def status(self) -> DaemonStatus:
        """Return how the daemon is and what this host can do."""

    async def submit(self, action: AnyAction, *, key: str = "") -> Job:
        """Take an action; its job is durable when this returns. Refusals are raised at once.

        With a ``key`` that was used before: the job of then, or Conflict if it was another action.
        """

    async def wait_job(self, job_id: str, timeout: float) -> Job:
        """Return a job when it has ended, or as it is after ``timeout`` seconds."""

    async def jobs(self, *, state: JobState | None, limit: int, before: str) -> list[Job]:
        """Return jobs, the newest first; ``before`` is the id of the last one that was seen."""

    async def job(self, job_id: str) -> Job:
        """Return one job; NotFound (``job-not-found``)."""

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to stop; Conflict (``job-not-cancellable``)."""

    async def execute(self, guest: str, request: ExecRequest) -> ExecResult:
        """Run a command in a guest."""

    async def push(
        self, guest: str, path: str, chunks: AsyncIterator[bytes], *, mode: int, unpack: bool
    ) -> None:
        """Write a file, or unpack a tar into a folder, in a guest."""

    def pull(self, guest: str, path: str, *, pack: bool) -> AsyncIterator[bytes]:
        """Give a file, or a tar of a folder, of a guest."""

    async def open_console(self, guest: str) -> tuple[StreamReader, StreamWriter]:
        """Connect to the serial console of a guest."""

    async def find_ssh(self, guest: str) -> SshAddress:
        """Return how ssh gets into a guest."""

    async def open_ssh(self, guest: str) -> SshStreamLike:
        """Connect to the ssh server of a guest; Conflict (``ssh-unreachable``)."""

    def log_path(self, guest: str) -> Path:
        """Return where the serial log of a guest is (or will be)."""

    async def screenshot(self, guest: str) -> bytes:
        """Return the screen of a guest as PNG."""

    def vnc(self, guest: str) -> VncAddress:
        """Return where a VNC viewer connects."""

    async def events(self, *, after: int, limit: int) -> list[Event]:
        """Return stored events with a number above ``after``, in order."""

    def watch(self, *, after: int | None) -> AsyncIterator[Event]:
        """Give events as they happen, the stored ones above ``after`` first (None: only new ones).

        A watcher that is too slow gets one event ``missed`` in place of those that were lost.
        """
