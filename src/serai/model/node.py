"""A node: the host that runs the daemon, and what it can do."""

from enum import StrEnum

import msgspec

from serai.model.guest import Accel


class CgroupLayout(StrEnum):
    """How control groups are mounted on this host."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"  # v1 controllers beside an empty v2 hierarchy
    NONE = "none"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this host can do, asked once and passed in; the only input for such decisions.

    ``accel_reason`` says why KVM is or is not used. ``privileged``: the daemon is root and gives
    each guest a uid of its own. Paths are empty where a thing is missing.
    """

    qemu_path: str
    qemu_version: str
    machine_type: str
    accel: Accel
    accel_reason: str
    devices: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    sandbox: bool = False
    qemu_img_path: str = ""
    uefi_code: str = ""
    uefi_vars: str = ""
    setpriv_path: str = ""
    cgroup: CgroupLayout = CgroupLayout.NONE
    privileged: bool = False
    cpus: int = 1
    memory: int = 0
    processor: str = ""
    notes: tuple[str, ...] = ()


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``daemon status`` and ``GET /v1/system`` show.

    ``spares`` counts forks made ahead and ready, ``spares_started`` those of which only QEMU waits.
    """

    pid: int
    version: str
    started_at: float
    home: str
    socket: str
    guests: int
    running: int
    spares: int = 0
    spares_started: int = 0
    capabilities: Capabilities
    problem: str = ""


class Severity(StrEnum):
    """How bad a finding of the doctor is."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``serai doctor``: what, how it is, and the exact command that mends it."""

    name: str
    severity: Severity
    message: str
    fix: tuple[str, ...] = ()
