"""The command line and the SDK against the real API over an engine in memory.

The API runs in a thread of its own, on the socket that ``SERAI_HOME`` leads to. ``Stage.serai``
runs a command in this process: fast, and seen by coverage. What needs a terminal or a signal is run
as a process of its own by ``Stage.process``.
"""

import asyncio
import io
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from api_peer import Inn as Api
from api_peer import served
from fake_engine import FakeEngine

from serai.__main__ import main

T = TypeVar("T")

LIMIT = 30.0


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Its standard output as text."""
        return self.out.decode()


class Stage:
    """A home with a served API, and ways to run commands with it."""

    def __init__(
        self, home: Path, api: Api, loop: asyncio.AbstractEventLoop, patch: pytest.MonkeyPatch
    ) -> None:
        self.home = home
        self.api = api
        self._loop = loop
        self._patch = patch

    @property
    def engine(self) -> FakeEngine:
        """The engine behind the API."""
        return self.api.engine

    @property
    def socket(self) -> Path:
        """The socket of the API."""
        return self.api.path

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop of the API."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)

    def stop(self) -> None:
        """Let the daemon end."""
        self._loop.call_soon_threadsafe(self.api.stop.set)

    def serai(self, *words: str, stdin: bytes = b"") -> Done:
        """Run a command in this process."""
        return run_here(self._patch, words, stdin)

    @property
    def environ(self) -> dict[str, str]:
        """The environment for processes."""
        return {**os.environ, "SERAI_HOME": str(self.home)}

    @contextmanager
    def process(self, *words: str, **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
        """Run a command as a process, which is killed at the end of the block."""
        argv = [sys.executable, "-m", "serai", *words]
        with subprocess.Popen(argv, env=self.environ, **more) as process:
            try:
                yield process
            finally:
                process.kill()


def run_here(patch: pytest.MonkeyPatch, words: tuple[str, ...], stdin: bytes = b"") -> Done:
    """Run a command in this process with streams of bytes."""
    out, err = io.BytesIO(), io.BytesIO()
    with patch.context() as inner:
        inner.setattr(sys, "argv", ["serai", *words])
        inner.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        inner.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", write_through=True))
        inner.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="utf-8", write_through=True))
        try:
            code = main()
        except SystemExit as end:  # click's answer to a shell that completes
            code = int(str(end.code or 0))
        return Done(code, out.getvalue(), err.getvalue().decode())


class _Server(threading.Thread):
    """The API in a loop of its own, until ``end``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.api: Api | None = None
        self._end = asyncio.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self._serve())
        self.loop.close()

    async def _serve(self) -> None:
        try:
            async with served(self._folder) as api:
                self.api = api
                self._ready.set()
                await self._end.wait()
        finally:
            self._ready.set()

    def begin(self) -> Api:
        self.start()
        assert self._ready.wait(LIMIT) and self.api is not None
        return self.api

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self.join(LIMIT)
        assert not self.is_alive()


@contextmanager
def staged(home: Path, patch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Serve the API below ``home`` and point ``SERAI_HOME`` there."""
    folder = home / "run"
    folder.mkdir(parents=True, exist_ok=True)
    patch.setenv("SERAI_HOME", str(home))
    server = _Server(folder)
    api = server.begin()
    try:
        yield Stage(home, api, server.loop, patch)
    finally:
        server.end()
