"""Options as words: what comes out reads back the same, whatever characters are in it."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serai.qemu.options import JSON_FLAGS, PLAIN_FLAGS, Option, Value, escape

NASTY = [
    "",
    ",",
    ",,",
    "a,b=c",
    "=",
    '"',
    "'",
    "\\",
    "\n",
    "\r\n",
    "\t",
    " ",
    "é",
    "\u2028",
    "😀",
    "-x",
]

texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
) | st.sampled_from(NASTY)
keys = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1)
json_values: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


def read_keyval(text: str) -> dict[str, str]:
    """Read ``key=value,…`` as QEMU does (util/qemu-option.c, get_opt_value): ,, is a comma."""
    found: dict[str, str] = {}
    key, value, at = "", "", 0
    in_value = False
    while at <= len(text):
        char = text[at : at + 1]
        if in_value and text[at : at + 2] == ",,":
            value += ","
            at += 1
        elif char in (",", ""):
            found[key] = value
            key, value, in_value = "", "", False
        elif char == "=" and not in_value:
            in_value = True
        elif in_value:
            value += char
        else:
            key += char
        at += 1
    return found


@given(st.dictionaries(keys, texts, min_size=1, max_size=4))
@example({"guest": "a,,b=c,", "x": ","})
def test_what_qemu_reads_is_what_was_given(values: Mapping[str, str]) -> None:
    flag, words = Option("chardev", values).argv()
    assert flag == "-chardev"
    assert read_keyval(words) == values


@given(texts.filter(bool), st.dictionaries(keys, texts, max_size=3))
def test_the_first_word_ends_where_it_ends(first: str, values: Mapping[str, str]) -> None:
    _, words = Option("machine", values, first=first).argv()
    head, *rest = read_first(words)
    assert head == first
    assert (read_keyval(rest[0]) if rest else {}) == values


def read_first(text: str) -> list[str]:
    """Split at the first single comma."""
    at = 0
    while at < len(text):
        if text[at : at + 2] == ",,":
            at += 2
        elif text[at] == ",":
            return [text[:at].replace(",,", ","), text[at + 1 :]]
        else:
            at += 1
    return [text.replace(",,", ",")]


@given(st.sampled_from(sorted(JSON_FLAGS)), st.dictionaries(keys, json_values, min_size=1))
def test_json_options_read_back_the_same(flag: str, values: Mapping[str, Value]) -> None:
    first, words = Option(flag, values).argv()
    assert first == f"-{flag}"
    assert json.loads(words) == values
    assert words.isascii() and "\n" not in words


@given(st.sampled_from(sorted(PLAIN_FLAGS)), texts)
def test_plain_options_are_not_touched(flag: str, text: str) -> None:
    assert Option(flag, first=text).argv() == [f"-{flag}", text]


@given(texts)
def test_escaping_leaves_no_single_comma(text: str) -> None:
    assert escape(text).replace(",,", "") == text.replace(",", "")


def test_switches_and_numbers() -> None:
    values = {"id": "x", "server": True, "wait": False, "fd": 7}
    assert Option("chardev", values, first="socket").argv() == [
        "-chardev",
        "socket,id=x,server=on,wait=off,fd=7",
    ]


@pytest.mark.parametrize("flag", ["nodefaults", "no-user-config"])
def test_a_flag_alone(flag: str) -> None:
    assert Option(flag).argv() == [f"-{flag}"]
