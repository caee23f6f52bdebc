"""What publishers and importers do without a daemon: keys, indexes, definitions."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import msgspec
import pytest
from test_plan_domain_xml import DISK, domain

from serai.client.definitions import import_call
from serai.client.indexing import make_key, write_index
from serai.errors import Code, Conflict, HostFailure, Invalid, NotFound
from serai.model.image import Expect, Image, ImageKind
from serai.plan.catalogue import read_index
from serai.plan.signature import fingerprint, read_public_key, signer_of


def test_a_pair_of_keys(tmp_path: Path) -> None:
    private, public = tmp_path / "k", tmp_path / "k.pub"
    found = make_key(private)
    assert private.stat().st_mode & 0o777 == 0o600
    assert found == fingerprint(read_public_key(public.read_bytes(), "x"))
    before = private.read_bytes()
    with pytest.raises(Conflict):
        make_key(private)
    public.unlink()
    with pytest.raises(Conflict):
        make_key(private)
    assert private.read_bytes() == before


def export(path: Path, **facts: object) -> None:
    described = Image(
        name="web-2", digest="", kind=ImageKind.DISK, created_at=0.0, size=1, agent=Expect.YES,
        firmware=("bios", "uefi"), min_memory=5, **facts,
    )  # fmt: skip
    content = msgspec.json.encode(described)
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("image.json")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def test_an_index_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "Debian-12.qcow2").write_bytes(b"disk")
    (tmp_path / "My System.raw.xz").write_bytes(b"packed")
    (tmp_path / "other.tar").write_bytes(b"no archive")
    (tmp_path / "notes.txt").write_bytes(b"no image")
    (tmp_path / ".hidden.qcow2").write_bytes(b"no image")
    export(tmp_path / "x.tar")
    told: list[str] = []
    index, signer = write_index(tmp_path, title="Ours", on_file=told.append)
    assert (index.title, signer) == ("Ours", "")
    assert told == ["Debian-12.qcow2", "My System.raw.xz", "other.tar", "x.tar"]
    written = read_index((tmp_path / "index.json").read_bytes())
    assert written == index
    found = {each.full_name: each for each in written.entries}
    assert set(found) == {"debian:12", "my-system", "other", "web:2"}
    assert found["debian:12"].sha256 == hashlib.sha256(b"disk").hexdigest()
    assert (found["web:2"].agent, found["web:2"].min_memory) == (Expect.YES, 5)
    assert "aliases" not in json.loads((tmp_path / "index.json").read_bytes())["entries"][0]


def test_a_signed_index_and_no_older_signature(tmp_path: Path) -> None:
    make_key(tmp_path / "k")
    (tmp_path / "a.raw").write_bytes(b"disk")
    _, signer = write_index(tmp_path, key=tmp_path / "k")
    key = read_public_key((tmp_path / "k.pub").read_bytes(), "x")
    signature = (tmp_path / "index.json.sig").read_bytes()
    assert signer == fingerprint(key)
    assert signer_of((tmp_path / "index.json").read_bytes(), signature, [key]) is key
    write_index(tmp_path)
    assert not (tmp_path / "index.json.sig").exists()


def test_what_gives_no_index(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no image"):
        write_index(tmp_path)
    with pytest.raises(HostFailure):
        write_index(tmp_path / "nowhere")
    for name in ("a.raw", "a.qcow2"):
        (tmp_path / name).write_bytes(b"disk")
    with pytest.raises(Invalid, match="twice"):
        write_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


# -- definitions -----------------------------------------------------------------------------------


def body(source: Path, **more: object) -> dict[str, object]:
    call = import_call(str(source), **more)  # type: ignore[arg-type]
    assert (call.method, call.path) == ("POST", "/v1/imports")
    found: dict[str, object] = json.loads(call.body or b"")
    return found


def test_a_definition_is_read_here_and_its_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "web.qcow2"
    disk.write_bytes(b"disk")
    file = tmp_path / "web.xml"
    file.write_bytes(
        b"\xef\xbb\xbf\n" + domain(DISK.replace("/var/lib/libvirt/images", str(tmp_path)))
    )
    sent = body(file, cpus=3)
    assert (sent["source"], sent["name"], sent["cpus"]) == (str(disk), "web-1", 3)
    assert sent["machine"]["cpus"] == 2  # type: ignore[index]


def test_the_caller_must_be_able_to_read_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "web.xml"
    file.write_bytes(domain(DISK.replace("/var/lib/libvirt/images", str(tmp_path))))
    with pytest.raises(NotFound) as caught:
        body(file)
    assert "--disk" in caught.value.hint
    (tmp_path / "web.qcow2").mkdir()
    with pytest.raises(Invalid, match="not a regular file"):
        body(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Invalid, match="not a regular file"):
        body(file, disk=str(tmp_path / "pipe"))
    (tmp_path / "new.qcow2").write_bytes(b"disk")
    assert body(file, disk=str(tmp_path / "new.qcow2"))["source"] == str(tmp_path / "new.qcow2")


def test_what_is_no_definition_goes_as_it_is(tmp_path: Path) -> None:
    archive = tmp_path / "web.ova"
    archive.write_bytes(b"any bytes")
    assert body(archive, name="web")["source"] == str(archive)
    assert import_call("https://example.org/web.ova").body
    with pytest.raises(Invalid) as caught:
        body(archive, disk="/x")
    assert caught.value.code is Code.VALUE_INVALID
    with pytest.raises(NotFound):
        body(tmp_path / "none.ova")


def test_a_definition_without_an_end_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "web.xml"
    with file.open("wb") as opened:
        opened.write(b"<domain>")
        opened.truncate(3 << 30)
    with pytest.raises(Invalid) as caught:
        body(file)
    assert caught.value.code is Code.DEFINITION_REFUSED
