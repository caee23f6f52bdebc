"""Taps: interfaces whose other end is a descriptor (kernel: Documentation/networking/tuntap.rst)."""

import errno
import fcntl
import os
import socket
import struct

from serai.errors import Code, HostFailure
from serai.host.namespaces import inside, network_error

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
LOOSE = "loose%d"
"""The kernel puts a number there that is free."""
REQUEST = struct.Struct("16sH22x")


def make_tap(name: str, *, uid: int | None, namespace: str = "") -> None:
    """Make a tap that stays when nobody has it open; ``uid`` may open it, None: only root.

    Fine if it is there. Raises Denied (``network-unavailable``), HostFailure (``network-failed``).
    """

    def make() -> None:
        fd = _attach(name)
        try:
            if uid is not None:
                fcntl.ioctl(fd, TUNSETOWNER, uid)
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
        finally:
            os.close(fd)

    try:
        inside(namespace, make)
    except OSError as error:
        raise network_error(f"make the tap {name}", error) from error


def open_tap(name: str, *, namespace: str = "") -> int:
    """Open a tap that is there, for QEMU: one queue, with virtio's headers. Return the descriptor.

    It does not block, and is not inherited unless passed on. Raises HostFailure (``network-failed``)
    when there is no such tap, or somebody has it open.
    """

    def attach() -> int:
        socket.if_nametoindex(name)  # else the kernel would make one, without a bridge
        return _attach(name)

    try:
        return inside(namespace, attach)
    except OSError as error:
        if error.errno is None or error.errno == errno.ENODEV:
            raise HostFailure(Code.NETWORK_FAILED, f"there is no tap {name}") from error
        raise network_error(f"open the tap {name}", error) from error


def open_loose_tap() -> int:
    """Open a tap that leads nowhere and is gone when it is closed, for a NIC without a cable.

    A state that was saved at a tap is taken up at one only, for its virtio headers (QEMU,
    hw/net/virtio-net.c). Raises as ``make_tap`` does.
    """
    try:
        return _attach(LOOSE)
    except OSError as error:
        raise network_error("make a tap that leads nowhere", error) from error


def _attach(name: str) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, TUNSETIFF, REQUEST.pack(name.encode(), FLAGS))
    except BaseException:
        os.close(fd)
        raise
    return fd
