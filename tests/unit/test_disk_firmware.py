"""The UEFI variables of snapshots: one file for the same, and nothing that was changed is given out."""

from pathlib import Path

import pytest

from serai.disk.firmware import FirmwareFolder
from serai.errors import Code, HostFailure


@pytest.fixture
def folder(tmp_path: Path) -> FirmwareFolder:
    return FirmwareFolder(tmp_path / "firmware")


def test_the_same_is_kept_once_and_a_bios_has_nothing(folder: FirmwareFolder, tmp_path: Path):
    name = folder.put(b"one")
    assert folder.put(b"one") == name != folder.put(b"two")
    assert (folder.get(name), folder.put(b""), folder.get("")) == (b"one", "", b"")
    files = [*(tmp_path / "firmware").iterdir()]
    assert len(files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("content", [b"onf", b"", b"oneone"])
def test_what_was_changed_is_not_given_out_and_can_be_kept_anew(
    folder: FirmwareFolder, content: bytes
):
    name = folder.put(b"one")
    folder.path(name).write_bytes(content)
    with pytest.raises(HostFailure) as caught:
        folder.get(name)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT
    assert folder.put(b"one") == name
    assert folder.get(name) == b"one"


def test_what_is_gone_is_said_to_be(folder: FirmwareFolder):
    with pytest.raises(HostFailure) as caught:
        folder.get("0" * 64)
    assert caught.value.code is Code.SNAPSHOT_CORRUPT


def test_only_what_nobody_names_or_holds_goes(folder: FirmwareFolder):
    folder.keep_only(())  # there is no folder yet
    one, two, three = (folder.put(each) for each in (b"one", b"two", b"three"))
    with folder.held(two):
        folder.keep_only({one})
    assert [folder.path(each).exists() for each in (one, two, three)] == [True, True, False]
    folder.keep_only({one})
    assert not folder.path(two).exists()
