"""User data for cloud-init: what is passed on, what is refused and why."""

import base64

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.plan.user_data import DEPTH_LIMIT, LIMIT, NODES_LIMIT, check_user_data

HASHED = "$6$salt$abcdefgh"
CONFIG = f"""#cloud-config
write_files:
  - path: /etc/motd
    content: |
      hello
runcmd: [[touch, /done]]
users: [default, {{name: ann, passwd: {HASHED}, lock_passwd: false}}]
"""
LAUGHS = "#cloud-config\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10) if n else 'lol'}]\n" for n in range(9)
)
MERGED_LAUGHS = "#cloud-config\n" + "".join(
    f"l{n}: &l{n} {{{'<<: [' + ', '.join([f'*l{n - 1}'] * 10) + ']' if n else 'a: 1'}}}\n"
    for n in range(9)
)


def multipart(*parts: tuple[str, str]) -> str:
    found = 'Content-Type: multipart/mixed; boundary="=="\nMIME-Version: 1.0\n\n'
    for kind, text in parts:
        found += f"--==\nContent-Type: {kind}\n\n{text}\n"
    return found + "--==--\n"


@pytest.mark.parametrize(
    "data",
    [
        CONFIG,
        "#cloud-config\n",
        "#cloud-config\r\npackages: [nginx]\r\n",
        "#cloud-config\na: &a [1, 2]\nb: *a\n",
        f"#cloud-config\npassword: {HASHED}\nchpasswd: {{list: ['a:R', 'b:{HASHED}'], expire: false}}\n",
        f"#cloud-config\nchpasswd: {{users: [{{name: a, password: {HASHED}}}, {{name: b, type: RANDOM}}]}}\n",
        "#cloud-config\nusers: [{name: a, passwd: '!'}, {name: b, passwd: '*'}]\n",
        "#!/bin/sh\ntouch /done\n",
        "## template: jinja\n#cloud-config\nfqdn: {{ v1.instance_id }}\n",
        "## template: jinja\n#!/bin/sh\necho {{ ds }}\n",
        multipart(("text/cloud-config", CONFIG), ("text/x-shellscript", "#!/bin/sh")),
        multipart(("text/plain", "#!/bin/sh\n")),
        "#cloud-config\nname: Zoë 😀\n",
    ],
)
def test_what_is_passed_on_as_it_is(data: str) -> None:
    assert check_user_data(data) == data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("hello", "can't be told"),
        ("#include\nhttp://example.org/x\n", "can't be told"),
        ("#cloud-boothook\n", "can't be told"),
        ("#part-handler\n", "can't be told"),
        (" #cloud-config\n", "can't be told"),
        ("#cloud-config x\n", "can't be told"),
        ("#!/bin/sh\n\0", "NUL"),
        ("#!/bin/sh\n\ud800", "no text"),
        ("#!" + "x" * LIMIT, "bytes"),
        ("## template: jinja\nhello", "after the jinja header"),
        ("## template: jinja", "after the jinja header"),
        ("#cloud-config\n- a list\n", "a mapping"),
        ("#cloud-config\njust text\n", "a mapping"),
        ("#cloud-config\na: [\n", "no YAML in line"),
        ("#cloud-config\na: b: c\n", "no YAML in line"),
        ("#cloud-config\na: 1\n--- \nb: 2\n", "no YAML"),
        ("#cloud-config\na: !!python/object/apply:os.system [ls]\n", "no YAML"),
        ("#cloud-config\na: !mine x\n", "no YAML"),
        ("#cloud-config\na: 2001-99-99\n", "no YAML"),
        ("#cloud-config\n{[a]: b}\n", "no YAML"),
        ("#cloud-config\na: \x07\n", "no YAML"),
        ("#cloud-config\na: &a [*a]\n", "stands for what it is in"),
        ("#cloud-config\na: *b\n", "for nothing"),
        ("#cloud-config\na: " + "[" * (DEPTH_LIMIT + 1) + "\n", "deep"),
        ("#cloud-config\na: " + "[" * 100_000, "deep"),
        ("#cloud-config\na: [" + "x," * NODES_LIMIT + "]\n", f"more than {NODES_LIMIT}"),
        (LAUGHS, f"more than {NODES_LIMIT}"),
        (MERGED_LAUGHS, f"more than {NODES_LIMIT}"),
        ("#cloud-config\npassword: hunter2\n", "password is a password in clear"),
        ("#cloud-config\npassword: 12345\n", "password is a password in clear"),
        ("#cloud-config\nchpasswd: {list: 'a:hunter2'}\n", "chpasswd.list"),
        ("#cloud-config\nchpasswd: {list: ['a:hunter2']}\n", "chpasswd.list"),
        (
            "#cloud-config\nchpasswd: {users: [{name: a, password: x, type: text}]}\n",
            "chpasswd.users",
        ),
        ("#cloud-config\nusers: [{name: a, plain_text_passwd: x}]\n", "plain_text_passwd"),
        ("#cloud-config\nuser: {name: a, passwd: x}\n", "users: passwd"),
        ("#cloud-config\nusers: {a: {hashed_passwd: x}}\n", "users: hashed_passwd"),
        (multipart(("text/cloud-config", "#cloud-config\npassword: x")), "in clear"),
        (multipart(("text/plain", "#cloud-config\npassword: x")), "in clear"),
        (multipart(("text/x-include-url", "http://example.org")), "not taken"),
        (multipart(("text/part-handler", "")), "not taken"),
        (multipart(("application/x-thing", "")), "not taken"),
        (multipart(("text/plain", "hello")), "can't be told"),
        (multipart(*[("text/x-shellscript", "#!")] * 70), "more than 64"),
        ("MIME-Version: 1.0\nContent-Type: text/plain\n\nhi", "no parts"),
        ("Content-Type: multipart/mixed; boundary=x\n\nnothing", "no parts"),
    ],
)
def test_what_is_refused(data: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        check_user_data(data)
    assert caught.value.code is Code.USER_DATA_INVALID
    assert caught.value.hint


def test_a_password_in_a_part_that_is_packed_is_found() -> None:
    packed = base64.b64encode(b"#cloud-config\npassword: hunter2\n").decode()
    data = multipart(("text/cloud-config\nContent-Transfer-Encoding: base64", packed))
    with pytest.raises(Invalid, match="in clear"):
        check_user_data(data)


HEADS = (
    "#cloud-config\n",
    "## template: jinja\n",
    "MIME-Version: 1.0\n",
    "Content-Type:",
    "#!",
    "",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=30,
)
KEYS = st.sampled_from(["password", "chpasswd", "users", "user", "x"])
PARTS = st.sampled_from(["list", "users", "name", "passwd", "password", "type"])


@settings(deadline=None)
@given(st.sampled_from(HEADS), st.text(max_size=300))
def test_any_text_is_passed_on_or_refused(head: str, text: str) -> None:
    try:
        assert check_user_data(head + text) == head + text
    except Invalid as error:
        assert error.code is Code.USER_DATA_INVALID


@settings(deadline=None)
@given(
    st.dictionaries(
        KEYS, VALUES | st.dictionaries(PARTS, VALUES | st.lists(st.dictionaries(PARTS, VALUES)))
    )
)
def test_any_mapping_is_passed_on_or_has_a_password(config: dict[str, object]) -> None:
    try:
        check_user_data("#cloud-config\n" + yaml.safe_dump(config))
    except Invalid as error:
        assert "in clear" in error.message
