"""Everything that one QEMU is given, opened before it is started.

The middle one of the three steps of a start: the machine is planned, ``open_resources`` opens what
it names, ``commandline`` renders both. QEMU gets descriptors, so the folders stay closed to it; see
docs/design/0010 for what is passed how, and why.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from serai.errors import Code, HostFailure
from serai.host.sockets import bind_unix
from serai.model.machine import Machine

SOCKETS = ("qmp", "agent", "console")
PRIVATE = 0o600


def open_resources(
    stack: ExitStack, machine: Machine, run_dir: Path, state_dir: Path, uid: int | None
) -> dict[str, int]:
    """Open all that the machine needs, each under its name; leaving ``stack`` closes our copies.

    Raises HostFailure (``guest-start-failed``, ``disk-full``) with what could not be opened.
    """
    try:
        return _open_all(stack, machine, run_dir, state_dir, uid)
    except OSError as error:
        raise HostFailure(
            Code.DISK_FULL if error.errno == errno.ENOSPC else Code.GUEST_START_FAILED,
            f"{error.filename or 'the memory or a socket'} can't be opened: {error.strerror}",
        ) from error


def _open_all(
    stack: ExitStack, machine: Machine, run_dir: Path, state_dir: Path, uid: int | None
) -> dict[str, int]:
    fds = {"memory": _open_memory(machine, uid)}
    stack.callback(os.close, fds["memory"])
    for name in SOCKETS:
        listener = stack.enter_context(bind_unix(socket_path(run_dir, name), mode=PRIVATE))
        fds[name] = listener.fileno()
    for name, path, flags in _files(machine, state_dir):
        fds[name] = os.open(path, flags | os.O_CLOEXEC, PRIVATE)
        stack.callback(os.close, fds[name])
    return fds


def remove_sockets(run_dir: Path) -> None:
    """Remove the sockets of a QEMU that has ended."""
    for name in SOCKETS:
        socket_path(run_dir, name).unlink(missing_ok=True)


def socket_path(run_dir: Path, name: str) -> Path:
    """Return where the socket ``name`` of ``SOCKETS`` listens."""
    return run_dir / f"{name}.sock"


def memory_name(guest_id: str) -> str:
    """Return the name of a guest's memory file: what tells its QEMU from a lookalike."""
    return f"serai-{guest_id}"


def _files(machine: Machine, state_dir: Path) -> Iterator[tuple[str, Path, int]]:
    # appending, so that whoever shortens the log from outside never leaves a hole
    yield "log", state_dir / "serial.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for drive in machine.drives:
        for index, layer in enumerate(drive.chain):
            flags = os.O_RDONLY if layer.read_only else os.O_RDWR
            yield f"{drive.name}/{index}", Path(layer.path), flags
    if machine.kernel:
        yield "kernel", Path(machine.kernel), os.O_RDONLY
    if machine.initrd:
        yield "initrd", Path(machine.initrd), os.O_RDONLY
    if machine.uefi_vars:
        yield "uefi-vars", Path(machine.uefi_vars), os.O_RDWR


def _open_memory(machine: Machine, uid: int | None) -> int:
    """Make the guest's memory: a sparse file without a name, the guest's own."""
    fd = os.memfd_create(memory_name(machine.id), os.MFD_CLOEXEC)
    os.ftruncate(fd, machine.memory)
    os.fchmod(fd, PRIVATE)
    if uid is not None:
        os.fchown(fd, uid, uid)
    return fd
