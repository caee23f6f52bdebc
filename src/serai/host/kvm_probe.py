"""Whether KVM really runs guests here: code past the firmware is run under it, within a limit.

An openable ``/dev/kvm`` proves nothing. There are KVMs made in software (PVM) that interpret what the
processor can't run for them: firmware comes up, but at half a million instructions a second, a
thousand times slower than TCG, and a kernel seems to hang (measured: docs/design/0012). So two things are
asked, the cheap one first: does the processor show virtualization, and does guest code do real
work in time? The probe is a boot sector (``kvm_probe.S``) that turns on paging and long mode, works
through memory a hundred million times, and leaves by QEMU's isa-debug-exit device, which ends QEMU
with the exit code 2 * 0x2a + 1. A processor needs 0.03 s for it, TCG 0.2 s, such a KVM twenty minutes.
"""

import os
import platform
import tempfile
from pathlib import Path

from serai.errors import SeraiError
from serai.host.process import run
from serai.model.guest import Accel

LIMIT = 3.0
DEVICE = "/dev/kvm"
CPUINFO = Path("/proc/cpuinfo")
PASSED = 2 * 0x2A + 1
DISK_SIZE = 1 << 20

CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007ce4920c02e692bf0010b9001831c0f3ab66c70600"
    "100320000066c70600200330000066c7060030830000000f0116b07c66b82000"
    "00000f22e066b8001000000f22d866b9800000c00f32660d000100000f3066b8"
    "010000800f22c0ea6c7c0800b8100000008ed88ed031c0b900e1f505010c2500"
    "50000003042500500000ffc975ee0fa2b02ae6f4f4ebfd900000000000000000"
    "00000000009a200000000000009200001700987c00000000"
)


def boot_disk() -> bytes:
    """Return a disk whose boot sector is the probe."""
    return (CODE.ljust(510, b"\0") + b"\x55\xaa").ljust(DISK_SIZE, b"\0")


def probe_argv(qemu: str, accel: Accel, disk: Path) -> list[str]:
    """Return the command line of the probe, with the CPU that guests get: ``host`` alone may fail."""
    cpu = "host,migratable=on" if accel is Accel.KVM else "max"
    return [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-m", "16",
        "-machine", f"q35,accel={accel}", "-cpu", cpu,
        "-device", "isa-debug-exit,iobase=0xf4",
        "-blockdev", f'{{"driver":"raw","node-name":"probe","read-only":true,'
        f'"file":{{"driver":"file","filename":"{disk}"}}}}',
        "-device", "virtio-blk-pci,drive=probe,bootindex=0",
    ]  # fmt: skip


async def runs_guest_code(qemu: str, accel: Accel, limit: float = LIMIT) -> bool:
    """Tell whether guest code ran to its end under ``accel`` within ``limit`` seconds."""
    fd, name = tempfile.mkstemp(prefix="serai-probe-")
    try:
        os.write(fd, boot_disk())
        done = await run(probe_argv(qemu, accel, Path(name)), timeout=limit, ok=range(-64, 256))
    except SeraiError:
        return False
    finally:
        os.close(fd)
        os.unlink(name)
    return done.code == PASSED


async def choose_accel(qemu: str, wanted: str) -> tuple[Accel, str]:
    """Return how guests are run here and the reason, for people. ``wanted``: auto, kvm or tcg.

    ``kvm`` has the probe run whatever the processor shows; it too must pass.
    """
    if wanted == "tcg":
        return Accel.TCG, "TCG was asked for by the setting accel"
    why_not = _why_not_there(even_in_software=wanted == "kvm")
    if not why_not and not await runs_guest_code(qemu, Accel.KVM):
        why_not = f"{DEVICE} opens, but guest code hung or failed under it within {LIMIT:g} s"
    if why_not:
        return Accel.TCG, f"KVM is not used: {why_not}"
    return Accel.KVM, "guest code ran under KVM"


def _why_not_there(*, even_in_software: bool) -> str:
    if not os.path.exists(DEVICE):
        return f"there is no {DEVICE} (no virtualization in the CPU, or it is turned off)"
    if not even_in_software and not _is_hardware():
        return (
            f"there is {DEVICE}, but the CPU shows no virtualization (vmx or svm), so guest code "
            "would be interpreted, slower than by TCG"
        )
    if not _may_open():
        return f"{DEVICE} may not be opened by this user (join the group kvm)"
    return ""


def lacks_permission() -> bool:
    """Tell whether there is a KVM that may work, but not for this user."""
    return os.path.exists(DEVICE) and _is_hardware() and not _may_open()


def _may_open() -> bool:
    return os.access(DEVICE, os.R_OK | os.W_OK)


def _is_hardware() -> bool:
    """Tell whether the processor can carry KVM: on x86 it does so by VMX or SVM alone."""
    return platform.machine() != "x86_64" or shows_virtualization(CPUINFO.read_text())


def shows_virtualization(cpuinfo: str) -> bool:
    """Tell whether the text of ``/proc/cpuinfo`` has VMX (Intel) or SVM (AMD) among the flags."""
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not {"vmx", "svm"}.isdisjoint(flags.split())
