"""The async way to the daemon: the twin of ``blocking``, over ``httpx``."""

import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serai.client import faults
from serai.client.asking_async import AsyncAsking
from serai.client.blocking import PATH_LIMIT
from serai.client.calls import Call
from serai.client.faults import problem_in

T = TypeVar("T")


class AsyncConnection(AsyncAsking):
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
            raise faults.unreachable(self.path) from error
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
            raise (faults.not_allowed if denied else faults.unreachable)(self.path) from error
        except httpx.TimeoutException as error:
            raise faults.too_late(call) from error
        except httpx.HTTPError as error:
            raise faults.lost(call) from error
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
            raise faults.cut(call) from error
        finally:
            await response.aclose()

    async def collect(self, call: Call[bytes]) -> bytes:
        """Send a call and give its answer, however long, when all of it is there."""
        return b"".join([chunk async for chunk in self.stream(call)])

    async def send(self, call: Call[None], chunks: Iterable[bytes]) -> None:
        """Send a call with a body of any length; reading ``chunks`` blocks for as long as it takes."""
        await self._send(call, _one_by_one(chunks), stream=False)


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _root_of(error: BaseException) -> BaseException:
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error
