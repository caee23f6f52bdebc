"""The command line for tests: in this process for what is quick, as a program for what is not.

``Shell.run`` calls ``serai.__main__.main`` as the program does, fast path included, in a thread
beside the API that a test serves. ``Shell.start`` starts the real program.
"""

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from api_peer import Inn, served

from serai.__main__ import main

LIMIT = 30.0


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    raw: bytes
    raw_err: bytes

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def err(self) -> str:
        return self.raw_err.decode()


class Shell:
    """Runs serai with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "run").mkdir(exist_ok=True)

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SERAI_")}
        return {**kept, "SERAI_HOME": str(self.home)}

    async def run(self, *words: str, stdin: bytes = b"") -> Done:
        """Run a command in this process."""
        return await asyncio.to_thread(self.call, *words, stdin=stdin)

    def call(self, *words: str, stdin: bytes = b"") -> Done:
        """Run a command in this thread."""
        out, err = io.BytesIO(), io.BytesIO()
        with (
            mock.patch.dict(os.environ, self.environ),
            mock.patch.object(sys, "argv", ["serai", *words]),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            mock.patch.object(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True)),
            mock.patch.object(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
        ):
            code = main()
            return Done(code, out.getvalue(), err.getvalue())

    async def start(self, *words: str, **more: Any) -> asyncio.subprocess.Process:
        """Start the program; its output is piped unless ``more`` says else."""
        pipe = subprocess.PIPE
        streams = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe, **more}
        environ = {**self.environ, **streams.pop("env", {})}
        argv = [sys.executable, "-m", "serai", *words]
        return await asyncio.create_subprocess_exec(*argv, env=environ, **streams)


@asynccontextmanager
async def shell_and_inn(home: Path, **settings: str) -> AsyncIterator[tuple[Shell, Inn]]:
    """A shell, and the API of an engine in memory where the shell looks for it."""
    shell = Shell(home)
    async with served(home / "run", **settings) as inn:
        yield shell, inn
