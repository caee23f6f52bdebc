"""What callers may send: one struct for each kind of query string and of JSON body.

Where an action's own struct fits, the route takes that (``GuestChange``, ``ExecRequest``). When a
second version of the API comes, its old bodies are converted upwards here. Reading them from
untrusted text is ``decoding``.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from serai.model.event import Event
from serai.model.firstboot import WaitFor
from serai.model.foreign import ForeignMachine
from serai.model.guest import MAX_TTL, Guest, GuestChange, GuestSpec
from serai.model.image import Image
from serai.model.job import Job, JobState
from serai.model.network import (
    Forward,
    ForwardSpec,
    Group,
    GroupChange,
    GroupSpec,
    Network,
    NetworkChange,
    NetworkSpec,
    PortChange,
    PortSpec,
    PortView,
)
from serai.model.schedule import (
    MOST_KEPT,
    NAME_AS,
    Judgement,
    Keep,
    Schedule,
    ScheduleChange,
    When,
)
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest
from serai.model.volume import VolumeWish
from serai.units import MIB

T = TypeVar("T")

MAX_WAIT = 3600.0
MAX_PAGE = 10_000
MOST_PORTS = 8


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters in a query string."""


class NoQuery(Query, frozen=True):
    """No parameters."""


Wait = Annotated[
    float,
    Meta(
        ge=0,
        le=MAX_WAIT,
        description="How many seconds to wait for the end of the job; 0: not at all.",
    ),
]
Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="At most so many items.")]
Cursor = Annotated[str, Meta(description="Where to go on: `next` of the page before.")]


class WaitQuery(Query, frozen=True):
    """For what makes a job, and for one job."""

    wait: Wait = 0.0


class PageQuery(Query, frozen=True):
    """For lists."""

    limit: Limit = 1000
    cursor: Cursor = ""


class GuestsQuery(PageQuery, frozen=True):
    """For the list of guests."""

    label: Annotated[
        list[str], Meta(description="Only guests with this label, as `key=value`; may be repeated.")
    ] = []


class DeleteQuery(WaitQuery, frozen=True):
    """For deleting a guest."""

    force: Annotated[bool, Meta(description="Kill it first if it runs.")] = False


class JobsQuery(Query, frozen=True):
    """For the list of jobs."""

    state: Annotated[JobState, Meta(description="Only jobs in this state.")] | None = None
    limit: Limit = 100
    cursor: Cursor = ""


class EventsQuery(Query, frozen=True):
    """For events."""

    after: (
        Annotated[
            int,
            Meta(
                ge=0,
                description="Only events with a number above this; a stream without it has only new ones.",
            ),
        ]
        | None
    ) = None
    limit: Limit = 1000


Kept = Annotated[int, Meta(ge=0, le=MOST_KEPT)]


class JudgeQuery(Query, frozen=True):
    """For trying rules out: with one of them given, these instead of the schedule's own."""

    last: Annotated[Kept, Meta(description="Keep so many of the last ones.")] | None = None
    hourly: Annotated[Kept, Meta(description="Keep the newest of so many hours.")] | None = None
    daily: Annotated[Kept, Meta(description="Keep the newest of so many days.")] | None = None
    weekly: Annotated[Kept, Meta(description="Keep the newest of so many weeks.")] | None = None
    monthly: Annotated[Kept, Meta(description="Keep the newest of so many months.")] | None = None


class PullQuery(Query, frozen=True):
    """For reading a file."""

    path: Annotated[str, Meta(description="An absolute path in the guest.")]
    pack: Annotated[bool, Meta(description="It is a folder: give a tar of what is in it.")] = False


class PushQuery(Query, frozen=True):
    """For writing a file."""

    path: Annotated[str, Meta(description="An absolute path in the guest.")]
    mode: Annotated[str, Meta(pattern="^[0-7]{3,4}$", description="Permissions, octal.")] = "0644"
    unpack: Annotated[
        bool, Meta(description="The body is a tar: unpack it into the folder `path`.")
    ] = False


class LogQuery(Query, frozen=True):
    """For the serial log."""

    follow: Annotated[bool, Meta(description="Go on with what the guest prints next.")] = False
    tail: (
        Annotated[
            int, Meta(ge=0, description="Begin so many bytes before the end; else at the start.")
        ]
        | None
    ) = None


class ExportFile(StrEnum):
    """What to export of an image."""

    ALL = "all"
    DISK = "disk"
    KERNEL = "kernel"
    INITRD = "initrd"


class ExportQuery(Query, frozen=True):
    """For exporting an image."""

    file: Annotated[
        ExportFile, Meta(description="One file of the image as it is, or a tar of all of it.")
    ] = ExportFile.ALL


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON body."""


class NoBody(Body, frozen=True):
    """Nothing, or an empty object."""


Ttl = Annotated[float, Meta(ge=0, le=MAX_TTL)]


class LaunchBody(GuestSpec, frozen=True, kw_only=True):
    """A guest to be: its specification, and what to do at once.

    Sizes are bytes. ``disk`` 0 means the image's own size. Without ``start`` it is only defined;
    with ``wait_agent`` the job lasts until what ``wait_for`` names is so: the agent answers (where the
    image has one), ssh answers, cloud-init is done. It is deleted ``ttl`` seconds after it was started
    (0: never). ``volumes`` are attached to it before that. ``ports`` attach it to networks; without any
    it has QEMU's own network. ``hostname``, ``ssh_keys`` (lines of ``.pub`` files) and ``user_data``
    are for cloud-init in the guest; nothing shows them again but the host name.
    """

    ports: Annotated[tuple[PortSpec, ...], Meta(max_length=MOST_PORTS)] = ()
    hostname: str = ""
    ssh_keys: tuple[str, ...] = ()
    user_data: str = ""
    start: bool = True
    wait_agent: bool = True
    wait_for: WaitFor = WaitFor.AGENT
    ttl: Ttl = 0.0
    volumes: tuple[VolumeWish, ...] = ()


class StopBody(Body, frozen=True):
    """How to stop: ``timeout`` is in seconds, 0 is the daemon's setting."""

    force: bool = False
    timeout: Annotated[float, Meta(ge=0, le=86400)] = 0.0


class RenameBody(Body, frozen=True):
    """The new name."""

    name: str


class SnapshotBody(Body, frozen=True):
    """A snapshot to be. Without a name it gets one.

    With ``memory`` that of a guest which runs is in it. ``quiesce`` has the agent hold the file
    systems for the moment; it fails where no agent answers.
    """

    name: str = ""
    memory: bool = True
    quiesce: bool = False
    note: str = ""


class SnapshotChange(Body, frozen=True):
    """What to change of a snapshot; what is not named stays as it is."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


class ScheduleBody(Body, frozen=True):
    """A schedule to be. Without a name it gets one.

    `when` and `keep` say when snapshots are made and which stay. With ``memory`` that of a guest
    which runs is in them. ``quiesce`` has the agent hold the file systems for the moment. They are
    called ``name_as``, in which ``{schedule}``, ``{date}`` and ``{time}`` are filled in.
    """

    when: When
    name: str = ""
    keep: Keep = Keep()
    memory: bool = True
    quiesce: bool = False
    name_as: str = NAME_AS


class RestoreBody(Body, frozen=True):
    """How to restore: with ``force`` also where work that is in no snapshot is lost."""

    force: bool = False


class ForkBody(Body, frozen=True):
    """The forks to be: ``count`` of them, of the guest as it is now or of its ``snapshot``.

    One is called ``name``, several ``name-1``, ``name-2``, …; without a name they get one. Each is born
    again with an id, MAC address, host name, machine id and random numbers of its own; with
    ``keep_identity`` it keeps what the guest inside knows of itself and its addresses, in a bubble.
    ``together`` names other guests that are forked at the same moment into the same bubble; the forks
    are then called ``name-SOURCE``, or ``name-1-SOURCE`` and so on. With ``wait_agent`` the job
    lasts until the agents answer. They are deleted after ``ttl`` seconds (0: never).
    """

    snapshot: str = ""
    name: str = ""
    count: int = 1
    keep_identity: bool = False
    together: tuple[str, ...] = ()
    ttl: Ttl = 0.0
    wait_agent: bool = True


class PublishBody(Body, frozen=True):
    """The image to be: of the guest as it is now, or of its ``snapshot``.

    With ``memory`` that of a guest which runs, or of a snapshot that has it, is in the image.
    ``replace`` gives an existing name to the new image.
    """

    image: str
    snapshot: str = ""
    memory: bool = True
    replace: bool = False


class CheckBody(Body, frozen=True):
    """How to check: with ``repair`` files that nobody has are deleted."""

    repair: bool = False


class BuildBody(Body, frozen=True):
    """What to build: ``recipe`` is ``tiny`` or ``debian``; the name is the recipe's unless given."""

    recipe: str
    name: str = ""
    suite: str = ""
    include: tuple[str, ...] = ()
    replace: bool = False


class ImportBody(Body, frozen=True):
    """What to import: ``source`` is an absolute path on the daemon's host or an http(s) URL.

    With ``kernel`` the source is a kernel, and ``initrd`` and ``cmdline`` go with it. ``agent``
    says whether a guest agent is in it: ``yes``, ``no`` or ``unknown``.
    """

    source: str
    name: str = ""
    sha256: str = ""
    sha512: str = ""
    kernel: bool = False
    initrd: str = ""
    cmdline: str = ""
    agent: str = "unknown"


class PullBody(Body, frozen=True):
    """What to pull: ``image`` is ``NAME`` or ``NAME:VERSION`` in an index.

    ``index`` is an http(s) URL or an absolute path on the daemon's host, empty for serai's own list of
    official images. ``index_sha256`` is the digest that it must have, ``key`` the public key (PEM) that
    must have signed it. ``name`` is what the image is called here; ``replace`` lets it take an existing
    name.
    """

    image: str
    index: str = ""
    index_sha256: str = ""
    key: str = ""
    name: str = ""
    replace: bool = False


class ImportGuestBody(Body, frozen=True):
    """The guest to be: ``source`` is an OVA, an absolute path on the daemon's host or an http(s) URL.

    With ``machine``, which describes a machine that the caller has read elsewhere, ``source`` is its root
    disk, and the further disks are at the paths or URLs that it names. The first disk becomes an image, the
    others volumes; ``root_only`` takes the first alone. ``cpus`` and ``memory`` (bytes) overrule what is
    described where they are not 0.
    """

    source: str
    name: str = ""
    machine: ForeignMachine | None = None
    sha256: str = ""
    cpus: int = 0
    memory: int = 0
    root_only: bool = False


class CatalogueQuery(Query, frozen=True):
    """Which index to show."""

    index: Annotated[str, Meta(description="A URL or an absolute path; empty: serai's own.")] = ""
    sha256: Annotated[str, Meta(description="The digest that it must have.")] = ""
    key: Annotated[str, Meta(description="The public key (PEM) that must have signed it.")] = ""


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A part of a list. ``next`` is the cursor of the part that follows; empty: there is none."""

    items: list[T]
    next: str = ""


class GuestPage(Page[Guest], frozen=True):
    """A page of guests."""


class SnapshotPage(Page[Snapshot], frozen=True):
    """A page of snapshots."""


class NetworkPage(Page[Network], frozen=True):
    """A page of networks."""


class PortPage(Page[PortView], frozen=True):
    """A page of the ports of a guest."""


class GroupPage(Page[Group], frozen=True):
    """A page of security groups."""


class ForwardPage(Page[Forward], frozen=True):
    """A page of forwards."""


class SchedulePage(Page[Schedule], frozen=True):
    """A page of schedules."""


class Judgements(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of a schedule say of each of its snapshots, the newest first."""

    items: list[Judgement]


class ImagePage(Page[Image], frozen=True):
    """A page of images."""


class JobPage(Page[Job], frozen=True):
    """A page of jobs."""


class EventPage(Page[Event], frozen=True):
    """A page of events. ``next`` is what to send as ``after``."""


EXAMPLES: Mapping[type[msgspec.Struct], Mapping[str, object]] = {
    LaunchBody: {"image": "tiny", "name": "web1", "cpus": 2, "memory": 512 * MIB},
    GuestChange: {"memory": 1024 * MIB},
    StopBody: {"timeout": 20},
    RenameBody: {"name": "web2"},
    SnapshotBody: {"name": "ready", "note": "before the update"},
    SnapshotChange: {"name": "steady"},
    ScheduleBody: {
        "name": "nightly",
        "when": {"every": "daily", "at": 12600},
        "keep": {"daily": 7, "weekly": 4},
        "memory": False,
    },
    ScheduleChange: {"keep": {"last": 10}},
    RestoreBody: {"force": True},
    ForkBody: {"name": "test", "count": 10, "ttl": 3600},
    PublishBody: {"image": "web-ready", "snapshot": "ready"},
    NetworkSpec: {"name": "web", "subnet": "10.20.0.0/24"},
    NetworkChange: {"dns": ["192.0.2.53"]},
    PortSpec: {"network": "web", "address": "10.20.0.10", "groups": ["www"]},
    PortChange: {"limits": {"rate_out": 12_500_000}},
    GroupSpec: {
        "name": "www",
        "rules": [{"direction": "in", "protocol": "tcp", "ports": "80"}],
    },
    GroupChange: {"add": [{"direction": "in", "protocol": "tcp", "ports": "443"}]},
    ForwardSpec: {"guest": "web1", "host_port": 8080, "guest_port": 80},
    ExecRequest: {"argv": ["uname", "-a"], "timeout": 10},
    CheckBody: {"repair": True},
    BuildBody: {"recipe": "debian", "suite": "bookworm", "include": ["nginx"]},
    ImportBody: {"source": "https://example.org/disk.qcow2", "name": "mine"},
    PullBody: {"image": "debian:12"},
    ImportGuestBody: {"source": "/srv/old.ova", "name": "web1"},
}
"""What a body looks like, for the pages; a test decodes each."""
