"""Public keys of SSH: what is taken, what is refused and why."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.errors import Code, Invalid
from serai.plan.ssh_keys import MOST_KEYS, check_ssh_key, check_ssh_keys, read_host_keys


def packed(*fields: bytes) -> str:
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return base64.b64encode(blob).decode()


def rsa(bits: int) -> str:
    number = ((1 << (bits - 1)) | 1).to_bytes(bits // 8 + 1, "big")
    return "ssh-rsa " + packed(b"ssh-rsa", b"\x01\x00\x01", number)


def ecdsa(curve: str, length: int) -> str:
    kind = f"ecdsa-sha2-{curve}"
    return f"{kind} " + packed(kind.encode(), curve.encode(), b"\x04" + bytes(length - 1))


ED = f"ssh-ed25519 {packed(b'ssh-ed25519', bytes(range(32)))}"
SK = f"sk-ssh-ed25519@openssh.com {packed(b'sk-ssh-ed25519@openssh.com', bytes(32), b'ssh:')}"
GOOD = [
    ED,
    f"{ED} me@home",
    f"{ED} a comment of words",
    SK,
    rsa(2048),
    rsa(4096),
    ecdsa("nistp256", 65),
    ecdsa("nistp384", 97),
    ecdsa("nistp521", 133),
]


@pytest.mark.parametrize("key", GOOD)
def test_keys_that_are_taken(key: str) -> None:
    assert check_ssh_key(key) == key
    assert check_ssh_key(f"  {key}\n") == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "not known"),
        ("hello", "not known"),
        (f'command="rm -rf /" {ED}', "options"),
        (f"restrict,pty {ED}", "options"),
        (f"{ED}\n{ED}", "one line"),
        (f"{ED} \x1b[2J", "one line"),
        (ED[:-8], "damaged"),
        (ED + "A", "damaged"),
        (ED.replace("ssh-ed25519 ", "ssh-rsa "), "damaged"),
        (f"ssh-ed25519 {packed(b'ssh-ed25519', bytes(31))}", "damaged"),
        (f"ssh-ed25519 {packed(b'ssh-ed25519', bytes(32), b'more')}", "damaged"),
        (f"ssh-ed25519 {base64.b64encode(b'x' * 3).decode()}", "damaged"),
        ("ssh-ed25519 !!!!", "damaged"),
        (rsa(1024), "RSA with 1024 bits"),
        (ecdsa("nistp256", 97), "damaged"),
        (f"ssh-dss {packed(b'ssh-dss', b'x')}", "not known"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx", "private key"),
        (f"{ED} {'c' * 257}", "comment"),
        (f"{ED} {'c' * 9000}", "one line"),
    ],
)
def test_keys_that_are_refused(key: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as caught:
        check_ssh_key(key)
    assert caught.value.code is Code.SSH_KEY_INVALID


def test_keys_keep_their_order_and_come_once() -> None:
    assert check_ssh_keys((SK, ED, f" {SK}")) == (SK, ED)
    with pytest.raises(Invalid, match="at most 64"):
        check_ssh_keys((ED,) * (MOST_KEYS + 1))


@settings(deadline=None)
@given(st.text(max_size=200) | st.sampled_from(GOOD).flatmap(lambda k: st.text().map(k.__add__)))
def test_nothing_else_than_a_key_or_a_refusal(text: str) -> None:
    try:
        key = check_ssh_key(text)
    except Invalid:
        return
    assert "\n" not in key and check_ssh_key(key) == key


def test_host_keys_are_found_among_what_a_guest_says() -> None:
    told = f"{ED} root@web1\nrubbish\n@cert-authority * {ED}\n{SK}\nuser root\n"
    assert read_host_keys(told) == [ED, SK]
    assert read_host_keys("") == []
