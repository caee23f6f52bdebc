"""The requests about jobs as values, and what their answers mean."""

from collections.abc import Callable
from dataclasses import replace

from serai.client.calls import SLACK, Call, Page, get, post, segment
from serai.client.guest_calls import delete_guest
from serai.client.network_calls import delete_network
from serai.client.snapshot_calls import delete_snapshot
from serai.errors import Bug, Code, Conflict, error_from_problem
from serai.model.check import CheckReport
from serai.model.job import Job, JobState

LONG_POLL = 30.0
"""For how long one question waits for the end of a job, in seconds."""
CANCEL_LIMIT = 20.0
"""For how long the end of a cancelled job is waited for, in seconds."""
PROGRESS_EVERY = 0.25
AT_ONCE = 64
"""How many jobs are begun before the first is waited for, where there are many."""

OnProgress = Callable[[Job], None]


def _job(job_id: str) -> str:
    return f"/v1/jobs/{segment(job_id)}"


def list_jobs(state: str = "", limit: int = 100) -> Call[Page[Job]]:
    """Jobs, the newest first."""
    query = {"state": state} if state else {}
    return get("/v1/jobs", Page[Job], limit=str(limit), **query)


def show_job(job_id: str) -> Call[Job]:
    """One job."""
    return get(_job(job_id), Job)


def cancel_job(job_id: str) -> Call[Job]:
    """Ask a job to end early."""
    return post(f"{_job(job_id)}/cancel", Job)


def keyed(call: Call[Job], key: str) -> Call[Job]:
    """Let a call, sent again, give the job of the first time."""
    return replace(call, headers={**call.headers, "Idempotency-Key": key})


def waiting(call: Call[Job], seconds: float) -> Call[Job]:
    """Let the daemon answer when the job has ended, or after ``seconds``."""
    return replace(call.with_query(wait=f"{seconds:g}"), timeout=seconds + SLACK)


def outcome(job: Job) -> Job:
    """Return a job that is done; raise the problem of one that is not."""
    if job.problem is not None:
        raise error_from_problem(job.problem)
    if job.state is JobState.CANCELLED:
        raise Conflict(Code.JOB_CANCELLED, f"the job was cancelled: {job.kind} {job.subject}")
    return job


def guest_of(job: Job) -> str:
    """Return the id or name of the guest that a finished launch has made.

    The subject of a job is not always what it makes: a warm image is launched by forking it.
    """
    return job.results[0] if job.results else job.subject


def report_of(job: Job) -> CheckReport:
    """Return what a check that is done has found."""
    if job.report is None:
        raise Bug(Code.BUG, f"the job {job.id} has no report")
    return job.report


def undoing(job: Job) -> list[Call[Job]]:
    """Return what removes all that a finished job has made, where that is guests, networks or snapshots."""
    if job.state is not JobState.DONE:
        return []
    if job.kind in ("launch", "create", "guest-import"):
        return [delete_guest(guest_of(job), force=True)]
    if job.kind == "fork":
        return [delete_guest(each, force=True) for each in job.results]
    if job.kind == "network-create":
        return [delete_network(each) for each in job.results]
    if job.kind == "snapshot-create":
        return [delete_snapshot(job.subject, each) for each in job.results]
    return []
