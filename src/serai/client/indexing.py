"""Making an index of a folder of images, and signing it: for whoever publishes images.

The folder is the caller's own, and any server of files can give it away: ``index.json`` names each
image by a relative URL, with size and digest. Signatures and keys are ``plan.signature``'s.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from serai.errors import Code, Conflict, HostFailure, Invalid
from serai.model.catalogue import Index, IndexEntry
from serai.model.guest import Firmware
from serai.model.image import Image
from serai.plan.catalogue import read_index
from serai.plan.signature import fingerprint, pem_of, public_pem_of, read_private_key
from serai.units import check_image_name

NAME = "index.json"
SIGNATURE = "index.json.sig"
EXPORT = ".tar"
FORMATS = {".qcow2": "qcow2", ".raw": "raw", ".img": "", ".vmdk": "vmdk", ".iso": "iso"}
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
DESCRIPTION = "image.json"
MAX_DESCRIPTION = 1 << 20
PIECE = 1 << 20

_VERSION = re.compile(r"(.+?)-([0-9][a-z0-9._]*)", re.ASCII)

OnFile = Callable[[str], None]


def make_key(file: Path) -> str:
    """Make a pair of keys: ``file`` is the private one (0600), ``file.pub`` the public one.

    Returns the fingerprint. Raises Conflict (``file-failed``) when there is one already.
    """
    key = Ed25519PrivateKey.generate()
    public = file.with_name(file.name + ".pub")
    if public.exists():
        raise _is_there(public)
    _write_new(file, pem_of(key), 0o600)
    _write_new(public, public_pem_of(key), 0o644)
    return fingerprint(key.public_key())


def _is_there(file: Path) -> Conflict:
    return Conflict(
        Code.FILE_FAILED,
        f"{file} is there already",
        hint="Keys are never overwritten: name another.",
    )


def _write_new(file: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise _is_there(file) from error
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)


def write_index(
    folder: Path, *, title: str = "", key: Path | None = None, on_file: OnFile = lambda name: None
) -> tuple[Index, str]:
    """Write ``index.json`` of all images in ``folder``, and its signature where there is a key.

    Returns the index and the fingerprint of the key ("" without). An older signature does not stay. ``on_file``
    is told each image before it is read. Raises Invalid when there is no image, or two of one name.
    """
    signer = read_private_key(key.read_bytes(), str(key)) if key else None
    index = Index(title=title, entries=tuple(_entries(folder, on_file)))
    if not index.entries:
        raise Invalid(
            Code.VALUE_INVALID,
            f"there is no image in {folder}",
            hint="Put some there: serai image export NAME -o FOLDER/NAME.tar",
        )
    content = msgspec.json.format(msgspec.json.encode(_said(index))) + b"\n"
    read_index(content)
    (folder / SIGNATURE).unlink(missing_ok=True)
    _write_whole(folder / NAME, content)
    if signer is None:
        return index, ""
    _write_whole(folder / SIGNATURE, signer.sign(content))
    return index, fingerprint(signer.public_key())


def _said(index: Index) -> dict[str, object]:
    """Return an index as it is written: what its entries don't say is left out."""
    entries = [
        {name: value for name, value in msgspec.to_builtins(each).items() if value}
        for each in index.entries
    ]
    return {"format": index.format, "title": index.title, "entries": entries}


def _write_whole(file: Path, content: bytes) -> None:
    """Let the file appear with all of its content at once."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(content)
    temporary.replace(file)


def _entries(folder: Path, on_file: OnFile) -> Iterator[IndexEntry]:
    if not folder.is_dir():
        raise HostFailure(Code.FILE_FAILED, f"{folder} is not a folder")
    for file in sorted(folder.iterdir()):
        plain = _without(file.name.lower(), COMPRESSIONS)
        suffix = Path(plain).suffix
        if file.name.startswith(".") or suffix not in {EXPORT, *FORMATS} or not file.is_file():
            continue
        on_file(file.name)
        yield _entry(file, plain.removesuffix(suffix), suffix)


def _without(name: str, suffixes: tuple[str, ...]) -> str:
    return next((name.removesuffix(each) for each in suffixes if name.endswith(each)), name)


def _entry(file: Path, stem: str, suffix: str) -> IndexEntry:
    described = _description(file) if file.name.lower().endswith(EXPORT) else None
    name, version = _split(described.name if described else stem)
    entry = IndexEntry(
        name=name,
        version=version,
        url=file.name,
        sha256=_hash(file),
        size=file.stat().st_size,
        format="export" if suffix == EXPORT else FORMATS[suffix],
    )
    if described is None:
        return entry
    return msgspec.structs.replace(
        entry,
        min_memory=described.min_memory,
        agent=described.agent,
        firmware=tuple(Firmware(each) for each in described.firmware),
        os=described.details.get("system", ""),
    )


def _split(text: str) -> tuple[str, str]:
    """Return name and version of ``debian-12``; what has no number at its end has no version."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")
    match = _VERSION.fullmatch(name)
    if match and not match[2].endswith((".", "_")):
        return check_image_name(match[1].rstrip("._-")), match[2]
    return check_image_name(name), ""


def _description(file: Path) -> Image | None:
    """Return what an exported image says of itself, None where it is another archive."""
    try:
        with tarfile.open(file, "r:") as archive:
            member = archive.next()
            if member is None or member.name != DESCRIPTION or member.size > MAX_DESCRIPTION:
                return None
            content = archive.extractfile(member)
            return msgspec.json.decode(content.read(), type=Image) if content else None
    except (tarfile.TarError, msgspec.MsgspecError):
        return None


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
