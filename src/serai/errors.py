"""The error family: what went wrong, sorted by what the caller can do about it.

    SeraiError
    ├── Invalid       the request itself is wrong: change it
    ├── NotFound      what it names does not exist
    ├── Conflict      it exists, but is in the wrong state for this: look, then decide
    ├── Denied        not allowed for this caller or on this host
    ├── Busy          not now: try again later
    ├── HostFailure   a tool, the disk or the kernel of this host failed: see the details
    ├── Interrupted   the outcome is unknown: ask again before you act on it
    └── Bug           our own mistake

Each error carries a stable ``code`` (the contract), a sentence for people (not the contract) and,
where there is one, a ``hint`` that says what to do next. ``Code`` is the complete list; every code
has its heading in ``docs/problems.md`` and a test keeps it so. HTTP statuses are known only to
``api/problems.py``; exit codes are in ``EXIT_CODES``.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Family(StrEnum):
    """What the caller can do about an error."""

    INVALID = "invalid"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    DENIED = "denied"
    BUSY = "busy"
    HOST_FAILURE = "host-failure"
    INTERRUPTED = "interrupted"
    BUG = "bug"


class Code(StrEnum):
    """Every problem that serai reports, in one list."""

    # the request
    BODY_INVALID = "body-invalid"
    BODY_TOO_LARGE = "body-too-large"
    NAME_INVALID = "name-invalid"
    SIZE_INVALID = "size-invalid"
    VALUE_INVALID = "value-invalid"
    USAGE = "usage"
    HEAD_TOO_LARGE = "head-too-large"
    REQUEST_MALFORMED = "request-malformed"
    REQUEST_TOO_SLOW = "request-too-slow"
    # images
    IMAGE_NOT_FOUND = "image-not-found"
    IMAGE_EXISTS = "image-exists"
    IMAGE_IN_USE = "image-in-use"
    IMAGE_REFUSED = "image-refused"
    IMAGE_CORRUPT = "image-corrupt"
    IMAGE_DIGEST_MISMATCH = "image-digest-mismatch"
    IMAGE_UNFIT = "image-unfit"
    INDEX_REFUSED = "index-refused"
    DEFINITION_REFUSED = "definition-refused"
    DOWNLOAD_FAILED = "download-failed"
    BUILD_FAILED = "build-failed"
    # guests
    GUEST_NOT_FOUND = "guest-not-found"
    GUEST_EXISTS = "guest-exists"
    GUEST_STATE = "guest-state"
    GUEST_STOP_TIMEOUT = "guest-stop-timeout"
    GUEST_START_FAILED = "guest-start-failed"
    GUEST_UNRESPONSIVE = "guest-unresponsive"
    NEEDS_STOP = "needs-stop"
    SHRINK_REFUSED = "shrink-refused"
    AGENT_UNAVAILABLE = "agent-unavailable"
    AGENT_TIMEOUT = "agent-timeout"
    AGENT_PROTOCOL = "agent-protocol"
    EXEC_FAILED = "exec-failed"
    FILE_FAILED = "file-failed"
    SSH_KEY_INVALID = "ssh-key-invalid"
    USER_DATA_INVALID = "user-data-invalid"
    FIRST_BOOT_FAILED = "first-boot-failed"
    SSH_UNREACHABLE = "ssh-unreachable"
    QMP_FAILED = "qmp-failed"
    QMP_LOST = "qmp-lost"
    # snapshots and forks
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    SNAPSHOT_EXISTS = "snapshot-exists"
    SNAPSHOT_STATE = "snapshot-state"
    SNAPSHOT_CORRUPT = "snapshot-corrupt"
    SNAPSHOT_UNFIT = "snapshot-unfit"
    UNSAVED_WORK = "unsaved-work"
    SCHEDULE_NOT_FOUND = "schedule-not-found"
    SCHEDULE_EXISTS = "schedule-exists"
    # volumes and pools
    VOLUME_NOT_FOUND = "volume-not-found"
    VOLUME_EXISTS = "volume-exists"
    VOLUME_IN_USE = "volume-in-use"
    VOLUME_IS_ROOT = "volume-is-root"
    VOLUME_OWN = "volume-own"
    VOLUME_NOT_ATTACHED = "volume-not-attached"
    VOLUME_HELD = "volume-held"
    NO_PORT = "no-port"
    NO_CD_DRIVE = "no-cd-drive"
    POOL_NOT_FOUND = "pool-not-found"
    POOL_EXISTS = "pool-exists"
    POOL_IN_USE = "pool-in-use"
    POOL_FULL = "pool-full"
    POOL_UNAVAILABLE = "pool-unavailable"
    # networks
    NETWORK_NOT_FOUND = "network-not-found"
    NETWORK_EXISTS = "network-exists"
    NETWORK_IN_USE = "network-in-use"
    NETWORK_FAILED = "network-failed"
    NETWORK_UNAVAILABLE = "network-unavailable"
    BRIDGE_MISSING = "bridge-missing"
    SUBNET_INVALID = "subnet-invalid"
    SUBNET_OVERLAP = "subnet-overlap"
    SUBNET_EXHAUSTED = "subnet-exhausted"
    ADDRESS_OUTSIDE = "address-outside"
    ADDRESS_TAKEN = "address-taken"
    PORT_NOT_FOUND = "port-not-found"
    GROUP_NOT_FOUND = "group-not-found"
    GROUP_EXISTS = "group-exists"
    GROUP_IN_USE = "group-in-use"
    RULE_INVALID = "rule-invalid"
    FORWARD_NOT_FOUND = "forward-not-found"
    FORWARD_EXISTS = "forward-exists"
    FORWARD_FAILED = "forward-failed"
    GUEST_IN_BUBBLE = "guest-in-bubble"
    # jobs and events
    JOB_NOT_FOUND = "job-not-found"
    JOB_NOT_CANCELLABLE = "job-not-cancellable"
    JOB_CANCELLED = "job-cancelled"
    JOB_INTERRUPTED = "job-interrupted"
    IDEMPOTENCY_REUSED = "idempotency-reused"
    VERSION_CONFLICT = "version-conflict"
    QUEUE_FULL = "queue-full"
    # the host
    DAEMON_UNREACHABLE = "daemon-unreachable"
    DAEMON_RUNNING = "daemon-running"
    DAEMON_START_FAILED = "daemon-start-failed"
    DAEMON_STOPPING = "daemon-stopping"
    DISK_FULL = "disk-full"
    MEMORY_SHORT = "memory-short"
    MOMENT_MISSED = "moment-missed"
    TOOL_MISSING = "tool-missing"
    TOOL_FAILED = "tool-failed"
    TOOL_TOO_OLD = "tool-too-old"
    FIRMWARE_MISSING = "firmware-missing"
    DATABASE_FAILED = "database-failed"
    PERMISSION = "permission"
    TIMEOUT = "timeout"
    ROUTE_NOT_FOUND = "route-not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    BUG = "bug"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it is stored and sent: RFC 9457 members plus our ``code`` and ``hint``.

    ``details`` holds facts for programs (the state seen, the argv that failed), all as text.
    """

    family: Family
    code: str
    message: str
    hint: str = ""
    details: dict[str, str] = {}


class SeraiError(Exception):
    """The root. Raise one of the eight below, never this."""

    family: Family = Family.BUG

    def __init__(
        self, code: Code, message: str, *, hint: str = "", details: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = dict(details or {})

    def problem(self) -> Problem:
        """Return this error as data."""
        return Problem(
            family=self.family,
            code=self.code,
            message=self.message,
            hint=self.hint,
            details=self.details,
        )


class Invalid(SeraiError):
    """The request itself is wrong."""

    family = Family.INVALID


class NotFound(SeraiError):
    """What the request names does not exist."""

    family = Family.NOT_FOUND


class Conflict(SeraiError):
    """The thing is in the wrong state; ``details`` says which it is in."""

    family = Family.CONFLICT


class Denied(SeraiError):
    """The caller, or serai on this host, may not do this."""

    family = Family.DENIED


class Busy(SeraiError):
    """Not now. Nothing was changed; the same request may succeed later."""

    family = Family.BUSY


class HostFailure(SeraiError):
    """A tool or this host failed; ``details`` has the argv and the end of its stderr."""

    family = Family.HOST_FAILURE


class Interrupted(SeraiError):
    """The outcome is unknown: the other side went away before it answered."""

    family = Family.INTERRUPTED


class Bug(SeraiError):
    """Our own mistake."""

    family = Family.BUG


FAMILIES: Mapping[Family, type[SeraiError]] = {
    each.family: each
    for each in (Invalid, NotFound, Conflict, Denied, Busy, HostFailure, Interrupted, Bug)
}

EXIT_CODES: Mapping[Family, int] = {
    Family.INVALID: 2,
    Family.NOT_FOUND: 3,
    Family.CONFLICT: 4,
    Family.DENIED: 5,
    Family.BUSY: 6,
    Family.HOST_FAILURE: 7,
    Family.INTERRUPTED: 8,
    Family.BUG: 70,
}


def error_from_problem(problem: Problem) -> SeraiError:
    """Return the exception that ``problem`` was made from; an unknown code becomes a Bug."""
    try:
        code = Code(problem.code)
    except ValueError:
        return Bug(Code.BUG, problem.message, hint=problem.hint, details=problem.details)
    family = FAMILIES[problem.family]
    return family(code, problem.message, hint=problem.hint, details=problem.details)
