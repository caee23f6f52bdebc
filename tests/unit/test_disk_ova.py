"""OVA archives: what is unpacked of a sound one, and what hostile ones can't do."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan_ovf import ovf

from serai.disk.ova import read_ova, unpack_disk
from serai.disk.work import Pulse
from serai.errors import Code, Invalid
from serai.units import GIB

DISK = bytes(range(256)) * 274
assert len(DISK) == 70144, "what the descriptor of test_plan_ovf says"
LIMIT = GIB


def manifest(algorithm: str = "sha256", **changed: bytes) -> bytes:
    files = {"web.ovf": ovf(), "web-disk1.vmdk": DISK, **changed}
    digest = {name: hashlib.new(algorithm, content).hexdigest() for name, content in files.items()}
    return "".join(
        f"{algorithm.upper()}({name})= {hexes}\n" for name, hexes in digest.items()
    ).encode()


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> Path:  # fmt: skip
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


OVF, VMDK = ("web.ovf", ovf()), ("web-disk1.vmdk", DISK)


def why_refused(archive: Path, limit: int = LIMIT) -> str:
    with pytest.raises(Invalid) as caught:
        read_ova(archive, limit)
    assert caught.value.code in (Code.DEFINITION_REFUSED, Code.IMAGE_REFUSED)
    return caught.value.message


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", ""])
def test_a_sound_archive_is_unpacked(tmp_path: Path, algorithm: str) -> None:
    listed = [("web.mf", manifest(algorithm))] if algorithm else []
    archive = pack(tmp_path / "x.ova", OVF, *listed, VMDK, ("web.cert", b"not looked at"))
    found = read_ova(archive, LIMIT)
    assert (found.machine.name, bool(found.digests)) == ("Web", bool(algorithm))
    unpack_disk(archive, found, found.machine.disks[0], tmp_path / "disk", Pulse())
    assert (tmp_path / "disk").read_bytes() == DISK


def test_a_disk_that_was_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    wrong = manifest(**{"web-disk1.vmdk": b"other"})
    archive = pack(tmp_path / "x.ova", OVF, ("web.mf", wrong), VMDK)
    found = read_ova(archive, LIMIT)
    with pytest.raises(Invalid, match="changed on the way"):
        unpack_disk(archive, found, found.machine.disks[0], tmp_path / "disk", Pulse())


def test_a_disk_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    short = manifest().splitlines()[0]
    archive = pack(tmp_path / "x.ova", OVF, ("web.mf", short), VMDK)
    found = read_ova(archive, LIMIT)
    with pytest.raises(Invalid, match="does not list"):
        unpack_disk(archive, found, found.machine.disks[0], tmp_path / "disk", Pulse())


def special(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


HOSTILE: dict[str, tuple[tuple[tuple[str, bytes] | tarfile.TarInfo, ...], str]] = {
    "nothing": ((), "first file"),
    "no descriptor": ((VMDK,), "first file"),
    "another first": ((VMDK, OVF), "first file"),
    "two descriptors": ((OVF, ("b.ovf", ovf()), VMDK), "more than one"),
    "two manifests": ((OVF, ("a.mf", manifest()), ("b.mf", manifest()), VMDK), "more than one"),
    "an empty manifest": ((OVF, ("a.mf", b"\n"), VMDK), "empty"),
    "another descriptor": ((OVF, ("a.mf", manifest(**{"web.ovf": b"x"})), VMDK), "changed on"),
    "an unlisted descriptor": ((OVF, ("a.mf", manifest().splitlines()[1]), VMDK), "not list"),
    "a huge descriptor": ((("web.ovf", b" " * (2 << 20)), VMDK), "more than"),
    "a huge manifest": ((OVF, ("a.mf", b"\n" * (1 << 20)), VMDK), "manifest has more"),
    "a missing disk": ((OVF,), "not in the archive"),
    "a disk of another size": ((OVF, ("web-disk1.vmdk", DISK[1:])), "bytes, not"),
    "a path outside": ((OVF, ("../x", b""), VMDK), "no plain file"),
    "an absolute path": ((OVF, ("/etc/cron.d/x", b""), VMDK), "no plain file"),
    "a folder": ((OVF, special("x", tarfile.DIRTYPE), VMDK), "no plain file"),
    "a link": ((OVF, special("web-disk1.vmdk", tarfile.SYMTYPE, "/etc/shadow")), "no plain file"),
    "a hard link": ((OVF, special("web-disk1.vmdk", tarfile.LNKTYPE, "/etc/shadow")), "no plain file"),
    "a device": ((OVF, special("web-disk1.vmdk", tarfile.BLKTYPE)), "no plain file"),
    "a name with controls": ((OVF, ("a\x1b[2J", b""), VMDK), "no plain file"),
    "one name twice": ((OVF, VMDK, VMDK), "twice"),
    "one name in two cases": ((OVF, VMDK, ("WEB-disk1.VMDK", b"")), "twice"),
    "too many": ((OVF, VMDK, *((f"f{n}", b"") for n in range(250))), "too many"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    members, said = HOSTILE[name]
    assert said in why_refused(pack(tmp_path / "x.ova", *members))


def test_what_is_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    assert "limit" in why_refused(pack(tmp_path / "x.ova", OVF, VMDK), limit=len(DISK))


def test_a_member_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.ova", OVF, VMDK)
    archive.write_bytes(archive.read_bytes()[: 40 << 10])
    assert "truncated" in why_refused(archive) or "lies" in why_refused(archive)
    lie = special("web-disk1.vmdk", tarfile.REGTYPE, size=1 << 50).tobuf(tarfile.GNU_FORMAT)
    whole = pack(tmp_path / "y.ova", OVF).read_bytes()
    (tmp_path / "y.ova").write_bytes(whole[: len(whole) // 10240 * 10240 - 10240 + 4096] + lie)
    assert why_refused(tmp_path / "y.ova")


def test_extended_headers_are_refused_with_the_way_out(tmp_path: Path) -> None:
    info = tarfile.TarInfo("ü" * 90 + ".txt")
    with pytest.raises(Invalid, match="extended headers") as caught:
        read_ova(pack(tmp_path / "x.ova", OVF, info, VMDK, form=tarfile.PAX_FORMAT), LIMIT)
    assert "ustar" in caught.value.hint


@settings(max_examples=60)
@given(place=st.integers(0, 4 * 512), byte=st.integers(0, 255), cut=st.integers(0, 90_000))
def test_a_damaged_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("ova")
    archive = pack(folder / "x.ova", OVF, ("web.mf", manifest()), VMDK)
    content = bytearray(archive.read_bytes())
    content[place] = byte
    archive.write_bytes(content[: max(cut, 512)])
    try:
        found = read_ova(archive, LIMIT)
        unpack_disk(archive, found, found.machine.disks[0], folder / "disk", Pulse())
    except Invalid as error:
        assert error.code in (Code.DEFINITION_REFUSED, Code.IMAGE_REFUSED)
    else:
        assert (folder / "disk").read_bytes() == DISK
