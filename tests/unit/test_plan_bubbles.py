"""What joins bubbles to their host, and which port leads where."""

from ipaddress import IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from serai.model.network import ForwardRecord, InBubble, Port, Protocol
from serai.plan.bubbles import TRANSFERS6, ends_of, leads_in_bubble, leads_on_host, renamed


def port(number: int, bubble: InBubble | None = None, **more: str) -> Port:
    mac = f"02:00:00:00:00:{number:02x}"
    return Port(
        id=f"p{number}", name="net0", network="n", mac=mac, tap=f"st{number}",
        address=more.get("address", f"10.20.0.{2 + number}"),
        address6=more.get("address6", ""), bubble=bubble,
    )  # fmt: skip


def bubble(number: int, known_as: str = "web") -> InBubble:
    return InBubble(id=f"b{number}", transfer=f"100.64.0.{4 * number}/30", known_as=known_as)


def forward(number: int, to: str, host_port: int, **more: object) -> ForwardRecord:
    return ForwardRecord(
        id=f"f{number}", guest_id="g", port=to, protocol=more.get("protocol", Protocol.TCP),  # type: ignore[arg-type]
        host_address=str(more.get("at", "")), host_port=host_port, guest_port=80,
        created_at=float(number),
    )  # fmt: skip


def test_each_bubble_has_ends_of_its_own() -> None:
    ends = ends_of("100.64.0.4/30")
    assert (ends.outer, ends.inner, ends.length) == ("100.64.0.5", "100.64.0.6", 30)
    assert IPv6Network(ends.subnet6).subnet_of(TRANSFERS6)
    assert ends.outer6 == "fd8d:51c7:e09b::6440:5" and ends.inner6 == "fd8d:51c7:e09b::6440:6"
    assert ends_of("100.64.0.8/30").subnet6 != ends.subnet6


def test_a_forward_leads_to_the_guest_or_to_its_bubble() -> None:
    there = port(1, bubble(1), address6="fd00::7")
    forwards = [forward(0, "p0", 8080), forward(1, "p1", 9090), forward(2, "gone", 9)]
    here, away = leads_on_host(forwards, [port(0), there])
    assert (here.address, here.address6, here.port) == ("10.20.0.2", "", 80)
    ends = ends_of("100.64.0.4/30")
    assert (away.address, away.address6, away.port) == (ends.inner, ends.inner6, 9090)
    four, six = leads_in_bubble(forwards, [there])
    assert (four.at, four.at_port, four.address, four.port) == (ends.inner, 9090, "10.20.0.3", 80)
    assert (six.at, six.at_port, six.address6, six.address) == (ends.inner6, 9090, "fd00::7", "")
    assert leads_in_bubble(forwards, [port(0)]) == []


WHERE = st.tuples(
    st.sampled_from([1, 2, 65535]),
    st.sampled_from(list(Protocol)[1:3]),
    st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
)


@given(st.lists(WHERE, unique=True, max_size=12))
def test_both_sides_agree_and_no_two_forwards_meet(places: list[tuple[int, Protocol, str]]) -> None:
    there = port(1, bubble(1))
    forwards = [
        forward(number, "p1", at_port, protocol=protocol, at=at)
        for number, (at_port, protocol, at) in enumerate(places)
    ]
    outside = {each.id: (each.protocol, each.port) for each in leads_on_host(forwards, [there])}
    inside = {each.id: (each.protocol, each.at_port) for each in leads_in_bubble(forwards, [there])}
    assert outside == inside and len(set(inside.values())) == len(forwards)


def test_who_is_known_by_its_own_name_is_by_the_new_one() -> None:
    ports = (port(0), port(1, bubble(1, "copy")), port(2, bubble(1, "web")))
    plain, own, kept = renamed(ports, "copy", "other")
    assert plain == ports[0] and kept == ports[2]
    assert own.bubble == bubble(1, "other")
