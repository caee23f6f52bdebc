"""Guests: shown as they are, and every action that can be asked of them."""

import msgspec
from litestar.types import ASGIApp

from serai.api.answers import answer_json
from serai.api.bodies import (
    DeleteQuery,
    GuestsQuery,
    ImportGuestBody,
    LaunchBody,
    NoBody,
    NoQuery,
    RenameBody,
    StopBody,
    WaitQuery,
)
from serai.api.calls import Call
from serai.api.decoding import read_version
from serai.api.paging import page_by_name
from serai.errors import Code, Invalid
from serai.model.actions import (
    CreateGuest,
    DeleteGuest,
    ImportGuest,
    LaunchGuest,
    PauseGuest,
    RenameGuest,
    RestartGuest,
    ResumeGuest,
    SetGuest,
    StartGuest,
    StopGuest,
)
from serai.model.firstboot import FirstBoot
from serai.model.guest import Guest, GuestChange, GuestSpec
from serai.units import shorten


async def list_guests(call: Call[GuestsQuery, NoBody]) -> ASGIApp:
    """List guests.

    Sorted by name. With several `label` a guest must have all of them.
    """
    query = call.query
    guests = call.room.engine.guests()
    if query.label:
        wanted = [_split_label(text) for text in query.label]
        guests = [guest for guest in guests if _has_labels(guest, wanted)]
    return answer_json(page_by_name(guests, query.limit, query.cursor))


def _split_label(untrusted: str) -> tuple[str, str]:
    key, equals, value = untrusted.partition("=")
    if not equals:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(untrusted)} is not a label",
            hint="Write it as key=value.",
            details={"path": "$.label"},
        )
    return key, value


def _has_labels(guest: Guest, wanted: list[tuple[str, str]]) -> bool:
    return all(guest.labels.get(key) == value for key, value in wanted)


async def show_guest(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Show a guest.

    The ETag is its version: send it as If-Match with a change.
    """
    guest = call.room.engine.guest(call.subject)
    return answer_json(guest, headers={"etag": f'"{guest.version}"'})


def launch_guest(call: Call[WaitQuery, LaunchBody]) -> LaunchGuest | CreateGuest:
    """Launch a guest.

    It is defined and started, and the job lasts until its agent answers, or what else `wait_for`
    names. With `start` false it is only defined and stays stopped.
    """
    body = call.body
    spec = msgspec.convert(body, GuestSpec, from_attributes=True)
    told = FirstBoot(hostname=body.hostname, ssh_keys=body.ssh_keys, user_data=body.user_data)
    if not body.start:
        if body.ttl:
            raise Invalid(
                Code.VALUE_INVALID,
                "a guest that is only defined has no time to live",
                hint="Leave `ttl` out, or start it.",
                details={"path": "$.ttl"},
            )
        return CreateGuest(spec=spec, volumes=body.volumes, ports=body.ports, first_boot=told)
    return LaunchGuest(
        spec=spec,
        first_boot=told,
        wait=body.wait_agent,
        wait_for=body.wait_for,
        ttl=body.ttl,
        volumes=body.volumes,
        ports=body.ports,
    )


def import_guest(call: Call[WaitQuery, ImportGuestBody]) -> ImportGuest:
    """Import a guest from elsewhere.

    It is defined, stopped, with the CPUs, the memory, the firmware and the address of the network card
    that it had; its root disk becomes an image of its name. The job's message says what is different
    here, its result is the guest's id.
    """
    return msgspec.convert(call.body, ImportGuest, from_attributes=True)


def change_guest(call: Call[WaitQuery, GuestChange]) -> SetGuest:
    """Change a guest.

    What is not named stays as it is. What can't change while it runs holds from its next start.
    With If-Match, the guest must still be at that version.
    """
    return SetGuest(guest=call.subject, change=call.body, version=read_version(call.request))


def delete_guest(call: Call[DeleteQuery, NoBody]) -> DeleteGuest:
    """Delete a guest and its own disks.

    Volumes that were attached to it stay.
    """
    return DeleteGuest(guest=call.subject, force=call.query.force)


def start_guest(call: Call[WaitQuery, NoBody]) -> StartGuest:
    """Start a guest.

    One that runs is left as it is.
    """
    return StartGuest(guest=call.subject)


def stop_guest(call: Call[WaitQuery, StopBody]) -> StopGuest:
    """Stop a guest.

    Its agent is asked, then its power button is pressed; after the time limit it is killed. With
    `force` it is killed at once.
    """
    return StopGuest(guest=call.subject, force=call.body.force, timeout=call.body.timeout)


def restart_guest(call: Call[WaitQuery, StopBody]) -> RestartGuest:
    """Restart a guest.

    It is stopped as by stop, then started anew; a stopped guest is started.
    """
    return RestartGuest(guest=call.subject, force=call.body.force, timeout=call.body.timeout)


def pause_guest(call: Call[WaitQuery, NoBody]) -> PauseGuest:
    """Pause a guest."""
    return PauseGuest(guest=call.subject)


def resume_guest(call: Call[WaitQuery, NoBody]) -> ResumeGuest:
    """Resume a guest.

    One that is paused, or held because the host's disk was full.
    """
    return ResumeGuest(guest=call.subject)


def rename_guest(call: Call[WaitQuery, RenameBody]) -> RenameGuest:
    """Rename a guest."""
    return RenameGuest(guest=call.subject, name=call.body.name)
