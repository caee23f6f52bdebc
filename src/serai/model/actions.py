"""Everything that serai can be asked to do: the one list of actions.

REST, CLI, schedules and tests all make these; nothing else changes anything. An action that names
a guest gives the *name* as the caller knows it. ``ACTIONS`` is the visible list; the tag of a
struct is the ``kind`` of its job. Whether an action is allowed in the guest's state is the table
in ``model.lifecycle``; each docstring says it in words.
"""

import msgspec

from serai.model.guest import GuestChange, GuestSpec


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
    """

    spec: GuestSpec
    wait: bool = True


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

    Phases: fetch, inspect, convert, publish. ``source`` is an absolute path or a URL; ``sha256``
    is checked before anything looks into the file. With ``kernel`` the source is a kernel and
    ``initrd`` and ``cmdline`` go with it.
    """

    source: str
    name: str = ""
    sha256: str = ""
    kernel: bool = False
    initrd: str = ""
    cmdline: str = ""
    agent: str = "unknown"


class DeleteImage(Action, frozen=True, tag="image-delete"):
    """Delete an image that no guest uses."""

    image: str


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
    DeleteImage,
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
    | DeleteImage
)


def kind_of(action: Action) -> str:
    """Return the tag of ``action``: the kind of its job."""
    return str(type(action).__struct_config__.tag)
