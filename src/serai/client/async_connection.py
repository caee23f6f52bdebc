"""The async way to the daemon: the twin of ``blocking``, over ``httpx``."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serai.client import calls
from serai.client.blocking import AT_ONCE, PATH_LIMIT, PROGRESS_EVERY, OnProgress
from serai.client.calls import (
    CANCEL_LIMIT,
    LONG_POLL,
    Call,
    cancel_job,
    keyed,
    problem_in,
    show_job,
    undoing,
    waiting,
)
from serai.errors import Code, NotFound, SeraiError
from serai.model.job import Job

T = TypeVar("T")


class AsyncConnection:
    """Sends calls to the daemon whose socket is at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = -1
        transport = httpx.AsyncHTTPTransport(uds=self._address())
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def _address(self) -> str:
        """Return an address that fits for the socket; of a long path the folder is kept open."""
        if len(os.fsencode(self.path)) <= PATH_LIMIT:
            return str(self.path)
        try:
            self._folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise calls.unreachable(self.path) from error
        return f"/proc/self/fd/{self._folder}/{self.path.name}"

    async def close(self) -> None:
        """Drop all connections."""
        await self._http.aclose()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

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
            if response.status_code >= 400:
                raise problem_in(response.status_code, await response.aread())
        except httpx.ConnectError as error:
            denied = isinstance(_root_of(error), PermissionError)
            raise (calls.not_allowed if denied else calls.unreachable)(self.path) from error
        except httpx.TimeoutException as error:
            raise calls.too_late(call) from error
        except httpx.HTTPError as error:
            raise calls.lost(call) from error
        return response

    async def ask(self, call: Call[T]) -> T:
        """Send a call and return its answer; raises the problem that it was answered with."""
        return call.decode((await self._send(call, call.body, stream=False)).content)

    async def stream(self, call: Call[bytes]) -> AsyncIterator[bytes]:
        """Send a call and give its answer in pieces; Interrupted when it is cut off."""
        response = await self._send(call, call.body, stream=True)
        try:
            async for chunk in response.aiter_bytes():
                yield chunk
        except httpx.HTTPError as error:
            raise calls.cut(call) from error
        finally:
            await response.aclose()

    async def send(self, call: Call[None], chunks: AsyncIterator[bytes]) -> None:
        """Send a call with a body of any length."""
        await self._send(call, chunks, stream=False)

    async def finish(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """Send a call that makes a job and wait for its end; raises the problem that ended it.

        ``on_progress`` is called with the job at once and then at least four times a second.
        """
        seconds = LONG_POLL if on_progress is None else PROGRESS_EVERY
        job = await self.ask(call if on_progress else waiting(call, seconds))
        while not job.is_final:
            if on_progress is not None:
                on_progress(job)
            job = await self._ask_again(job, seconds)
        return calls.outcome(job)

    async def make(self, call: Call[Job], on_progress: OnProgress | None = None) -> Job:
        """As ``finish``; interrupted (cancelled, ctrl-C), nothing of what it makes is left."""
        call = keyed(call, os.urandom(16).hex())
        try:
            return await self.finish(call, on_progress)
        except SeraiError:
            raise
        except BaseException:
            with contextlib.suppress(SeraiError):
                await self._give_up(call)
            raise

    async def _give_up(self, call: Call[Job]) -> None:
        job = await self.ask(call)  # the same job: it has a key
        with contextlib.suppress(SeraiError):
            if not job.is_final:
                await self.ask(cancel_job(job.id))
        for undo in undoing(await self.ask(waiting(show_job(job.id), CANCEL_LIMIT))):
            await self.ask(undo)

    async def finish_all(self, begun: Iterable[Call[Job]]) -> list[SeraiError]:
        """Send calls that make jobs, a few at a time, and wait for the ends; return what went wrong.

        What is not there (NotFound) is not wrong: these calls remove things.
        """
        errors: list[SeraiError] = []
        waited = list(begun)
        for first in range(0, len(waited), AT_ONCE):
            jobs = [await self._begin(call, errors) for call in waited[first : first + AT_ONCE]]
            for job in jobs:
                if job is not None:
                    await self._begin(show_job(job.id), errors, end=True)
        return errors

    async def _begin(
        self, call: Call[Job], errors: list[SeraiError], *, end: bool = False
    ) -> Job | None:
        try:
            if end:
                return await self.finish(call)
            return await self.ask(call)
        except NotFound as error:
            if error.code is Code.DAEMON_UNREACHABLE:
                errors.append(error)
        except SeraiError as error:
            errors.append(error)
        return None

    async def _ask_again(self, job: Job, seconds: float) -> Job:
        try:
            return await self.ask(waiting(show_job(job.id), seconds))
        except SeraiError as error:
            if error.code is Code.DAEMON_UNREACHABLE:
                raise calls.lost_job(job) from error
            raise


def _root_of(error: BaseException) -> BaseException:
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error
