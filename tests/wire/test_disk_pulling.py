"""Indexes over HTTP and from files: whom they are believed from, and what is pulled then."""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from serai.client.indexing import make_key, write_index
from serai.disk.images import NewImage
from serai.disk.pulling import (
    Chosen,
    IndexRequest,
    choose_image,
    import_of,
    labelled,
    open_index,
)
from serai.errors import Code, HostFailure, Invalid, NotFound, SeraiError
from serai.model.actions import PullImage
from serai.model.catalogue import Catalogue, IndexEntry
from serai.model.image import Expect, ImageKind
from serai.plan.catalogue import Digest
from serai.settings import read_settings

SETTINGS = read_settings({}, Path("/nonexistent"))
HEX = "ab" * 32


@dataclass
class Site:
    """A server of the files in ``folder``; ``status`` answers for some of them instead."""

    folder: Path
    url: str = ""
    status: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().lstrip("/")
        self.asked.append(path)
        file = self.folder / path
        status = self.status.get(path, "200 OK" if file.is_file() else "404 Not Found")
        body = file.read_bytes() if status.startswith("200") else b""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A site with an index of one image, not signed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "hello-1.raw").write_bytes(b"disk")
    write_index(folder, title="Ours")
    made = Site(folder)
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/index.json"
    async with listener:
        yield made


@dataclass
class Here:
    """Where an index is opened: a scratch folder and the folder of trusted keys."""

    scratch: Path
    keys: Path

    async def open(self, index: str, **more: str) -> Catalogue:
        request = IndexRequest(index=index, **more)
        return await open_index(request, scratch=self.scratch, keys=self.keys, settings=SETTINGS)

    async def choose(self, image: str, index: str) -> Chosen:
        action = PullImage(image=image, index=index)
        return await choose_image(action, scratch=self.scratch, keys=self.keys, settings=SETTINGS)

    async def refusal(self, index: str, **more: str) -> SeraiError:
        with pytest.raises(SeraiError) as caught:
            await self.open(index, **more)
        return caught.value


@pytest.fixture
def here(tmp_path: Path) -> Here:
    (tmp_path / "scratch").mkdir()
    return Here(tmp_path / "scratch", tmp_path / "keys")


def trust_key(here: Here, public: Path) -> None:
    here.keys.mkdir(exist_ok=True)
    (here.keys / public.name).write_bytes(public.read_bytes())


def sign(site: Site, folder: Path) -> Path:
    """Sign the site's index with a new key; return the public half."""
    make_key(folder / "k")
    write_index(site.folder, title="Ours", key=folder / "k")
    return folder / "k.pub"


async def test_our_own_index_needs_no_network(here: Here) -> None:
    found = await here.open("")
    assert (found.source, found.trust) == ("", "part of serai")
    assert len(found.entries) > 10


async def test_an_unsigned_index_from_this_host(site: Site, here: Here) -> None:
    found = await here.open(site.url)
    assert (found.source, found.title, found.signed_by) == (site.url, "Ours", "")
    assert found.trust == "unsigned, from this host"
    assert site.asked == ["index.json", "index.json.sig"]
    content = (site.folder / "index.json").read_bytes()
    assert found.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


async def test_a_signed_index_by_a_trusted_key(site: Site, here: Here, tmp_path: Path) -> None:
    public = sign(site, tmp_path)
    assert (await here.refusal(site.url)).code is Code.INDEX_REFUSED
    named = await here.open(site.url, key=public.read_text())
    trust_key(here, public)
    found = await here.open(site.url)
    assert found.signed_by == named.signed_by and found.trust.startswith("signed by sha256:")


async def test_a_changed_index_is_refused(site: Site, here: Here, tmp_path: Path) -> None:
    trust_key(here, sign(site, tmp_path))
    file = site.folder / "index.json"
    file.write_bytes(file.read_bytes().replace(b"hello", b"hallo"))
    assert (await here.refusal(site.url)).code is Code.INDEX_REFUSED


async def test_another_key_than_the_named_one_does_not_count(
    site: Site, here: Here, tmp_path: Path
) -> None:
    trust_key(here, sign(site, tmp_path))
    make_key(tmp_path / "other")
    other = (tmp_path / "other.pub").read_text()
    assert (await here.refusal(site.url, key=other)).code is Code.INDEX_REFUSED
    (site.folder / "index.json.sig").unlink()
    error = await here.refusal(site.url, key=other)
    assert error.code is Code.INDEX_REFUSED and "not signed" in error.message


async def test_a_pinned_index(site: Site, here: Here, tmp_path: Path) -> None:
    sign(site, tmp_path)
    digest = hashlib.sha256((site.folder / "index.json").read_bytes()).hexdigest()
    assert (await here.open(site.url, sha256=digest)).trust == "pinned by its digest"
    assert (await here.refusal(site.url, sha256=HEX)).code is Code.IMAGE_DIGEST_MISMATCH


async def test_a_signature_that_can_not_be_asked_for_is_not_taken_for_none(
    site: Site, here: Here
) -> None:
    site.status["index.json.sig"] = "418 I'm a teapot"
    error = await here.refusal(site.url)
    assert isinstance(error, HostFailure) and error.code is Code.DOWNLOAD_FAILED
    site.status["index.json.sig"] = "403 Forbidden"
    assert (await here.open(site.url)).signed_by == ""


async def test_an_endless_signature_is_refused(site: Site, here: Here) -> None:
    (site.folder / "index.json.sig").write_bytes(bytes(10_000))
    assert (await here.refusal(site.url)).code is Code.INDEX_REFUSED


async def test_what_is_no_index_over_http(site: Site, here: Here) -> None:
    (site.folder / "index.json").write_bytes(b"<html>")
    assert (await here.refusal(site.url)).code is Code.INDEX_REFUSED
    (site.folder / "index.json").unlink()
    assert (await here.refusal(site.url)).code is Code.DOWNLOAD_FAILED


async def test_an_index_that_is_a_file(site: Site, here: Here) -> None:
    path = str(site.folder / "index.json")
    found = await here.choose("hello", path)
    assert (found.source, found.trust) == (f"{site.folder}/hello-1.raw", "a file on this host")
    with Path(path).open("wb") as endless:
        endless.truncate(5 << 30)
    assert (await here.refusal(path)).code is Code.INDEX_REFUSED
    assert (await here.refusal("/nonexistent")).code is Code.FILE_FAILED


@pytest.mark.parametrize(
    "more",
    [{"index": "relative.json"}, {"index": "ftp://h/x"}, {"index": "/x", "sha256": "zz"},
     {"index": "/x", "key": "no key"}],
)  # fmt: skip
async def test_what_names_no_index(here: Here, more: dict[str, str]) -> None:
    error = await here.refusal(**more)
    assert isinstance(error, Invalid) and error.code is Code.VALUE_INVALID


async def test_what_is_chosen_and_pinned(site: Site, here: Here) -> None:
    found = await here.choose("hello:1", site.url)
    assert found.source == site.url.replace("index.json", "hello-1.raw")
    assert str(found.digest) == f"sha256:{hashlib.sha256(b'disk').hexdigest()}"
    assert import_of(found, "x").sha256 == found.digest.hex
    with pytest.raises(NotFound):
        await here.choose("hello:2", site.url)


def certificate(folder: Path) -> ssl.SSLContext:
    """Make a certificate of this host's own, ``folder/cert.pem``; return what a server uses it with."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    address = x509.IPAddress(ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_the_publishers_digests_are_asked_for_over_https(
    site: Site, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    listener = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    base = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    entry = {"name": "far", "url": f"{base}/far.img", "sums_url": f"{base}/SUMS"}
    index = site.folder / "index.json"
    index.write_text(json.dumps({"entries": [entry]}))
    async with listener:
        (site.folder / "SUMS").write_text(f"{HEX}  far.img\n")
        found = await here.choose("far", str(index))
        assert (str(found.digest), found.source) == (f"sha256:{HEX}", f"{base}/far.img")
        (site.folder / "SUMS").write_text(f"{HEX}  other.img\n")
        with pytest.raises(Invalid) as caught:
            await here.choose("far", str(index))
    assert caught.value.code is Code.INDEX_REFUSED
    assert site.asked == ["SUMS", "SUMS"]


def test_an_image_keeps_what_its_index_says() -> None:
    entry = IndexEntry(
        name="far", version="1", url="d", user="me", os="Far 1", min_memory=7, cloud_init=Expect.YES
    )
    chosen = Chosen(entry=entry, source="/d", digest=Digest("sha512", "cd" * 64), trust="because")
    assert import_of(chosen, "x").sha512 == "cd" * 64
    new = NewImage(name="x", kind=ImageKind.DISK, min_memory=3, details={"cluster": "1"})
    found = labelled(new, chosen)
    assert found.min_memory == 7
    assert found.details == {
        "cluster": "1", "file": f"sha512:{'cd' * 64}", "catalogue": "far:1", "index": "because",
        "system": "Far 1", "user": "me", "cloud-init": "yes",
    }  # fmt: skip
