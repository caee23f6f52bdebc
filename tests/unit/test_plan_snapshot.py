"""Snapshots as a tree, their sizes, names of forks, and what is refused beforehand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import Busy, Code, Conflict, Invalid
from serai.model.guest import Accel, Firmware, GuestRecord, GuestSpec, Volume
from serai.model.machine import Machine
from serai.model.network import Port
from serai.model.node import Capabilities
from serai.model.snapshot import (
    FrozenMemory,
    FrozenVolume,
    Layer,
    SnapshotRecord,
    SnapshotState,
)
from serai.plan.snapshot import (
    MOST_FORKS,
    ROOM_PER_FORK,
    Sizes,
    check_as_frozen,
    check_fork_room,
    check_group,
    check_memory_fits,
    cold_memories,
    fork_names,
    fork_record,
    group_names,
    in_tree_order,
    pick_name,
)

GUEST = GuestRecord(
    id="g",
    number=1,
    version=7,
    created_at=1.0,
    spec=GuestSpec(image="tiny", name="web1"),
    image_digest="sha256:x",
    machine_type="q35",
    mac="52:54:00:00:00:01",
    genid="gen",
    snapshot="s1",
    seed="told",
    hostname="web1",
)
MACHINE = Machine(
    id="g",
    name="web1",
    machine_type="q35",
    accel=Accel.TCG,
    cpus=1,
    max_cpus=2,
    memory=1 << 28,
    firmware=Firmware.BIOS,
    genid="gen",
    drives=(),
    nics=(),
)
MEMORY = FrozenMemory(
    id="m",
    base="b",
    machine=MACHINE,
    qemu_version="7.2.22",
    accel=Accel.TCG,
    size=1 << 28,
    stored=5,
)
HOST = Capabilities(
    qemu_path="q", qemu_version="7.2.22", machine_type="q35", accel=Accel.TCG, accel_reason=""
)


def snapshot(name: str, parent: str = "", at: float = 0.0, **more: object) -> SnapshotRecord:
    made = SnapshotRecord(
        id=name, name=name, guest_id="g", guest=GUEST, created_at=at, parent=parent
    )
    return msgspec.structs.replace(made, **more)


def test_a_tree_is_told_parents_first_and_old_before_new() -> None:
    shuffled = [
        snapshot("c", "a", 3.0),
        snapshot("b", "a", 2.0),
        snapshot("d", "b", 4.0),
        snapshot("a", "", 1.0),
        snapshot("e", "gone", 0.5),
    ]
    told = [(depth, each.name) for depth, each in in_tree_order(shuffled)]
    assert told == [(0, "e"), (0, "a"), (1, "b"), (2, "d"), (1, "c")]


@given(st.lists(st.integers(0, 20), max_size=20))
def test_every_snapshot_is_told_once_whatever_the_parents(parents: list[int]) -> None:
    made = [
        snapshot(f"s{n}", f"s{parent}" if parent < n else "") for n, parent in enumerate(parents)
    ]
    assert sorted(each.name for _, each in in_tree_order(made)) == sorted(
        each.name for each in made
    )


def test_a_picked_name_is_free() -> None:
    assert pick_name(set()) == "snap-1"
    assert pick_name({"snap-2", "other"}) == "snap-3"
    assert pick_name({"snap-3", "a", "b"}) == "snap-4"


def test_own_is_what_would_be_free_and_shared_is_the_rest() -> None:
    layers = {
        name: Layer(id=name, parent=parent, virtual_size=1, size=size, created_at=0.0)
        for name, parent, size in (("base", "", 100), ("mid", "base", 20), ("top", "mid", 3))
    }
    first = snapshot("first", volumes=(FrozenVolume(name="root", layer="base", size=1),))
    second = snapshot(
        "second", volumes=(FrozenVolume(name="root", layer="top", size=1),), memory=MEMORY
    )
    sizes = Sizes(layers, [], [first, second], {"b": 1000})
    assert (sizes.own(first), sizes.shared(first)) == (0, 100)
    assert (sizes.own(second), sizes.shared(second)) == (20 + 3 + 5 + 1000, 100)
    on_top = msgspec.structs.replace(
        GUEST, volumes=(Volume(name="root", head="h", layer="top", size=1),)
    )
    sizes = Sizes(layers, [on_top], [first, second, snapshot("third", memory=MEMORY)], {"b": 1000})
    assert (sizes.own(second), sizes.shared(second)) == (5, 123 + 1000)


# -- forks -----------------------------------------------------------------------------------------


def test_names_of_forks() -> None:
    assert fork_names("web", 1) == ["web"]
    assert fork_names("web", 3) == ["web-1", "web-2", "web-3"]
    assert len(set(fork_names("w" * 58, MOST_FORKS))) == MOST_FORKS


@pytest.mark.parametrize(
    ("name", "count"), [("web", 0), ("web", -1), ("web", 1001), ("w" * 63, 2), ("-", 1), ("", 1)]
)
def test_names_that_can_not_be(name: str, count: int) -> None:
    with pytest.raises(Invalid):
        fork_names(name, count)


def test_forks_of_a_group_are_called_after_their_sources() -> None:
    assert group_names("copy", 1, ["web", "db"]) == [["copy-web", "copy-db"]]
    assert group_names("copy", 2, ["web"]) == [["copy-1-web"], ["copy-2-web"]]
    for name, count, sources in (
        ("c", 0, ["web"]),
        ("c", 501, ["web", "db"]),
        ("c" * 60, 1, ["web"]),
    ):
        with pytest.raises(Invalid):
            group_names(name, count, sources)


@pytest.mark.parametrize(
    ("sources", "keep_identity", "snapshot"),
    [(["web", "db"], False, ""), (["web", "db"], True, "ready"), (["web", "web"], True, "")],
)
def test_groups_that_can_not_be(sources: list[str], keep_identity: bool, snapshot: str) -> None:
    check_group(["web", "db"], keep_identity=True, snapshot="")
    with pytest.raises(Invalid) as caught:
        check_group(sources, keep_identity=keep_identity, snapshot=snapshot)
    assert caught.value.hint


def test_too_many_forks_are_refused_with_the_arithmetic() -> None:
    check_fork_room(10, 10 * ROOM_PER_FORK)
    with pytest.raises(Busy, match=r"10 forks need 480 MiB .* 479 MiB are free") as caught:
        check_fork_room(10, 479 << 20)
    assert caught.value.code is Code.MEMORY_SHORT
    check_fork_room(10, 20 * ROOM_PER_FORK, coming=10)
    with pytest.raises(
        Busy, match=r"960 MiB are free, of which 11 forks on their way take 528 MiB"
    ):
        check_fork_room(10, 20 * ROOM_PER_FORK, coming=11)


def test_a_fork_is_like_its_source_and_nobody_else() -> None:
    made = fork_record(
        GUEST,
        guest_id="f",
        number=2,
        name="web2",
        mac="52:54:00:00:00:02",
        genid="other",
        now=9.0,
        volumes=(),
        origin="s1",
        expires_at=99.0,
        coming="job",
        ports=(Port(id="p", name="net0", network="n", mac="02:00:00:00:00:01", tap="st1"),),
        hostname="web2",
    )
    same = {
        "spec",
        "image_digest",
        "machine_type",
        "last_exit",
        "problem",
        "volumes",
        "medium",
        "seed",
    }
    for field in GuestRecord.__struct_fields__:
        if field not in same:
            assert getattr(made, field) != getattr(GUEST, field), field
    assert made.spec == msgspec.structs.replace(GUEST.spec, name="web2")


# -- fit -------------------------------------------------------------------------------------------


def test_memory_fits_where_it_was_made() -> None:
    check_memory_fits(MEMORY, "it", HOST)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"qemu_version": "8.0.0"}, "ran under QEMU 7.2.22, and here is 8.0.0"),
        ({"accel": Accel.KVM}, "ran under tcg, and here guests run under kvm"),
    ],
)
def test_memory_that_does_not_fit_is_refused_with_the_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(Conflict, match=reason) as caught:
        check_memory_fits(MEMORY, "it", msgspec.structs.replace(HOST, **changes))
    assert caught.value.code is Code.SNAPSHOT_UNFIT


def test_cold_is_what_nobody_has_used_for_long():
    def kept(name: str, at: float, base: str, **more: object) -> SnapshotRecord:
        memory = msgspec.structs.replace(MEMORY, id=f"m-{name}", base=base)
        return snapshot(name, at=at, memory=memory, state=SnapshotState.READY, **more)

    old, older, young = kept("old", 20, "b1"), kept("older", 10, "b1"), kept("young", 99, "b2")
    without = snapshot("without", at=1, state=SnapshotState.READY)
    coming = msgspec.structs.replace(kept("coming", 1, "b3"), state=SnapshotState.CREATING)
    everything = [old, older, young, without, coming]
    assert cold_memories(everything, {}, 50) == ["m-older", "b1", "m-old"]
    assert cold_memories(everything, {old.id: 60}, 50) == ["m-older"], "its base is warm again"
    assert cold_memories(everything, {}, 10) == []


# -- launches of published images ------------------------------------------------------------------


FROZEN = GuestSpec(image="tiny", name="web1", cpus=2, memory=512 << 20, firmware=Firmware.UEFI)
PUBLISHED = SnapshotRecord(
    id="p", name="p", guest_id="image:warm", created_at=0.0,
    guest=msgspec.structs.replace(GUEST, spec=FROZEN),
    volumes=(FrozenVolume(name="root", layer="l", size=3 << 30),
             FrozenVolume(name="data", layer="d", size=9 << 30)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({}, ""),
        ({"cpus": 2, "memory": 512 << 20, "firmware": Firmware.UEFI, "disk": 3 << 30}, ""),
        ({"name": "other", "labels": {"a": "b"}}, ""),
        ({"cpus": 3}, "--cpus"),
        ({"memory": 128 << 20}, "--memory"),
        ({"disk": 9 << 30}, "--disk"),
    ],
)
def test_a_guest_of_a_published_image_has_the_machine_that_was_frozen(
    asked: dict[str, object], option: str
) -> None:
    spec = msgspec.structs.replace(GuestSpec(image="warm"), **asked)
    if not option:
        check_as_frozen(spec, "warm", PUBLISHED)
        return
    with pytest.raises(Conflict, match=option) as caught:
        check_as_frozen(spec, "warm", PUBLISHED)
    assert caught.value.code is Code.IMAGE_UNFIT
    assert f"serai set NAME {option}" in caught.value.hint


def test_a_firmware_and_a_disk_that_is_not_there_can_not_be_changed_later() -> None:
    bios = msgspec.structs.replace(PUBLISHED, guest=GUEST, volumes=())
    with pytest.raises(Conflict, match="with --firmware bios") as caught:
        check_as_frozen(GuestSpec(image="warm", firmware=Firmware.UEFI), "warm", bios)
    assert caught.value.hint == "Launch it without --firmware"
    with pytest.raises(Conflict, match="with --disk 0 B") as caught:
        check_as_frozen(GuestSpec(image="warm", disk=1 << 30), "warm", bios)
    assert caught.value.hint == "Launch it without --disk"
