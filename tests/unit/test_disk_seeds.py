"""The disc for the first boot, and what is kept of what guests are told."""

import io
import os
from pathlib import Path

import pycdlib
import pytest

from serai.disk import disc
from serai.disk.disc import make_disc
from serai.disk.seeds import SeedFolder, name_of, write_disc
from serai.errors import HostFailure
from serai.model.firstboot import FirstBoot

DOCUMENTS = {"meta-data": b"{}\n", "network-config": b"x" * 5000, "user-data": b"#!/bin/sh\n"}
TOLD = FirstBoot(user_data="#!/bin/sh\necho secret\n")


def read(disc: bytes, kind: str) -> dict[str, bytes]:
    opened = pycdlib.PyCdlib()
    opened.open_fp(io.BytesIO(disc))
    found = {}
    for name in DOCUMENTS:
        content = io.BytesIO()
        opened.get_file_from_iso_fp(content, **{kind: f"/{name}"})
        found[name] = content.getvalue()
    opened.close()
    return found


def test_a_disc_holds_the_documents_under_their_names_and_its_label() -> None:
    disc = make_disc(DOCUMENTS)
    assert read(disc, "rr_path") == DOCUMENTS
    assert read(disc, "joliet_path") == DOCUMENTS
    assert disc[16 * 2048 + 40 : 16 * 2048 + 72].rstrip() == b"CIDATA"
    assert len(disc) % 2048 == 0


def test_the_same_documents_give_the_same_bytes_at_any_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = make_disc(DOCUMENTS)
    for module in ("headervd", "pycdlib"):
        monkeypatch.setattr(f"pycdlib.{module}.time.time", lambda: 1_000_000_000.0)
    assert make_disc(DOCUMENTS) == first
    assert make_disc({**DOCUMENTS, "user-data": b"#!/bin/dash"}) != first


def test_a_disc_is_made_anew_only_when_it_says_something_else(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_disc(path, DOCUMENTS)
    first = path.stat()
    assert first.st_mode & 0o777 == 0o600
    with path.open("rb") as held:
        write_disc(path, DOCUMENTS)
        assert path.stat().st_ino == first.st_ino
        write_disc(path, {**DOCUMENTS, "meta-data": b"other"})
        assert path.stat().st_ino != first.st_ino
        assert read(held.read(), "rr_path") == DOCUMENTS  # a guest that runs keeps what it has
    assert [each.name for each in tmp_path.iterdir()] == ["seed.iso"]


def test_what_guests_are_told_is_private_and_kept_as_long_as_it_is_named(tmp_path: Path) -> None:
    folder = SeedFolder(tmp_path / "seeds")
    folder.keep_only(())
    name = folder.put(TOLD)
    assert name == name_of(TOLD) == folder.put(TOLD)
    assert folder.get(name) == TOLD
    assert (tmp_path / "seeds").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "seeds" / name).stat().st_mode & 0o777 == 0o600
    other = folder.put(FirstBoot())
    with folder.held(name), folder.held(name):
        folder.keep_only({other})
        assert folder.get(name) == TOLD
    folder.keep_only({other})
    assert os.listdir(tmp_path / "seeds") == [other]
    with pytest.raises(HostFailure):
        folder.get(name)


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    folder = SeedFolder(tmp_path)
    (tmp_path / ".abc.new").write_text("half")
    folder.keep_only(())
    assert not list(tmp_path.iterdir())
    assert disc.LABEL == "CIDATA"
