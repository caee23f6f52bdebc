"""The folder of images: what is published is whole and stays so, whatever happens on the way."""

import asyncio
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace as replace_struct

from serai.disk.exported import unpack_export
from serai.disk.images import ImageFolder, NewImage, image_files
from serai.disk.work import Pulse
from serai.errors import Code, HostFailure, Invalid
from serai.model.image import DiskFormat, Expect, Image, ImageFile, ImageKind
from serai.units import GIB, MIB

NOW = 1_700_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder(tmp_path / "images")


def new_disk(scratch: Path, content: bytes = b"x" * 5000, name: str = "tiny") -> NewImage:
    scratch.mkdir(exist_ok=True)
    path = scratch / "disk"
    path.write_bytes(content)
    return NewImage(name=name, kind=ImageKind.DISK, disk=path, virtual_size=8192, agent=Expect.YES)


def new_kernel(scratch: Path, cmdline: str = "quiet") -> NewImage:
    scratch.mkdir(exist_ok=True)
    for name in ("k", "i"):
        (scratch / name).write_bytes(os.urandom(3000))
    return NewImage(
        name="kernel",
        kind=ImageKind.KERNEL,
        kernel=scratch / "k",
        initrd=scratch / "i",
        cmdline=cmdline,
    )


def left(folder: ImageFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


async def test_publish_moves_describes_and_protects(folder: ImageFolder, tmp_path: Path) -> None:
    new = new_disk(tmp_path / "scratch")
    image = await folder.publish(new, now=NOW)
    path = folder.folder(image)
    assert path.name == image.digest.replace(":", "-")
    assert sorted(p.name for p in path.iterdir()) == ["disk.raw", "image.json"]
    assert (path / "disk.raw").read_bytes() == b"x" * 5000
    modes = {p.name: p.stat().st_mode & 0o777 for p in path.iterdir()}
    assert modes == {"disk.raw": 0o444, "image.json": 0o400}
    assert new.disk is not None
    assert not new.disk.exists()
    assert folder.read(image.digest) == image
    assert (image.created_at, image.agent, image.virtual_size) == (NOW, Expect.YES, 8192)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    await folder.verify(image)


async def test_digest_names_content_not_name(folder: ImageFolder, tmp_path: Path) -> None:
    one = await folder.publish(new_disk(tmp_path / "s", name="one"), now=1.0)
    two = await folder.publish(new_disk(tmp_path / "s", name="two"), now=2.0)
    other = await folder.publish(new_disk(tmp_path / "s", b"y" * 5000), now=1.0)
    assert one.digest == two.digest != other.digest
    assert (two.name, two.created_at) == ("two", 2.0)
    assert len(left(folder)) == 2


async def test_command_line_is_content(folder: ImageFolder, tmp_path: Path) -> None:
    first = new_kernel(tmp_path / "s", "a")
    files = {path: path.read_bytes() for path in first.files().values()}
    one = await folder.publish(first, now=NOW)
    for path, content in files.items():
        path.write_bytes(content)
    two = await folder.publish(replace(first, cmdline="b"), now=NOW)
    assert one.digest != two.digest
    assert one.kernel == two.kernel


@pytest.mark.parametrize("name", ["kernel", "initrd"])
async def test_one_flipped_bit_is_found(folder: ImageFolder, tmp_path: Path, name: str) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    flip(folder.folder(image) / name)
    with pytest.raises(HostFailure) as caught:
        await folder.verify(image)
    assert caught.value.code is Code.IMAGE_CORRUPT
    assert name in caught.value.message


def flip(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1234)
        byte = file.read(1)[0]
        file.seek(1234)
        file.write(bytes([byte ^ 1]))


async def test_missing_file_is_found(folder: ImageFolder, tmp_path: Path) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    (folder.folder(image) / "initrd").unlink()
    with pytest.raises(HostFailure, match="initrd"):
        await folder.verify(image)


async def test_publishing_again_mends(folder: ImageFolder, tmp_path: Path) -> None:
    image = await folder.publish(new_disk(tmp_path / "s"), now=NOW)
    flip(folder.folder(image) / "disk.raw")
    await folder.publish(new_disk(tmp_path / "s"), now=NOW)
    await folder.verify(image)
    assert left(folder) == [folder.folder(image).name]


async def test_same_content_at_once(folder: ImageFolder, tmp_path: Path) -> None:
    new = [new_disk(tmp_path / f"s{i}", bytes([7]) * MIB) for i in range(4)]
    images = await asyncio.gather(*(folder.publish(each, now=NOW) for each in new))
    assert len({image.digest for image in images}) == 1
    await folder.verify(images[0])
    assert len(left(folder)) == 1


async def test_delete_and_orphans(folder: ImageFolder, tmp_path: Path) -> None:
    one = await folder.publish(new_disk(tmp_path / "s"), now=NOW)
    two = await folder.publish(new_disk(tmp_path / "s", b"z" * 600), now=NOW)
    assert folder.orphans([one]) == [folder.folder(two)]
    folder.delete(two)
    folder.delete(two)  # twice is no error
    assert folder.orphans([one]) == []
    assert folder.read(two.digest) is None
    assert left(folder) == [folder.folder(one).name]


async def test_sweep_removes_what_was_interrupted(folder: ImageFolder, tmp_path: Path) -> None:
    image = await folder.publish(new_disk(tmp_path / "s"), now=NOW)
    for name in (".new-1", ".gone-2"):
        (folder.path / name).mkdir()
        (folder.path / name / "disk.raw").write_bytes(b"half")
    assert [path.name for path in folder.sweep()] == [".gone-2", ".new-1"]
    assert left(folder) == [folder.folder(image).name]


@pytest.mark.parametrize("digest", ["", "sha256:../../etc", "sha256:" + "0" * 64, "md5:1"])
def test_read_takes_digests_only(folder: ImageFolder, digest: str) -> None:
    assert folder.read(digest) is None


async def test_an_unpacked_kernel_goes_with_its_image_and_is_taken_anew(
    folder: ImageFolder, tmp_path: Path
) -> None:
    """It is no part of the image: digest and size are the same without it."""
    made = new_kernel(tmp_path / "scratch")
    assert made.kernel is not None and made.initrd is not None
    kernel, initrd = made.kernel.read_bytes(), made.initrd.read_bytes()

    async def publish(unpacked: bytes) -> Image:
        made.kernel.write_bytes(kernel)
        made.initrd.write_bytes(initrd)
        (tmp_path / "u").write_bytes(unpacked)
        new = replace(made, unpacked=tmp_path / "u" if unpacked else None)
        return await folder.publish(new, now=NOW)

    plain = await publish(b"")
    first = await publish(b"good")
    path = folder.folder(first) / "kernel.unpacked"
    assert (first.digest, first.size, path.read_bytes()) == (plain.digest, plain.size, b"good")
    path.chmod(0o600)
    path.write_bytes(b"bad!")
    assert await publish(b"good") == first and path.read_bytes() == b"good"
    assert path.stat().st_mode & 0o777 == 0o444
    folder.delete(first)
    assert not path.exists()


async def test_description_that_is_damaged(folder: ImageFolder, tmp_path: Path) -> None:
    image = await folder.publish(new_disk(tmp_path / "s"), now=NOW)
    path = folder.folder(image) / "image.json"
    path.chmod(0o600)
    path.write_bytes(b"{")
    with pytest.raises(HostFailure) as caught:
        folder.read(image.digest)
    assert caught.value.code is Code.IMAGE_CORRUPT


async def test_links_are_not_published(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    new = NewImage(name="x", kind=ImageKind.DISK, disk=tmp_path / "link", virtual_size=512)
    with pytest.raises(HostFailure):
        await folder.publish(new, now=NOW)
    assert left(folder) == []


async def test_cancelled_publish_leaves_nothing(folder: ImageFolder, tmp_path: Path) -> None:
    new = new_disk(tmp_path / "s")
    assert new.disk is not None
    os.truncate(new.disk, 500 * MIB)
    begun = asyncio.Event()

    async def publish() -> Image:
        return await folder.publish(new, now=NOW, progress=lambda *_: begun.set())

    task = asyncio.ensure_future(publish())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


async def test_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    folder = ImageFolder(small_disk / "images")
    new = new_disk(tmp_path / "s", os.urandom(5 * MIB))
    with pytest.raises(HostFailure) as caught:
        await folder.publish(new, now=NOW)
    assert caught.value.code is Code.DISK_FULL
    assert left(folder) == []


async def test_other_file_system_keeps_holes(small_disk: Path, tmp_path: Path) -> None:
    folder = ImageFolder(small_disk / "images")
    new = new_disk(tmp_path / "s", b"\1" * 8192 + bytes(20 * MIB) + b"\2" * 100)
    image = await folder.publish(new, now=NOW)
    await folder.verify(image)
    assert image.disk is not None
    assert image.disk.size == 20 * MIB + 8292
    assert image.size < 64 * 1024


# -- export --------------------------------------------------------------------------------------


def export(folder: ImageFolder, image: Image, target: Path, form: int = tarfile.GNU_FORMAT) -> Path:
    """Write the archive as the API does."""
    with tarfile.open(target, "w", format=form) as tar:
        add(tar, tarfile.TarInfo("image.json"), msgspec.json.encode(image))
        for file in image_files(image).values():
            add(tar, tarfile.TarInfo(file.name), (folder.folder(image) / file.name).read_bytes())
    return target


def add(tar: tarfile.TarFile, info: tarfile.TarInfo, content: bytes) -> None:
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_export_comes_in_again(folder: ImageFolder, tmp_path: Path, form: int) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    archive = export(folder, image, tmp_path / "x.tar", form)
    new = unpack_export(archive, tmp_path, "again", 1 << 30, Pulse())
    again = await ImageFolder(tmp_path / "others").publish(new, now=NOW)
    assert again.digest == image.digest
    assert again.name == "again"


async def test_member_over_8_gib_is_understood(tmp_path: Path) -> None:
    image = Image(name="x", digest="", kind=ImageKind.DISK, created_at=NOW, size=0)
    image = replace_struct(image, disk=ImageFile(name="disk.raw", size=9 * GIB, digest="sha256:0"))
    info = tarfile.TarInfo("disk.raw")
    info.size = 9 * GIB
    with (tmp_path / "x.tar").open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            add(tar, tarfile.TarInfo("image.json"), msgspec.json.encode(image))
            file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(9 * GIB + 10_240)
    with pytest.raises(Invalid, match="larger than the limit"):
        unpack_export(tmp_path / "x.tar", tmp_path, "x", 8 * GIB, Pulse())


def repack(archive: Path, change: str) -> None:
    """Write the archive anew with one thing changed, as an attacker would."""
    with tarfile.open(archive) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            info = tarfile.TarInfo(member.name)
            info.size = len(content)
            data = content
            if member.name == "kernel":
                if change == "up":
                    info.name = "../../etc/cron.d/x"
                elif change == "absolute":
                    info.name = "/etc/passwd"
                elif change == "symlink":
                    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
                elif change == "hardlink":
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, "initrd", 0
                elif change == "device":
                    info.type = tarfile.CHRTYPE
                elif change == "content":
                    data = b"y" + content[1:]
                elif change == "shorter":
                    info.size -= 1
                elif change == "missing":
                    continue
            if member.name == "image.json" and change == "name in json":
                data = content.replace(b'"kernel","size"', b'"../../k","size"')
                info.size = len(data)
            if member.name == "image.json" and change == "json":
                data, info.size = b"{}", 2
            tar.addfile(info, io.BytesIO(data))
        if change == "more":
            info = tarfile.TarInfo("disk.raw")
            tar.addfile(info)


CHANGES = ["up", "absolute", "symlink", "hardlink", "device", "content", "shorter", "missing"]


@pytest.mark.parametrize("change", [*CHANGES, "name in json", "json", "more"])
async def test_changed_export_is_refused(folder: ImageFolder, tmp_path: Path, change: str) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    archive = export(folder, image, tmp_path / "x.tar")
    repack(archive, "nothing")
    (tmp_path / "fine").mkdir()
    unpack_export(archive, tmp_path / "fine", "again", 1 << 30, Pulse())
    repack(archive, change)
    (tmp_path / "out").mkdir()
    with pytest.raises(Invalid) as caught:
        unpack_export(archive, tmp_path / "out", "again", 1 << 30, Pulse())
    assert caught.value.code is Code.IMAGE_REFUSED


@pytest.mark.parametrize("length", [0, 100, 512, 700, 1600, 4000])
async def test_truncated_export_is_refused(
    folder: ImageFolder, tmp_path: Path, length: int
) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    archive = export(folder, image, tmp_path / "x.tar")
    os.truncate(archive, length)
    with pytest.raises(Invalid):
        unpack_export(archive, tmp_path, "again", 1 << 30, Pulse())


async def test_large_export_is_refused(folder: ImageFolder, tmp_path: Path) -> None:
    image = await folder.publish(new_kernel(tmp_path / "s"), now=NOW)
    archive = export(folder, image, tmp_path / "x.tar")
    with pytest.raises(Invalid, match="limit"):
        unpack_export(archive, tmp_path, "again", 5999, Pulse())


def test_kinds_have_their_names() -> None:
    def name(kind: ImageKind, form: DiskFormat) -> str:
        return NewImage(name="x", kind=kind, disk_format=form).name_in_folder("disk")

    assert name(ImageKind.CDROM, DiskFormat.RAW) == "disk.iso"
    assert name(ImageKind.DISK, DiskFormat.QCOW2) == "disk.qcow2"
