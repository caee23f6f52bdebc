"""Sizes, durations and names: what is read, what is printed, what is refused."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.units import (
    GIB,
    KIB,
    MAX_SIZE,
    MIB,
    NAME_LENGTH,
    TIB,
    check_guest_name,
    check_image_name,
    check_labels,
    check_snapshot_name,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    shorten,
    split_source,
)

HOSTILE = [
    "",
    " ",
    "\0",
    "\n",
    "-",
    "--force",
    "-name",
    ".",
    "..",
    "../etc/passwd",
    "a/b",
    "a b",
    "a\nb",
    "web1\n",
    "web1 ",
    "a,b=c",
    'a"b',
    "w\u00e9b",
    "w\u0435b",  # a Cyrillic e
    "\uff57\uff45\uff42",  # full width
    "web\u20111",  # a hyphen that does not break
    "web\u200b1",  # a space without width
    "\u202eweb",
    "\u2177",
    "\ud800",
    "a" * 10_000,
    "a" * (NAME_LENGTH + 1),
]


def refusal(read, *arguments) -> Invalid:
    with pytest.raises(Invalid) as caught:
        read(*arguments)
    assert len(caught.value.message) < 300
    caught.value.message.encode()  # can be sent, whatever it quotes
    return caught.value


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512", 512),
        ("512b", 512),
        ("256MiB", 256 * MIB),
        ("256mib", 256 * MIB),
        ("256 MiB", 256 * MIB),
        ("  256M  ", 256 * MIB),
        ("2G", 2 * GIB),
        ("2GB", 2_000_000_000),
        ("10kB", 10_000),
        ("10k", 10 * KIB),
        ("1.5GiB", 1536 * MIB),
        ("0.5T", 512 * GIB),
        ("64TiB", MAX_SIZE),
        (str(MAX_SIZE), MAX_SIZE),
        ("000000001", 1),
    ],
)
def test_sizes_that_are_read(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        "0",
        "0.0",
        "0.1",
        "-1",
        "+1",
        "1e3",
        "0x10",
        "1_000",
        "1,5G",
        ".5G",
        "1.G",
        "1..5G",
        "1 2",
        "G",
        "1GiBs",
        "1PiB",
        "1i",
        "64.1T",
        "65TiB",
        str(MAX_SIZE + 1),
        "9" * 18,
        "9" * 40,
        "9" * 10_000,
        "nan",
        "inf",
        "\u0661",  # an Arabic digit
        "\u00b2",
        "\uff11G",
        "1\uff27iB",
        "1\u011e",
        "1\u212a",  # the sign for kelvin
    ],
)
def test_sizes_that_are_refused(text: str):
    assert refusal(parse_size, text).code is Code.SIZE_INVALID


@given(st.integers(1, MAX_SIZE))
@example(1)
@example(MIB - 1)
@example(MAX_SIZE)
def test_a_size_in_bytes_comes_back(size: int):
    assert parse_size(str(size)) == size
    printed = format_size(size)
    assert abs(parse_size(printed) - size) <= max(0, size * 0.05)


@given(st.integers(1, 1023), st.sampled_from([(KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB")]))
def test_whole_units_are_printed_whole(count: int, unit: tuple[int, str]):
    assert format_size(count * unit[0]) == f"{count} {unit[1]}"
    assert parse_size(format_size(count * unit[0])) == count * unit[0]


def test_sizes_are_printed_short():
    assert [format_size(size) for size in (0, 1, 1023, 1536, 10 * TIB)] == [
        "0 B",
        "1 B",
        "1023 B",
        "1.5 KiB",
        "10 TiB",
    ]


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text: str):
    for read in (parse_size, parse_duration, check_guest_name, check_image_name, split_source):
        try:
            read(text)
        except Invalid as error:
            assert error.message
            assert len(error.message) < 300


# -- durations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("500 ms", 0.5),
        ("2m", 120.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1w", 604800.0),
        (" 5s ", 5.0),
    ],
)
def test_durations_that_are_read(text: str, seconds: float):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "-1", "1M", "1 y", "nan", "inf", "1e9", "9" * 13, "1:30", "１s", "s", "1mss"]
)
def test_durations_that_are_refused(text: str):
    assert refusal(parse_duration, text).code is Code.VALUE_INVALID


@given(st.floats(0, 1e9))
def test_a_printed_duration_has_no_unit_too_many(seconds: float):
    printed = format_duration(seconds)
    assert len(printed) <= 14
    assert not printed.startswith(("1000 ms", "60.0 s", "60m", "24h"))


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [
        (0.0, "0 ms"),
        (0.0452, "45 ms"),
        (0.9999, "1.0 s"),
        (12.34, "12.3 s"),
        (59.99, "1m 0s"),
        (90, "1m 30s"),
        (3599.9, "1h 0m"),
        (7261, "2h 1m"),
        (86400 * 3 + 3600 * 4 + 59, "3d 4h"),
    ],
)
def test_durations_are_printed_in_two_units(seconds: float, printed: str):
    assert format_duration(seconds) == printed


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "web1", "a-b", "a--b", "x" * NAME_LENGTH, "deadbeef-1"])
def test_names_a_guest_can_have(name: str):
    assert check_guest_name(name) == name


@pytest.mark.parametrize(
    "name", [*HOSTILE, "1web", "Web1", "web-", "-web", "web_1", "web.1", "1", "all'; drop table"]
)
def test_names_a_guest_cannot_have(name: str):
    error = refusal(check_guest_name, name)
    assert error.code is Code.NAME_INVALID
    assert error.hint


def test_no_guest_is_named_like_the_id_of_another():
    refusal(check_guest_name, "abcdef01-2345-6789-abcd-ef0123456789")
    assert check_guest_name("abcdef01-2345-6789-abcd-ef012345678")


@pytest.mark.parametrize("name", ["tiny", "debian-12", "0.1", "a_b.c", "1", "x" * NAME_LENGTH])
def test_names_an_image_can_have(name: str):
    assert check_image_name(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "Tiny", ".hidden", "tiny.", "_x", "tiny:latest", "a@b"])
def test_names_an_image_cannot_have(name: str):
    error = refusal(check_image_name, name)
    assert error.code is Code.NAME_INVALID
    assert error.hint


@pytest.mark.parametrize(
    "name", ["ready", "before-2.0", "1", "nightly_2026-11-23", "x" * NAME_LENGTH]
)
def test_names_a_snapshot_can_have(name: str):
    assert check_snapshot_name(name) == name


@pytest.mark.parametrize(
    "name", [*HOSTILE, "Ready", ".x", "x.", "a@b", "@", "abcdef01-2345-6789-abcd-ef0123456789"]
)
def test_names_a_snapshot_cannot_have(name: str):
    error = refusal(check_snapshot_name, name)
    assert error.code is Code.NAME_INVALID
    assert error.hint


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("web1", ("web1", "")),
        ("web1@ready", ("web1", "ready")),
        ("web1@before-2.0", ("web1", "before-2.0")),
        ("web 1@-x", ("web 1", "-x")),  # whether there is such a guest is said by who knows
    ],
)
def test_sources_that_are_read(text: str, source: tuple[str, str]):
    assert split_source(text) == source


@pytest.mark.parametrize(
    "text", ["", "@", "@ready", "web1@", "web1@@ready", "a@b@c", "web1@b@", "@@"]
)
def test_sources_that_are_refused(text: str):
    error = refusal(split_source, text)
    assert error.code is Code.NAME_INVALID
    assert "GUEST@SNAPSHOT" in error.hint


@given(st.from_regex(r"[a-z](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True))
def test_every_host_name_label_is_a_name(name: str):
    assert check_guest_name(name) == name


# -- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [{}, {"a": ""}, {"App.kubernetes.io/name_1-x": "größe ✓"}, {str(n): "x" for n in range(64)}],
)
def test_labels_that_are_taken(labels: dict[str, str]):
    taken = check_labels(labels)
    assert taken == labels
    assert taken is not labels


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a=b": "x"},
        {"-a": "x"},
        {"ä": "x"},
        {"a b": "x"},
        {"a": "x\ny"},
        {"a": "\0"},
        {"a": "\ud800"},
        {"a": "\x1b[2J"},
        {"a": "x" * 257},
        {"a" * 64: "x"},
        {"a" * 10_000: "x"},
        {str(n): "x" for n in range(65)},
    ],
)
def test_labels_that_are_refused(labels: dict[str, str]):
    assert refusal(check_labels, labels).code is Code.VALUE_INVALID


@given(st.text(st.characters(exclude_categories=()), max_size=200), st.integers(1, 80))
def test_what_is_quoted_is_short_and_printable(text: str, limit: int):
    quoted = shorten(text, limit)
    assert quoted.isprintable()
    assert len(quoted) <= 10 * limit + 5
