"""What `set` may change, and what is shown of a guest afterwards."""

from pathlib import PurePath

import msgspec
import pytest

from serai.client.words import change_of
from serai.errors import Code, SeraiError
from serai.model.guest import Accel, AgentState, GuestRecord, GuestSpec
from serai.model.image import Image, ImageKind
from serai.model.lifecycle import GuestState
from serai.model.node import Capabilities
from serai.plan.change import changed_spec, has_disk
from serai.plan.machine import plan_machine
from serai.plan.view import TCG_NOTE, view_guest
from serai.units import GIB, MIB

HOST = Capabilities(
    qemu_path="/q", qemu_version="7.2.0", machine_type="pc-q35-7.2", accel=Accel.TCG,
    accel_reason="", cpus=2, memory=8 * GIB,
)  # fmt: skip
DISK = Image(
    name="d", digest="sha256:1", kind=ImageKind.DISK, created_at=0.0, size=1, virtual_size=GIB
)
KERNEL = Image(name="k", digest="sha256:2", kind=ImageKind.KERNEL, created_at=0.0, size=1)
SPEC = GuestSpec(image="d", name="web1", labels={"a": "1"})


def test_only_what_is_named_changes() -> None:
    after = changed_spec(SPEC, change_of(cpus=4), DISK, HOST)
    assert after == msgspec.structs.replace(SPEC, cpus=4)


def test_labels_are_replaced_as_a_whole() -> None:
    assert changed_spec(SPEC, change_of(labels={"b": "2"}), DISK, HOST).labels == {"b": "2"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, Code.VALUE_INVALID),
        ({"cpus": 0}, Code.VALUE_INVALID),
        ({"cpus": -1}, Code.VALUE_INVALID),
        ({"cpus": 10_000}, Code.VALUE_INVALID),
        ({"memory": 1}, Code.SIZE_INVALID),
        ({"memory": -MIB}, Code.SIZE_INVALID),
        ({"memory": 64 * GIB}, Code.SIZE_INVALID),
        ({"disk": GIB // 2}, Code.SHRINK_REFUSED),
        ({"disk": GIB + 1}, Code.SIZE_INVALID),
        ({"labels": {"": "x"}}, Code.VALUE_INVALID),
        ({"labels": {"a\nb": "x"}}, Code.VALUE_INVALID),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], code: Code) -> None:
    with pytest.raises(SeraiError) as caught:
        changed_spec(SPEC, change_of(**change), DISK, HOST)  # type: ignore[arg-type]
    assert caught.value.code is code


def test_a_guest_without_a_disk_has_none_to_grow() -> None:
    spec = GuestSpec(image="k", name="web1")
    assert not has_disk(spec, KERNEL)
    with pytest.raises(SeraiError) as caught:
        changed_spec(spec, change_of(disk=GIB), KERNEL, HOST)
    assert caught.value.code is Code.NEEDS_STOP


def view(record: GuestRecord, running: GuestRecord | None = None):  # type: ignore[no-untyped-def]
    from_record = running or record
    machine = plan_machine(
        from_record, KERNEL, (), capabilities=HOST, image_folder=PATH, guest_folder=PATH
    )
    return view_guest(
        record, KERNEL, GuestState.RUNNING, machine=machine if running else None,
        accel=Accel.KVM, agent=AgentState.UNKNOWN, pid=1, started_at=2.0, restarts=0,
    )  # fmt: skip


PATH = PurePath("/x")
RECORD = GuestRecord(
    id="0a1b2c3d-0000-4000-8000-000000000000", number=1, version=3, created_at=1.0,
    spec=GuestSpec(image="k", name="web1", cpus=2, memory=256 * MIB), image_digest="sha256:2",
    machine_type="pc-q35-7.2", mac="52:54:00:00:00:01", genid="",
)  # fmt: skip


def test_a_stopped_guest_shows_how_it_would_run() -> None:
    assert view(RECORD).accel is Accel.KVM
    assert view(RECORD).notes == ()


def test_a_running_guest_shows_how_it_runs() -> None:
    shown = view(RECORD, running=RECORD)
    assert shown.accel is Accel.TCG
    assert shown.notes == (TCG_NOTE,)


def test_what_waits_for_the_next_start_is_noted() -> None:
    more = msgspec.structs.replace(RECORD.spec, memory=512 * MIB, cpus=1)
    shown = view(msgspec.structs.replace(RECORD, spec=more), running=RECORD)
    assert shown.notes[1:] == (
        "memory 512 MiB takes effect at the next start",
        "1 CPUs take effect at the next start",
    )


def test_where_a_guest_comes_from_and_when_it_goes_is_shown() -> None:
    fork = msgspec.structs.replace(RECORD, origin="s1", snapshot="s2", expires_at=99.0)
    shown = view(fork)
    assert (shown.origin, shown.snapshot, shown.expires_at) == ("s1", "s2", 99.0)
