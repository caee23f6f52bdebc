"""Network namespaces by name, as ip-netns(8) keeps them: a file under ``/run/netns`` each.

A namespace is entered by a thread that never leaves it and ends, or lives with what it opened: so no
other thread of ours is ever anywhere but at home. Only the network is another there; files,
processes and users are those of the host.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from serai.errors import Code, Denied, HostFailure, SeraiError

FOLDER = Path("/run/netns")
OWN = "/proc/thread-self/ns/net"
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mount.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p,
)  # fmt: skip

T = TypeVar("T")


def path_of(namespace: str) -> Path:
    """Return the file that stands for a namespace."""
    return FOLDER / namespace


def namespace_words(namespace: str) -> list[str]:
    """Return the words that start a program in a namespace; none for our own."""
    return ["nsenter", f"--net={path_of(namespace)}", "--"] if namespace else []


def has_namespace(namespace: str) -> bool:
    """Tell whether there is a namespace of that name: a file that is one, not one that was left."""
    try:
        return path_of(namespace).stat().st_dev != FOLDER.stat().st_dev
    except FileNotFoundError:
        return False


def list_namespaces(prefix: str) -> list[str]:
    """Return the names that begin with ``prefix``."""
    return sorted(path.name for path in FOLDER.glob(f"{prefix}*"))


def make_namespace(namespace: str) -> None:
    """Make a namespace with nothing in it but a loopback interface; fine if it is there.

    Raises Denied (``network-unavailable``) where we may not, HostFailure (``network-failed``).
    """
    if has_namespace(namespace):
        return
    path = path_of(namespace)
    try:
        _share_folder()
        path.touch(mode=0o444)
        _in_thread(lambda: _unshare_onto(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise network_error(f"make the namespace {namespace}", error) from error


def remove_namespace(namespace: str) -> None:
    """Remove a name; what is inside ends when its last process and descriptor have. Fine if gone."""
    path = path_of(namespace)
    try:
        if LIBC.umount2(bytes(path), MNT_DETACH) and ctypes.get_errno() == errno.EPERM:
            raise _os_error()
        path.unlink(missing_ok=True)
    except OSError as error:
        raise network_error(f"remove the namespace {namespace}", error) from error


def inside(namespace: str, work: Callable[[], T]) -> T:
    """Do ``work`` in a namespace and return what it returns; "": just here.

    Raises what it raises, and OSError when there is no such namespace.
    """
    if not namespace:
        return work()

    def enter_and_work() -> T:
        enter(namespace)
        return work()

    return _in_thread(enter_and_work)


def enter(namespace: str) -> None:
    """Move the calling thread into a namespace, for good. Never the thread of an event loop."""
    fd = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.setns(fd, CLONE_NEWNET):
            raise _os_error()
    finally:
        os.close(fd)


def network_error(what: str, error: OSError) -> SeraiError:
    """Return the problem for a call to the kernel about networks that failed."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.EPERM, errno.EACCES):
        return Denied(
            Code.NETWORK_UNAVAILABLE,
            f"serai may not {what}: {reason}",
            hint="Networks need root with CAP_NET_ADMIN; serai doctor says what is missing.",
        )
    return HostFailure(Code.NETWORK_FAILED, f"can't {what}: {reason}")


def _in_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1, thread_name_prefix="namespace") as thread:
        return thread.submit(work).result()


def _share_folder() -> None:
    """Let names that are mounted here be seen, and vanish, in every mount namespace (ip-netns(8))."""
    FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _mount(b"", FOLDER, MS_SHARED | MS_REC):
        if ctypes.get_errno() != errno.EINVAL or _mount(bytes(FOLDER), FOLDER, MS_BIND | MS_REC):
            raise _os_error()
        if _mount(b"", FOLDER, MS_SHARED | MS_REC):
            raise _os_error()


def _unshare_onto(path: Path) -> None:
    if LIBC.unshare(CLONE_NEWNET) or _mount(OWN.encode(), path, MS_BIND):
        raise _os_error()


def _mount(source: bytes, target: Path, flags: int) -> int:
    failed: int = LIBC.mount(source, bytes(target), b"none", flags, None)
    return failed


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
