"""The life of a guest: its states, what may be asked of it, what may happen to it.

Two tables say everything. ``MOVES``: a (state, verb) pair gives Accept (and the state while the
verb is carried out), Ignore (it is so already) or Deny with a reason. ``HAPPENINGS``: a (state,
happening) pair gives the state after something was observed; a pair that is not there changes
nothing. There is no flag beside the state. ``draw()`` prints the tables; the drawing below is its
output and a test keeps it so.

    creating      created → stopped
    stopped       start → starting · restart → starting · delete → deleting · destroy → deleting
    starting      kill → stopping · destroy → stopping · up → running · start-failed → stopped · exited → crashed · powered-off → stopping · panicked → crashed
    running       stop → stopping · kill → stopping · restart → stopping · destroy → stopping · exited → crashed · powered-off → stopping · panicked → crashed · held → paused · disk-full → io-error · silent → unresponsive
    paused        stop → stopping · kill → stopping · restart → stopping · destroy → stopping · exited → crashed · powered-off → stopping · panicked → crashed · went-on → running · disk-full → io-error · silent → unresponsive
    io-error      stop → stopping · kill → stopping · restart → stopping · destroy → stopping · exited → crashed · powered-off → stopping · panicked → crashed · went-on → running · silent → unresponsive
    stopping      kill → stopping · destroy → stopping · gone → stopped · still-up → running · exited → stopped
    unresponsive  kill → stopping · restart → stopping · destroy → stopping · exited → crashed · powered-off → stopping · panicked → crashed · disk-full → io-error · answered-running → running · answered-paused → paused
    crashed       start → starting · restart → starting · delete → deleting · destroy → deleting
    deleting
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class GuestState(StrEnum):
    """Where a guest is in its life."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"  # QEMU holds the guest because the host's disk is full
    STOPPING = "stopping"
    UNRESPONSIVE = "unresponsive"  # QEMU runs, but does not answer its monitor
    CRASHED = "crashed"
    DELETING = "deleting"


ON_STATES = frozenset(
    {
        GuestState.STARTING,
        GuestState.RUNNING,
        GuestState.PAUSED,
        GuestState.IO_ERROR,
        GuestState.STOPPING,
        GuestState.UNRESPONSIVE,
    }
)
"""The states in which there is a QEMU process."""


class Verb(StrEnum):
    """What may be asked of a guest. KILL is a forced stop, DESTROY a forced delete."""

    START = "start"
    STOP = "stop"
    KILL = "kill"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    DESTROY = "destroy"
    RENAME = "rename"
    SET = "set"
    SNAPSHOT = "snapshot"  # freeze it and let it go on; also to fork or publish it
    RESTORE = "restore"  # put it back to a snapshot
    TALK = "talk"  # through the agent: exec, push, pull
    LOOK = "look"  # through QEMU: console, screenshot, vnc


class Happening(StrEnum):
    """What may be observed of a guest."""

    CREATED = "created"
    UP = "up"
    START_FAILED = "start-failed"
    GONE = "gone"
    STILL_UP = "still-up"
    EXITED = "exited"
    POWERED_OFF = "powered-off"
    PANICKED = "panicked"
    HELD = "held"
    WENT_ON = "went-on"
    DISK_FULL = "disk-full"
    SILENT = "silent"
    ANSWERED_RUNNING = "answered-running"
    ANSWERED_PAUSED = "answered-paused"


class Reason(StrEnum):
    """Why a verb is refused."""

    NOT_RUNNING = "not-running"
    STILL_RUNNING = "still-running"
    BEING_CREATED = "being-created"
    BEING_STARTED = "being-started"
    BEING_STOPPED = "being-stopped"
    BEING_DELETED = "being-deleted"
    PAUSED = "paused"
    DISK_FULL = "disk-full"
    UNRESPONSIVE = "unresponsive"


@dataclass(frozen=True, slots=True)
class Accept:
    """Go ahead. ``state`` is the guest's while the verb is carried out; None leaves it."""

    state: GuestState | None = None


@dataclass(frozen=True, slots=True)
class Ignore:
    """Nothing to do: it is so already."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Refused, and why."""

    reason: Reason


Admission = Accept | Ignore | Deny

_S, _V, _H, _R = GuestState, Verb, Happening, Reason
_STOPPING = Accept(_S.STOPPING)
_HERE = Accept()


def _all(reason: Reason) -> dict[Verb, Admission]:
    return {verb: Deny(reason) for verb in Verb}


_OFF: dict[Verb, Admission] = {
    _V.START: Accept(_S.STARTING),
    _V.STOP: Ignore(),
    _V.KILL: Ignore(),
    _V.RESTART: Accept(_S.STARTING),
    _V.PAUSE: Deny(_R.NOT_RUNNING),
    _V.RESUME: Deny(_R.NOT_RUNNING),
    _V.DELETE: Accept(_S.DELETING),
    _V.DESTROY: Accept(_S.DELETING),
    _V.RENAME: _HERE,
    _V.SET: _HERE,
    _V.SNAPSHOT: _HERE,
    _V.RESTORE: _HERE,
    _V.TALK: Deny(_R.NOT_RUNNING),
    _V.LOOK: Deny(_R.NOT_RUNNING),
}
_ON: dict[Verb, Admission] = {
    _V.START: Ignore(),
    _V.STOP: _STOPPING,
    _V.KILL: _STOPPING,
    _V.RESTART: _STOPPING,
    _V.PAUSE: _HERE,
    _V.RESUME: Ignore(),
    _V.DELETE: Deny(_R.STILL_RUNNING),
    _V.DESTROY: _STOPPING,
    _V.RENAME: _HERE,
    _V.SET: _HERE,
    _V.SNAPSHOT: _HERE,
    _V.RESTORE: _HERE,
    _V.TALK: _HERE,
    _V.LOOK: _HERE,
}
_HELD: dict[Verb, Admission] = {
    **_ON,
    _V.START: Deny(_R.PAUSED),
    _V.PAUSE: Ignore(),
    _V.RESUME: _HERE,
    _V.TALK: Deny(_R.PAUSED),
}

MOVES: Mapping[GuestState, Mapping[Verb, Admission]] = {
    _S.CREATING: _all(_R.BEING_CREATED),
    _S.STOPPED: _OFF,
    _S.STARTING: {
        **_all(_R.BEING_STARTED),
        _V.START: Ignore(),
        _V.KILL: _STOPPING,
        _V.DESTROY: _STOPPING,
        _V.RENAME: _HERE,
        _V.LOOK: _HERE,
    },
    _S.RUNNING: _ON,
    _S.PAUSED: _HELD,
    _S.IO_ERROR: {
        **_HELD,
        _V.START: Deny(_R.DISK_FULL),
        _V.PAUSE: Deny(_R.DISK_FULL),
        _V.SNAPSHOT: Deny(_R.DISK_FULL),
        _V.TALK: Deny(_R.DISK_FULL),
    },
    _S.STOPPING: {
        **_all(_R.BEING_STOPPED),
        _V.STOP: Ignore(),
        _V.KILL: _STOPPING,
        _V.DESTROY: _STOPPING,
        _V.RENAME: _HERE,
        _V.TALK: _HERE,
        _V.LOOK: _HERE,
    },
    _S.UNRESPONSIVE: {
        **_all(_R.UNRESPONSIVE),
        _V.START: Ignore(),
        _V.KILL: _STOPPING,
        _V.DESTROY: _STOPPING,
        _V.RESTART: _STOPPING,
        _V.RESTORE: _HERE,
        _V.RENAME: _HERE,
    },
    _S.CRASHED: _OFF,
    _S.DELETING: {**_all(_R.BEING_DELETED), _V.DELETE: Ignore(), _V.DESTROY: Ignore()},
}

_LIVE: dict[Happening, GuestState] = {
    _H.EXITED: _S.CRASHED,
    _H.POWERED_OFF: _S.STOPPING,
    _H.PANICKED: _S.CRASHED,
}

HAPPENINGS: Mapping[GuestState, Mapping[Happening, GuestState]] = {
    _S.CREATING: {_H.CREATED: _S.STOPPED},
    _S.STOPPED: {},
    _S.STARTING: {_H.UP: _S.RUNNING, _H.START_FAILED: _S.STOPPED, **_LIVE},
    _S.RUNNING: {
        **_LIVE,
        _H.HELD: _S.PAUSED,
        _H.DISK_FULL: _S.IO_ERROR,
        _H.SILENT: _S.UNRESPONSIVE,
    },
    _S.PAUSED: {
        **_LIVE,
        _H.WENT_ON: _S.RUNNING,
        _H.DISK_FULL: _S.IO_ERROR,
        _H.SILENT: _S.UNRESPONSIVE,
    },
    _S.IO_ERROR: {**_LIVE, _H.WENT_ON: _S.RUNNING, _H.SILENT: _S.UNRESPONSIVE},
    _S.STOPPING: {_H.GONE: _S.STOPPED, _H.STILL_UP: _S.RUNNING, _H.EXITED: _S.STOPPED},
    _S.UNRESPONSIVE: {
        **_LIVE,
        _H.DISK_FULL: _S.IO_ERROR,
        _H.ANSWERED_RUNNING: _S.RUNNING,
        _H.ANSWERED_PAUSED: _S.PAUSED,
    },
    _S.CRASHED: {},
    _S.DELETING: {},
}


def admit(state: GuestState, verb: Verb) -> Admission:
    """Say whether ``verb`` may be carried out in ``state``. Total: every pair has an answer."""
    return MOVES[state][verb]


def after(state: GuestState, happening: Happening) -> GuestState:
    """Return the state after ``happening`` was observed in ``state``."""
    return HAPPENINGS[state].get(happening, state)


def draw() -> str:
    """Print every change of state that the tables allow, one line a state."""
    lines = []
    for state in GuestState:
        moves = [
            f"{verb} → {move.state}"
            for verb, move in MOVES[state].items()
            if isinstance(move, Accept) and move.state is not None
        ]
        moves += [f"{what} → {then}" for what, then in HAPPENINGS[state].items()]
        lines.append(f"    {state:<13} {' · '.join(moves)}".rstrip())
    return "\n".join(lines)
