"""Images and guests from elsewhere: pulled from a signed index over HTTP, imported from an OVA and libvirt."""

import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from keeper import Daemon

import serai
from serai.client.indexing import make_key, write_index
from serai.errors import Code, SeraiError

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="{size}"/></References>
 <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="4194304"/></DiskSection>
 <VirtualSystem ovf:id="old"><VirtualHardwareSection>
  <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>{cpus}</rasd:VirtualQuantity></Item>
  <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
   <rasd:VirtualQuantity>64</rasd:VirtualQuantity></Item>
  <Item><rasd:Address>00:50:56:AA:BB:CC</rasd:Address><rasd:ResourceType>10</rasd:ResourceType></Item>
  <Item><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
 </VirtualHardwareSection></VirtualSystem></Envelope>"""
DOMAIN = """<domain type='kvm'><name>old_two</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><devices>
<disk type='file' device='disk'><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<interface type='user'><mac address='{mac}'/></interface></devices></domain>"""
HELLO = "hello from elsewhere"


def make_disk(folder: Path) -> Path:
    """Make a disk whose boot sector greets on the first serial line and halts."""
    code = bytes.fromhex("fa 31c0 8ed8 be167c ac 84c0 7406 baf803 ee ebf5 f4 ebfd")
    raw = folder / "disk.raw"
    raw.write_bytes(
        (code + HELLO.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa" + bytes(4 << 20)
    )
    return raw


def make_ova(folder: Path, raw: Path, *, cpus: int = 1, spoil: bytes = b"") -> Path:
    """Pack the disk as an OVA with a manifest; ``spoil`` is added to the disk after that was made."""
    vmdk = folder / "disk1.vmdk"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*argv, raw, vmdk], check=True)
    disk = vmdk.read_bytes()
    ovf = OVF.format(size=len(disk), cpus=cpus).encode()
    listed = {"old.ovf": ovf, "disk1.vmdk": disk}
    lines = [
        f"SHA256({name})= {hashlib.sha256(text).hexdigest()}\n" for name, text in listed.items()
    ]
    members = {"old.ovf": ovf, "old.mf": "".join(lines).encode(), "disk1.vmdk": disk}
    if spoil:
        members["disk1.vmdk"] = disk[: -len(spoil)] + spoil
    archive = folder / "old.ova"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


@contextmanager
def served(folder: Path, asked: list[str]) -> Iterator[str]:
    """Serve a folder on this host as any web server would; note what is asked for."""

    def note(self: http.server.SimpleHTTPRequestHandler, *_: object) -> None:
        asked.append(self.path)

    kind = type("Handler", (http.server.SimpleHTTPRequestHandler,), {"log_message": note})
    handler = partial(kind, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/index.json"
        finally:
            server.shutdown()
            thread.join()


def said(daemon: Daemon, *words: str) -> str:
    done = daemon.run(*words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def wait_for_greeting(daemon: Daemon, guest: str) -> None:
    limit = time.monotonic() + 60
    while HELLO not in said(daemon, "log", guest):
        assert time.monotonic() < limit, "the guest did not greet"
        time.sleep(0.1)


def test_an_image_is_pulled_from_a_signed_index_and_runs(daemon: Daemon, tmp_path: Path) -> None:
    site, asked, inn = tmp_path / "site", list[str](), daemon.inn
    site.mkdir()
    inn.export_image("tiny", site / "tiny.tar")
    make_key(tmp_path / "k")
    write_index(site, key=tmp_path / "k")
    keys = daemon.home / "state" / "keys"
    with served(site, asked) as url:
        assert refusal(inn, url, name="pulled").code is Code.INDEX_REFUSED
        keys.mkdir()
        (keys / "k.pub").write_bytes((tmp_path / "k.pub").read_bytes())
        file = site / "tiny.tar"
        content = file.read_bytes()
        file.write_bytes(content + bytes(512))
        assert refusal(inn, url, name="pulled").code is Code.IMAGE_DIGEST_MISMATCH
        file.write_bytes(content)
        pulled = said(daemon, "image", "pull", "tiny", "--name", "pulled", "--index", url)
        assert pulled.startswith("pulled is there: kernel")
        again = said(daemon, "image", "pull", "tiny", "--name", "pulled", "--index", url)
        assert "nothing was pulled" in again
        assert inn.pull_image("tiny", name="other", index=url).name == "other"
        assert asked.count("/tiny.tar") == 2
        error = refusal(inn, url)
        assert error.code is Code.IMAGE_EXISTS, "the image tiny was not pulled from there"
        file.write_bytes(content + bytes(512))
        write_index(site, key=tmp_path / "k")
        error = refusal(inn, url, name="pulled")
        assert error.code is Code.IMAGE_EXISTS and "--replace" in error.hint
    assert inn.image("pulled").digest == inn.image("tiny").digest
    for name in ("tiny", "other"):
        inn.delete_image(name)
    guest = inn.launch("pulled", name="web1", memory="128MiB")
    assert guest.run(["true"]).ok, "the files that it shared with the deleted ones are there"


def refusal(inn: serai.Inn, url: str, name: str = "") -> SeraiError:
    with pytest.raises(SeraiError) as caught:
        inn.pull_image("tiny", index=url, name=name)
    return caught.value


def test_guests_are_imported_and_boot(daemon: Daemon, tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    inn = daemon.inn
    shown = said(daemon, "import", str(make_ova(tmp_path, raw)))
    assert shown.startswith("old is defined: 1 CPU, 64 MiB of memory, bios, a disk of 4 MiB")
    old = inn.guest("old")
    assert (old.info.mac, old.info.state, old.info.image) == ("00:50:56:aa:bb:cc", "stopped", "old")
    definition = tmp_path / "two.xml"
    definition.write_text(DOMAIN.format(disk=raw, mac=old.info.mac))
    two = inn.import_guest(definition)
    assert two.name == "old-two" and two.info.mac != old.info.mac, "one address is not given twice"
    two.start()
    old.start()
    wait_for_greeting(daemon, "old")
    wait_for_greeting(daemon, "old-two")
    check_refusals(daemon, tmp_path, raw)


def check_refusals(daemon: Daemon, folder: Path, raw: Path) -> None:
    """Whatever fails, and when, leaves no guest, no image and no reserved name."""
    inn = daemon.inn
    before = [each.name for each in inn.images()]
    spoilt = make_ova(folder, raw, spoil=b"changed!")
    overlay = folder / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", overlay], check=True
    )
    chained = folder / "chained.xml"
    chained.write_text(DOMAIN.format(disk=overlay, mac="52:54:00:00:00:09"))
    for source, code in (
        (spoilt, Code.DEFINITION_REFUSED),
        (chained, Code.IMAGE_REFUSED),
        (raw, Code.DEFINITION_REFUSED),
    ):
        for _ in range(2):
            with pytest.raises(SeraiError) as caught:
                inn.import_guest(source, name="bad")
            assert caught.value.code is code
    make_ova(folder, raw, cpus=100_000)
    with pytest.raises(SeraiError) as caught:
        inn.import_guest(folder / "old.ova", name="bad")
    assert caught.value.code is Code.VALUE_INVALID, "refused when the guest is defined"
    assert [each.name for each in inn.images()] == before
    assert sorted(each.name for each in inn.guests()) == ["old", "old-two"]
    fine = inn.import_guest(folder / "old.ova", name="bad", cpus=1)
    assert fine.info.cpus == 1
