"""Images and guests from elsewhere: pulled from a signed index over HTTP, imported from an OVA and libvirt."""

import hashlib
import http.server
import io
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from bootable import make_bootable
from debian import answers
from keeper import Daemon, wait_for

import serai
from serai.client.indexing import make_key, write_index
from serai.errors import Code, SeraiError
from serai.units import MIB

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References>{files}</References><DiskSection>{disks}</DiskSection>
 <VirtualSystem ovf:id="old"><VirtualHardwareSection>
  <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>{cpus}</rasd:VirtualQuantity></Item>
  <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
   <rasd:VirtualQuantity>{memory}</rasd:VirtualQuantity></Item>
  <Item><rasd:Address>00:50:56:AA:BB:CC</rasd:Address><rasd:ResourceType>10</rasd:ResourceType></Item>
  {drives}
 </VirtualHardwareSection></VirtualSystem></Envelope>"""
FILE = '<File ovf:id="f{n}" ovf:href="{name}" ovf:size="{size}"/>'
DISK = '<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="4194304"/>'
DRIVE = """<Item><rasd:AddressOnParent>{n}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d{n}</rasd:HostResource>
   <rasd:ResourceType>17</rasd:ResourceType></Item>"""
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


def make_ova(
    folder: Path, *raws: Path, cpus: int = 1, memory: int = 64, spoil: bytes = b""
) -> Path:
    """Pack disks as an OVA with a manifest; ``spoil`` is added to the last after that was made."""
    disks = {f"disk{n}.vmdk": as_vmdk(folder, raw, n) for n, raw in enumerate(raws, 1)}
    ovf = describe(disks, cpus, memory).encode()
    listed = {"old.ovf": ovf, **disks}
    lines = [
        f"SHA256({name})= {hashlib.sha256(text).hexdigest()}\n" for name, text in listed.items()
    ]
    members = {"old.ovf": ovf, "old.mf": "".join(lines).encode(), **disks}
    if spoil:
        last = list(disks)[-1]
        members[last] = disks[last][: -len(spoil)] + spoil
    archive = folder / "old.ova"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive


def as_vmdk(folder: Path, raw: Path, number: int) -> bytes:
    """Return a disk as exports of machines have it."""
    vmdk = folder / f"disk{number}.vmdk"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*argv, raw, vmdk], check=True)
    return vmdk.read_bytes()


def describe(disks: Mapping[str, bytes], cpus: int, memory: int) -> str:
    """Return the descriptor of a machine with these disks, which it lists from the last to the first."""
    numbers = {name: number for number, name in enumerate(disks, 1)}
    return OVF.format(
        cpus=cpus,
        memory=memory,
        files="".join(
            FILE.format(n=n, name=name, size=len(disks[name])) for name, n in numbers.items()
        ),
        disks="".join(DISK.format(n=n) for n in numbers.values()),
        drives="".join(DRIVE.format(n=n) for n in reversed(numbers.values())),
    )


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


def test_an_appliance_of_two_disks_has_both(
    daemon: Daemon, tmp_path: Path, tiny_state: Path
) -> None:
    """The first is the image that it boots from, the second a volume; both are seen inside."""
    inn = daemon.inn
    inn.create_volume("old-1", "1MiB")
    system = make_bootable(tmp_path, tiny_state, "system")
    data = tmp_path / "data.raw"
    data.write_bytes(b"on the second disk".ljust(3 * MIB, b"."))
    archive = make_ova(tmp_path, system, data, memory=192)
    shown = said(daemon, "import", str(archive))
    assert "note: its disk disk1 became the volume old-2" in shown
    (volume,) = inn.volumes(guest="old")
    assert (volume.name, volume.info.size) == ("old-2", 3 * MIB), "old-1 is somebody else's"
    old = inn.guest("old").start()
    wait_for("the system of the first disk is up", lambda: answers(old))
    assert "disk=system" in old.run("cat /proc/cmdline").stdout
    found = old.run("head -c 18 /dev/vdb; cat /sys/block/vd?/serial").stdout
    assert found.startswith("on the second disk") and volume.info.serial in found
    assert int(old.run("blockdev --getsize64 /dev/vdb").stdout) == 3 * MIB

    alone = inn.import_guest(archive, name="alone", root_only=True)
    assert inn.volumes(guest=alone.name) == []
    before = [each.name for each in inn.volumes()]
    for source in (
        make_ova(tmp_path, system, data, spoil=b"changed!"),
        second_refused(tmp_path, system),
    ):
        with pytest.raises(SeraiError) as caught:
            inn.import_guest(source, name="bad")
        assert caught.value.code in (Code.DEFINITION_REFUSED, Code.IMAGE_REFUSED)
    make_ova(tmp_path, data, data, cpus=100_000)
    with pytest.raises(SeraiError):
        inn.import_guest(archive, name="bad")
    assert [each.name for each in inn.volumes()] == before
    heads = [each.name for each in (daemon.home / "state" / "volumes").iterdir()]
    assert len(heads) == len(before), "nothing is left of what failed, not even when it was defined"
    old.delete(force=True)
    for each in inn.volumes():
        each.delete()


def second_refused(folder: Path, system: Path) -> Path:
    """Return a definition whose second disk stands on another file, without saying so."""
    overlay = folder / "hidden.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", system, "-F", "raw", overlay]
    subprocess.run(argv, check=True)
    second = f"<disk type='file' device='disk'><source file='{overlay}'/><target dev='vdb'/></disk>"
    definition = folder / "second.xml"
    text = DOMAIN.format(disk=system, mac="52:54:00:00:00:0a")
    definition.write_text(text.replace("</devices>", f"{second}</devices>"))
    return definition


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
