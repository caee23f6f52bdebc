"""The host that measures: described in words, its memory touched once before anything is timed."""

import mmap
import os
import platform
import re
from pathlib import Path

PAGE = 4096


def describe(qemu_version: str, accel: str, libvirt_version: str) -> str:
    """Return a sentence on the machine, without names or paths of it."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.M)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    parts = [
        f"{os.cpu_count()} CPUs ({model[1].strip() if model else platform.machine()})",
        f"{round(memory / 2**30)} GiB of memory",
        system,
        f"Linux {'.'.join(platform.release().split('.')[:2])}",
        f"Python {platform.python_version()}",
        f"QEMU {qemu_version} with {accel.upper()}",
        f"libvirt {libvirt_version}" if libvirt_version else "no libvirt",
    ]
    return ", ".join(parts)


def warm_up(size: int) -> None:
    """Touch ``size`` bytes: where an outer hypervisor gives memory lazily, the first touch is dear."""
    with mmap.mmap(-1, size) as area:
        for offset in range(0, size, PAGE):
            area[offset] = 1


def free_memory() -> int:
    """Return how many bytes can be had without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    return int(found[1]) << 10 if found else 0


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)
    return int(found[1]) << 10 if found else 0


def open_files(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
