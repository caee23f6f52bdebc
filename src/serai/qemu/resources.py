"""Everything that one QEMU is given, opened before it is started.

The middle one of the three steps of a start: the machine is planned, ``open_resources`` opens what
it names, ``commandline`` renders both. QEMU gets descriptors, so the folders stay closed to it; see
docs/design/0010 for what is passed how, and why.
"""

import errno
import fcntl
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from serai.errors import Code, HostFailure
from serai.host.sockets import bind_unix
from serai.host.tap import open_loose_tap, open_tap
from serai.model.guest import Firmware
from serai.model.image import UNPACKED
from serai.model.machine import Machine
from serai.qemu.commandline import READ_ONLY, tap_name
from serai.qemu.memory import ram_name

HIGHEST_DESCRIPTOR = 511
SOCKETS = ("qmp", "agent", "birth", "console")
PRIVATE = 0o600
PUBLIC = 0o444
BADGE_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
NO_TAPS: Mapping[str, int] = {}
KERNEL_KEPT, INITRD_KEPT = 64 << 10, 16
"""What QEMU needs of the files that it holds and never runs when it takes up a state."""


def open_resources(
    stack: ExitStack,
    machine: Machine,
    run_dir: Path,
    state_dir: Path,
    uid: int | None,
    memory_fd: int | None = None,
    taps: Mapping[str, int] = NO_TAPS,
) -> dict[str, int]:
    """Open all that the machine needs, each under its name; leaving ``stack`` closes our copies.

    ``memory_fd`` is its memory, for one that takes up a state; ``taps`` are those that another QEMU has
    open, by interface. Both stay the caller's. Raises HostFailure (``guest-start-failed``,
    ``disk-full``) with what could not be opened.
    """
    try:
        memory = _open_memory(stack, machine, uid) if memory_fd is None else memory_fd
        fds = {"memory": memory, **_open_all(stack, machine, run_dir, state_dir)}
        return fds | _open_taps(stack, machine, taps)
    except OSError as error:
        raise HostFailure(
            Code.DISK_FULL if error.errno == errno.ENOSPC else Code.GUEST_START_FAILED,
            f"{error.filename or 'the memory or a socket'} can't be opened: {error.strerror}",
        ) from error


def _open_all(stack: ExitStack, machine: Machine, run_dir: Path, state_dir: Path) -> dict[str, int]:
    fds = {"badge": _make_badge(stack, machine, run_dir)}
    for name in _sockets_of(machine):
        listener = stack.enter_context(bind_unix(socket_path(run_dir, name), mode=PRIVATE))
        fds[name] = listener.fileno()
    for name, path, flags in _files(machine, state_dir):
        fds[name] = os.open(path, flags | os.O_CLOEXEC, PRIVATE)
        stack.callback(os.close, fds[name])
    for name, kernel_path, kept in _boot_files(machine):
        has_booted = machine.ram_private and not machine.boots
        if has_booted:
            fds[name] = _open_beginning(stack, kernel_path, kept)
        else:
            fds[name] = _open_whole(
                stack, kernel_path if name != "kernel" else kernel_to_boot(machine)
            )
    return fds


def _open_taps(stack: ExitStack, machine: Machine, taps: Mapping[str, int]) -> dict[str, int]:
    fds = {}
    for nic in machine.nics:
        if nic.tap in taps:
            fds[tap_name(nic)] = taps[nic.tap]
        elif nic.tap or nic.place:
            fds[tap_name(nic)] = open_tap(nic.tap) if nic.tap else open_loose_tap()
            stack.callback(os.close, fds[tap_name(nic)])
    return fds


def _sockets_of(machine: Machine) -> list[str]:
    return [name for name in SOCKETS if name != "birth" or machine.birth_port]


def remove_sockets(run_dir: Path) -> None:
    """Remove the sockets of a QEMU that has ended."""
    for name in SOCKETS:
        socket_path(run_dir, name).unlink(missing_ok=True)


def socket_path(run_dir: Path, name: str) -> Path:
    """Return where the socket ``name`` of ``SOCKETS`` listens."""
    return run_dir / f"{name}.sock"


def memory_name(guest_id: str) -> str:
    """Return the name of a guest's badge, a memfd that tells its QEMU from a lookalike.

    Its content is the name of the run folder: a guest may have two QEMUs for a moment.
    """
    return f"serai-{guest_id}"


def _files(machine: Machine, state_dir: Path) -> Iterator[tuple[str, Path, int]]:
    # appending, so that whoever shortens the log from outside never leaves a hole
    yield "log", state_dir / "serial.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for drive in machine.drives:
        for index, layer in enumerate(drive.chain):
            flags = os.O_RDONLY if layer.read_only else os.O_RDWR
            yield f"{drive.name}/{index}", Path(layer.path), flags
            if not layer.read_only:
                yield f"{drive.name}/{index}{READ_ONLY}", Path(layer.path), os.O_RDONLY
    if machine.uefi_vars:
        yield "uefi-vars", Path(machine.uefi_vars), os.O_RDWR


def _make_badge(stack: ExitStack, machine: Machine, run_dir: Path) -> int:
    fd = _new_memfd(stack, memory_name(machine.id))
    os.write(fd, run_dir.name.encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, BADGE_SEALS)
    # so that QEMU's table of descriptors need not grow: that waits for a grace period of the kernel
    # (expand_fdtable in fs/file.c), 8 ms in which the guest stands still, at the 64th and 128th
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(HIGHEST_DESCRIPTOR, most // 2))
    stack.callback(os.close, high)
    return high


def kernel_to_boot(machine: Machine) -> str:
    """Return the file that QEMU boots: the kernel as it runs, where that lies beside it (``disk.images``).

    Its own firmware does that; UEFI's wants the kernel that unpacks itself.
    """
    unpacked = machine.kernel + UNPACKED
    use = machine.firmware is Firmware.BIOS and os.path.exists(unpacked)
    return unpacked if use else machine.kernel


def _boot_files(machine: Machine) -> Iterator[tuple[str, str, int]]:
    if machine.kernel:
        yield "kernel", machine.kernel, KERNEL_KEPT
    if machine.initrd:
        yield "initrd", machine.initrd, INITRD_KEPT


def _open_whole(stack: ExitStack, path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _open_beginning(stack: ExitStack, path: str, size: int) -> int:
    """Open a copy of a file's beginning."""
    fd = _new_memfd(stack, "beginning")
    with open(path, "rb") as file:
        os.write(fd, file.read(size))
    os.fchmod(fd, PUBLIC)
    return fd


def _new_memfd(stack: ExitStack, name: str) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    return fd


def _open_memory(stack: ExitStack, machine: Machine, uid: int | None) -> int:
    """Make the guest's memory: a sparse file without a name, the guest's own."""
    fd = _new_memfd(stack, ram_name(machine.ram or machine.id))
    os.ftruncate(fd, machine.memory)
    os.fchmod(fd, PRIVATE)
    if uid is not None:
        os.fchown(fd, uid, uid)
    return fd
