"""Serve the API over an engine in memory with 1,000 guests, until killed.

PYTHONPATH=src:tests/wire python bench/api_fake.py /tmp/api.sock
"""

import asyncio
import socket
import sys
import tempfile
from pathlib import Path

import uvloop
from fake_engine import FakeEngine

from serai.api.app import build_app, serve
from serai.settings import read_settings


async def run(path: str, folder: Path) -> None:
    """Serve at ``path``."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)
    engine = FakeEngine(folder)
    engine.add_guests(1000)
    app = build_app(engine, settings=read_settings({}, folder / "none"))
    await serve(app, listener, asyncio.Event())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(run(sys.argv[1], Path(name)))
