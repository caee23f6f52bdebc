"""The keys that an index of images may be signed with.

Imported when one is asked for, not before: what checks signatures costs a daemon 7 MB.
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from serai.plan.signature import fingerprint, read_public_key, signer_of

MAX_KEYS = 100


def check_key(key: str) -> None:
    """Refuse what is no public key (Invalid, ``value-invalid``)."""
    _read_given(key)


def find_signer(content: bytes, untrusted_signature: bytes, key: str, folder: Path) -> str:
    """Return the fingerprint of the trusted key that signed ``content``; "" when none did.

    The one key that the caller names is trusted, else those in ``folder``. Raises Invalid
    (``value-invalid``) that names the one that is no key.
    """
    signer = signer_of(content, untrusted_signature, _trusted(key, folder))
    return fingerprint(signer) if signer else ""


def _trusted(key: str, folder: Path) -> Sequence[Ed25519PublicKey]:
    if key:
        return [_read_given(key)]
    files = sorted(folder.glob("*.pub"))[:MAX_KEYS] if folder.is_dir() else []
    return [read_public_key(file.read_bytes(), str(file)) for file in files]


def _read_given(key: str) -> Ed25519PublicKey:
    return read_public_key(key.encode(), "what was given as key")
