"""Snapshots of a guest, and what is made of them: forks and images."""

from litestar.types import ASGIApp

from serai.api.answers import answer_json
from serai.api.bodies import (
    ForkBody,
    NoBody,
    NoQuery,
    PageQuery,
    PublishBody,
    RestoreBody,
    SnapshotBody,
    SnapshotChange,
    WaitQuery,
)
from serai.api.calls import Call
from serai.api.paging import page_in_order
from serai.model.actions import (
    ChangeSnapshot,
    CreateSnapshot,
    DeleteSnapshot,
    ForkGuest,
    PublishImage,
    RestoreSnapshot,
)


async def list_snapshots(call: Call[PageQuery, NoBody]) -> ASGIApp:
    """List the snapshots of a guest.

    As a tree: each after its parent, those of one parent by age; `depth` tells how far to indent.
    """
    snapshots = call.room.engine.snapshots(call.subject)
    return answer_json(page_in_order(snapshots, call.query.limit, call.query.cursor))


async def show_snapshot(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a snapshot."""
    return answer_json(call.room.engine.snapshot(call.subject, call.part))


def create_snapshot(call: Call[WaitQuery, SnapshotBody]) -> CreateSnapshot:
    """Make a snapshot of a guest.

    One moment of all its disks and, if it runs and unless `memory` is false, of its memory. A guest
    that runs goes on. The job's `results` hold the snapshot's id.
    """
    body = call.body
    return CreateSnapshot(
        guest=call.subject,
        name=body.name,
        memory=body.memory,
        quiesce=body.quiesce,
        note=body.note,
    )


def change_snapshot(call: Call[WaitQuery, SnapshotChange]) -> ChangeSnapshot:
    """Give a snapshot another name or note.

    What is not named stays as it is.
    """
    body = call.body
    return ChangeSnapshot(guest=call.subject, snapshot=call.part, name=body.name, note=body.note)


def delete_snapshot(call: Call[WaitQuery, NoBody]) -> DeleteSnapshot:
    """Delete a snapshot.

    The guest, its forks and its other snapshots keep what they stand on.
    """
    return DeleteSnapshot(guest=call.subject, snapshot=call.part)


def restore_snapshot(call: Call[WaitQuery, RestoreBody]) -> RestoreSnapshot:
    """Put a guest back to a snapshot.

    In place: disks, configuration and, if the snapshot has it, memory. What the guest did since its
    last snapshot is lost: that needs `force`.
    """
    return RestoreSnapshot(guest=call.subject, snapshot=call.part, force=call.body.force)


def fork_guest(call: Call[WaitQuery, ForkBody]) -> ForkGuest:
    """Fork a guest.

    Makes new guests from it as it is now, or from its `snapshot`; they share disk and memory with it
    copy-on-write, and it goes on. The job's `results` hold the ids of the new guests.
    """
    body = call.body
    return ForkGuest(
        guest=call.subject,
        snapshot=body.snapshot,
        name=body.name,
        count=body.count,
        keep_identity=body.keep_identity,
        together=body.together,
        ttl=body.ttl,
        wait=body.wait_agent,
    )


def publish_image(call: Call[WaitQuery, PublishBody]) -> PublishImage:
    """Publish a guest as an image.

    As it is now, or its `snapshot`. With memory the image is a warm one: launching it is a fork.
    """
    body = call.body
    return PublishImage(
        guest=call.subject,
        image=body.image,
        snapshot=body.snapshot,
        memory=body.memory,
        replace=body.replace,
    )
