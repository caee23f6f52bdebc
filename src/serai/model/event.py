"""Events: what happened, in one numbered sequence for the log, the stream and the audit."""

from enum import StrEnum

import msgspec


class EventKind(StrEnum):
    """Every kind of event."""

    DAEMON_STARTED = "daemon-started"
    DAEMON_STOPPING = "daemon-stopping"
    GUEST_CREATED = "guest-created"
    GUEST_CHANGED = "guest-changed"
    GUEST_RENAMED = "guest-renamed"
    GUEST_STATE = "guest-state"
    GUEST_RESET = "guest-reset"
    GUEST_ADOPTED = "guest-adopted"
    GUEST_AGENT = "guest-agent"
    GUEST_DELETED = "guest-deleted"
    GUEST_FORKED = "guest-forked"
    GUEST_RESTORED = "guest-restored"
    GUEST_EXPIRED = "guest-expired"
    SNAPSHOT_CREATED = "snapshot-created"
    SNAPSHOT_CHANGED = "snapshot-changed"
    SNAPSHOT_DELETED = "snapshot-deleted"
    SCHEDULE_CREATED = "schedule-created"
    SCHEDULE_CHANGED = "schedule-changed"
    SCHEDULE_RAN = "schedule-ran"
    SCHEDULE_DELETED = "schedule-deleted"
    IMAGE_CREATED = "image-created"
    IMAGE_DELETED = "image-deleted"
    JOB_CHANGED = "job-changed"
    MISSED = "missed"  # a slow watcher lost some: read the state again


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. ``seq`` only grows; ``subject`` is the name of guest, image or job."""

    seq: int
    at: float
    kind: EventKind
    subject: str = ""
    subject_id: str = ""
    data: dict[str, str] = {}
