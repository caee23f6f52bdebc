"""Folders as tar: what is packed comes back, and nothing that a guest packs gets out of its folder."""

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serai.client.files import pack_folder, unpack_folder
from serai.errors import Conflict, Invalid


def pack(folder: Path) -> tuple[bytes, list[str]]:
    left_out: list[str] = []
    return b"".join(pack_folder(folder, left_out.append)), left_out


def untrusted(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for each in members:
            member, content = each if isinstance(each, tuple) else (each, b"")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    file.seek(0)
    return file


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


def everything(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "file").write_text("content")
    (folder / "inner" / ("long-" * 30)).write_text("x" * 5000)
    (folder / "inner" / "deep" / "exact").write_text("y" * 1024)
    (folder / "inner" / "up").symlink_to("../file")
    (folder / "nothing").write_text("")
    (folder / "täg").write_text("ü")
    (folder / "run").write_text("#!/bin/sh")
    (folder / "run").chmod(0o755)
    return folder


def test_a_folder_comes_back_as_it_was(source: Path, tmp_path: Path) -> None:
    packed, left_out = pack(source)
    (tmp_path / "copy").mkdir()
    assert unpack_folder(io.BytesIO(packed), tmp_path / "copy") == left_out == []
    assert everything(tmp_path / "copy") == everything(source)
    assert (tmp_path / "copy" / "run").stat().st_mode & 0o777 == 0o755
    assert int((tmp_path / "copy" / "file").stat().st_mtime) == int(
        (source / "file").stat().st_mtime
    )


def test_another_tar_understands_what_is_packed(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(source)[0])) as tar:
        names = {each.name: each for each in tar}
    assert set(names) == set(everything(source))
    assert all((each.uid, each.gid, each.uname) == (0, 0, "root") for each in names.values())


def test_packing_twice_gives_the_same(source: Path) -> None:
    assert pack(source) == pack(source)


def test_what_is_no_file_is_left_out_and_named(source: Path) -> None:
    os.mkfifo(source / "inner" / "pipe")
    assert pack(source)[1] == ["inner/pipe"]


def test_a_file_that_becomes_shorter_is_an_error(source: Path) -> None:
    (source / "big").write_bytes(bytes(1 << 20))
    pieces = pack_folder(source, lambda _: None)
    while len(next(pieces)) != 256 << 10:
        pass
    os.truncate(source / "big", 10)
    with pytest.raises(Conflict, match="became shorter"):
        list(pieces)


def test_unpacking_twice_gives_the_same(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.mkdir()
    (target / "mine").write_text("stays")
    for _ in range(2):
        unpack_folder(io.BytesIO(pack(source)[0]), target)
    assert everything(target) == {**everything(source), "mine": "stays"}


OUTSIDE: dict[str, Callable[[], io.BytesIO]] = {
    "dots": lambda: untrusted((member("../evil"), b"x")),
    "dots inside": lambda: untrusted((member("a/../../evil"), b"x")),
    "through its own link": lambda: untrusted(
        member("a", tarfile.SYMTYPE, "b"), (member("a/evil"), b"x")
    ),
    "hard link to a file outside": lambda: untrusted(member("evil", tarfile.LNKTYPE, "../secret")),
    "hard link to nothing": lambda: untrusted(member("evil", tarfile.LNKTYPE, "a")),
    "hard link to itself": lambda: untrusted(
        (member("a"), b"x"), member("a", tarfile.LNKTYPE, "a")
    ),
    "hard link to a link": lambda: untrusted(
        member("a", tarfile.SYMTYPE, "b"), member("evil", tarfile.LNKTYPE, "a")
    ),
    "no tar": lambda: io.BytesIO(b"x" * 2000),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_leads_outside_is_refused(name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(Invalid, match="was not unpacked to its end"):
        unpack_folder(OUTSIDE[name](), target)
    assert not (tmp_path / "evil").exists()
    assert not (target / "evil").exists()
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize(
    "link",
    ["/etc/passwd", "..", "../x", "a/../..", "a/..", "../../../../etc", "", "x/../y"],
)
def test_links_that_could_lead_outside_are_left_out(link: str, tmp_path: Path) -> None:
    assert unpack_folder(untrusted(member("a", tarfile.SYMTYPE, link)), tmp_path) == ["a"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "link"), [("a", "b"), ("d/a", "../b"), ("d/e/a", "../../b/c")])
def test_links_that_stay_inside_are_made(name: str, link: str, tmp_path: Path) -> None:
    assert unpack_folder(untrusted(member(name, tarfile.SYMTYPE, link)), tmp_path) == []
    assert os.readlink(tmp_path / name) == link


def test_links_over_links_stay_inside(tmp_path: Path) -> None:
    """``p/q/r`` leads to the top, so ``p/q/r/../..`` would lead above it."""
    archive = untrusted(
        member("z", tarfile.DIRTYPE, mode=0o755),
        member("p/q/r", tarfile.SYMTYPE, "../../z"),
        member("e", tarfile.SYMTYPE, "p/q/r/../.."),
    )
    assert unpack_folder(archive, tmp_path) == ["e"]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_left_out(kind: bytes, tmp_path: Path) -> None:
    assert unpack_folder(untrusted(member("dev", kind), (member("f"), b"x")), tmp_path) == ["dev"]
    assert everything(tmp_path) == {"f": "x"}


def test_links_of_the_target_are_not_followed(tmp_path: Path) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    target.mkdir()
    other.mkdir()
    (target / "d").symlink_to(other)
    with pytest.raises(Invalid):
        unpack_folder(untrusted((member("d/f"), b"x")), target)
    (other / "f").write_text("old")
    (target / "f").symlink_to(other / "f")
    unpack_folder(untrusted((member("f"), b"new")), target)
    assert ((other / "f").read_text(), (target / "f").read_text()) == ("old", "new")


def test_set_uid_and_write_for_all_are_dropped(tmp_path: Path) -> None:
    unpack_folder(
        untrusted((member("f", mode=0o6777), b""), member("d", tarfile.DIRTYPE, mode=0o7000)),
        tmp_path,
    )
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_an_absolute_name_is_inside(tmp_path: Path) -> None:
    unpack_folder(untrusted((member("/etc/passwd"), b"x")), tmp_path)
    assert everything(tmp_path) == {"etc": "/", "etc/passwd": "x"}


def test_a_hard_link_is_a_second_name(tmp_path: Path) -> None:
    unpack_folder(untrusted((member("a"), b"x"), member("d/b", tarfile.LNKTYPE, "a")), tmp_path)
    assert (tmp_path / "a").samefile(tmp_path / "d" / "b")


def test_a_header_that_claims_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    header = member("x", tarfile.GNUTYPE_LONGNAME)
    header.size = 4 << 30

    class Endless(io.BytesIO):
        """Would give whatever is asked for."""

        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            Endless.asked = max(Endless.asked, size or 0)
            return super().read(size)

    archive = Endless(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(Invalid):
        unpack_folder(archive, tmp_path)
    assert Endless.asked <= 1 << 20


def test_endless_headers_end(tmp_path: Path) -> None:
    header = member("x", tarfile.XHDTYPE)
    body = b"18 comment=aaaaaa\n"
    header.size = len(body)
    one = header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(512 - len(body))
    with pytest.raises(Invalid):
        unpack_folder(io.BytesIO(one * 5000), tmp_path)
