"""Schedules of a guest: when snapshots are made by themselves, and which of them stay."""

from litestar.types import ASGIApp

from serai.api.answers import answer_json
from serai.api.bodies import (
    Judgements,
    JudgeQuery,
    NoBody,
    NoQuery,
    PageQuery,
    ScheduleBody,
    WaitQuery,
)
from serai.api.calls import Call
from serai.api.paging import page_in_order
from serai.model.actions import CreateSchedule, DeleteSchedule, RunSchedule, SetSchedule
from serai.model.schedule import Keep, ScheduleChange


async def list_all_schedules(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List the schedules of all guests.

    By guest and name.
    """
    found = call.room.engine.schedules()
    return answer_json(page_in_order(found, call.query.limit, call.query.cursor))


async def list_schedules(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List the schedules of a guest.

    By name.
    """
    found = call.room.engine.schedules(call.subject)
    return answer_json(page_in_order(found, call.query.limit, call.query.cursor))


async def show_schedule(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a schedule."""
    return answer_json(call.room.engine.schedule(call.subject, call.part))


async def judge_schedule(call: Call[JudgeQuery, NoBody]) -> ASGIApp:
    """Show which snapshots of a schedule would stay.

    Nothing is deleted. By its own rules or, if one is given, by those of the query.
    """
    query = call.query
    given = {
        name: count
        for name in Keep.__struct_fields__
        if (count := getattr(query, name)) is not None
    }
    keep = Keep(**given) if given else None
    found = call.room.engine.judge_schedule(call.subject, call.part, keep)
    return answer_json(Judgements(items=found))


def create_schedule(call: Call[WaitQuery, ScheduleBody]) -> CreateSchedule:
    """Make a schedule.

    From then on snapshots of the guest are made by themselves, and those that no rule of `keep` keeps
    are deleted again; others than its own are never touched. The job's `results` hold its id.
    """
    body = call.body
    return CreateSchedule(
        guest=call.subject,
        when=body.when,
        name=body.name,
        keep=body.keep,
        memory=body.memory,
        quiesce=body.quiesce,
        name_as=body.name_as,
    )


def set_schedule(call: Call[WaitQuery, ScheduleChange]) -> SetSchedule:
    """Change a schedule.

    What is not named stays as it is. `paused` holds it; what it misses meanwhile is not caught up.
    """
    return SetSchedule(guest=call.subject, schedule=call.part, change=call.body)


def run_schedule(call: Call[WaitQuery, NoBody]) -> RunSchedule:
    """Do now what a schedule does when it is due.

    Also if it is paused. The job's `message` says what was done, its `results` hold the id of the
    snapshot, if one was made.
    """
    return RunSchedule(guest=call.subject, schedule=call.part)


def delete_schedule(call: Call[WaitQuery, NoBody]) -> DeleteSchedule:
    """Delete a schedule.

    The snapshots that it made stay, and nobody deletes them any more.
    """
    return DeleteSchedule(guest=call.subject, schedule=call.part)
