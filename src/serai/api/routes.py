"""The table of everything the API answers: one row, one address.

A row says how an address is called, what it takes, how it answers and which problems it may have
beside those that every request may have (``COMMON_PROBLEMS``). What it does and what it is called
stands at its handler. Litestar's routes, ``docs/api/openapi.json``, ``docs/api.md`` and the page
``/docs`` are all made from this table.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from serai.api.answers import BYTES, HTML, JSON, PNG, SSE, TAR, TEXT
from serai.api.bodies import (
    BuildBody,
    CatalogueQuery,
    CheckBody,
    DeleteQuery,
    EventPage,
    EventsQuery,
    ExportQuery,
    ForkBody,
    ForwardPage,
    GroupPage,
    GuestPage,
    GuestsQuery,
    ImagePage,
    ImportBody,
    ImportGuestBody,
    JobPage,
    JobsQuery,
    Judgements,
    JudgeQuery,
    LaunchBody,
    LogQuery,
    NetworkPage,
    PageQuery,
    PortPage,
    PublishBody,
    PullBody,
    PullQuery,
    PushQuery,
    RenameBody,
    RestoreBody,
    ScheduleBody,
    SchedulePage,
    SnapshotBody,
    SnapshotChange,
    SnapshotPage,
    StopBody,
    WaitQuery,
)
from serai.api.calls import Reply, Route, SocketRoute, route, socket_route
from serai.api.checking import check_storage
from serai.api.events import list_events
from serai.api.guests import (
    change_guest,
    delete_guest,
    import_guest,
    launch_guest,
    list_guests,
    pause_guest,
    rename_guest,
    restart_guest,
    resume_guest,
    show_guest,
    start_guest,
    stop_guest,
)
from serai.api.images import (
    build_image,
    delete_image,
    export_image,
    import_image,
    list_images,
    pull_image,
    show_catalogue,
    show_image,
)
from serai.api.inside import (
    open_console,
    open_ssh,
    pull_file,
    push_file,
    run_command,
    show_log,
    show_ssh,
    show_vnc,
    take_screenshot,
)
from serai.api.jobs import action, cancel_job, list_jobs, show_job
from serai.api.networks import (
    add_forward,
    add_port,
    change_group,
    change_network,
    change_port,
    create_group,
    create_network,
    delete_group,
    delete_network,
    list_forwards,
    list_groups,
    list_networks,
    list_ports,
    remove_forward,
    remove_port,
    show_group,
    show_network,
    show_port,
)
from serai.api.schedules import (
    create_schedule,
    delete_schedule,
    judge_schedule,
    list_all_schedules,
    list_schedules,
    run_schedule,
    set_schedule,
    show_schedule,
)
from serai.api.snapshots import (
    change_snapshot,
    create_snapshot,
    delete_snapshot,
    fork_guest,
    list_snapshots,
    publish_image,
    restore_snapshot,
    show_snapshot,
)
from serai.api.system import show_docs, show_front, show_openapi, show_system
from serai.api.volume_bodies import (
    AttachBody,
    CloneBody,
    DetachBody,
    EjectQuery,
    MediumBody,
    PoolBody,
    PoolPage,
    ServeBody,
    VolumeBody,
    VolumeChange,
    VolumeExportBody,
    VolumeImportBody,
    VolumePage,
    VolumeSnapshotBody,
    VolumesQuery,
)
from serai.api.volumes import (
    attach_volume,
    change_volume,
    clone_volume,
    create_pool,
    create_volume,
    delete_pool,
    delete_volume,
    delete_volume_snapshot,
    detach_volume,
    eject_medium,
    export_volume,
    import_volume,
    insert_medium,
    list_pools,
    list_volumes,
    serve_volume,
    show_pool,
    show_volume,
    snapshot_volume,
)
from serai.errors import Code
from serai.model.catalogue import Catalogue
from serai.model.guest import Guest, GuestChange
from serai.model.image import Image
from serai.model.job import Job
from serai.model.network import (
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
from serai.model.node import DaemonStatus
from serai.model.schedule import Schedule, ScheduleChange
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import Pool, VolumeInfo

GUESTS, GUEST = "/v1/guests", "/v1/guests/{guest}"
SNAPSHOTS, SNAPSHOT = f"{GUEST}/snapshots", f"{GUEST}/snapshots/{{snapshot}}"
PORTS, PORT = f"{GUEST}/ports", f"{GUEST}/ports/{{port}}"
NETWORKS, NETWORK = "/v1/networks", "/v1/networks/{network}"
GROUPS, GROUP = "/v1/groups", "/v1/groups/{group}"
FORWARDS, FORWARD = "/v1/forwards", "/v1/forwards/{forward}"
SCHEDULES, SCHEDULE = f"{GUEST}/schedules", f"{GUEST}/schedules/{{schedule}}"
IMAGES, IMAGE = "/v1/images", "/v1/images/{image}"
VOLUMES, VOLUME = "/v1/volumes", "/v1/volumes/{volume}"
POOLS, POOL = "/v1/pools", "/v1/pools/{pool}"
JOBS, JOB = "/v1/jobs", "/v1/jobs/{job}"

_C = Code
_NO_GUEST = (_C.GUEST_NOT_FOUND,)
_OF_STATE = (_C.GUEST_NOT_FOUND, _C.GUEST_STATE)
_OF_AGENT = (*_OF_STATE, _C.AGENT_UNAVAILABLE, _C.AGENT_TIMEOUT, _C.AGENT_PROTOCOL)
_OF_MONITOR = (*_OF_STATE, _C.QMP_FAILED, _C.QMP_LOST)
_OF_START = (*_OF_STATE, _C.GUEST_START_FAILED, _C.SNAPSHOT_CORRUPT, _C.MEMORY_SHORT, _C.DISK_FULL)
_OF_SPEC = (_C.NAME_INVALID, _C.SIZE_INVALID, _C.VALUE_INVALID)
_NO_SNAPSHOT = (_C.GUEST_NOT_FOUND, _C.SNAPSHOT_NOT_FOUND)
_NO_SCHEDULE = (_C.GUEST_NOT_FOUND, _C.SCHEDULE_NOT_FOUND)
_OF_SNAPSHOT = (_C.SNAPSHOT_NOT_FOUND, _C.SNAPSHOT_STATE, _C.SNAPSHOT_CORRUPT, _C.SNAPSHOT_UNFIT)
_OF_NETWORK = (_C.NETWORK_UNAVAILABLE, _C.NETWORK_FAILED, _C.PERMISSION, _C.TOOL_MISSING)
_OF_ADDRESS = (_C.NETWORK_NOT_FOUND, _C.GROUP_NOT_FOUND, _C.ADDRESS_TAKEN, _C.ADDRESS_OUTSIDE,
               _C.SUBNET_EXHAUSTED, *_OF_NETWORK)  # fmt: skip

_NO_VOLUME = (_C.VOLUME_NOT_FOUND,)
_NEW_VOLUME = (_C.NAME_INVALID, _C.SIZE_INVALID, _C.VALUE_INVALID, _C.VOLUME_EXISTS, _C.POOL_NOT_FOUND,
               _C.POOL_FULL, _C.POOL_UNAVAILABLE, _C.DISK_FULL)  # fmt: skip
_OF_PLUG = (_C.GUEST_NOT_FOUND, _C.GUEST_STATE, _C.QMP_FAILED, _C.QMP_LOST, _C.VOLUME_NOT_FOUND,
            _C.VOLUME_IN_USE, _C.POOL_UNAVAILABLE, _C.FILE_FAILED, _C.SNAPSHOT_CORRUPT)  # fmt: skip
_OF_FREEZE = (_C.VOLUME_NOT_FOUND, _C.SNAPSHOT_NOT_FOUND, _C.GUEST_STATE, _C.QMP_FAILED, _C.QMP_LOST,
              _C.SNAPSHOT_UNFIT, _C.SNAPSHOT_CORRUPT, _C.DISK_FULL, _C.POOL_UNAVAILABLE)  # fmt: skip

COMMON_PROBLEMS: tuple[Code, ...] = (
    _C.BODY_INVALID,
    _C.VALUE_INVALID,
    _C.REQUEST_MALFORMED,
    _C.ROUTE_NOT_FOUND,
    _C.METHOD_NOT_ALLOWED,
    _C.REQUEST_TOO_SLOW,
    _C.BODY_TOO_LARGE,
    _C.HEAD_TOO_LARGE,
    _C.DAEMON_STOPPING,
    _C.BUG,
)
"""What every request may be answered with."""

PATH_PARAMETERS: Mapping[str, str] = {
    "guest": "The name or id of a guest.",
    "snapshot": "The name or id of a snapshot of that guest.",
    "port": "The name or id of a port of that guest.",
    "network": "The name or id of a network.",
    "group": "The name or id of a security group.",
    "forward": "The id of a forward.",
    "schedule": "The name or id of a schedule of that guest.",
    "image": "The name of an image.",
    "job": "The id of a job.",
    "volume": "The name or id of a volume.",
    "pool": "The name of a pool.",
    "volume_snapshot": "The name or id of a snapshot of that volume.",
}

HEADERS: Mapping[str, str] = {
    "Idempotency-Key": "Any text of yours, like a UUID. Sent again with the same request it gives "
    "the job of the first time; with another request it is a conflict.",
    "If-Match": "The ETag of the guest as you know it: if it has changed since, nothing is done.",
    "Accept": "`text/event-stream` for a stream.",
    "Last-Event-ID": "The number of the last event that was seen; wins over `after`.",
}

REPLY_HEADERS: Mapping[str, str] = {
    "ETag": "The version of the guest, in quotes.",
    "Location": "Where it is.",
    "Content-Length": "The length in bytes.",
}


def _gives(about: str, kind: object = None, media: str = JSON, *headers: str) -> tuple[Reply, ...]:
    return (Reply(about=about, type=kind, media=media, headers=headers),)


# fmt: off
ROUTES: tuple[Route, ...] = (
    route("GET", "/v1/system", show_system, replies=_gives("The daemon.", DaemonStatus)),

    route("GET", GUESTS, list_guests, query=GuestsQuery, replies=_gives("A page of guests.", GuestPage)),
    action("POST", GUESTS, launch_guest, body=LaunchBody,
           problems=(*_OF_SPEC, _C.GUEST_EXISTS, _C.IMAGE_NOT_FOUND, _C.IMAGE_UNFIT, _C.GUEST_START_FAILED,
                     _C.AGENT_TIMEOUT, _C.MEMORY_SHORT, _C.DISK_FULL, _C.FIRMWARE_MISSING, _C.TOOL_MISSING,
                     _C.SNAPSHOT_STATE, _C.SNAPSHOT_UNFIT, _C.SNAPSHOT_CORRUPT, *_NEW_VOLUME, _C.VOLUME_NOT_FOUND,
                     _C.VOLUME_IN_USE, _C.NO_PORT, *_OF_ADDRESS, _C.SSH_KEY_INVALID, _C.USER_DATA_INVALID,
                     _C.FIRST_BOOT_FAILED, _C.SSH_UNREACHABLE, _C.TIMEOUT)),
    action("POST", "/v1/imports", import_guest, body=ImportGuestBody,
           problems=(*_OF_SPEC, _C.GUEST_EXISTS, _C.IMAGE_EXISTS, _C.DEFINITION_REFUSED, _C.IMAGE_REFUSED, _C.IMAGE_UNFIT,
                     _C.IMAGE_DIGEST_MISMATCH, _C.DOWNLOAD_FAILED, _C.FIRMWARE_MISSING, _C.TOOL_MISSING, _C.DISK_FULL)),
    route("GET", GUEST, show_guest, replies=_gives("The guest.", Guest, JSON, "ETag"), problems=_NO_GUEST),
    action("PATCH", GUEST, change_guest, body=GuestChange, headers=("If-Match",),
           problems=(*_OF_STATE, *_OF_SPEC, _C.VERSION_CONFLICT, _C.NEEDS_STOP, _C.SHRINK_REFUSED, _C.DISK_FULL)),
    action("DELETE", GUEST, delete_guest, query=DeleteQuery, problems=_OF_STATE),
    action("POST", f"{GUEST}/start", start_guest, problems=_OF_START),
    action("POST", f"{GUEST}/stop", stop_guest, body=StopBody, problems=(*_OF_STATE, _C.GUEST_STOP_TIMEOUT)),
    action("POST", f"{GUEST}/restart", restart_guest, body=StopBody, problems=_OF_START),
    action("POST", f"{GUEST}/pause", pause_guest, problems=_OF_MONITOR),
    action("POST", f"{GUEST}/resume", resume_guest, problems=_OF_MONITOR),
    action("POST", f"{GUEST}/rename", rename_guest, body=RenameBody,
           problems=(*_OF_STATE, _C.NAME_INVALID, _C.GUEST_EXISTS)),
    action("POST", f"{GUEST}/fork", fork_guest, body=ForkBody,
           problems=(*_OF_MONITOR, *_OF_SPEC, *_OF_SNAPSHOT, _C.GUEST_EXISTS, _C.GUEST_START_FAILED, _C.AGENT_TIMEOUT,
                     _C.MEMORY_SHORT, _C.DISK_FULL)),
    action("POST", f"{GUEST}/publish", publish_image, body=PublishBody,
           problems=(*_OF_MONITOR, *_OF_SNAPSHOT, _C.NAME_INVALID, _C.IMAGE_EXISTS, _C.TOOL_FAILED, _C.TOOL_MISSING,
                     _C.DISK_FULL)),

    route("GET", SNAPSHOTS, list_snapshots, query=PageQuery, replies=_gives("A page of snapshots.", SnapshotPage),
          problems=_NO_GUEST),
    action("POST", SNAPSHOTS, create_snapshot, body=SnapshotBody,
           problems=(*_OF_AGENT, *_OF_MONITOR, _C.NAME_INVALID, _C.SNAPSHOT_EXISTS, _C.MEMORY_SHORT, _C.DISK_FULL)),
    route("GET", SNAPSHOT, show_snapshot, replies=_gives("The snapshot.", Snapshot), problems=_NO_SNAPSHOT),
    action("PATCH", SNAPSHOT, change_snapshot, body=SnapshotChange,
           problems=(*_NO_SNAPSHOT, _C.NAME_INVALID, _C.VALUE_INVALID, _C.SNAPSHOT_EXISTS)),
    action("DELETE", SNAPSHOT, delete_snapshot, problems=(*_NO_SNAPSHOT, _C.SNAPSHOT_STATE)),
    action("POST", f"{SNAPSHOT}/restore", restore_snapshot, body=RestoreBody,
           problems=(*_OF_START, *_OF_SNAPSHOT, _C.UNSAVED_WORK)),

    route("GET", "/v1/schedules", list_all_schedules, query=PageQuery,
          replies=_gives("A page of schedules.", SchedulePage)),
    route("GET", SCHEDULES, list_schedules, query=PageQuery, replies=_gives("A page of schedules.", SchedulePage),
          problems=_NO_GUEST),
    action("POST", SCHEDULES, create_schedule, body=ScheduleBody,
           problems=(*_OF_STATE, _C.NAME_INVALID, _C.VALUE_INVALID, _C.SCHEDULE_EXISTS)),
    route("GET", SCHEDULE, show_schedule, replies=_gives("The schedule.", Schedule), problems=_NO_SCHEDULE),
    action("PATCH", SCHEDULE, set_schedule, body=ScheduleChange,
           problems=(*_NO_SCHEDULE, _C.GUEST_STATE, _C.NAME_INVALID, _C.VALUE_INVALID)),
    action("DELETE", SCHEDULE, delete_schedule, problems=_NO_SCHEDULE),
    action("POST", f"{SCHEDULE}/run", run_schedule,
           problems=(*_NO_SCHEDULE, *_OF_AGENT, *_OF_MONITOR, _C.NAME_INVALID, _C.SNAPSHOT_EXISTS, _C.MEMORY_SHORT,
                     _C.DISK_FULL)),
    route("GET", f"{SCHEDULE}/preview", judge_schedule, query=JudgeQuery, problems=_NO_SCHEDULE,
          replies=_gives("What would stay, and why.", Judgements)),

    route("POST", f"{GUEST}/exec", run_command, body=ExecRequest, problems=(*_OF_AGENT, _C.EXEC_FAILED),
          replies=_gives("What became of it.", ExecResult)),
    route("GET", f"{GUEST}/files", pull_file, query=PullQuery, problems=(*_OF_AGENT, _C.FILE_FAILED),
          replies=(*_gives("The file.", None, BYTES), *_gives("With `pack`: the folder.", None, TAR))),
    route("PUT", f"{GUEST}/files", push_file, query=PushQuery, raw=BYTES, problems=(*_OF_AGENT, _C.FILE_FAILED),
          replies=(Reply(status=HTTPStatus.NO_CONTENT, about="It is written.", media=""),)),
    route("GET", f"{GUEST}/log", show_log, query=LogQuery, replies=_gives("The log.", None, TEXT), problems=_NO_GUEST),
    route("GET", f"{GUEST}/screenshot", take_screenshot, replies=_gives("The picture.", None, PNG), problems=_OF_MONITOR),
    route("GET", f"{GUEST}/vnc", show_vnc, replies=_gives("The address.", VncAddress), problems=_OF_STATE),
    route("GET", f"{GUEST}/ssh", show_ssh, replies=_gives("The way in.", SshAddress), problems=_OF_AGENT),

    route("GET", PORTS, list_ports, query=PageQuery, replies=_gives("A page of ports.", PortPage), problems=_NO_GUEST),
    action("POST", PORTS, add_port, body=PortSpec,
           problems=(*_OF_MONITOR, _C.VALUE_INVALID, _C.NEEDS_STOP, *_OF_ADDRESS)),
    route("GET", PORT, show_port, replies=_gives("The port.", PortView),
          problems=(_C.GUEST_NOT_FOUND, _C.PORT_NOT_FOUND)),
    action("PATCH", PORT, change_port, body=PortChange,
           problems=(*_OF_STATE, _C.PORT_NOT_FOUND, _C.GROUP_NOT_FOUND, _C.VALUE_INVALID, *_OF_NETWORK)),
    action("DELETE", PORT, remove_port,
           problems=(*_OF_MONITOR, _C.PORT_NOT_FOUND, _C.NEEDS_STOP, _C.TIMEOUT)),

    route("GET", NETWORKS, list_networks, query=PageQuery, replies=_gives("A page of networks.", NetworkPage)),
    action("POST", NETWORKS, create_network, body=NetworkSpec,
           problems=(_C.NAME_INVALID, _C.VALUE_INVALID, _C.NETWORK_EXISTS, _C.SUBNET_INVALID, _C.SUBNET_OVERLAP,
                     _C.SUBNET_EXHAUSTED, _C.BRIDGE_MISSING, *_OF_NETWORK)),
    route("GET", NETWORK, show_network, replies=_gives("The network.", Network, JSON, "ETag"),
          problems=(_C.NETWORK_NOT_FOUND,)),
    action("PATCH", NETWORK, change_network, body=NetworkChange, headers=("If-Match",),
           problems=(_C.NETWORK_NOT_FOUND, _C.NETWORK_IN_USE, _C.VALUE_INVALID, _C.VERSION_CONFLICT,
                     _C.SUBNET_INVALID, _C.SUBNET_OVERLAP, *_OF_NETWORK)),
    action("DELETE", NETWORK, delete_network, problems=(_C.NETWORK_NOT_FOUND, _C.NETWORK_IN_USE, *_OF_NETWORK)),

    route("GET", GROUPS, list_groups, query=PageQuery, replies=_gives("A page of security groups.", GroupPage)),
    action("POST", GROUPS, create_group, body=GroupSpec,
           problems=(_C.NAME_INVALID, _C.GROUP_EXISTS, _C.GROUP_NOT_FOUND, _C.RULE_INVALID)),
    route("GET", GROUP, show_group, replies=_gives("The group.", Group, JSON, "ETag"), problems=(_C.GROUP_NOT_FOUND,)),
    action("PATCH", GROUP, change_group, body=GroupChange, headers=("If-Match",),
           problems=(_C.GROUP_NOT_FOUND, _C.RULE_INVALID, _C.VERSION_CONFLICT, *_OF_NETWORK)),
    action("DELETE", GROUP, delete_group, problems=(_C.GROUP_NOT_FOUND, _C.GROUP_IN_USE)),

    route("GET", FORWARDS, list_forwards, query=PageQuery, replies=_gives("A page of forwards.", ForwardPage)),
    action("POST", FORWARDS, add_forward, body=ForwardSpec,
           problems=(_C.GUEST_NOT_FOUND, _C.PORT_NOT_FOUND, _C.VALUE_INVALID, _C.FORWARD_EXISTS, _C.FORWARD_FAILED,
                     *_OF_NETWORK)),
    action("DELETE", FORWARD, remove_forward, problems=(_C.FORWARD_NOT_FOUND,)),

    route("GET", IMAGES, list_images, query=PageQuery, replies=_gives("A page of images.", ImagePage)),
    action("POST", f"{IMAGES}/build", build_image, body=BuildBody,
           problems=(*_OF_SPEC, _C.IMAGE_EXISTS, _C.BUILD_FAILED, _C.TOOL_MISSING, _C.DISK_FULL)),
    action("POST", f"{IMAGES}/import", import_image, body=ImportBody,
           problems=(*_OF_SPEC, _C.IMAGE_EXISTS, _C.IMAGE_REFUSED, _C.IMAGE_DIGEST_MISMATCH, _C.DOWNLOAD_FAILED,
                     _C.TOOL_MISSING, _C.DISK_FULL)),
    action("POST", f"{IMAGES}/pull", pull_image, body=PullBody,
           problems=(*_OF_SPEC, _C.IMAGE_NOT_FOUND, _C.IMAGE_EXISTS, _C.INDEX_REFUSED, _C.IMAGE_REFUSED,
                     _C.IMAGE_DIGEST_MISMATCH, _C.DOWNLOAD_FAILED, _C.TOOL_MISSING, _C.DISK_FULL)),
    route("GET", "/v1/catalogue", show_catalogue, query=CatalogueQuery, replies=_gives("What it offers.", Catalogue),
          problems=(_C.INDEX_REFUSED, _C.IMAGE_DIGEST_MISMATCH, _C.DOWNLOAD_FAILED, _C.DISK_FULL)),
    route("GET", IMAGE, show_image, replies=_gives("The image.", Image), problems=(_C.IMAGE_NOT_FOUND,)),
    action("DELETE", IMAGE, delete_image, problems=(_C.IMAGE_NOT_FOUND, _C.IMAGE_IN_USE)),
    route("GET", f"{IMAGE}/export", export_image, query=ExportQuery, problems=(_C.IMAGE_NOT_FOUND, _C.IMAGE_CORRUPT),
          replies=(*_gives("All of it.", None, TAR, "Content-Length"), *_gives("One file.", None, BYTES, "Content-Length"))),

    action("POST", "/v1/check", check_storage, body=CheckBody, problems=(_C.DATABASE_FAILED, _C.FILE_FAILED)),
    route("GET", VOLUMES, list_volumes, query=VolumesQuery, replies=_gives("A page of volumes.", VolumePage),
          problems=_NO_GUEST),
    action("POST", VOLUMES, create_volume, body=VolumeBody, problems=_NEW_VOLUME),
    action("POST", f"{VOLUMES}/import", import_volume, body=VolumeImportBody,
           problems=(*_NEW_VOLUME, _C.IMAGE_REFUSED, _C.IMAGE_DIGEST_MISMATCH, _C.DOWNLOAD_FAILED, _C.TOOL_MISSING)),
    route("GET", VOLUME, show_volume, replies=_gives("The volume.", VolumeInfo), problems=_NO_VOLUME),
    action("PATCH", VOLUME, change_volume, body=VolumeChange,
           problems=(*_OF_PLUG, _C.SIZE_INVALID, _C.VALUE_INVALID, _C.SHRINK_REFUSED, _C.POOL_FULL)),
    action("DELETE", VOLUME, delete_volume, problems=(*_NO_VOLUME, _C.VOLUME_IN_USE, _C.POOL_UNAVAILABLE)),
    action("POST", f"{VOLUME}/attach", attach_volume, body=AttachBody, problems=(*_OF_PLUG, _C.NO_PORT, _C.DISK_FULL)),
    action("POST", f"{VOLUME}/detach", detach_volume, body=DetachBody,
           problems=(*_OF_PLUG, _C.VOLUME_IS_ROOT, _C.VOLUME_OWN, _C.VOLUME_NOT_ATTACHED, _C.VOLUME_HELD)),
    action("POST", f"{VOLUME}/clone", clone_volume, body=CloneBody, problems=(*_OF_FREEZE, *_NEW_VOLUME)),
    action("POST", f"{VOLUME}/snapshots", snapshot_volume, body=VolumeSnapshotBody,
           problems=(*_OF_FREEZE, _C.NAME_INVALID, _C.SNAPSHOT_EXISTS)),
    action("DELETE", f"{VOLUME}/snapshots/{{volume_snapshot}}", delete_volume_snapshot,
           problems=(*_NO_VOLUME, _C.SNAPSHOT_NOT_FOUND)),
    action("POST", f"{VOLUME}/export", export_volume, body=VolumeExportBody,
           problems=(*_OF_FREEZE, _C.VALUE_INVALID, _C.FILE_FAILED, _C.PERMISSION, _C.TOOL_MISSING, _C.TOOL_FAILED)),
    action("POST", f"{VOLUME}/serve", serve_volume, body=ServeBody, problems=(*_OF_FREEZE, _C.TOOL_MISSING, _C.TOOL_FAILED)),

    route("GET", POOLS, list_pools, query=PageQuery, replies=_gives("A page of pools.", PoolPage)),
    action("POST", POOLS, create_pool, body=PoolBody,
           problems=(_C.NAME_INVALID, _C.VALUE_INVALID, _C.POOL_EXISTS, _C.PERMISSION, _C.FILE_FAILED, _C.DISK_FULL)),
    route("GET", POOL, show_pool, replies=_gives("The pool.", Pool), problems=(_C.POOL_NOT_FOUND,)),
    action("DELETE", POOL, delete_pool, problems=(_C.POOL_NOT_FOUND, _C.POOL_IN_USE, _C.POOL_UNAVAILABLE)),

    action("PUT", f"{GUEST}/medium", insert_medium, body=MediumBody,
           problems=(*_OF_MONITOR, _C.IMAGE_NOT_FOUND, _C.IMAGE_UNFIT, _C.NO_CD_DRIVE)),
    action("DELETE", f"{GUEST}/medium", eject_medium, query=EjectQuery, problems=(*_OF_MONITOR, _C.NO_CD_DRIVE)),

    route("GET", JOBS, list_jobs, query=JobsQuery, replies=_gives("A page of jobs.", JobPage)),
    route("GET", JOB, show_job, query=WaitQuery, replies=_gives("The job.", Job), problems=(_C.JOB_NOT_FOUND,)),
    route("POST", f"{JOB}/cancel", cancel_job, replies=_gives("The job as it is now.", Job),
          problems=(_C.JOB_NOT_FOUND, _C.JOB_NOT_CANCELLABLE)),

    route("GET", "/v1/events", list_events, query=EventsQuery, headers=("Accept", "Last-Event-ID"),
          problems=(_C.QUEUE_FULL,),
          replies=(*_gives("A page of events.", EventPage), *_gives("A stream of events.", None, SSE))),

    route("GET", "/v1/openapi.json", show_openapi, replies=_gives("An OpenAPI 3.1 document.", dict[str, Any])),
    route("GET", "/docs", show_docs, replies=_gives("A page for people.", None, HTML)),
    route("GET", "/", show_front, replies=(
        Reply(status=HTTPStatus.TEMPORARY_REDIRECT, about="To /docs.", media="", headers=("Location",)),)),
)
# fmt: on

SOCKETS: tuple[SocketRoute, ...] = (
    socket_route(f"{GUEST}/console", open_console, problems=_OF_STATE),
    socket_route(f"{GUEST}/ssh/stream", open_ssh, problems=(*_OF_STATE, _C.SSH_UNREACHABLE)),
)
