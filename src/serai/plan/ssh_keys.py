"""Public keys of SSH, looked at before they are believed: pure.

A key is one line: a type, the key in base64, perhaps a comment. What the base64 holds must be a key of
that very type (RFC 4253, 6.6; RFC 5656, 3.1; RFC 8709, 4), so that nothing else travels in it.
"""

import base64
import binascii
import re
from collections.abc import Mapping

from serai.errors import Code, Invalid
from serai.units import shorten

MOST_KEYS = 64
LINE_LIMIT = 8192
COMMENT_LIMIT = 256
LEAST_RSA_BITS, MOST_RSA_BITS = 2048, 16384
ED25519_LENGTH = 32
CURVES: Mapping[str, int] = {"nistp256": 65, "nistp384": 97, "nistp521": 133}
"""The length of an uncompressed point, in bytes."""
TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    *(f"ecdsa-sha2-{curve}" for curve in CURVES),
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LINE = re.compile(r"(\S+) +(\S+)(?: +(\S.*))?")


def check_ssh_key(untrusted: str) -> str:
    """Return a public key as ``TYPE BASE64 COMMENT``; Invalid (``ssh-key-invalid``) if it is none."""
    text = untrusted.strip()
    if "PRIVATE KEY" in text[:200]:
        raise _refused(untrusted, "it is a private key", "Give the public one: the file with .pub.")
    if len(text) > LINE_LIMIT or not text.isprintable():
        raise _refused(untrusted, "it is not one line of text", "Give each key by itself.")
    match = _LINE.fullmatch(text)
    kind = match[1] if match else text
    if match is None or kind not in TYPES:
        has_key = any(word in TYPES for word in text.split()[1:])
        why = "options before a key are not taken" if has_key else "its type is not known"
        raise _refused(untrusted, why, f"A key begins with one of: {', '.join(TYPES)}")
    _check_blob(untrusted, kind, match[2])
    comment = (match[3] or "").strip()
    if len(comment) > COMMENT_LIMIT:
        raise _refused(untrusted, f"its comment has over {COMMENT_LIMIT} characters", "Shorten it.")
    return f"{kind} {match[2]} {comment}".rstrip()


def check_ssh_keys(untrusted: tuple[str, ...]) -> tuple[str, ...]:
    """Return keys checked, each once, in their order."""
    if len(untrusted) > MOST_KEYS:
        raise Invalid(
            Code.SSH_KEY_INVALID, f"{len(untrusted)} keys: a guest gets at most {MOST_KEYS}"
        )
    return tuple(dict.fromkeys(check_ssh_key(each) for each in untrusted))


def read_host_keys(untrusted: str) -> list[str]:
    """Return the keys among the lines that a guest tells of itself, as ``TYPE BASE64``."""
    found = []
    for line in untrusted.splitlines()[:MOST_KEYS]:
        try:
            kind, blob, *_ = check_ssh_key(line).split(" ")
        except Invalid:
            continue
        found.append(f"{kind} {blob}")
    return found


def _refused(untrusted: str, why: str, hint: str) -> Invalid:
    return Invalid(
        Code.SSH_KEY_INVALID, f"{shorten(untrusted, 30)} is no ssh key: {why}", hint=hint
    )


def _check_blob(untrusted: str, kind: str, encoded: str) -> None:
    damaged = _refused(untrusted, "it is damaged", "Copy the whole line of the .pub file.")
    try:
        fields = _fields(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError) as error:
        raise damaged from error
    if not fields or fields[0] != kind.encode() or not _is_sound(kind, fields[1:]):
        raise damaged
    if kind == "ssh-rsa":
        bits = int.from_bytes(fields[2], "big").bit_length()
        if not LEAST_RSA_BITS <= bits <= MOST_RSA_BITS:
            raise _refused(
                untrusted,
                f"RSA with {bits} bits",
                f"At least {LEAST_RSA_BITS}; better make another: ssh-keygen -t ed25519",
            )


def _fields(blob: bytes) -> list[bytes]:
    """Split what an SSH key holds: strings with their length before them. ValueError if it is not so."""
    found, at = [], 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if at + 4 > len(blob) or end > len(blob):
            raise ValueError("a field ends after the key")
        found.append(blob[at + 4 : end])
        at = end
    return found


def _is_sound(kind: str, fields: list[bytes]) -> bool:
    """Tell whether these can be the fields of a key of that type."""
    if kind.startswith("sk-"):  # the last names who may use it
        kind, fields = kind.removeprefix("sk-").removesuffix("@openssh.com"), fields[:-1]
    match kind, fields:
        case "ssh-ed25519", [key]:
            return len(key) == ED25519_LENGTH
        case "ssh-rsa", [exponent, _]:
            return 0 < len(exponent) <= 8
        case _, [curve, point]:
            name = kind.removeprefix("ecdsa-sha2-")
            return (
                curve == name.encode() and CURVES.get(name) == len(point) and point[:1] == b"\x04"
            )
        case _:
            return False
