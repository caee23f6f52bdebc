"""Admission: every refusal is a sentence with a way out, and limits are checked beforehand."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serai.errors import Busy, Code, Conflict, Invalid, SeraiError
from serai.model.guest import Accel, GuestKind, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.lifecycle import MOVES, Deny, GuestState, Reason, Verb
from serai.model.node import Capabilities
from serai.plan.admission import (
    HINTS,
    MIN_DISK,
    MIN_MEMORY,
    MOST_CPUS,
    ROOM_PER_GUEST,
    WORDS,
    check_cpus,
    check_disk,
    check_launch,
    check_memory,
    check_room,
    refusal,
)
from serai.units import GIB, MAX_SIZE, MIB

DENIED = [
    (state, verb, move.reason)
    for state, moves in MOVES.items()
    for verb, move in moves.items()
    if isinstance(move, Deny)
]


def a_host(cpus: int = 4, memory: int = 8 * GIB) -> Capabilities:
    return Capabilities(
        qemu_path="/usr/bin/qemu",
        qemu_version="7.2.0",
        machine_type="pc-q35-7.2",
        accel=Accel.TCG,
        accel_reason="",
        cpus=cpus,
        memory=memory,
    )


def an_image(kind: ImageKind = ImageKind.DISK, virtual_size: int = 2 * GIB, **more) -> Image:
    return Image(
        name="debian",
        digest="sha256:ab",
        kind=kind,
        created_at=0.0,
        size=1,
        virtual_size=virtual_size,
        **more,
    )


def raised_by(check, *arguments) -> SeraiError | None:
    """Return what ``check`` raises; a refusal always names its hint and stays short."""
    try:
        check(*arguments)
    except SeraiError as error:
        assert error.hint
        assert len(error.message) < 300
        return error
    return None


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "verb", "reason"), DENIED)
def test_a_refusal_says_what_and_why(state: GuestState, verb: Verb, reason: Reason):
    error = refusal("web1", state, verb, reason)
    assert isinstance(error, Conflict)
    assert error.code is Code.GUEST_STATE
    assert error.details == {"state": str(state), "verb": str(verb), "reason": str(reason)}
    assert error.message.startswith("can't ")
    assert "web1" in error.message
    assert WORDS[reason] in error.message
    assert error.hint or state is GuestState.DELETING
    assert "{" not in error.hint


def test_every_reason_has_its_words_and_hint():
    assert set(WORDS) == set(HINTS) == set(Reason)


def test_whoever_deletes_a_running_guest_is_told_both_ways():
    error = refusal("web1", GuestState.RUNNING, Verb.DELETE, Reason.STILL_RUNNING)
    assert "serai stop web1" in error.hint
    assert "serai delete --force web1" in error.hint


@pytest.mark.parametrize("verb", Verb)
def test_the_verb_is_said_as_people_say_it(verb: Verb):
    message = refusal("web1", GuestState.CREATING, verb, Reason.BEING_CREATED).message
    assert not any(
        word in message for word in ("kill", "destroy", " set ", "look web1", "talk web1")
    )


# -- sizes ---------------------------------------------------------------------------------------------


@given(st.integers(-10, 10_000), st.integers(0, 512))
def test_cpus(cpus: int, host_cpus: int):
    error = raised_by(check_cpus, cpus, a_host(cpus=host_cpus))
    fits = 1 <= cpus <= MOST_CPUS and cpus <= max(1, host_cpus) * 8
    assert (error is None) == fits
    assert error is None or (type(error), error.code) == (Invalid, Code.VALUE_INVALID)


SIZES = st.one_of(
    st.integers(-MIB, MAX_SIZE * 2),
    st.integers(-10, 100_000).map(lambda count: count * MIB),
    st.sampled_from([0, MIN_MEMORY, MIN_DISK, MAX_SIZE, 8 * GIB, 8 * GIB + MIB, 2 * GIB - 512]),
)


@given(SIZES, st.sampled_from([0, 64 * MIB, 512 * MIB]))
def test_memory(memory: int, min_memory: int):
    error = raised_by(check_memory, memory, an_image(min_memory=min_memory), a_host())
    fits = memory % MIB == 0 and max(MIN_MEMORY, min_memory) <= memory <= 8 * GIB
    assert (error is None) == fits
    assert error is None or (type(error), error.code) == (Invalid, Code.SIZE_INVALID)


def test_a_host_that_does_not_know_its_memory_refuses_only_the_absurd():
    host = a_host(memory=0)
    assert raised_by(check_memory, 512 * GIB, an_image(), host) is None
    assert raised_by(check_memory, 2048 * GIB, an_image(), host)


@given(SIZES, st.sampled_from(ImageKind))
def test_disk(disk: int, kind: ImageKind):
    error = raised_by(check_disk, disk, an_image(kind))
    valid = disk == 0 or (disk % 512 == 0 and MIN_DISK <= disk <= MAX_SIZE)
    shrinks = kind is ImageKind.DISK and 0 < disk < 2 * GIB
    assert (error is None) == (valid and not shrinks)
    if not valid:
        assert (type(error), error.code) == (Invalid, Code.SIZE_INVALID)
    elif shrinks:
        assert (type(error), error.code) == (Conflict, Code.SHRINK_REFUSED)


# -- launches ------------------------------------------------------------------------------------------


def test_a_launch_that_fits():
    spec = GuestSpec(image="debian", cpus=2, memory=GIB, disk=4 * GIB, labels={"a": "b"})
    assert raised_by(check_launch, spec, an_image(), a_host()) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cpus": 0}, Code.VALUE_INVALID),
        ({"cpus": 1 << 70}, Code.VALUE_INVALID),
        ({"memory": 0}, Code.SIZE_INVALID),
        ({"memory": 1 << 70}, Code.SIZE_INVALID),
        ({"memory": -MIB}, Code.SIZE_INVALID),
        ({"disk": -1}, Code.SIZE_INVALID),
        ({"disk": 1 << 70}, Code.SIZE_INVALID),
        ({"disk": MIB}, Code.SHRINK_REFUSED),
        ({"labels": {"a b": "x"}}, Code.VALUE_INVALID),
        ({"kind": GuestKind.CONTAINER}, Code.VALUE_INVALID),
    ],
)
def test_a_launch_with_one_thing_wrong(changes: dict[str, object], code: Code):
    spec = GuestSpec(**{"image": "debian", **changes})  # type: ignore[arg-type]
    error = raised_by(check_launch, spec, an_image(), a_host())
    assert error is not None
    assert error.code is code


# -- room ----------------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 44), st.integers(0, 1 << 44))
@example(GIB, GIB + ROOM_PER_GUEST)
@example(GIB, GIB + ROOM_PER_GUEST - 1)
def test_room_is_refused_with_the_arithmetic(memory: int, available: int):
    error = raised_by(check_room, memory, available)
    assert (error is None) == (memory + ROOM_PER_GUEST <= available)
    if error is not None:
        assert (type(error), error.code) == (Busy, Code.MEMORY_SHORT)
        assert int(error.details["needed"]) == memory + ROOM_PER_GUEST
        assert int(error.details["available"]) == available


def test_the_arithmetic_can_be_read():
    error = raised_by(check_room, 4 * GIB, 3 * GIB)
    assert error is not None
    assert "4.1 GiB (4 GiB for the guest and 64 MiB around it), and 3 GiB are free" in error.message
