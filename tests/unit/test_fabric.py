"""Who holds which port: claimed in one step, all or none, and given back."""

import pytest

from serai.engine.fabric import Fabric
from serai.errors import Code, Conflict, NotFound, SeraiError
from serai.model.network import (
    ForwardRecord,
    GroupRecord,
    GroupSpec,
    InBubble,
    NetworkRecord,
    NetworkSpec,
    PortSpec,
    Protocol,
)

ONE, TWO = ("id-1", "one"), ("id-2", "two")


@pytest.fixture
def fabric() -> Fabric:
    made = Fabric()
    spec = NetworkSpec(name="web", subnet="10.20.0.0/29")
    network = NetworkRecord(id="n", version=1, created_at=0.0, spec=spec)
    group = GroupRecord(id="g", version=1, created_at=0.0, spec=GroupSpec(name="www"))
    made.fill([network], [group], [], [])
    return made


def specs(*addresses: str) -> dict[str, PortSpec]:
    return {f"p-{each}": PortSpec(network="web", address=each) for each in addresses}


def test_ports_are_claimed_all_or_none(fabric: Fabric) -> None:
    first, second = fabric.claim(ONE, specs("10.20.0.2", ""))
    assert (first.name, second.name, second.address) == ("net0", "net1", "10.20.0.3")
    with pytest.raises(SeraiError) as raised:
        fabric.claim(TWO, specs("10.20.0.4", "10.20.0.2"))
    assert raised.value.code is Code.ADDRESS_TAKEN and len(fabric.ports()) == 2
    fabric.release([first, first])
    [again] = fabric.claim(TWO, specs("10.20.0.2"), names=["net0"])
    assert (again.name, again.address) == ("net1", "10.20.0.2")
    with pytest.raises(NotFound):
        fabric.claim(TWO, {"x": PortSpec(network="nowhere")})


def test_forks_have_ports_like_their_source_and_no_address_of_it(fabric: Fabric) -> None:
    wanted = {"p": PortSpec(network="web", groups=("www",), address="10.20.0.4")}
    [source] = fabric.claim(ONE, wanted)
    [fork] = fabric.claim_like(TWO, {"q": source})
    assert (fork.name, fork.network, fork.groups) == ("net0", "n", ("g",))
    assert fork.address == "10.20.0.2" and fork.mac != source.mac and fork.tap != source.tap
    fabric.groups.clear()
    [other] = fabric.claim_like(TWO, {"r": source})
    assert other.groups == ()
    with pytest.raises(Conflict):
        fabric.claim_like(TWO, {str(number): source for number in range(9)})
    assert len(fabric.ports()) == 3
    fabric.networks.clear()
    assert fabric.claim_like(TWO, {"s": source}) == ()


def test_a_name_is_taken_from_the_first_day(fabric: Fabric) -> None:
    coming = NetworkRecord(id="c", version=1, created_at=0.0, spec=NetworkSpec(name="db"))
    fabric.coming["c"] = coming
    for name in ("web", "db"):
        with pytest.raises(Conflict) as raised:
            fabric.check_free(name)
        assert raised.value.code is Code.NETWORK_EXISTS
    assert [each.name for each in fabric.specs(but="n")] == ["db"]


def test_forwards_go_with_their_guest(fabric: Fabric) -> None:
    for number, guest in enumerate(("id-1", "id-2")):
        fabric.forwards[guest] = ForwardRecord(
            id=guest, guest_id=guest, port="", protocol=Protocol.TCP, host_address="",
            host_port=80 + number, guest_port=80, created_at=0.0,
        )  # fmt: skip
    fabric.forget_forwards("id-1")
    assert list(fabric.forwards) == ["id-2"]
    shown = fabric.show_forward(fabric.forward("id-2"), "two")
    assert (shown.guest, shown.port, shown.address) == ("two", "", "")


def in_bubble(number: int, known_as: str = "one") -> InBubble:
    return InBubble(id=f"b{number}", transfer=f"100.64.0.{4 * number}/30", known_as=known_as)


def test_in_a_bubble_everything_is_as_it_was_and_collides_with_nobody(fabric: Fabric) -> None:
    [source] = fabric.claim(ONE, {"p": PortSpec(network="web", groups=("www",))})
    copies = [
        fabric.claim_like((f"id-{n}", f"c{n}"), {f"q{n}": source}, in_bubble(n), same=True)[0]
        for n in range(2)
    ]
    for number, copy in enumerate(copies):
        assert (copy.mac, copy.address, copy.groups) == (source.mac, source.address, source.groups)
        assert copy.tap != source.tap and copy.site == f"b{number}"
    assert len({each.tap for each in copies}) == 2
    [held] = fabric.ports_at("b1")
    assert (held.guest, held.known_as) == ("c1", "one")
    shown = fabric.show_network(fabric.network("web"))
    assert (shown.ports, shown.free, shown.bubbles) == (1, 4, 2)
    with pytest.raises(Conflict) as raised:
        fabric.claim_like(TWO, {"r": source}, in_bubble(1, "x"), same=True)
    assert raised.value.code is Code.ADDRESS_TAKEN

    [more] = fabric.claim(TWO, {"s": PortSpec(network="web")}, bubble=in_bubble(1, "two"))
    assert more.address == "10.20.0.3", "the first that is free in there"
    assert set(fabric.bubbles()) == {"b0", "b1"}
    assert fabric.pick_transfer(["100.64.0.8/30"], ()) == "100.64.0.12/30"
    fabric.release([copies[1], more])
    assert set(fabric.bubbles()) == {"b0"}
    assert len(fabric.ports_in("n")) == 2, "nobody may delete the network"


def test_a_name_in_a_bubble_is_one_guest_s(fabric: Fabric) -> None:
    bubble = in_bubble(1, "one")
    fabric.claim(("id-1", "copy"), {"a": PortSpec(network="web")}, bubble=bubble)
    fabric.check_known_as(bubble, "copy")
    fabric.check_known_as(bubble, "one", "id-1")
    fabric.check_known_as(in_bubble(2), "one")
    with pytest.raises(Conflict) as raised:
        fabric.check_known_as(bubble, "one", "id-2")
    assert raised.value.code is Code.GUEST_EXISTS and raised.value.hint


def test_what_joins_a_bubble_is_no_network_s(fabric: Fabric) -> None:
    spec = NetworkSpec(name="wide", subnet="100.64.0.0/24")
    fabric.networks["w"] = NetworkRecord(id="w", version=1, created_at=0.0, spec=spec)
    assert fabric.pick_transfer((), ()) == "100.64.1.0/30"
