"""The parts that images are put together from: cpio, module order, the boot sector's numbers."""

import stat
import struct
from pathlib import Path

import pytest

from serai.disk import boot_disk
from serai.disk.build_debian import _check_names, _ids, _Watch
from serai.disk.build_tiny import _in_order, _needed_modules
from serai.disk.cpio import a_device, a_file, a_link, pack, with_folders
from serai.errors import Code, SeraiError


def entries_of(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive back: a small reader of its own, to check the writer."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at += -(-size // 4) * 4


def test_an_archive_holds_what_was_put_in() -> None:
    archive = pack([a_file("etc/x", b"hello", 0o755), a_link("bin/sh", "/bin/busybox")])
    found = entries_of(archive)
    assert found["etc/x"] == (stat.S_IFREG | 0o755, b"hello")
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"/bin/busybox")
    assert stat.S_ISDIR(found["etc"][0])
    assert len(archive) % 512 == 0


def test_an_archive_does_not_depend_on_the_order_of_its_entries() -> None:
    one, other = a_file("b", b"1"), a_device("a/null", 1, 3)
    assert pack([one, other]) == pack([other, one])


def test_folders_come_before_what_is_in_them() -> None:
    paths = [entry.path for entry in with_folders([a_file("a/b/c", b"")])]
    assert paths == ["a", "a/b", "a/b/c"]


def test_a_module_comes_after_all_it_needs(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.1/kernel/drivers"
    folder.mkdir(parents=True)
    for name, needs in {
        "net": "fail_over,ring",
        "fail-over": "",
        "ring": "base",
        "base": "",
    }.items():
        (folder / f"{name}.ko").write_bytes(b"\0license=GPL\0depends=" + needs.encode() + b"\0x")
    assert _in_order(tmp_path, ["net"]) == ["fail_over", "base", "ring", "net"]
    assert _in_order(tmp_path, ["built-in-thing"]) == []


def test_a_module_without_a_list_needs_nothing() -> None:
    assert _needed_modules(b"\x7fELF") == []


def test_the_boot_sector_is_told_where_core_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "i386-pc/boot.img"
    image.parent.mkdir()
    image.write_bytes(bytes(range(256)) * 2)
    monkeypatch.setattr(boot_disk, "GRUB_FOLDER", tmp_path)
    code = boot_disk._boot_sector()
    assert len(code) == 440  # the partition table behind it stays
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"


def test_the_parts_of_the_disk_do_not_overlap() -> None:
    b = boot_disk
    assert b.BIOS_START + b.BIOS_SECTORS <= b.ESP_START
    assert b.ESP_START + b.ESP_SECTORS <= b.ROOT_START


@pytest.mark.parametrize("suite", ["bookworm; rm -rf /", "../x", "", "Bookworm", "-x"])
def test_a_release_that_is_none_is_refused(suite: str) -> None:
    with pytest.raises(SeraiError) as caught:
        _check_names(suite, [])
    assert caught.value.code is Code.VALUE_INVALID


@pytest.mark.parametrize("name", ["a b", "--option", "x,y", "$(id)", "x" * 200])
def test_a_package_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SeraiError):
        _check_names("bookworm", [name])


def test_ids_come_from_the_recipe() -> None:
    assert _ids("bookworm", ["vim"]) == _ids("bookworm", ["vim"])
    assert _ids("bookworm", ["vim"])["root"] != _ids("trixie", ["vim"])["root"]
    assert len(set(_ids("bookworm", []).values())) == 6


def test_progress_is_read_from_what_mmdebstrap_says() -> None:
    seen: list[tuple[str, int, int, str]] = []
    watch = _Watch(lambda *step: seen.append(step))
    watch.on_line("Setting up systemd (252.5) ...")
    watch.on_line("E: Unable to locate package nosuch")
    assert seen[0][0] == "system"
    assert 0 < seen[0][1] <= seen[0][2]
    assert watch.last_error == "Unable to locate package nosuch"
