"""What goes wrong between a client and its daemon, as errors."""

from pathlib import Path
from typing import Any

import msgspec

from serai.client.calls import Call
from serai.errors import Code, Interrupted, NotFound, Problem, SeraiError, error_from_problem
from serai.model.job import Job


def problem_in(status: int, untrusted_body: bytes) -> SeraiError:
    """Return what an answer of 400 or more says."""
    try:
        return error_from_problem(msgspec.json.decode(untrusted_body, type=Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Interrupted(
            Code.DAEMON_UNREACHABLE,
            f"the daemon answered with {status} and nothing that can be read",
            hint="See its log: serai daemon status",
        )


def unreachable(path: Path) -> NotFound:
    """Return the error for a daemon that is not there."""
    return NotFound(
        Code.DAEMON_UNREACHABLE,
        f"no daemon answers at {path}",
        hint="Start it: serai daemon start",
    )


def not_allowed(path: Path) -> NotFound:
    """Return the error for a daemon that lets nobody in but its owner."""
    return NotFound(
        Code.DAEMON_UNREACHABLE,
        f"you may not talk to the daemon at {path}",
        hint="It belongs to another user: use its account, or a daemon of your own.",
    )


def lost(call: Call[Any]) -> Interrupted:
    """Return the error for a daemon that went away before it answered."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        "the daemon went away before it answered; it is not known whether it was done",
        hint="Look at what is there before you repeat it.",
        details={"request": f"{call.method} {call.path}"},
    )


def cut(call: Call[Any]) -> Interrupted:
    """Return the error for an answer that ended before its end."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        "the answer was cut off before its end; its first part is all there is",
        hint="The daemon's log says why, or it went away: serai daemon status",
        details={"request": f"{call.method} {call.path}"},
    )


def too_late(call: Call[Any]) -> Interrupted:
    """Return the error for a daemon that is there and does not answer."""
    return Interrupted(
        Code.TIMEOUT,
        f"the daemon did not answer within {call.timeout or 0:g} s",
        hint="It is not known whether it was done: look before you repeat it.",
        details={"request": f"{call.method} {call.path}"},
    )


def lost_job(job: Job) -> Interrupted:
    """Return the error for a daemon that went away while a job of it was waited for."""
    return Interrupted(
        Code.DAEMON_UNREACHABLE,
        f"the daemon went away while it was busy with {job.subject or 'the job'} ({job.kind})",
        hint=f"The next daemon ends the job or undoes it, and says which: serai job wait {job.id}",
        details={"job": job.id},
    )
