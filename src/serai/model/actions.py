"""Everything that serai can be asked to do: the one list of actions.

REST, CLI, schedules and tests all make these; nothing else changes anything. An action that names
a guest gives the *name* as the caller knows it. ``ACTIONS`` is the visible list; the tag of a
struct is the ``kind`` of its job. Whether an action is allowed in the guest's state is the table
in ``model.lifecycle``; each docstring says it in words.
"""

import msgspec

from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.foreign import ForeignMachine
from serai.model.guest import GuestChange, GuestSpec
from serai.model.network import (
    ForwardSpec,
    GroupChange,
    GroupSpec,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortSpec,
)
from serai.model.schedule import NAME_AS, Keep, ScheduleChange, When
from serai.model.volume import DEFAULT_POOL, NO_LIMITS, DiskFile, Limits, VolumeWish


class Action(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """The root of all actions."""


class GuestAction(Action, frozen=True):
    """An action on one existing guest, named by name or id."""

    guest: str


class LaunchGuest(Action, frozen=True, tag="launch"):
    """Define a guest and start it. Phases: volumes, start, and what is waited for.

    ``wait`` waits for ``wait_for`` (for the agent only where the image has one). On failure before
    the guest runs, nothing is left of it; once QEMU runs, the guest stays and the job tells what is
    wrong. ``ttl`` seconds after it was defined it is deleted, whatever it does then (0: never).
    ``volumes`` are attached to it before it starts; those that are made for it live on without it.
    Without ``ports`` it has QEMU's own network. ``seed`` is the engine's: what was asked for in
    ``first_boot`` is kept under this name, and the job does not show it.
    """

    spec: GuestSpec
    ports: tuple[PortSpec, ...] = ()
    first_boot: FirstBoot = FirstBoot()
    wait: bool = True
    wait_for: WaitFor = WaitFor.AGENT
    ttl: float = 0.0
    volumes: tuple[VolumeWish, ...] = ()
    seed: str = ""


class CreateGuest(Action, frozen=True, tag="create"):
    """Define a guest and leave it stopped, with ``volumes`` attached; the rest as for a launch."""

    spec: GuestSpec
    volumes: tuple[VolumeWish, ...] = ()
    ports: tuple[PortSpec, ...] = ()
    first_boot: FirstBoot = FirstBoot()
    seed: str = ""


class StartGuest(GuestAction, frozen=True, tag="start"):
    """Start a stopped or crashed guest; a running one is left as it is."""


class StopGuest(GuestAction, frozen=True, tag="stop"):
    """Stop a guest: agent, then ACPI, then by force after ``timeout`` seconds (0: the setting's).

    ``force`` pulls the plug at once, in every state that has a process.
    """

    force: bool = False
    timeout: float = 0.0


class RestartGuest(GuestAction, frozen=True, tag="restart"):
    """Stop as StopGuest does, then start anew; a stopped guest is started."""

    force: bool = False
    timeout: float = 0.0


class PauseGuest(GuestAction, frozen=True, tag="pause"):
    """Hold the virtual CPUs of a running guest."""


class ResumeGuest(GuestAction, frozen=True, tag="resume"):
    """Let a paused guest, or one held by a full disk, go on."""


class DeleteGuest(GuestAction, frozen=True, tag="delete"):
    """Delete a stopped guest and its own disks; with ``force`` a running one is killed first.

    Volumes that live by themselves are given back.
    """

    force: bool = False


class RenameGuest(GuestAction, frozen=True, tag="rename"):
    """Give a guest another name, in every state but creating and deleting."""

    name: str


class SetGuest(GuestAction, frozen=True, tag="set"):
    """Change a guest: at once where it can be, else from its next start (a note says so).

    ``version`` 0 accepts any; otherwise the guest must still be at it (If-Match).
    """

    change: GuestChange
    version: int = 0


class BuildImage(Action, frozen=True, tag="image-build"):
    """Build ``tiny`` or ``debian``. Phases: packages, system, pack, publish."""

    recipe: str
    name: str = ""
    suite: str = ""
    include: tuple[str, ...] = ()
    replace: bool = False


class ImportImage(Action, frozen=True, tag="image-import"):
    """Import a disk, an installation medium or a kernel from a file or an http(s) URL.

    Phases: fetch, inspect, convert, publish. ``source`` is an absolute path or a URL; ``sha256`` and
    ``sha512`` are checked before anything looks into the file. With ``kernel`` the source is a kernel and
    ``initrd`` and ``cmdline`` go with it.
    """

    source: str
    name: str = ""
    sha256: str = ""
    sha512: str = ""
    kernel: bool = False
    initrd: str = ""
    cmdline: str = ""
    agent: str = "unknown"


class PullImage(Action, frozen=True, tag="image-pull"):
    """Import the image that ``NAME[:VERSION]`` means in an index, if it is not there already.

    ``index`` is a URL or an absolute path, "" for serai's own; ``index_sha256`` pins it, ``key`` (PEM)
    must have signed it. ``name`` is what it is called here. What another version has under that
    name stays unless ``replace``. Phases: index, fetch, inspect, convert, publish.
    """

    image: str
    index: str = ""
    index_sha256: str = ""
    key: str = ""
    name: str = ""
    replace: bool = False


class ImportGuest(Action, frozen=True, tag="guest-import"):
    """Define a guest, stopped, from what another program keeps of it.

    Without ``machine`` the ``source`` is an OVA; with it ``source`` is the root disk, the machine names the
    files of further ones, and the caller has read the definition. The root disk becomes an image of the
    guest's name, further ones volumes that are attached to it, unless ``root_only``. ``cpus`` and
    ``memory`` 0 are those of the definition. Phases: fetch, inspect, convert, publish, define. On failure
    nothing of it is left.
    """

    source: str
    name: str = ""
    machine: ForeignMachine | None = None
    sha256: str = ""
    cpus: int = 0
    memory: int = 0
    root_only: bool = False


class DeleteImage(Action, frozen=True, tag="image-delete"):
    """Delete an image that no guest uses."""

    image: str


class CreateSnapshot(GuestAction, frozen=True, tag="snapshot-create"):
    """Freeze a guest's disks and, if it runs and ``memory`` is wanted, its memory: one moment.

    A running guest goes on. ``quiesce`` has the agent freeze the file systems for the moment; that
    fails where no agent answers. Phases: prepare, freeze, store. Without a name it gets one.
    ``schedule`` and ``schedule_id`` are the schedule's that asks for it, if one does.
    """

    name: str = ""
    memory: bool = True
    quiesce: bool = False
    note: str = ""
    schedule: str = ""
    schedule_id: str = ""


class RestoreSnapshot(GuestAction, frozen=True, tag="snapshot-restore"):
    """Put a guest back to a snapshot, in place: disks, configuration and, if taken, memory.

    What the guest did since its last snapshot is lost, so that needs ``force`` unless there is
    nothing such. Phases: prepare, stop, start.
    """

    snapshot: str
    force: bool = False


class DeleteSnapshot(GuestAction, frozen=True, tag="snapshot-delete"):
    """Delete a snapshot; what forks and other snapshots stand on stays as long as they need it."""

    snapshot: str


class ChangeSnapshot(GuestAction, frozen=True, tag="snapshot-change"):
    """Give a snapshot another name, or another note."""

    snapshot: str
    name: str | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


class CreateSchedule(GuestAction, frozen=True, tag="schedule-create"):
    """Have snapshots of a guest made by themselves, and deleted again as ``keep`` says.

    ``memory`` and ``quiesce`` are as for CreateSnapshot, ``name_as`` is what they are called. Without
    a name the schedule gets one.
    """

    when: When
    name: str = ""
    keep: Keep = Keep()
    memory: bool = True
    quiesce: bool = False
    name_as: str = NAME_AS


class SetSchedule(GuestAction, frozen=True, tag="schedule-set"):
    """Change a schedule, pause it, or let it go on; what it missed meanwhile is not caught up."""

    schedule: str
    change: ScheduleChange


class RunSchedule(GuestAction, frozen=True, tag="schedule-run"):
    """Do now what the schedule does when it is due, also if it is paused. Phases: snapshot, delete."""

    schedule: str


class DeleteSchedule(GuestAction, frozen=True, tag="schedule-delete"):
    """Delete a schedule; the snapshots that it made stay, and nobody deletes them any more."""

    schedule: str


class ForkGuest(GuestAction, frozen=True, tag="fork"):
    """Make ``count`` new guests from a guest as it is now, or from its ``snapshot``.

    They share disk and memory with it copy-on-write and run at once if there is memory to take up.
    One is called ``name``; several ``name-1``, ``name-2``, …. Each is born again before anyone talks
    to it: id, MAC address, host name, machine id, random numbers, clock; with ``keep_identity`` it
    keeps what the guest inside knows of itself, addresses too, in a bubble. ``together`` are other
    guests, forked at the same moment into the same bubble: each fork is then called after its source,
    ``name-SOURCE``. ``ttl`` seconds later they are deleted (0: never).
    Phases: freeze, start, agent. On failure none of them is left.
    """

    snapshot: str = ""
    name: str = ""
    count: int = 1
    keep_identity: bool = False
    together: tuple[str, ...] = ()
    ttl: float = 0.0
    wait: bool = True


class PublishImage(GuestAction, frozen=True, tag="image-publish"):
    """Make an image of a guest as it is now, or of its ``snapshot``; with memory it is a warm one.

    Phases: freeze, copy, publish.
    """

    image: str
    snapshot: str = ""
    memory: bool = True
    replace: bool = False


class CreateNetwork(Action, frozen=True, tag="network-create"):
    """Make a network: a bridge, its addresses, its DHCP and its rules. On failure nothing is left."""

    spec: NetworkSpec


class SetNetwork(Action, frozen=True, tag="network-set"):
    """Change a network, in place; ``version`` 0 accepts any (If-Match)."""

    network: str
    change: NetworkChange
    version: int = 0


class DeleteNetwork(Action, frozen=True, tag="network-delete"):
    """Delete a network in which no guest has a port; nothing of it is left on the host."""

    network: str


class AddPort(GuestAction, frozen=True, tag="port-add"):
    """Attach a guest to a network, at once if it runs. On failure nothing has changed."""

    spec: PortSpec


class SetPort(GuestAction, frozen=True, tag="port-set"):
    """Change a port's groups or limits, at once."""

    port: str
    change: PortChange


class RemovePort(GuestAction, frozen=True, tag="port-remove"):
    """Take a port from a guest, at once if it runs; its forwards go too."""

    port: str


class CreateGroup(Action, frozen=True, tag="group-create"):
    """Make a security group."""

    spec: GroupSpec


class ChangeGroup(Action, frozen=True, tag="group-change"):
    """Change the rules of a security group, in all ports that are in it, in one step."""

    group: str
    change: GroupChange
    version: int = 0


class DeleteGroup(Action, frozen=True, tag="group-delete"):
    """Delete a security group that no port and no rule uses."""

    group: str


class AddForward(Action, frozen=True, tag="forward-add"):
    """Let a port of the host lead into a guest; at once if it runs."""

    spec: ForwardSpec


class RemoveForward(Action, frozen=True, tag="forward-remove"):
    """End a forward, given by id."""

    forward: str


class CheckStorage(Action, frozen=True, tag="check"):
    """Compare all records with the files, and read all layers, memories and images.

    Snapshots that stand on what is not sound become broken; broken ones that are sound again, ready.
    With ``repair`` files that nobody has are deleted; nothing else is. Phases: read, mend.
    """

    repair: bool = False


class VolumeAction(Action, frozen=True):
    """An action on one existing volume, named by name or id."""

    volume: str


class CreateVolume(Action, frozen=True, tag="volume-create"):
    """Make an empty volume. It takes only what is written to it; its pool must have room for all."""

    name: str
    size: int
    pool: str = DEFAULT_POOL
    serial: str = ""
    limits: Limits = NO_LIMITS
    note: str = ""


class AttachVolume(VolumeAction, frozen=True, tag="volume-attach"):
    """Give a guest a volume: at once where it runs, and at each start.

    One guest may write to a volume, or any number may have it ``read_only``. ``boot`` is its place in
    the order of booting, from the next start on; 0: none.
    """

    guest: str
    read_only: bool = False
    boot: int = 0


class DetachVolume(VolumeAction, frozen=True, tag="volume-detach"):
    """Take a volume from a guest; one that runs must let it go. "" means the only guest that has it."""

    guest: str = ""


class ChangeVolume(VolumeAction, frozen=True, tag="volume-change"):
    """Change a volume: grow it, limit it, note something. A guest that runs sees it at once."""

    size: int | msgspec.UnsetType = msgspec.UNSET
    limits: Limits | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


class CloneVolume(VolumeAction, frozen=True, tag="volume-clone"):
    """Make a new volume of a volume as it is now, or of its ``snapshot``; nothing is copied."""

    name: str
    snapshot: str = ""


class SnapshotVolume(VolumeAction, frozen=True, tag="volume-snapshot"):
    """Keep what is in a volume now under a name; a guest that writes to it goes on."""

    name: str = ""
    note: str = ""


class DeleteVolumeSnapshot(VolumeAction, frozen=True, tag="volume-snapshot-delete"):
    """Delete a snapshot of a volume; clones keep what they stand on."""

    snapshot: str


class ImportVolume(Action, frozen=True, tag="volume-import"):
    """Make a volume of a disk image, from a file or an http(s) URL. Phases: fetch, inspect, convert,
    publish. ``sha256`` is checked before anything looks into the file."""

    source: str
    name: str
    pool: str = DEFAULT_POOL
    sha256: str = ""


class ExportVolume(VolumeAction, frozen=True, tag="volume-export"):
    """Write a volume as it is now, or its ``snapshot``, to the new file ``path`` of this host.

    The job's results are the digest of the file and its path.
    """

    path: str
    format: DiskFile = DiskFile.QCOW2
    snapshot: str = ""


class ServeVolume(VolumeAction, frozen=True, tag="volume-serve"):
    """Serve a volume as it is now, or its ``snapshot``, by NBD, until the job is cancelled.

    The job's message is the address. It can only be read.
    """

    snapshot: str = ""


class DeleteVolume(VolumeAction, frozen=True, tag="volume-delete"):
    """Delete a volume that no guest has, with its snapshots; clones keep what they stand on."""


class CreatePool(Action, frozen=True, tag="pool-create"):
    """Make a pool of an empty or new folder."""

    name: str
    path: str


class DeletePool(Action, frozen=True, tag="pool-delete"):
    """Delete a pool without volumes."""

    pool: str


class InsertMedium(GuestAction, frozen=True, tag="medium-insert"):
    """Put an installation medium into a guest's CD drive; a stopped guest gets a drive if it has none.

    ``force`` takes out what is in it even if the guest has locked it.
    """

    image: str
    force: bool = False


class EjectMedium(GuestAction, frozen=True, tag="medium-eject"):
    """Take what is in a guest's CD drive out; the drive stays. ``force``: even if the guest locked it."""

    force: bool = False


ACTIONS: tuple[type[Action], ...] = (
    LaunchGuest,
    CreateGuest,
    StartGuest,
    StopGuest,
    RestartGuest,
    PauseGuest,
    ResumeGuest,
    DeleteGuest,
    RenameGuest,
    SetGuest,
    BuildImage,
    ImportImage,
    PullImage,
    ImportGuest,
    DeleteImage,
    CreateSnapshot,
    RestoreSnapshot,
    DeleteSnapshot,
    ChangeSnapshot,
    CreateSchedule,
    SetSchedule,
    RunSchedule,
    DeleteSchedule,
    ForkGuest,
    PublishImage,
    CreateNetwork,
    SetNetwork,
    DeleteNetwork,
    AddPort,
    SetPort,
    RemovePort,
    CreateGroup,
    ChangeGroup,
    DeleteGroup,
    AddForward,
    RemoveForward,
    CheckStorage,
    CreateVolume,
    AttachVolume,
    DetachVolume,
    ChangeVolume,
    CloneVolume,
    SnapshotVolume,
    DeleteVolumeSnapshot,
    ImportVolume,
    ExportVolume,
    ServeVolume,
    DeleteVolume,
    CreatePool,
    DeletePool,
    InsertMedium,
    EjectMedium,
)

AnyAction = (
    LaunchGuest
    | CreateGuest
    | StartGuest
    | StopGuest
    | RestartGuest
    | PauseGuest
    | ResumeGuest
    | DeleteGuest
    | RenameGuest
    | SetGuest
    | BuildImage
    | ImportImage
    | PullImage
    | ImportGuest
    | DeleteImage
    | CreateSnapshot
    | RestoreSnapshot
    | DeleteSnapshot
    | ChangeSnapshot
    | CreateSchedule
    | SetSchedule
    | RunSchedule
    | DeleteSchedule
    | ForkGuest
    | PublishImage
    | CreateNetwork
    | SetNetwork
    | DeleteNetwork
    | AddPort
    | SetPort
    | RemovePort
    | CreateGroup
    | ChangeGroup
    | DeleteGroup
    | AddForward
    | RemoveForward
    | CheckStorage
    | CreateVolume
    | AttachVolume
    | DetachVolume
    | ChangeVolume
    | CloneVolume
    | SnapshotVolume
    | DeleteVolumeSnapshot
    | ImportVolume
    | ExportVolume
    | ServeVolume
    | DeleteVolume
    | CreatePool
    | DeletePool
    | InsertMedium
    | EjectMedium
)


def kind_of(action: Action) -> str:
    """Return the tag of ``action``: the kind of its job."""
    return str(type(action).__struct_config__.tag)
