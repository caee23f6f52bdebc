"""Volumes: one writer or any readers, ports, boot order, room, limits, and what copies they leave."""

import msgspec
import pytest

from serai.errors import Code, SeraiError
from serai.model.guest import GuestRecord, GuestSpec, Volume
from serai.model.snapshot import FrozenVolume, Layer
from serai.model.volume import Limits, VolumeRecord, VolumeSnapshot
from serai.plan.layers import mergeable, tops_of
from serai.plan.volume import (
    PORTS,
    Usage,
    attached,
    boot_places,
    check_attach,
    check_detachable,
    check_free,
    check_growth,
    check_limits,
    check_room,
    check_serial,
    copies_over,
    current,
    default_serial,
    head_stem,
    pick_port,
    released,
    round_size,
    view_volume,
)
from serai.units import GIB, MIB

ROOT = Volume(name="root", head="root.qcow2", size=GIB)
DATA = VolumeRecord(
    id="11111111-2222-4333-8444-555555555555",
    name="data",
    created_at=1.0,
    size=64 * MIB,
    head="v111111112222.qcow2",
    serial="11111111222243338444",
)


def a_guest(name: str = "web1", *volumes: Volume) -> GuestRecord:
    return GuestRecord(
        id=f"id-{name}",
        number=1,
        version=1,
        created_at=0.0,
        spec=GuestSpec(image="tiny", name=name),
        image_digest="sha256:ab",
        machine_type="q35",
        mac="52:54:00:00:00:01",
        genid="x",
        volumes=(ROOT, *volumes),
    )


def entry(volume: VolumeRecord = DATA, *, read_only: bool = False, port: str = "spare7") -> Volume:
    return attached(volume, port=port, read_only=read_only, boot=0)


def code_of(error: "pytest.ExceptionInfo[SeraiError]") -> Code:
    assert error.value.hint
    return error.value.code


def test_a_second_writer_is_refused_and_hears_who_has_it() -> None:
    first, second = a_guest("web1", entry()), a_guest("web2")
    taken = msgspec.structs.replace(DATA, attached_to=first.id)
    for guest, read_only in ((second, False), (second, True), (first, False)):
        with pytest.raises(SeraiError, match="web1") as caught:
            check_attach(taken, [first, second], guest, read_only=read_only)
        assert code_of(caught) is Code.VOLUME_IN_USE


def test_a_holder_whose_record_is_lost_still_keeps_others_out() -> None:
    taken = msgspec.structs.replace(DATA, attached_to="lost")
    with pytest.raises(SeraiError, match="lost"):
        check_attach(taken, [a_guest()], a_guest(), read_only=False)


def test_many_may_read_but_then_none_may_write() -> None:
    reader, other = a_guest("web1", entry(read_only=True)), a_guest("web2")
    check_attach(DATA, [reader, other], other, read_only=True)
    with pytest.raises(SeraiError, match="web1") as caught:
        check_attach(DATA, [reader, other], other, read_only=False)
    assert code_of(caught) is Code.VOLUME_IN_USE
    with pytest.raises(SeraiError, match="already"):
        check_attach(DATA, [reader, other], reader, read_only=True)
    with pytest.raises(SeraiError, match="web1"):
        check_free(DATA, [reader, other], "delete")
    check_free(DATA, [other], "delete")


def test_a_disk_of_the_same_name_is_in_the_way() -> None:
    fork = a_guest("fork", msgspec.structs.replace(entry(), id="", pool=""))
    with pytest.raises(SeraiError) as caught:
        check_attach(DATA, [fork], fork, read_only=False)
    assert code_of(caught) is Code.VOLUME_IN_USE


def test_root_and_own_copies_stay() -> None:
    guest = a_guest()
    with pytest.raises(SeraiError) as caught:
        check_detachable(guest, ROOT)
    assert code_of(caught) is Code.VOLUME_IS_ROOT
    with pytest.raises(SeraiError) as caught:
        check_detachable(guest, msgspec.structs.replace(entry(), id=""))
    assert code_of(caught) is Code.VOLUME_OWN
    check_detachable(guest, entry())


def test_ports_are_taken_from_the_last_down_around_what_is_busy() -> None:
    assert pick_port(a_guest(), None, ()) == PORTS[-1]
    assert pick_port(a_guest("a", entry()), None, {PORTS[-2]}) == PORTS[-3]
    with pytest.raises(SeraiError) as caught:
        pick_port(a_guest(), None, PORTS)
    assert code_of(caught) is Code.NO_PORT


def test_the_order_of_booting() -> None:
    one = msgspec.structs.replace(entry(), name="one", boot=1)
    two = msgspec.structs.replace(entry(), name="two", boot=2)
    last = msgspec.structs.replace(entry(), name="last", boot=99)
    assert boot_places([ROOT, entry()], ["root", "cd0"]) == {"root": 1, "cd0": 2}
    found = boot_places([ROOT, two, one, last], ["root", "cd0"])
    assert found == {"one": 1, "two": 2, "root": 3, "cd0": 4, "last": 5}


def test_what_a_guest_gives_back_is_what_it_had() -> None:
    had = msgspec.structs.replace(entry(), head="v-2.qcow2", layer="l", size=GIB)
    taken = msgspec.structs.replace(DATA, attached_to="g")
    back = released(taken, had)
    assert (back.head, back.layer, back.size, back.attached_to) == ("v-2.qcow2", "l", GIB, "")
    assert released(DATA, entry(read_only=True)) == DATA


def test_while_it_is_attached_the_guest_says_what_it_is() -> None:
    had = msgspec.structs.replace(entry(), head="v-2.qcow2", layer="l", size=GIB)
    taken = msgspec.structs.replace(DATA, attached_to="id-web1")
    assert current(taken, [a_guest("web1", had)]).size == GIB
    assert current(DATA, [a_guest("web1")]) == DATA


def test_a_fork_has_copies_of_its_own_and_shares_what_is_only_read() -> None:
    shared = msgspec.structs.replace(entry(port="spare6", read_only=True), id="r", name="shared")
    guest = a_guest("web1", entry(), shared)
    frozen = [
        FrozenVolume(name="root", layer="lr", size=GIB),
        FrozenVolume(name="data", layer="ld", size=64 * MIB),
        FrozenVolume(name="shared", layer="ls", size=MIB),
    ]
    root, data, read = copies_over(guest, frozen, "", {"r"})
    assert (root.head, root.layer) == ("root.qcow2", "lr")
    assert (data.head, data.layer, data.id, data.pool) == ("spare7.qcow2", "ld", "", "")
    assert (data.port, data.serial) == ("spare7", DATA.serial)
    assert (read.id, read.head, read.layer, read.read_only) == ("r", "", "ls", True)
    assert copies_over(guest, frozen, "x", set())[2].id == ""
    assert copies_over(guest, frozen, "abcd", set())[1].head == "spare7-abcd.qcow2"


def test_heads_of_one_folder_begin_differently_and_fit_a_node_of_qemu() -> None:
    assert head_stem(ROOT) == "root"
    assert head_stem(entry()) == "v111111112222"
    assert head_stem(msgspec.structs.replace(entry(), id="")) == "spare7"
    assert len(f"{head_stem(entry())}-12345678") <= 31


def test_room_is_refused_with_the_arithmetic() -> None:
    check_room(GIB, 0, GIB, "p")
    check_room(2 * GIB, GIB, GIB, "p")
    with pytest.raises(SeraiError, match=r"2 GiB .* 1 GiB left") as caught:
        check_room(2 * GIB, 0, GIB, "p")
    assert code_of(caught) is Code.POOL_FULL
    assert caught.value.details == {"needed": str(2 * GIB), "free": str(GIB)}


def test_sizes_and_growth() -> None:
    assert round_size(MIB + 1) == 2 * MIB
    for wrong in (0, MIB - 1, 1 << 60):
        with pytest.raises(SeraiError) as caught:
            round_size(wrong)
        assert code_of(caught) is Code.SIZE_INVALID
    check_growth("data", MIB, MIB)
    with pytest.raises(SeraiError) as caught:
        check_growth("data", 2 * MIB, MIB)
    assert code_of(caught) is Code.SHRINK_REFUSED


@pytest.mark.parametrize(
    "wrong",
    [
        Limits(iops=-1),
        Limits(iops=10, iops_burst=10),
        Limits(iops_burst=10),
        Limits(bps=10, burst_seconds=0),
        Limits(bps=10**14),
    ],
)
def test_limits_that_qemu_would_not_keep_are_refused(wrong: Limits) -> None:
    with pytest.raises(SeraiError) as caught:
        check_limits(wrong)
    assert caught.value.code is Code.VALUE_INVALID


def test_serials() -> None:
    assert len(check_serial(default_serial(DATA.id))) == 20
    for wrong in ("", "a b", "x" * 21, "é", "a\n"):
        with pytest.raises(SeraiError):
            check_serial(wrong)


def test_layers_of_volumes_and_their_snapshots_are_stood_on() -> None:
    one = VolumeSnapshot(id="s", name="s", layer="old", size=1, created_at=0.0)
    volume = msgspec.structs.replace(DATA, layer="new", snapshots=(one,))
    assert tops_of([], [], [volume]) == {"old": 1, "new": 1}
    taken = msgspec.structs.replace(volume, attached_to="g")
    assert tops_of([], [], [taken]) == {"old": 1}


def test_layers_of_two_pools_never_become_one() -> None:
    below = Layer(id="a", virtual_size=1, created_at=0.0, pool="fast")
    above = Layer(id="b", parent="a", virtual_size=1, created_at=0.0)
    assert mergeable({"a": below, "b": above}, {"b": 1}) == []
    same = msgspec.structs.replace(above, pool="fast")
    assert mergeable({"a": below, "b": same}, {"b": 1}) == [("b", "a")]


def test_what_is_shown_adds_up() -> None:
    layers = {
        "a": Layer(id="a", virtual_size=1, size=100, created_at=0.0),
        "b": Layer(id="b", parent="a", virtual_size=1, size=10, created_at=0.0),
    }
    volume = msgspec.structs.replace(DATA, layer="b")
    alone = Usage(layers, {"b": 1}, {DATA.id: 1})
    assert (alone.own(volume), alone.shared(volume)) == (111, 0)
    cloned = Usage(layers, {"b": 2}, {DATA.id: 1})
    assert (cloned.own(volume), cloned.shared(volume)) == (1, 110)
    half = Usage(layers, {"b": 1, "a": 1}, {DATA.id: 1})
    shown = view_volume(volume, [a_guest("web1", entry())], half)
    assert (shown.own, shown.shared) == (11, 100)
    assert [each.guest for each in shown.attached] == ["web1"]
