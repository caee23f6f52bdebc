"""What is measured: a real daemon with the tiny image, bare QEMU beside it, libvirt where it is."""

import asyncio
import dataclasses
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import Daemon
from tiny import copy_state, state_with_tiny

from bench.bare import BareGuest, another, read_machine
from bench.libvirt import Libvirt, open_libvirt, why_not
from serai.model.machine import Machine

MEMORY = 256 << 20


@dataclass(frozen=True)
class Scene:
    """All that a measurement needs. ``libvirt`` is None where it can't be had, and why."""

    daemon: Daemon
    folder: Path
    machine: Machine
    qemu: str
    libvirt: Libvirt | None
    no_libvirt: str

    @asynccontextmanager
    async def bare(
        self, name: str, *, memory: int = 0, share: int = -1, state: Path | None = None
    ) -> AsyncIterator[BareGuest]:
        """A bare guest, not started yet; gone at the end of the block.

        With ``share``, a RAM file, it maps that privately and waits for ``state``.
        """
        machine = dataclasses.replace(
            another(self.machine), memory=memory or MEMORY, ram_private=share >= 0
        )
        folder = self.folder / "bare" / name
        guest = BareGuest(machine, self.qemu, folder, memory=share, state=state)
        try:
            yield guest
        finally:
            guest.kill()

    @contextmanager
    def without_pool(self) -> Iterator["Scene"]:
        """The same with another daemon, which makes nothing ahead."""
        with open_daemon(pool_memory="0") as daemon:
            yield dataclasses.replace(self, daemon=daemon)

    async def post(self, path: str, body: dict[str, object] | None = None) -> Any:
        """POST to the daemon and return the answer."""
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        """Ask the daemon: a new connection each time, and no library."""
        text = json.dumps(body or {}).encode() if method == "POST" else b""
        reader, writer = await asyncio.open_unix_connection(self.daemon.socket)
        head = f"{method} {path} HTTP/1.1\r\nhost: serai\r\ncontent-length: {len(text)}\r\n"
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + text)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        content = json.loads(await reader.readexactly(length))
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{path}: {content}")
        return content

    async def delete(self, guest: str) -> None:
        """Throw a guest away; returns when it is gone for good."""
        await self._ask("DELETE", f"/v1/guests/{guest}?wait=60&force=true")

    async def start(self, guest: str) -> None:
        """Start a guest; returns when its QEMU answers and that is durable."""
        await self.post(f"/v1/guests/{guest}/start?wait=60")

    async def pull_plug(self, guest: str) -> None:
        """Stop a guest by force; returns when its process is gone and that is durable."""
        await self.post(f"/v1/guests/{guest}/stop?wait=60", {"force": True})

    async def create(self, guest: str) -> None:
        """Define a guest."""
        spec = {"image": "tiny", "name": guest, "memory": MEMORY, "start": False}
        await self.post("/v1/guests?wait=60", spec)

    async def launch(self, guest: str, *, wait_agent: bool = True, **spec: object) -> None:
        """Define and start a guest, and wait for its agent."""
        spec = {"image": "tiny", "name": guest, "memory": MEMORY, "wait_agent": wait_agent, **spec}
        await self.post("/v1/guests?wait=120", spec)


@contextmanager
def open_daemon(**settings: str) -> Iterator[Daemon]:
    """A daemon that has the tiny image, in a home of its own; nothing of it is left at the end."""
    home = Path(tempfile.mkdtemp(prefix="bench-"))
    daemon = Daemon(home, **settings)
    try:
        copy_state(state_with_tiny(), home)
        daemon.start()
        yield daemon
        daemon.delete_all()
        daemon.stop()
    finally:
        daemon.kill_all()
        shutil.rmtree(home)


@contextmanager
def open_scene() -> Iterator[Scene]:
    """Set everything up; the machine that bare QEMU gets is that of a guest of the daemon."""
    with ExitStack() as stack:
        daemon = stack.enter_context(open_daemon())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-bare-")))
        folder.chmod(0o755)
        with daemon.inn.launch("tiny", name="model", memory=MEMORY) as guest:
            running = daemon.home / "run" / "guests" / guest.id / "running.json"
            machine = read_machine(running)
        libvirt, reason = None, why_not()
        if not reason:
            try:
                libvirt = stack.enter_context(open_libvirt(folder / "libvirt"))
                libvirt.take_kernel(machine)
            except TimeoutError as error:
                reason = str(error)
        qemu = daemon.inn.status().capabilities.qemu_path
        yield Scene(daemon, folder, machine, qemu, libvirt, reason)
