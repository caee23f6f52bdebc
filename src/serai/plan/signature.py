"""Detached Ed25519 signatures over small files, and the keys: pure.

A signature is the bare 64 bytes of RFC 8032, a key is PEM (RFC 8410), so that everybody's tools make
and check them: ``openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in FILE -sigfile FILE.sig``.
A fingerprint is ``sha256:HEX`` of the public key's 32 bytes. Making a key is not for here: that
takes randomness (``client.indexing``).
"""

import hashlib
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from serai.errors import Code, Invalid

LENGTH = 64
MAX_KEY = 4096


def read_public_key(untrusted_pem: bytes, where: str) -> Ed25519PublicKey:
    """Return the public key in a PEM text; Invalid (``value-invalid``) that names ``where``."""
    try:
        key = load_pem_public_key(untrusted_pem) if len(untrusted_pem) <= MAX_KEY else None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(where, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(where, "public")
    return key


def read_private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """Return the private key in a PEM text; Invalid (``value-invalid``) that names ``where``."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(where, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(where, "private")
    return key


def _no_key(where: str, kind: str) -> Invalid:
    return Invalid(
        Code.VALUE_INVALID,
        f"{where} has no {kind} Ed25519 key in PEM without a password",
        hint="Make a pair of keys: serai image key FILE",
    )


def pem_of(key: Ed25519PrivateKey) -> bytes:
    """Return a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem_of(key: Ed25519PrivateKey) -> bytes:
    """Return the public half of a key as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return what a key is known by."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def signer_of(
    content: bytes, untrusted_signature: bytes, keys: Sequence[Ed25519PublicKey]
) -> Ed25519PublicKey | None:
    """Return which of ``keys`` signed ``content``; None when none of them did."""
    if len(untrusted_signature) != LENGTH:
        return None
    for key in keys:
        try:
            key.verify(untrusted_signature, content)
        except InvalidSignature:
            continue
        return key
    return None
