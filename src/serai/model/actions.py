"""Everything that serai can be asked to do: the one list of actions.

REST, CLI, schedules and tests all make these; nothing else changes anything. An action that names
a guest gives the *name* as the caller knows it. ``ACTIONS`` is the visible list; the tag of a
struct is the ``kind`` of its job. Whether an action is allowed in the guest's state is the table
in ``model.lifecycle``; each docstring says it in words.
"""

import msgspec

from serai.model.foreign import ForeignMachine
from serai.model.guest import GuestChange, GuestSpec
from serai.model.schedule import NAME_AS, Keep, ScheduleChange, When


class Action(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """The root of all actions."""


class GuestAction(Action, frozen=True):
    """An action on one existing guest, named by name or id."""

    guest: str


class LaunchGuest(Action, frozen=True, tag="launch"):
    """Define a guest and start it. Phases: define, volumes, start, agent.

    ``wait`` waits until the agent answers (where the image has one). On failure before the guest
    runs, nothing is left of it; once QEMU runs, the guest stays and the job tells what is wrong.
    ``ttl`` seconds after it was defined it is deleted, whatever it does then (0: never).
    """

    spec: GuestSpec
    wait: bool = True
    ttl: float = 0.0


class CreateGuest(Action, frozen=True, tag="create"):
    """Define a guest and leave it stopped."""

    spec: GuestSpec


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
    """Delete a stopped guest and all its volumes; with ``force`` a running one is killed first."""

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

    Without ``machine`` the ``source`` is an OVA; with it ``source`` is the root disk, and the caller has
    read the definition. Its disk becomes an image of the guest's name. ``cpus`` and ``memory`` 0 are
    those of the definition. Further disks refuse it unless ``root_only``. Phases: fetch, inspect,
    convert, publish, define. On failure nothing of it is left.
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
    keeps what the guest inside knows of itself. ``ttl`` seconds later it is deleted (0: never).
    Phases: freeze, start, agent. On failure none of them is left.
    """

    snapshot: str = ""
    name: str = ""
    count: int = 1
    keep_identity: bool = False
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


class CheckStorage(Action, frozen=True, tag="check"):
    """Compare all records with the files, and read all layers, memories and images.

    Snapshots that stand on what is not sound become broken; broken ones that are sound again, ready.
    With ``repair`` files that nobody has are deleted; nothing else is. Phases: read, mend.
    """

    repair: bool = False


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
    CheckStorage,
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
    | CheckStorage
)


def kind_of(action: Action) -> str:
    """Return the tag of ``action``: the kind of its job."""
    return str(type(action).__struct_config__.tag)
