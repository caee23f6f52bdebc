"""The async SDK: ``async with serai.aio.connect() as inn: guest = await inn.launch("tiny")``.

The twin of ``inn``: the same calls, results and errors, over ``httpx``.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from serai.client import calls
from serai.client.blocking import OnProgress, unreachable
from serai.client.calls import LONG_POLL, Call, problem_in, show_job, waiting
from serai.client.inn import PUSH_CHUNK
from serai.client.words import Result, Size, change_of, request_of, result_of, spec_of
from serai.errors import Code, Interrupted, NotFound, error_from_problem
from serai.model.event import Event
from serai.model.guest import Guest as GuestView
from serai.model.image import Image
from serai.model.job import Job
from serai.model.node import DaemonStatus
from serai.settings import current_places

T = TypeVar("T")


class AsyncConnection:
    """Sends calls to the daemon whose socket is at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def close(self) -> None:
        """Drop all connections."""
        await self._http.aclose()

    def _request(self, call: Call[Any], content: Any) -> httpx.Request:
        return self._http.build_request(
            call.method,
            call.target,
            content=content,
            headers={"Content-Type": call.content_type, **call.headers},
            timeout=call.timeout,
        )

    async def _send(self, call: Call[Any], content: Any, *, stream: bool) -> httpx.Response:
        try:
            response = await self._http.send(self._request(call, content), stream=stream)
        except httpx.ConnectError as error:
            raise unreachable(self.path) from error
        except httpx.HTTPError as error:
            raise Interrupted(
                Code.DAEMON_UNREACHABLE,
                f"the daemon did not answer ({error!r}); it is not known whether it was done",
            ) from error
        if response.status_code >= 400:
            raise problem_in(response.status_code, await response.aread())
        return response

    async def ask(self, call: Call[T]) -> T:
        """Send a call and return its answer; raises the problem that it was answered with."""
        response = await self._send(call, call.body, stream=False)
        if call.kind is None:
            return response.content  # type: ignore[return-value]
        return call.decode(response.content)

    async def stream(self, call: Call[bytes]) -> AsyncIterator[bytes]:
        """Send a call and give its answer in pieces."""
        response = await self._send(call, call.body, stream=True)
        try:
            async for chunk in response.aiter_bytes():
                yield chunk
        finally:
            await response.aclose()

    async def send(self, call: Call[None], chunks: AsyncIterator[bytes]) -> None:
        """Send a call with a body of any length."""
        await self._send(call, chunks, stream=False)

    async def finish(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """Send a call that makes a job and wait for its end; raises the problem that ended it."""
        seconds = LONG_POLL if on_progress is None else 0.25
        job = await self.ask(waiting(call, seconds))
        while not job.is_final:
            if on_progress is not None:
                on_progress(job)
            job = await self.ask(waiting(show_job(job.id), seconds))
        if job.problem is not None:
            raise error_from_problem(job.problem)
        return job


class AsyncGuest:
    """One guest; see ``serai.client.inn.Guest``."""

    def __init__(self, connection: AsyncConnection, info: GuestView) -> None:
        self._connection = connection
        self.info = info

    def __repr__(self) -> str:
        return f"<AsyncGuest {self.info.name} {self.info.state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            await self.delete(force=True)
        except NotFound:
            pass  # gone already: just what is wanted

    @property
    def id(self) -> str:
        """Its id, which never changes."""
        return self.info.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

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
        return result_of(await self._connection.ask(calls.run_command(self.id, request)))

    async def push(self, source: Path | str | bytes, path: str, *, mode: int = 0o644) -> None:
        """Write a file in it: from a local file, or the bytes given."""
        call = calls.push_file(self.id, path, mode=mode, unpack=False)
        await self._connection.send(call, _pieces(source))

    async def pull(self, path: str) -> bytes:
        """Return the content of a file in it."""
        call = calls.pull_file(self.id, path, pack=False)
        return b"".join([chunk async for chunk in self._connection.stream(call)])

    async def log(self, *, tail: int | None = None) -> str:
        """Return what it printed on its serial console."""
        call = calls.show_log(self.id, tail=tail)
        pieces = [chunk async for chunk in self._connection.stream(call)]
        return b"".join(pieces).decode(errors="replace")

    async def screenshot(self) -> bytes:
        """Return what its screen shows, as PNG."""
        return await self._connection.ask(calls.take_screenshot(self.id))

    async def vnc(self) -> str:
        """Return the path of the socket where a VNC viewer connects."""
        return (await self._connection.ask(calls.show_vnc(self.id))).socket


class AsyncInn:
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

    async def guests(self) -> list[AsyncGuest]:
        """Return all guests by name."""
        found: list[AsyncGuest] = []
        cursor = ""
        while True:
            page = await self.connection.ask(calls.list_guests(cursor=cursor))
            found += [AsyncGuest(self.connection, info) for info in page.items]
            cursor = page.next
            if not cursor:
                return found

    async def launch(
        self, image: str, *, wait: bool = True, on_progress: OnProgress | None = None, **spec: Any
    ) -> AsyncGuest:
        """Make a guest of an image, start it, and wait until its agent answers."""
        call = calls.launch_guest(spec_of(image, **spec), wait_agent=wait)
        return await self.guest((await self.connection.finish(call, on_progress)).subject)

    async def create(self, image: str, **spec: Any) -> AsyncGuest:
        """Make a guest and leave it stopped."""
        call = calls.launch_guest(spec_of(image, **spec), start=False)
        return await self.guest((await self.connection.finish(call)).subject)

    async def images(self) -> list[Image]:
        """Return all images by name."""
        return (await self.connection.ask(calls.list_images())).items

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

    async def delete_image(self, name: str) -> None:
        """Delete an image that no guest is built on."""
        await self.connection.finish(calls.delete_image(name))

    async def jobs(self, state: str = "") -> list[Job]:
        """Return the newest jobs."""
        return (await self.connection.ask(calls.list_jobs(state))).items

    async def job(self, job_id: str) -> Job:
        """Return a job; NotFound."""
        return await self.connection.ask(calls.show_job(job_id))

    async def events(self, after: int = 0) -> list[Event]:
        """Return stored events with a number above ``after``."""
        return (await self.connection.ask(calls.list_events(after))).items

    async def watch(self, after: int | None = None) -> AsyncIterator[Event]:
        """Give events as they happen; those after ``after`` first."""
        rest = b""
        async for chunk in self.connection.stream(calls.follow_events(after)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield msgspec.json.decode(line[5:].strip(), type=Event)


async def _pieces(source: Path | str | bytes) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with Path(source).open("rb") as file:  # noqa: ASYNC230 - local and small
        while chunk := file.read(PUSH_CHUNK):
            yield chunk


def connect(socket: Path | str | None = None) -> AsyncInn:
    """Return the daemon of this environment (``SERAI_HOME``), or the one whose socket is given."""
    return AsyncInn(AsyncConnection(Path(socket) if socket else current_places().socket))
