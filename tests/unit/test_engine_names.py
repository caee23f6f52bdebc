"""Names and numbers: one owner each, free again afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.engine.names import Names
from serai.errors import Code, SeraiError
from serai.units import check_guest_name


def test_of_two_who_want_a_name_one_wins() -> None:
    names = Names()
    names.claim("web1", "one")
    with pytest.raises(SeraiError) as caught:
        names.claim("web1", "other")
    assert caught.value.code is Code.GUEST_EXISTS
    assert names.owner("web1") == "one"


def test_claiming_twice_is_fine_and_releasing_is_for_the_owner_only() -> None:
    names = Names()
    names.claim("web1", "one")
    names.claim("web1", "one")
    names.release("web1", "other")
    assert names.owner("web1") == "one"
    names.release("web1", "one")
    assert names.owner("web1") is None


@given(st.lists(st.booleans(), max_size=60))
def test_no_number_is_given_twice_at_a_time(takes: list[bool]) -> None:
    names, held = Names(), []
    for take in takes:
        if take or not held:
            number = names.claim_number()
            assert number not in held
            assert number <= len(held) + 1
            held.append(number)
        else:
            names.release_number(held.pop(0))


def test_picked_names_are_free_and_fit() -> None:
    names = Names()
    for seed in range(100):
        name = check_guest_name(names.pick(seed))
        names.claim(name, str(seed))
