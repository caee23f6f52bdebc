"""What a guest is: what was asked for, what is stored of it, and what is shown of it.

Three structs, from the wish to the view:

    GuestSpec    what a customer asked for; the API body of a launch
    GuestRecord  what the database keeps: the spec, what was allotted to it, what is wanted
    Guest        what everybody is shown: the record and what is observed, in one flat object

The states and moves of a guest are in ``model.lifecycle``.
"""

from enum import StrEnum

import msgspec

from serai.errors import Problem
from serai.model.lifecycle import GuestState
from serai.model.network import Port, PortBrief
from serai.model.volume import NO_LIMITS, Limits
from serai.units import MIB


class GuestKind(StrEnum):
    """What a guest runs as. Containers come later; the word is here from the first day."""

    VM = "vm"
    CONTAINER = "container"


class Accel(StrEnum):
    """How guest code is executed. TCG is emulation: slow, and not a security boundary."""

    KVM = "kvm"
    TCG = "tcg"


class Firmware(StrEnum):
    """What the machine starts with."""

    BIOS = "bios"
    UEFI = "uefi"


class RestartPolicy(StrEnum):
    """When a guest that ended by itself is started again (a requested stop is never undone)."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class ExitReason(StrEnum):
    """Why a guest is not running."""

    NEVER_STARTED = "never-started"
    REQUESTED = "requested"
    POWERED_OFF = "powered-off"  # the guest itself shut down
    PANICKED = "panicked"  # the guest's kernel reported a panic
    CRASHED = "crashed"  # QEMU ended by a signal or an error
    START_FAILED = "start-failed"
    HOST_RESTARTED = "host-restarted"  # the host went down under it


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a customer asks for. ``disk`` 0 means the image's own size (or no disk at all)."""

    image: str
    name: str = ""
    kind: GuestKind = GuestKind.VM
    cpus: int = 1
    memory: int = 256 * MIB
    disk: int = 0
    firmware: Firmware = Firmware.BIOS
    restart: RestartPolicy = RestartPolicy.NO
    labels: dict[str, str] = {}


class GuestChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `set` may change; what is not named stays as it is."""

    cpus: int | msgspec.UnsetType = msgspec.UNSET
    memory: int | msgspec.UnsetType = msgspec.UNSET
    disk: int | msgspec.UnsetType = msgspec.UNSET
    restart: RestartPolicy | msgspec.UnsetType = msgspec.UNSET
    labels: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


MAX_TTL = 10 * 365 * 86400
"""The longest that a guest which is deleted by itself may live, in seconds."""
POOL = "pool"
"""Stands for a job in ``GuestRecord.coming``: made ahead, for whoever asks for its like."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A block device of a guest: the writable file ``head`` in the guest's folder, over a layer.

    ``layer`` is the id of the layer right below, "" where the head stands on the disk of the guest's
    image, or on nothing. ``size`` is what the guest sees, in bytes. ``name`` is unique in the guest.

    One that lives by itself has its ``id`` and lies in its ``pool``; the guest's own have neither.
    ``read_only``: there is no head, the guest reads the layer. ``port`` is where it is plugged in,
    "" for the root, which has a fixed place; ``boot`` its place in the order of booting, 0: none.
    """

    name: str
    head: str
    layer: str = ""
    size: int
    id: str = ""
    pool: str = ""
    read_only: bool = False
    serial: str = ""
    port: str = ""
    boot: int = 0
    limits: Limits = NO_LIMITS


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a CD drive: the disk of the image called ``image``; without a ``file`` nothing is."""

    image: str = ""
    digest: str = ""
    file: str = ""


class GuestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the database keeps of a guest.

    ``number`` is unique on this host and never used twice at a time; uid and MAC come from it.
    ``version`` grows with every change (ETag). ``wanted_on`` is what the user wants, and is what
    the reconciler restores; ``last_exit`` tells why the guest is not running. ``volumes`` is what
    its next start opens: it is stored before a running guest writes to a new head. ``snapshot`` is
    the id of the snapshot that the guest stands on, ``origin`` that of the one it was forked from,
    "" where there is none. At ``expires_at`` the guest is deleted (0: never). ``coming`` is the id of
    the job that is making it as a fork, "" once nobody would undo it, and ``POOL`` for a spare: a fork
    made ahead of anybody's asking, which nobody is shown. ``medium`` is what is in its CD drive; None:
    that of its image, if that is a medium, else it has no drive. Without ``ports`` it has QEMU's own
    network, with the address ``mac``. ``seed`` names what the guest is told at its first boot, "" for
    nothing; ``hostname`` is the name that it is told then.
    """

    id: str
    number: int
    version: int
    created_at: float
    spec: GuestSpec
    image_digest: str
    machine_type: str
    mac: str
    genid: str
    wanted_on: bool = False
    last_exit: ExitReason = ExitReason.NEVER_STARTED
    problem: Problem | None = None
    volumes: tuple[Volume, ...] = ()
    snapshot: str = ""
    origin: str = ""
    expires_at: float = 0.0
    coming: str = ""
    medium: Medium | None = None
    ports: tuple[Port, ...] = ()
    seed: str = ""
    hostname: str = ""

    @property
    def is_spare(self) -> bool:
        """True while it belongs to nobody yet."""
        return self.coming == POOL


class AgentState(StrEnum):
    """What is known of the agent inside a guest."""

    UNKNOWN = "unknown"
    ANSWERING = "answering"
    SILENT = "silent"


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a guest: REST, CLI and SDK all give this.

    Sizes are bytes, times are seconds since the epoch. ``pid`` is 0 when nothing runs.
    ``problem`` says what is wrong, if something is (a full disk, a crash, a failed start).
    ``origin`` is the id of the snapshot that it was forked from, ``snapshot`` that of the one it stands
    on ("": none). At ``expires_at`` it is deleted (0: never). ``hostname`` is the name that it was
    told at its first boot ("": it was told nothing).
    """

    name: str
    id: str
    kind: GuestKind
    state: GuestState
    accel: Accel
    image: str
    cpus: int
    memory: int
    created_at: float
    disk: int
    firmware: Firmware
    restart: RestartPolicy
    labels: dict[str, str]
    version: int
    image_digest: str
    machine_type: str
    mac: str
    last_exit: ExitReason
    agent: AgentState
    pid: int
    started_at: float
    restarts: int
    problem: Problem | None
    notes: tuple[str, ...] = ()
    origin: str = ""
    snapshot: str = ""
    expires_at: float = 0.0
    ports: tuple[PortBrief, ...] = ()
    hostname: str = ""
