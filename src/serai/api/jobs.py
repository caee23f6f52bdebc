"""Actions and jobs: how everything that changes something is asked for and waited for."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from litestar.types import ASGIApp, Method

from serai.api.answers import PROBLEM_JSON, Answer, answer_json
from serai.api.bodies import JobsQuery, NoBody, NoQuery, WaitQuery
from serai.api.calls import B, Call, Reply, Route, route
from serai.api.decoding import read_key
from serai.api.paging import cut_page, read_cursor
from serai.api.problems import document_of
from serai.api.streams import attended
from serai.errors import Code, Conflict, Interrupted
from serai.model.actions import AnyAction
from serai.model.job import Job, JobState

W = TypeVar("W", bound=WaitQuery)

JOB_REPLIES = (
    Reply(
        status=HTTPStatus.ACCEPTED,
        about="The action was taken: its job is durable and on its way.",
        type=Job,
        headers=("Location",),
    ),
    Reply(about="With `wait`: the job is done.", type=Job, headers=("Location",)),
)


def action(
    method: Method,
    path: str,
    make: Callable[[Call[W, B]], AnyAction],
    *,
    query: type[W] = WaitQuery,  # type: ignore[assignment]  # python/mypy#3737
    body: type[B] = NoBody,  # type: ignore[assignment]  # python/mypy#3737
    headers: tuple[str, ...] = (),
    problems: tuple[Code, ...] = (),
) -> Route:
    """Return the row of a request that makes an action: it is submitted and, if asked, awaited."""
    return route(
        method,
        path,
        _submitting(make),
        replies=JOB_REPLIES,
        query=query,
        body=body,
        headers=("Idempotency-Key", *headers),
        problems=(*problems, Code.IDEMPOTENCY_REUSED, Code.QUEUE_FULL),
        name=make.__name__.replace("_", "-"),
        about=make.__doc__ or "",
    )


def _submitting(
    make: Callable[[Call[W, B]], AnyAction],
) -> Callable[[Call[W, B]], Awaitable[ASGIApp]]:
    async def handle(call: Call[W, B]) -> ASGIApp:
        job = await call.room.engine.submit(make(call), key=read_key(call.request))
        seconds = call.query.wait
        if not seconds:
            return answer_job(job, HTTPStatus.ACCEPTED)
        return answer_end(await wait_for(call, job, seconds))

    return handle


async def wait_for(call: Call[W, B], job: Job, seconds: float) -> Job:
    """Return the job when it has ended, or as it is when the time is up or the daemon stops."""
    engine = call.room.engine
    if job.is_final or not seconds:
        return job
    try:
        return await attended(call.room, call.request, engine.wait_job(job.id, seconds))
    except Interrupted as error:
        if error.code is not Code.DAEMON_STOPPING:
            raise
        return await engine.job(job.id)


def answer_job(job: Job, status: HTTPStatus) -> Answer:
    """Answer with the job."""
    return answer_json(job, status=status, headers={"location": f"/v1/jobs/{job.id}"})


def answer_end(job: Job) -> Answer:
    """Answer with how the job ended: itself, or the problem for which it failed."""
    if job.state is JobState.DONE:
        return answer_job(job, HTTPStatus.OK)
    if not job.is_final:
        return answer_job(job, HTTPStatus.ACCEPTED)
    problem = job.problem or Conflict(Code.JOB_CANCELLED, "the job was cancelled").problem()
    document = document_of(problem, job=job.id)
    answer = answer_json(
        document, status=document.status, headers={"location": f"/v1/jobs/{job.id}"}
    )
    answer.headers[0] = (b"content-type", PROBLEM_JSON.encode())
    return answer


async def list_jobs(call: Call[JobsQuery, NoBody]) -> ASGIApp:
    """List jobs.

    The newest first.
    """
    query = call.query
    found = await call.room.engine.jobs(
        state=query.state, limit=query.limit + 1, before=read_cursor(query.cursor)
    )
    return answer_json(cut_page(found, query.limit, lambda job: job.id))


async def show_job(call: Call[WaitQuery, NoBody]) -> ASGIApp:
    """Show a job.

    With `wait` the answer comes when the job has ended, or as it is when the time is up; a job
    that failed is shown like any other.
    """
    job = await call.room.engine.job(call.subject)
    return answer_json(await wait_for(call, job, call.query.wait))


async def cancel_job(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Cancel a job.

    It is only asked to stop: look at it, or wait for it, to see how it ended.
    """
    return answer_json(await call.room.engine.cancel_job(call.subject))
