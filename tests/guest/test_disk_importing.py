"""Imports with the real tools: every kind that is taken, every attack, a full disk, lost rights."""

import asyncio
import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from packaged import MEMTEST_ISO, memtest

from serai.disk.images import ImageFolder, NewImage
from serai.disk.importing import import_image
from serai.errors import Code, HostFailure, Invalid, NotFound, SeraiError
from serai.model.actions import ImportImage
from serai.model.guest import Accel
from serai.model.image import DiskFormat, Expect, ImageKind
from serai.model.node import Capabilities
from serai.settings import Settings, read_settings
from serai.units import GIB, KIB, MIB

SIZE = 8 * MIB


def make_settings(**changed: object) -> Settings:
    found = read_settings({"SERAI_DISK_RESERVE": "1"}, Path("/nonexistent"))
    return Settings(**{**{name: getattr(found, name) for name in Settings.__slots__}, **changed})  # type: ignore[arg-type]


CAPABILITIES = Capabilities(
    qemu_path="",
    qemu_version="",
    machine_type="",
    accel=Accel.TCG,
    accel_reason="",
    privileged=os.geteuid() == 0,
)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir(mode=0o700)
    return path


async def bring(
    source: object, scratch: Path, settings: Settings | None = None, **options: object
) -> NewImage:
    action = ImportImage(source=str(source), name="thing", **options)  # type: ignore[arg-type]
    return await import_image(
        action,
        scratch=scratch,
        settings=settings or make_settings(),
        capabilities=CAPABILITIES,
        progress=lambda *told: None,
    )


def raw_disk() -> bytes:
    """Return a disk of 8 MiB with a boot sector, some data, and much of nothing."""
    start = (b"\xfa" + bytes(445) + b"\x80" + bytes(63) + b"\x55\xaa").ljust(MIB, b"\0")
    return (start + os.urandom(MIB) + bytes(3 * MIB) + b"repeat" * 100_000).ljust(SIZE, b"\0")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "some disk, with commas=.raw"
    path.write_bytes(raw_disk())
    return path


def img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def same(new: NewImage, raw: Path) -> bool:
    argv = ["qemu-img", "compare", "-f", new.disk_format, "-F", "raw", str(new.disk), str(raw)]
    return subprocess.run(argv, capture_output=True).returncode == 0


async def test_raw_stays_raw_and_becomes_sparse(raw: Path, scratch: Path) -> None:
    new = await bring(raw, scratch)
    assert (new.kind, new.disk_format, new.virtual_size) == (ImageKind.DISK, DiskFormat.RAW, SIZE)
    assert new.firmware == ("bios",)
    assert same(new, raw)
    assert new.disk is not None
    assert new.disk.stat().st_blocks * 512 <= 2 * MIB
    assert raw.exists()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bz2": lambda data: bz2.compress(data, 1),
    "zst": lambda data: (
        subprocess.run(["zstd", "-q"], input=data, stdout=subprocess.PIPE, check=True).stdout
    ),
}


@pytest.mark.parametrize("suffix", PACKERS)
async def test_compressed_raw(raw: Path, scratch: Path, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "packed"  # it is told by its content, not by its name
    source.write_bytes(PACKERS[suffix](raw.read_bytes()))
    new = await bring(source, scratch)
    assert (new.disk_format, new.virtual_size) == (DiskFormat.RAW, SIZE)
    assert same(new, raw)
    assert new.disk is not None
    assert new.disk.stat().st_blocks * 512 <= 2 * MIB
    assert [path.name for path in scratch.iterdir()] == ["unpacked"]


async def test_sound_qcow2_is_not_converted(raw: Path, scratch: Path, tmp_path: Path) -> None:
    made = tmp_path / "x.qcow2"
    img("convert", "-c", "-O", "qcow2", raw, made)
    new = await bring(made, scratch)
    assert (new.disk_format, new.virtual_size) == (DiskFormat.QCOW2, SIZE)
    assert new.disk is not None
    assert new.disk.read_bytes() == made.read_bytes()


@pytest.mark.parametrize("kind", ["old", "snapshot", "sparse vmdk", "stream vmdk", "packed vmdk"])
async def test_conversion(raw: Path, scratch: Path, tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    if "vmdk" in kind:
        form = "monolithicSparse" if "sparse" in kind else "streamOptimized"
        img("convert", "-O", "vmdk", "-o", f"subformat={form}", raw, made)
    else:
        img(
            "convert",
            "-O",
            "qcow2",
            "-o",
            f"compat={'0.10' if kind == 'old' else '1.1'}",
            raw,
            made,
        )
    if kind == "snapshot":
        img("snapshot", "-c", "one", made)
    if kind == "packed vmdk":
        made.write_bytes(gzip.compress(made.read_bytes()))
    new = await bring(made, scratch)
    assert (new.disk_format, new.virtual_size) == (DiskFormat.QCOW2, SIZE)
    assert same(new, raw)
    assert new.details["converted"]
    assert new.disk is not None
    assert new.disk.stat().st_uid == os.geteuid()
    assert [path.name for path in scratch.iterdir()] == ["converted"]


async def test_medium(scratch: Path) -> None:
    new = await bring(memtest(MEMTEST_ISO), scratch)
    assert (new.kind, new.disk_format, new.virtual_size) == (ImageKind.CDROM, DiskFormat.RAW, 0)
    assert (new.firmware, new.agent) == (("bios", "uefi"), Expect.NO)
    assert new.details["label"] == "MT86PLUS_64"


async def test_kernel_and_initrd(scratch: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(gzip.compress(b"070701"))
    new = await bring(memtest(), scratch, kernel=True, initrd=str(initrd), cmdline="console=ttyS0")
    assert (new.kind, new.cmdline, new.agent) == (ImageKind.KERNEL, "console=ttyS0", Expect.NO)
    assert new.details["kernel"].startswith("Memtest86+")
    assert (new.firmware, set(new.files())) == (("bios",), {"kernel", "initrd"})


async def test_kernel_is_checked(scratch: Path, raw: Path, tmp_path: Path) -> None:
    for source, options in [
        (raw, {"kernel": True}),
        (memtest(), {}),
        (memtest(), {"kernel": True, "initrd": str(raw)}),
    ]:
        shutil.rmtree(scratch)
        scratch.mkdir()
        assert (await refusal(source, scratch, **options)).code is Code.IMAGE_REFUSED


async def refusal(source: object, scratch: Path, **options: object) -> SeraiError:
    with pytest.raises(SeraiError) as caught:
        await bring(source, scratch, **options)
    return caught.value


async def test_digest(raw: Path, scratch: Path) -> None:
    digest = (
        subprocess.run(["sha256sum", raw], capture_output=True, check=True).stdout[:64].decode()
    )
    assert same(await bring(raw, scratch, sha256=digest.upper()), raw)
    error = await refusal(raw, scratch, sha256="0" * 64)
    assert error.code is Code.IMAGE_DIGEST_MISMATCH
    assert error.details["found"] == digest


async def test_from_a_url(raw: Path, scratch: Path, tmp_path: Path) -> None:
    content = gzip.compress(raw.read_bytes(), 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + content)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://me:secret@127.0.0.1:{port}/some.raw.gz?token=1"
        new = await bring(url, scratch, sha256=hashlib.sha256(content).hexdigest())
    assert same(new, raw)
    assert new.source == f"http://127.0.0.1:{port}/some.raw.gz"


async def test_published_and_exported_and_imported_again(
    raw: Path, scratch: Path, tmp_path: Path
) -> None:
    folder = ImageFolder(tmp_path / "images")
    image = await folder.publish(await bring(raw, scratch), now=1.0)
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("image.json", "disk.raw"):
            tar.add(folder.folder(image) / name, name)
    archive.write_bytes(gzip.compress(archive.read_bytes(), 1))
    new = await bring(archive, scratch)
    again = await ImageFolder(tmp_path / "others").publish(new, now=2.0)
    assert (again.digest, again.name) == (image.digest, "thing")


@pytest.mark.parametrize(
    "change", [{"kind": ImageKind.CDROM}, {"virtual_size": 1 * MIB}, {"disk_format": "qcow2"}]
)
async def test_export_that_lies_about_its_disk_is_refused(
    raw: Path, scratch: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = ImageFolder(tmp_path / "images")
    image = await folder.publish(await bring(raw, scratch), now=1.0)
    (tmp_path / "image.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(image, **change))
    )
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tmp_path / "image.json", "image.json")
        tar.add(folder.folder(image) / "disk.raw", "disk.raw")
    assert (await refusal(tmp_path / "x.tar", scratch)).code is Code.IMAGE_REFUSED


def zipped(raw: Path) -> bytes:
    with zipfile.ZipFile(raw.with_name("x.zip"), "w") as archive:
        archive.write(raw, "disk.raw")
    return raw.with_name("x.zip").read_bytes()


def tarred(raw: Path) -> bytes:
    with tarfile.open(raw.with_name("x.tar"), "w") as tar:
        tar.add(raw, "disk.raw")
    return raw.with_name("x.tar").read_bytes()


def backed(raw: Path) -> bytes:
    img("create", "-f", "qcow2", "-b", raw, "-F", "raw", raw.with_name("backed"))
    return raw.with_name("backed").read_bytes()


def packed(raw: Path) -> bytes:
    return gzip.compress(raw.read_bytes(), 1)


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "zip": zipped,
    "tar": tarred,
    "tar in gzip": lambda raw: gzip.compress(tarred(raw), 1),
    "twice": lambda raw: gzip.compress(packed(raw), 1),
    "truncated gzip": lambda raw: packed(raw)[: MIB // 2],
    "gzip with rubbish": lambda raw: packed(raw)[:200] + b"rubbish" + packed(raw)[207:],
    "gzip with a tail": lambda raw: packed(raw) + b"tail",
    "truncated xz": lambda raw: lzma.compress(raw.read_bytes(), preset=0)[:-30],
    "backing in gzip": lambda raw: gzip.compress(backed(raw), 1),
    "odd length in gzip": lambda raw: gzip.compress(raw.read_bytes() + b"x", 1),
    "empty": lambda raw: b"",
    "empty in gzip": lambda raw: gzip.compress(b""),
    "text": lambda raw: b"hello\n" * 1000,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_file_is_refused(raw: Path, scratch: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "evil").write_bytes(HOSTILE[name](raw))
    error = await refusal(tmp_path / "evil", scratch)
    assert isinstance(error, Invalid)
    assert error.code is Code.IMAGE_REFUSED


@pytest.mark.parametrize("suffix", PACKERS)
async def test_bomb_is_stopped_at_the_limit(scratch: Path, tmp_path: Path, suffix: str) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(PACKERS[suffix](bytes(60 * MIB)))
    assert bomb.stat().st_size < MIB
    with pytest.raises(Invalid) as caught:
        await bring(bomb, scratch, make_settings(image_limit=20 * MIB))
    assert caught.value.code is Code.IMAGE_REFUSED
    assert "more than" in caught.value.message
    assert [path.name for path in scratch.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "source", ["relative.raw", "", "/x\0y", "file:///etc/passwd", "nbd://127.0.0.1/x", "/dev/zero"]
)
async def test_sources_that_are_none(scratch: Path, source: str) -> None:
    error = await refusal(source, scratch)
    assert isinstance(error, Invalid)
    assert error.code is Code.VALUE_INVALID


async def test_pipe_and_missing_file(scratch: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert (await refusal(tmp_path / "pipe", scratch)).code is Code.VALUE_INVALID
    assert isinstance(await refusal(tmp_path / "none", scratch), NotFound)


@pytest.mark.parametrize(
    "options",
    [
        {"sha256": "abc"},
        {"sha256": "g" * 64},
        {"agent": "perhaps"},
        {"cmdline": "quiet"},
        {"initrd": "/boot/initrd"},
        {"kernel": True, "cmdline": "a\nb"},
    ],
)
async def test_fields_are_checked(raw: Path, scratch: Path, options: dict[str, object]) -> None:
    assert isinstance(await refusal(raw, scratch, **options), Invalid)
    assert list(scratch.iterdir()) == []


async def test_large_file_is_refused(raw: Path, scratch: Path) -> None:
    with pytest.raises(Invalid, match="limit"):
        await bring(raw, scratch, make_settings(image_limit=SIZE - 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", ["copy", "unpack", "convert"])
async def test_full_disk(small_disk: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.raw").write_bytes(
        os.urandom(4 * MIB)
        if kind == "copy"
        else bytes(510) + b"\x55\xaa" + b"abc" * MIB + bytes(512)
    )
    if kind == "unpack":
        (tmp_path / "x.raw").write_bytes(gzip.compress((tmp_path / "x.raw").read_bytes()))
    if kind == "convert":
        os.truncate(tmp_path / "x.raw", 4 * MIB)
        img(
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "compat=0.10",
            tmp_path / "x.raw",
            tmp_path / "y.raw",
        )
        (tmp_path / "y.raw").rename(tmp_path / "x.img")
    with pytest.raises(HostFailure) as caught:
        await bring(tmp_path / ("x.img" if kind == "convert" else "x.raw"), small_disk)
    assert caught.value.code is Code.DISK_FULL
    assert {path.name for path in small_disk.iterdir()} <= {"source"}  # the caller's to remove


async def test_reserve_is_kept(raw: Path, scratch: Path) -> None:
    with pytest.raises(HostFailure) as caught:
        await bring(raw, scratch, make_settings(disk_reserve=1 << 50))
    assert caught.value.code is Code.DISK_FULL


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_children_have_no_rights(
    raw: Path, scratch: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qemu-img that was taken over: it tries what it should not be able to do, and tells."""
    if os.geteuid() != 0:
        pytest.skip("only root has rights to drop")
    fake, told = open_folder / "qemu-img", open_folder / "told"
    told.touch()
    told.chmod(0o666)
    fake.write_text(
        f"#!/bin/sh\nexec > {told}\nid -u\ngrep -E 'NoNewPrivs|CapBnd' /proc/self/status\n"
        f"ls {scratch} 2>&1\nulimit -v\nulimit -f\nexit 1\n"
    )
    fake.chmod(0o755)
    made = raw.with_name("x.vmdk")
    img("convert", "-O", "vmdk", raw, made)
    monkeypatch.setenv("PATH", f"{open_folder}:{os.environ['PATH']}")
    await refusal(made, scratch)
    uid, *lines = told.read_text().splitlines()
    assert int(uid) == make_settings().uid_base - 1
    assert "CapBnd:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert any("Permission denied" in line for line in lines)
    assert str(2 * GIB // KIB) in lines
    assert "unlimited" not in lines


async def test_cancelled_import_ends_its_children(scratch: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(gzip.compress(bytes(100 * MIB), 1))
    begun = asyncio.Event()

    def progress(phase: str, done: int, total: int, message: str) -> None:
        if message.startswith("unpacking"):
            begun.set()

    action = ImportImage(source=str(slow), name="thing")
    task = asyncio.ensure_future(
        import_image(
            action,
            scratch=scratch,
            settings=make_settings(),
            capabilities=CAPABILITIES,
            progress=progress,
        )
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in scratch.iterdir()] == ["source"]


async def test_progress_is_told(raw: Path, scratch: Path, tmp_path: Path) -> None:
    made, told = tmp_path / "x.vmdk", []
    img("convert", "-O", "vmdk", raw, made)
    await import_image(
        ImportImage(source=str(made), name="thing"),
        scratch=scratch,
        settings=make_settings(),
        capabilities=CAPABILITIES,
        progress=lambda *all_: told.append(all_),
    )
    assert list(dict.fromkeys(phase for phase, *_ in told)) == ["fetch", "inspect", "convert"]
    assert ("convert", SIZE, SIZE) in [each[:3] for each in told]
