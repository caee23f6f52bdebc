"""What this host can do, what is missing, and the exact command that mends it.

Each check is a small function that returns a ``Finding``; ``CHECKS`` is the visible list. Nothing is
changed here but by ``mend``, which runs the commands that the findings name.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serai.errors import Code, SeraiError
from serai.host.cgroup import Cgroups
from serai.host.packages import Package, missing
from serai.host.process import run
from serai.host.tools import find_capabilities
from serai.model.guest import Accel
from serai.model.node import Capabilities, Finding, Severity
from serai.settings import Places, Settings
from serai.units import GIB, format_size

LEAST_DISK = 2 * GIB
LEAST_MEMORY = 1 * GIB
MEND_TIMEOUT = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found out before the checks look at it."""

    capabilities: Capabilities | None
    problem: SeraiError | None
    places: Places
    missing: Sequence[Package]


async def find_findings(settings: Settings, places: Places) -> list[Finding]:
    """Look at this host and return a finding for each thing that matters."""
    capabilities: Capabilities | None = None
    problem: SeraiError | None = None
    try:
        capabilities = await find_capabilities(settings, places.state / "capabilities.json")
    except SeraiError as error:
        problem = error
    seen = Seen(capabilities=capabilities, problem=problem, places=places, missing=tuple(missing()))
    return [check(seen) for check in CHECKS]


async def mend(findings: Sequence[Finding], on_line: Callable[[str], None]) -> None:
    """Run the commands that the findings name, in order; raises where one fails.

    As another user than root the commands run through sudo, which must not ask for a password.
    Before the first installation the package lists are brought up to date: a new machine has none.
    """
    commands = [each.fix for each in findings if each.fix and each.severity is not Severity.OK]
    if any(command[0] == "apt-get" for command in commands):
        commands.insert(0, ("apt-get", "update"))
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for command in commands:
        await run(
            [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *command],
            timeout=MEND_TIMEOUT,
            on_line=on_line,
        )


def _ok(name: str, message: str) -> Finding:
    return Finding(name=name, severity=Severity.OK, message=message)


def _note(name: str, message: str, *fix: str) -> Finding:
    return Finding(name=name, severity=Severity.NOTE, message=message, fix=fix)


def _missing(name: str, message: str, *fix: str) -> Finding:
    return Finding(name=name, severity=Severity.MISSING, message=message, fix=fix)


def _packages(seen: Seen) -> Finding:
    if not seen.missing:
        return _ok("packages", "all Debian packages that serai uses are there")
    names = [package.name for package in seen.missing]
    what = ", ".join(f"{package.name} ({package.purpose})" for package in seen.missing)
    return _missing(
        "packages",
        f"missing: {what}",
        "apt-get", "install", "-y", "--no-install-recommends", *names,
    )  # fmt: skip


def _qemu(seen: Seen) -> Finding:
    can = seen.capabilities
    if can is None:
        message = seen.problem.message if seen.problem else "QEMU is missing"
        if seen.problem is not None and seen.problem.code is not Code.TOOL_MISSING:
            return _missing("qemu", f"{message}. {seen.problem.hint}".rstrip())
        return _missing("qemu", message, "apt-get", "install", "-y", "qemu-system-x86")
    return _ok("qemu", f"QEMU {can.qemu_version}, machine {can.machine_type}")


def _accel(seen: Seen) -> Finding:
    can = seen.capabilities
    if can is None:
        return _note("acceleration", "not known without QEMU")
    if can.accel is Accel.KVM:
        return _ok("acceleration", f"KVM: {can.accel_reason}")
    return _note(
        "acceleration",
        f"{can.accel_reason}. Guests are emulated (TCG): they work, some ten times slower, and "
        "emulation is no security boundary",
    )


def _sandbox(seen: Seen) -> Finding:
    if seen.capabilities is None:
        return _note("sandbox", "not known without QEMU")
    if not seen.capabilities.sandbox:
        return _note("sandbox", "this QEMU has no seccomp sandbox: guests' QEMUs run without it")
    return _ok("sandbox", "QEMU's seccomp sandbox is used in full")


def _firmware(seen: Seen) -> Finding:
    if seen.capabilities is None:
        return _note("uefi", "not known without QEMU")
    if not seen.capabilities.uefi_code:
        return _note("uefi", "no UEFI firmware: only BIOS", "apt-get", "install", "-y", "ovmf")
    return _ok("uefi", "guests can start by BIOS and by UEFI")


def _rights(seen: Seen) -> Finding:
    if os.geteuid() == 0:
        return _ok("rights", "root: each guest runs as a user of its own without any rights")
    return _note(
        "rights", "not root: all guests run as you; they are kept apart by the sandbox only"
    )


def _cgroups(seen: Seen) -> Finding:
    groups = Cgroups()
    if groups.note:
        return _note("control groups", groups.note)
    return _ok("control groups", f"one a guest ({groups.layout})")


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _disk(seen: Seen) -> Finding:
    folder = _existing(seen.places.state)
    free = shutil.disk_usage(folder).free
    message = f"{format_size(free)} free under {folder}"
    return _ok("disk", message) if free >= LEAST_DISK else _note("disk", f"only {message}")


def _memory(seen: Seen) -> Finding:
    total = seen.capabilities.memory if seen.capabilities else LEAST_MEMORY
    message = f"{format_size(total)} of memory"
    return _ok("memory", message) if total >= LEAST_MEMORY else _note("memory", f"only {message}")


def _state(seen: Seen) -> Finding:
    folder = _existing(seen.places.state)
    if os.access(folder, os.W_OK):
        return _ok("state", f"kept in {seen.places.state}")
    return _missing("state", f"{folder} may not be written by you; set SERAI_HOME to another place")


CHECKS: tuple[Callable[[Seen], Finding], ...] = (
    _packages,
    _qemu,
    _accel,
    _sandbox,
    _firmware,
    _rights,
    _cgroups,
    _disk,
    _memory,
    _state,
)
