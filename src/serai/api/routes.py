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
    PageQuery,
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
    pull_file,
    push_file,
    run_command,
    show_log,
    show_vnc,
    take_screenshot,
)
from serai.api.jobs import action, cancel_job, list_jobs, show_job
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
from serai.errors import Code
from serai.model.catalogue import Catalogue
from serai.model.guest import Guest, GuestChange
from serai.model.image import Image
from serai.model.job import Job
from serai.model.node import DaemonStatus
from serai.model.schedule import Schedule, ScheduleChange
from serai.model.snapshot import Snapshot
from serai.model.talk import ExecRequest, ExecResult, VncAddress

GUESTS, GUEST = "/v1/guests", "/v1/guests/{guest}"
SNAPSHOTS, SNAPSHOT = f"{GUEST}/snapshots", f"{GUEST}/snapshots/{{snapshot}}"
SCHEDULES, SCHEDULE = f"{GUEST}/schedules", f"{GUEST}/schedules/{{schedule}}"
IMAGES, IMAGE = "/v1/images", "/v1/images/{image}"
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
    "schedule": "The name or id of a schedule of that guest.",
    "image": "The name of an image.",
    "job": "The id of a job.",
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
                     _C.SNAPSHOT_STATE, _C.SNAPSHOT_UNFIT, _C.SNAPSHOT_CORRUPT)),
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
)
