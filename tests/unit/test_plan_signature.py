"""Signatures: made and checked, also against RFC 8032's own example."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from serai.errors import Code, Invalid
from serai.plan.signature import (
    fingerprint,
    pem_of,
    public_pem_of,
    read_private_key,
    read_public_key,
    signer_of,
)

ONE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def test_the_example_of_the_rfc() -> None:
    """RFC 8032, 7.1, TEST 2."""
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    assert signer_of(b"\x72", bytes.fromhex(signature), [key]) is key
    assert signer_of(b"\x73", bytes.fromhex(signature), [key]) is None


def test_of_several_keys_the_one_that_signed_is_found() -> None:
    keys = [OTHER.public_key(), ONE.public_key()]
    signature = ONE.sign(b"content")
    assert signer_of(b"content", signature, keys) is keys[1]
    assert signer_of(b"content", signature, keys[:1]) is None
    assert signer_of(b"content", signature, []) is None
    assert signer_of(b"content!", signature, keys) is None
    assert signer_of(b"content", signature + b"\n", keys) is None
    assert signer_of(b"content", b"", keys) is None


def test_keys_survive_being_written() -> None:
    assert pem_of(read_private_key(pem_of(ONE), "x")) == pem_of(ONE)
    read = read_public_key(public_pem_of(ONE), "x")
    assert fingerprint(read) == fingerprint(ONE.public_key()) != fingerprint(OTHER.public_key())


FOREIGN = X25519PrivateKey.generate()


@pytest.mark.parametrize(
    "text",
    [b"", b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", b"\0" * 9, pem_of(ONE), b"x" * 10_000,
     FOREIGN.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)],
)  # fmt: skip
def test_what_is_no_public_key_is_refused(text: bytes) -> None:
    with pytest.raises(Invalid, match="the file") as caught:
        read_public_key(text, "the file")
    assert caught.value.code is Code.VALUE_INVALID


@pytest.mark.parametrize(
    "text",
    [b"", public_pem_of(ONE),
     FOREIGN.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())],
)  # fmt: skip
def test_what_is_no_private_key_is_refused(text: bytes) -> None:
    with pytest.raises(Invalid, match="the file"):
        read_private_key(text, "the file")
