"""The error family: complete, stable, and the same after a way through JSON."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import (
    EXIT_CODES,
    FAMILIES,
    Bug,
    Code,
    Family,
    HostFailure,
    Problem,
    SeraiError,
    error_from_problem,
)


def test_every_family_has_one_class_and_one_exit_code():
    assert set(FAMILIES) == set(EXIT_CODES) == set(Family)
    assert set(FAMILIES.values()) == set(SeraiError.__subclasses__())
    assert all(FAMILIES[family].family is family for family in Family)
    codes = list(EXIT_CODES.values())
    assert len(set(codes)) == len(codes)
    assert all(1 < code < 126 for code in codes)  # 0, 1 and what shells use are not ours


def test_codes_are_unique_and_plain():
    assert len({code.value for code in Code}) == len(Code.__members__)
    for code in Code:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code.value)
        assert code.name == code.value.upper().replace("-", "_")


@given(
    st.sampled_from(Family),
    st.sampled_from(Code),
    st.text(),
    st.text(),
    st.dictionaries(st.text(), st.text()),
)
def test_an_error_is_the_same_after_a_way_through_json(family, code, message, hint, details):
    error = FAMILIES[family](code, message, hint=hint, details=details)
    sent = msgspec.json.encode(error.problem())
    found = error_from_problem(msgspec.json.decode(sent, type=Problem))
    assert type(found) is type(error)
    assert (found.code, found.message, found.hint, found.details) == (code, message, hint, details)
    assert str(found) == message


def test_a_code_of_a_later_version_is_a_bug_that_says_what_was_said():
    problem = Problem(family=Family.BUSY, code="not-known-yet", message="wait", hint="a minute")
    error = error_from_problem(problem)
    assert (type(error), error.code) == (Bug, Code.BUG)
    assert (error.message, error.hint) == ("wait", "a minute")


def test_details_are_the_errors_own():
    details = {"argv": "x"}
    error = HostFailure(Code.TOOL_FAILED, "failed", details=details)
    details["argv"] = "changed"
    assert error.details == {"argv": "x"}
    assert HostFailure(Code.TOOL_FAILED, "failed").details == {}


@pytest.mark.parametrize("family", Family)
def test_every_error_can_be_caught_as_ours(family: Family):
    with pytest.raises(SeraiError):
        raise FAMILIES[family](Code.BUG, "x")
