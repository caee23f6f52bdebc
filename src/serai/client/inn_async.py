"""The async SDK: ``async with serai.aio.connect() as inn: guest = await inn.launch("tiny")``.

Every method asks the daemon; what goes wrong is raised as one of the classes in ``serai.errors``.
Of each ``*_async`` module here the blocking SDK's is made: ``scripts/make_blocking.py``.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from serai.client import daemon_calls, guest_calls, job_calls, snapshot_calls
from serai.client.async_connection import AsyncConnection
from serai.client.definitions import import_call
from serai.client.guests_async import AsyncGuest, AsyncSnapshot
from serai.client.images_async import AsyncImageShelf
from serai.client.job_calls import OnProgress
from serai.client.network_words import ports_of
from serai.client.networks_async import AsyncNetworkShelf
from serai.client.schedules_async import AsyncSchedule
from serai.client.volumes_async import AsyncVolumeShelf
from serai.client.words import (
    Duration,
    EventReader,
    choice_of,
    first_boot_of,
    seconds_of,
    spec_of,
    wishes_of,
)
from serai.model.check import CheckReport
from serai.model.event import Event
from serai.model.firstboot import WaitFor
from serai.model.job import Job
from serai.model.network import PortSpec
from serai.model.node import DaemonStatus
from serai.model.volume import VolumeWish
from serai.settings import current_places
from serai.units import split_source


class AsyncInn(AsyncImageShelf, AsyncNetworkShelf, AsyncVolumeShelf):
    """A daemon, as the async SDK sees it. Make it with ``serai.aio.connect()``."""

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
        return await self.connection.ask(daemon_calls.show_system())

    async def guest(self, name: str) -> AsyncGuest:
        """Return a guest by name or id; NotFound."""
        return AsyncGuest(self.connection, await self.connection.ask(guest_calls.show_guest(name)))

    async def guests(self, labels: Mapping[str, str] | None = None) -> list[AsyncGuest]:
        """Return all guests by name; only those with all of ``labels`` if some are given."""
        wanted = [f"{key}={value}" for key, value in (labels or {}).items()]
        found = await self.connection.all_of(partial(guest_calls.list_guests, labels=wanted))
        return [AsyncGuest(self.connection, info) for info in found]

    async def snapshot(self, source: str) -> AsyncSnapshot:
        """Return a snapshot by ``GUEST@SNAPSHOT``; NotFound."""
        guest, name = split_source(source)
        info = await self.connection.ask(snapshot_calls.show_snapshot(guest, name))
        return AsyncSnapshot(self.connection, info)

    async def schedules(self) -> list[AsyncSchedule]:
        """Return the schedules of all guests, by guest and name."""
        found = await self.connection.all_of(partial(snapshot_calls.list_schedules, ""))
        return [AsyncSchedule(self.connection, info) for info in found]

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
        """Make a guest of an image, start it, and wait until its agent answers.

        ``spec``: name, cpus, memory ("256MiB" or bytes), disk, firmware, restart, labels. After
        ``ttl`` ("2h" or seconds; 0: never) it is deleted by itself. ``volumes`` are attached to it before
        it starts: each as ``--volume`` takes it, like "data,read-only" or "size=10GiB". ``networks`` are
        written like "web" or "web,address=10.20.0.10,group=www"; without any it has QEMU's own.
        ``ssh_keys`` (public ones, texts or files), ``user_data`` (a text or file) and ``hostname`` are
        for the image's cloud-init; ``wait_for`` is "agent", "ssh" or "cloud-init".
        """
        call = guest_calls.launch_guest(
            spec_of(image, **spec),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
            wait_agent=wait,
            wait_for=choice_of(WaitFor, wait_for),
            ttl=seconds_of(ttl),
            volumes=wishes_of(volumes),
        )
        job = await self.connection.make(call, on_progress)
        return await self.guest(job_calls.guest_of(job))

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
        call = guest_calls.launch_guest(
            spec_of(image, **spec),
            start=False,
            volumes=wishes_of(volumes),
            ports=ports_of(networks),
            first_boot=first_boot_of(hostname=hostname, ssh_keys=ssh_keys, user_data=user_data),
        )
        return await self.guest(job_calls.guest_of(await self.connection.make(call)))

    async def import_guest(
        self, source: Path | str, *, on_progress: OnProgress | None = None, **more: Any
    ) -> AsyncGuest:
        """Define a guest from an OVA (file or URL) or from a libvirt domain's XML, and return it stopped.

        ``more``: name, disk (the root disk's file, where the XML names another), cpus, memory (bytes),
        root_only, sha256. A definition and its disks are opened here, with the rights of this process. The
        first disk becomes an image, the others volumes that are attached to the guest.
        """
        call = import_call(str(source), **more)
        return await self.guest(job_calls.guest_of(await self.connection.make(call, on_progress)))

    async def check(
        self, *, repair: bool = False, on_progress: OnProgress | None = None
    ) -> CheckReport:
        """Read everything that is stored and return what is wrong, if anything is.

        With ``repair`` files that nobody has are deleted. Snapshots that can't be used become broken.
        """
        call = daemon_calls.check_storage(repair=repair)
        return job_calls.report_of(await self.connection.finish(call, on_progress))

    async def jobs(self, state: str = "") -> list[Job]:
        """Return the newest jobs."""
        return (await self.connection.ask(job_calls.list_jobs(state))).items

    async def job(self, job_id: str) -> Job:
        """Return a job; NotFound."""
        return await self.connection.ask(job_calls.show_job(job_id))

    async def wait_job(self, job_id: str, *, on_progress: OnProgress | None = None) -> Job:
        """Wait for the end of a job and return it; raises the problem that ended it."""
        return await self.connection.finish(job_calls.show_job(job_id), on_progress)

    async def cancel_job(self, job_id: str) -> Job:
        """Ask a job to end early, and return it as it is now."""
        return await self.connection.ask(job_calls.cancel_job(job_id))

    async def events(self, after: int = 0) -> list[Event]:
        """Return stored events with a number above ``after``."""
        return (await self.connection.ask(daemon_calls.list_events(after))).items

    async def watch(self, after: int | None = None) -> AsyncIterator[Event]:
        """Give events as they happen, those after ``after`` first; ends when the daemon ends."""
        reader = EventReader()
        async for chunk in self.connection.stream(daemon_calls.follow_events(after)):
            for event in reader.feed(chunk):
                yield event


def connect(socket: Path | str | None = None) -> AsyncInn:
    """Return the daemon of this environment (``SERAI_HOME``), or the one whose socket is given.

    Nothing is sent yet; the first call says so when no daemon is there.
    """
    return AsyncInn(AsyncConnection(Path(socket) if socket else current_places().socket))
