"""What this host can do, what is missing, and the exact command that mends it.

Each check is a small function that returns a ``Finding``; ``CHECKS`` is the visible list. Nothing is
changed here but by ``mend``, which runs the commands that the findings name.
"""

import grp
import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serai.errors import Code, Denied, SeraiError
from serai.host.cgroup import Cgroups
from serai.host.kvm_probe import DEVICE, lacks_permission
from serai.host.packages import Package, missing
from serai.host.process import run
from serai.host.rights import why_no_networks, why_not_apart
from serai.host.tools import available_memory, find_capabilities, total_memory
from serai.model.guest import Accel
from serai.model.node import Capabilities, Finding, Severity
from serai.settings import Places, Settings
from serai.units import GIB, format_size

LEAST_DISK = 2 * GIB
LEAST_MEMORY = 1 * GIB
MEND_TIMEOUT = 900.0
SUDO_TIMEOUT = 10.0

NETWORK_PROBES = ("nft", "/etc/protocols", "dnsmasq")
TUN = "/dev/net/tun"

NOT_ROOT = "not root: all guests run as you; they are kept apart by the sandbox only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found out before the checks look at it."""

    capabilities: Capabilities | None
    problem: SeraiError | None
    places: Places
    missing: Sequence[Package]
    kept_together: str
    """Why guests are not run as users of their own; empty when they are."""


async def find_findings(settings: Settings, places: Places) -> list[Finding]:
    """Look at this host and return a finding for each thing that matters."""
    capabilities: Capabilities | None = None
    problem: SeraiError | None = None
    try:
        capabilities = await find_capabilities(settings, places.state / "capabilities.json")
    except SeraiError as error:
        problem = error
    is_root = os.geteuid() == 0
    seen = Seen(
        capabilities=capabilities,
        problem=problem,
        places=places,
        missing=tuple(missing()),
        kept_together=await why_not_apart(settings.uid_base) if is_root else NOT_ROOT,
    )
    return [check(seen) for check in CHECKS]


async def mend(findings: Sequence[Finding], on_line: Callable[[str], None]) -> None:
    """Run the commands that the findings name, in order; raises where one fails.

    As another user than root the commands run through sudo, which must not ask for a password: else
    Denied (``permission``) tells them. Before the first installation the package lists are brought
    up to date: a new machine has none.
    """
    commands = [each.fix for each in findings if each.fix and each.severity is not Severity.OK]
    if any(command[0] == "apt-get" for command in commands):
        commands.insert(0, ("apt-get", "update"))
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    try:
        if prefix:
            await run([*prefix, "true"], timeout=SUDO_TIMEOUT)
    except SeraiError as error:
        told = " && ".join(f"sudo {shlex.join(command)}" for command in commands)
        message = f"only root can mend this: {error.message}"
        raise Denied(Code.PERMISSION, message, hint=f"Run it yourself: {told}") from error
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
    needed = [package for package in seen.missing if package.needed]
    if not needed:
        return _ok("packages", "the Debian packages that guests need are there")
    return _missing("packages", *_to_install(needed))


def _more_packages(seen: Seen) -> Finding:
    wanted = [package for package in seen.missing if not package.needed]
    if not wanted:
        return _ok("more packages", "those for building and importing images are there too")
    return _note("more packages", *_to_install(wanted))


def _to_install(packages: Sequence[Package]) -> tuple[str, ...]:
    what = ", ".join(f"{package.name} ({package.purpose})" for package in packages)
    names = (package.name for package in packages)
    return f"missing: {what}", "apt-get", "install", "-y", "--no-install-recommends", *names


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
    message = (
        f"{can.accel_reason}. Guests are emulated (TCG): they work, some ten times slower, and "
        "emulation is no security boundary"
    )
    return _note("acceleration", message, *_join_group())


def _join_group() -> tuple[str, ...]:
    """Return the command that lets this user use a KVM that root could; it counts from the next login."""
    if not lacks_permission():
        return ()
    user = pwd.getpwuid(os.geteuid()).pw_name
    return ("usermod", "--append", "--groups", grp.getgrgid(os.stat(DEVICE).st_gid).gr_name, user)


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
    if not seen.kept_together:
        return _ok("rights", "root: each guest runs as a user of its own without any rights")
    if seen.kept_together == NOT_ROOT:
        return _note("rights", NOT_ROOT)
    return _missing("rights", seen.kept_together)


def _networks(seen: Seen) -> Finding:
    """Routing between interfaces is no finding: it is switched on when a network needs it."""
    gone = [package for package in seen.missing if package.probe in NETWORK_PROBES]
    if gone:
        return _missing_programs(gone)
    if os.geteuid() != 0:
        return _note("networks", "not root: guests have QEMU's user-mode network, and forwards")
    reason = why_no_networks()
    if reason:
        return _note("networks", f"guests have QEMU's user-mode network only: {reason}")
    if not os.path.exists(TUN):
        return _note("networks", f"{TUN} is missing", "modprobe", "tun")
    return _ok("networks", "bridges, firewall, DHCP and names for guests")


def _missing_programs(packages: Sequence[Package]) -> Finding:
    message, *fix = _to_install(packages)
    return _note("networks", f"guests have QEMU's user-mode network only; {message}", *fix)


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
    total = seen.capabilities.memory if seen.capabilities else total_memory()
    message = f"{format_size(total)} of memory, {format_size(available_memory())} of it available"
    return _ok("memory", message) if total >= LEAST_MEMORY else _note("memory", f"only {message}")


def _state(seen: Seen) -> Finding:
    for folder in (_existing(seen.places.state), _existing(seen.places.run)):
        if not os.access(folder, os.W_OK | os.X_OK):
            message = f"{folder} may not be written by you; set SERAI_HOME to another place"
            return _missing("state", message)
    return _ok("state", f"kept in {seen.places.state}")


CHECKS: tuple[Callable[[Seen], Finding], ...] = (
    _packages,
    _more_packages,
    _qemu,
    _accel,
    _sandbox,
    _firmware,
    _rights,
    _networks,
    _cgroups,
    _disk,
    _memory,
    _state,
)
