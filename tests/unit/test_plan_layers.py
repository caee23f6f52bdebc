"""The graph of layers: what is needed, what can become one, and that nobody can tell afterwards."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import HostFailure
from serai.model.snapshot import Layer
from serai.plan.layers import chain, mergeable, unneeded, users_of


def layer(name: str, parent: str = "") -> Layer:
    return Layer(id=name, parent=parent, virtual_size=1, size=10, created_at=0.0)


def graph(**parents: str) -> dict[str, Layer]:
    return {name: layer(name, parent) for name, parent in parents.items()}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, Layer], Counter[str]]:
    """Any forest of layers, and tops on some of them."""
    layers: dict[str, Layer] = {}
    for number in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(["", *layers]))
        layers[f"l{number}"] = layer(f"l{number}", parent)
    tops = Counter(draw(st.lists(st.sampled_from(list(layers) or [""]), max_size=8)))
    del tops[""]
    return layers, tops


def content(layers: dict[str, Layer], top: str, made_of: dict[str, tuple[str, ...]]) -> list[str]:
    return [piece for each in chain(layers, top) for piece in made_of[each.id]]


@given(graphs())
def test_merging_changes_nothing_for_anybody(drawn: tuple[dict[str, Layer], Counter[str]]) -> None:
    layers, tops = drawn
    made_of = {name: (name,) for name in layers}
    before = {top: content(layers, top, made_of) for top in tops}
    while pairs := mergeable(layers, tops):
        for child, parent in pairs:
            made_of[child] += made_of[parent]
            layers[child] = msgspec.structs.replace(layers[child], parent=layers[parent].parent)
            del layers[parent]
    assert {top: content(layers, top, made_of) for top in tops} == before


@given(graphs())
def test_a_pair_is_never_taken_twice_and_no_top_goes(
    drawn: tuple[dict[str, Layer], Counter[str]],
) -> None:
    layers, tops = drawn
    pairs = mergeable(layers, tops)
    taken = [each for pair in pairs for each in pair]
    assert len(taken) == len(set(taken))
    assert not {parent for _, parent in pairs} & set(tops)


@given(graphs())
def test_what_is_not_needed_is_on_no_way_down(
    drawn: tuple[dict[str, Layer], Counter[str]],
) -> None:
    layers, tops = drawn
    gone = unneeded(layers, tops)
    assert gone == set(layers) - {each.id for top in tops for each in chain(layers, top)}


def test_a_layer_with_two_children_stays() -> None:
    layers = graph(base="", left="base", right="base")
    assert mergeable(layers, Counter({"left": 1, "right": 1})) == []


def test_a_layer_that_a_snapshot_stands_on_stays() -> None:
    layers = graph(base="", top="base")
    assert mergeable(layers, Counter({"top": 1, "base": 1})) == []
    assert mergeable(layers, Counter({"top": 1})) == [("top", "base")]


def test_a_long_chain_becomes_one_layer() -> None:
    layers = {"l0": layer("l0")} | {f"l{n}": layer(f"l{n}", f"l{n - 1}") for n in range(1, 100)}
    rounds = 0
    while pairs := mergeable(layers, Counter({"l99": 1})):
        rounds += 1
        for child, parent in pairs:
            layers[child] = msgspec.structs.replace(layers[child], parent=layers[parent].parent)
            del layers[parent]
    assert list(layers) == ["l99"]
    assert rounds < 100


def test_users_are_heads_snapshots_and_layers() -> None:
    assert users_of(graph(a="", b="a", c="a"), Counter({"a": 2, "c": 1})) == {"a": 4, "c": 1}


@pytest.mark.parametrize("parents", [{"a": "gone"}, {"a": "b", "b": "a"}])
def test_a_broken_chain_is_told(parents: dict[str, str]) -> None:
    with pytest.raises(HostFailure, match="is not known"):
        chain(graph(**parents), "a")
