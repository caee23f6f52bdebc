"""Indexes of images: what is refused, which entry is meant, what pins it, why it is believed."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import serai.disk
from serai.errors import Code, Invalid, NotFound
from serai.model.catalogue import IndexEntry
from serai.plan.catalogue import (
    MAX_INDEX,
    check_trust,
    choose,
    is_private_way,
    place_of,
    read_index,
    read_sums,
    version_key,
)

HEX = "ab" * 32
LONG = "cd" * 64
OWN = Path(serai.disk.__file__).with_name("catalogue.json")


def index(*entries: dict[str, object], **more: object) -> bytes:
    return json.dumps({"entries": entries, **more}).encode()


def entry(**changes: object) -> dict[str, object]:
    return {"name": "debian", "url": "d.qcow2", "sha256": HEX, **changes}


def why_refused(content: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        read_index(content)
    assert caught.value.code is Code.INDEX_REFUSED
    return caught.value.message


def test_our_own_index_is_sound_and_its_files_come_over_https() -> None:
    own = read_index(OWN.read_bytes())
    names = {each.name for each in own.entries}
    assert {"debian", "ubuntu", "fedora", "almalinux", "rocky", "opensuse", "alpine"} <= names
    for each in own.entries:
        assert each.url.startswith("https://") and each.sums_url.startswith("https://")
        assert each.user and each.os and each.min_memory


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"", "can't be read"),
        (b"[" * 100_000, "can't be read"),
        (b"\xff" * 9, "can't be read"),
        (b" " * (MAX_INDEX + 1), "larger"),
        (index(entry(), format=2), "format"),
        (index(entry(surprise=1)), "surprise"),
        (index(entry(name="../x")), "cannot be the name"),
        (index(entry(aliases=["a b"])), "cannot be the name"),
        (index(entry(version="1 2")), "version"),
        (index(entry(size=-1)), "negative"),
        (index(entry(os="a\x1b[2Jb")), "says"),
        (index(entry(sha256="")), "pinned by nothing"),
        (index(entry(sha256="", sums_url="http://x.example/SUMS")), "pinned by nothing"),
        (index(entry(sha256="AB" * 32)), "digest"),
        (index(entry(sha512=HEX)), "digest"),
        (index(entry(), entry()), "twice"),
        (index(entry(), entry(name="x", aliases=["debian"])), "twice"),
    ],
)
def test_what_is_no_index_is_refused(wrong: bytes, said: str) -> None:
    assert said in why_refused(wrong)


@pytest.mark.parametrize(
    "url",
    ["", "/etc/shadow", "../x", "a/../../x", "a//b", "file:///etc/shadow", "ftp://h/x", "%2e%2e/x",
     "a\\b", "./x", "javascript:1", "http//x:1", "http://", "http://[x/a", "https:///a"],
)  # fmt: skip
def test_a_place_outside_of_the_index_is_refused(url: str) -> None:
    assert "outside" in why_refused(index(entry(url=url)))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_an_index_or_refused(content: bytes) -> None:
    try:
        read_index(content)
    except Invalid as error:
        assert error.code is Code.INDEX_REFUSED


def entries() -> list[IndexEntry]:
    return [
        IndexEntry(name="debian", version=version, url="d", sha256=HEX, aliases=aliases, arch=arch)
        for version, aliases, arch in (
            ("9", ("stretch",), "x86_64"),
            ("12", ("bookworm",), "x86_64"),
            ("11", (), "x86_64"),
            ("13", (), "aarch64"),
        )
    ]


@pytest.mark.parametrize(
    ("wanted", "version"), [("debian", "12"), ("debian:9", "9"), ("bookworm", "12")]
)
def test_a_bare_name_means_the_newest_for_this_host(wanted: str, version: str) -> None:
    assert choose(entries(), wanted).version == version


@pytest.mark.parametrize("wanted", ["fedora", "debian:10", "debian:13", "debian:", "", ":12"])
def test_what_is_not_in_it_is_not_found(wanted: str) -> None:
    with pytest.raises(NotFound) as caught:
        choose(entries(), wanted)
    assert caught.value.code is Code.IMAGE_NOT_FOUND
    assert ("debian:12" in caught.value.hint) == wanted.startswith("debian")


def test_versions_are_ordered_as_people_count() -> None:
    texts = ["3.9", "3.10", "3.10.1", "rc1", "1", "1-rc1", ""]
    assert sorted(texts, key=version_key) == ["", "rc1", "1", "1-rc1", "3.9", "3.10", "3.10.1"]


def test_relative_places_are_beside_the_index() -> None:
    one = IndexEntry(name="a", url="x/a.qcow2", sha256=HEX)
    assert (
        place_of(one, "https://u:p@h.example/i/index.json?q") == "https://u:p@h.example/i/x/a.qcow2"
    )
    other = msgspec.structs.replace(one, url="https://o.example/a")
    assert place_of(other, "https://h.example/i.json") == "https://o.example/a"


@pytest.mark.parametrize(
    "text",
    [
        f"{'0' * 64}  other.img\n{HEX}  d.img\n",
        f"{HEX} *d.img",
        f"{HEX}  ./d.img\r\n",
        f"{HEX.upper()}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# d.img: 5 bytes\nSHA256 (d.img) = {HEX}\n",
        f"{HEX}  d.img\n{HEX}  d.img\n",
    ],
)
def test_publishers_files_of_digests(text: str) -> None:
    assert str(read_sums(text.encode(), "d.img")) == f"sha256:{HEX}"


def test_of_two_digests_the_longer_counts() -> None:
    text = f"{HEX}  d.img\nSHA512 (d.img) = {LONG}\n"
    assert str(read_sums(text.encode(), "d.img")) == f"sha512:{LONG}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{HEX}  xd.img\n",
        f"{HEX}  d.img\n{'0' * 64}  d.img\n",
        f"{HEX}\n{HEX}\n",
        f"SHA512 (d.img) = {HEX}\n",
        "<html>d.img</html>",
        f"{HEX[:-2]}  d.img",
        f"{HEX}cd  d.img",
    ],
)
def test_a_digest_that_is_not_clear_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_sums(text.encode(), "d.img")
    assert caught.value.code is Code.INDEX_REFUSED


@given(st.binary(max_size=300))
def test_any_bytes_are_digests_or_refused(content: bytes) -> None:
    try:
        assert len(read_sums(content, "d.img").hex) in (64, 128)
    except Invalid as error:
        assert error.code is Code.INDEX_REFUSED


@pytest.mark.parametrize(
    ("url", "private"),
    [("https://h.example/i", True), ("http://127.0.0.1:80/i", True), ("http://[::1]/i", True),
     ("http://localhost/i", True), ("http://h.example/i", False), ("http://127.0.0.1.example/", False),
     ("http://10.0.0.1/", False)],
)  # fmt: skip
def test_which_way_nobody_can_change_what_comes(url: str, private: bool) -> None:
    assert is_private_way(url) is private


FAR = "http://h.example/index.json"


def trust(url: str = FAR, *, pinned: bool = False, signature: bool = False, signer: str = "", must: bool = False) -> str:  # fmt: skip
    return check_trust(
        url, is_pinned=pinned, has_signature=signature, signer=signer, must_be_signed=must
    )


def test_what_is_believed_and_why() -> None:
    assert trust(signature=True, signer="sha256:abc") == "signed by sha256:abc"
    assert trust(signature=True, signer="sha256:abc", must=True) == "signed by sha256:abc"
    assert trust(pinned=True) == "pinned by its digest"
    assert trust(pinned=True, signature=True) == "pinned by its digest"
    assert trust("/srv/index.json") == "a file on this host"
    assert "https" in trust("https://h.example/index.json")
    assert "this host" in trust("http://127.0.0.1/index.json")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"signature": True},
        {"url": "https://h.example/i", "signature": True},
        {"url": "https://h.example/i", "must": True},
        {"url": "http://127.0.0.1/i", "signature": True},
        {"url": "/srv/index.json", "must": True},
        {"pinned": True, "must": True},
    ],
)
def test_what_is_not_believed(how: dict[str, object]) -> None:
    with pytest.raises(Invalid) as caught:
        trust(**how)  # type: ignore[arg-type]
    assert caught.value.code is Code.INDEX_REFUSED and caught.value.hint
