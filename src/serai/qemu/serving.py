"""A volume served read-only by NBD: a QEMU without a machine, confined, that has nothing but its files.

It gets the layers as descriptors for reading, like the QEMU of a guest, so no folder is opened to it; it
listens on a socket that we made, and ends when the block ends, or with the daemon. Any number may read
at once; the allocation map (``base:allocation``) comes with it.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from signal import SIGKILL

from serai.errors import Code, HostFailure, SeraiError
from serai.host.process import Confinement, Process, find_program, spawn
from serai.host.sockets import bind_unix
from serai.model.machine import Drive, LayerFile, Media
from serai.qemu import commands
from serai.qemu.commandline import node_name
from serai.qemu.drives import open_chain
from serai.qemu.lent import Lent
from serai.qemu.qmp import Monitor

EXPORT = "volume"
START_TIMEOUT = 20.0
EARLY_END = 1.0
LISTENER = "listener"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
WORDS_KEPT = 2000


@asynccontextmanager
async def open_server(
    chain: tuple[LayerFile, ...],
    listener: socket.socket,
    *,
    folder: Path,
    qemu_path: str,
    uid: int | None,
    sandbox: bool,
) -> AsyncIterator[None]:
    """Serve ``chain``, whose layers are all for reading, on ``listener`` within the block.

    ``folder`` is an empty one for its monitor. Raises HostFailure (``tool-failed`` with its last words,
    ``qmp-failed``).
    """
    assert all(layer.read_only for layer in chain)
    monitor_path = folder / "qmp.sock"
    with ExitStack() as stack:
        qmp = stack.enter_context(bind_unix(monitor_path, mode=0o600))
        stack.callback(monitor_path.unlink, missing_ok=True)
        words = stack.enter_context(tempfile.TemporaryFile())
        argv = [
            find_program("setpriv"), "--pdeathsig=KILL", "--",
            qemu_path, "-machine", "none", "-nodefaults", "-no-user-config",
            "-display", "none", "-vga", "none",
            *(["-sandbox", SANDBOX] if sandbox else []),
            "-chardev", f"socket,id=qmp,fd={qmp.fileno()},server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
        ]  # fmt: skip
        confinement = Confinement(uid=uid, setpriv=find_program("setpriv"), cgroup=None)
        process = await spawn(
            argv, pass_fds=(qmp.fileno(),), stderr_to=words.fileno(), confinement=confinement
        )
        try:
            try:
                monitor = await Monitor.connect(monitor_path, lambda _: None, timeout=START_TIMEOUT)
            except SeraiError as error:
                raise await _not_started(process, words.fileno(), error) from error
            try:
                await _serve(monitor, chain, listener)
                yield
            finally:
                with contextlib.suppress(SeraiError):
                    await monitor.close()
        finally:
            process.signal(SIGKILL)
            await process.wait()
            process.close()


async def _serve(monitor: Monitor, chain: tuple[LayerFile, ...], listener: socket.socket) -> None:
    drive = Drive(name=EXPORT, media=Media.DISK, chain=chain, boot_index=0)
    await open_chain(monitor, Lent(), drive, START_TIMEOUT)
    await commands.give_fd(monitor, LISTENER, listener.fileno())
    await commands.serve_nbd(monitor, LISTENER)
    await commands.add_export(monitor, node_name(drive, 0), EXPORT)


async def _not_started(process: Process, words_fd: int, error: SeraiError) -> HostFailure:
    status = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EARLY_END):
            status = await process.wait()
    untrusted = os.pread(words_fd, WORDS_KEPT, 0).decode(errors="replace").strip()
    last = untrusted.rsplit("\n", 1)[-1] or error.message
    return HostFailure(
        Code.TOOL_FAILED,
        f"the volume can't be served: {last}" + (f" (it ended: {status})" if status else ""),
        details={"stderr": untrusted, **error.details},
    )
