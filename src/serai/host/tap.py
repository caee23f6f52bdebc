"""Taps as files: an interface whose other end is a descriptor (tun(4), kernel: tuntap.rst)."""


def make_tap(name: str, *, uid: int | None, namespace: str = "") -> None:
    """Make a tap that stays when nobody has it open; ``uid`` may open it. Fine if it is there."""
    raise NotImplementedError


def open_tap(name: str, *, namespace: str = "") -> int:
    """Open a tap that is there, for QEMU: one queue, with virtio's headers. Return the descriptor.

    Raises HostFailure (``network-failed``) when it is not there or somebody has it open.
    """
    raise NotImplementedError
