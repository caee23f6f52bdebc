"""Pulling by name, publishing an index, importing guests: the commands and the SDK against the real API."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_stage import Stage, staged

import serai
from serai.errors import Invalid
from serai.model.actions import ImportGuest, PullImage
from serai.model.foreign import ForeignDisk, ForeignMachine

DOMAIN = """<domain type='kvm'><name>Web 1</name><memory unit='GiB'>1</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
<disk type='file' device='disk'><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
{more}</devices></domain>"""
SECOND = "<disk type='file' device='disk'><source file='/b'/><target dev='vdb'/></disk>"


@pytest.fixture
def stage(serai_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with staged(serai_home, monkeypatch) as made:
        yield made


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    """A domain whose disk is beside it."""
    (tmp_path / "disk.qcow2").write_bytes(b"disk")
    file = tmp_path / "web.xml"
    file.write_text(DOMAIN.format(disk=tmp_path / "disk.qcow2", more=""))
    return file


def test_pull_says_what_it_made_and_passes_all_options_on(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("KEY")
    assert stage.serai("image", "pull", "debian:12").text.startswith("debian-12 is there: kernel")
    done = stage.serai(
        *["image", "pull", "debian", "--index", f"{tmp_path}/i.json", "--index-sha256", "AB" * 32],
        *["--key", f"{tmp_path}/k.pub", "--name", "mine", "--replace", "--format", "json"],
    )
    assert json.loads(done.out)["name"] == "mine"
    assert stage.engine.actions == [
        PullImage(image="debian:12"),
        PullImage(
            image="debian", index=f"{tmp_path}/i.json", index_sha256="ab" * 32, key="KEY",
            name="mine", replace=True,
        ),
    ]  # fmt: skip


def test_a_relative_index_is_beside_the_caller(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = stage.serai("image", "catalogue", "--index", "i.json", "--format", "json")
    assert json.loads(found.out)["source"] == f"{tmp_path}/i.json"


def test_catalogue(stage: Stage) -> None:
    lines = stage.serai("image", "catalogue").text.splitlines()
    assert lines[0].split()[:2] == ["NAME", "SYSTEM"]
    assert lines[1].split()[0] == "debian:12" and "digest" in lines[1]
    assert lines[2].endswith("part of serai")
    assert "debian" not in stage.serai("image", "catalogue", "fedora").text
    assert (
        json.loads(stage.serai("image", "catalogue", "x", "--format", "json").out)["entries"] == []
    )


def test_an_index_is_made_and_signed_without_a_daemon(stage: Stage, tmp_path: Path) -> None:
    stage.stop()
    key = f"{tmp_path}/k"
    assert stage.serai("image", "key", key).text.startswith(f"{key} and {key}.pub: sha256:")
    again = stage.serai("image", "key", key, "--format", "json")
    assert (again.code, json.loads(again.err)["code"]) == (4, "file-failed")
    site = tmp_path / "site"
    site.mkdir()
    assert stage.serai("image", "index", str(site)).code == 2
    (site / "a-1.raw").write_bytes(b"disk")
    done = stage.serai("image", "index", str(site), "--sign-key", key)
    assert done.text.splitlines()[1].split()[:2] == ["a:1", "a-1.raw"]
    assert "signed by sha256:" in done.text and "reading a-1.raw" in done.err
    assert "not signed" in stage.serai("image", "index", str(site)).text
    assert stage.serai("image", "index", str(site), "--sign-key", f"{key}.pub").code == 2
    found = stage.serai("image", "index", str(site), "--format", "json")
    assert json.loads(found.out)["entries"][0]["name"] == "a"


def test_import_of_an_archive(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "web.ova").write_bytes(b"any")
    done = stage.serai("import", f"{tmp_path}/web.ova", "web1", "--memory", "1GiB", "--cpus", "2")
    assert done.text.startswith("web1 is defined: 1 CPU, 256 MiB of memory, bios")
    stage.serai("import", "https://h.example/x.ova", "web2", "--sha256", "AB" * 32, "--root-only")
    assert stage.engine.actions == [
        ImportGuest(source=f"{tmp_path}/web.ova", name="web1", cpus=2, memory=1 << 30),
        ImportGuest(
            source="https://h.example/x.ova", name="web2", sha256="ab" * 32, root_only=True
        ),
    ]


def test_import_of_a_definition_reads_it_here(stage: Stage, definition: Path) -> None:
    disk = str(definition.with_name("disk.qcow2"))
    assert stage.serai("import", str(definition)).text.startswith("web-1 is defined")
    found = json.loads(stage.serai("import", str(definition), "web2", "--format", "json").out)
    assert found["guest"]["name"] == "web2"
    machine = ForeignMachine(
        name="Web 1", cpus=2, memory=1 << 30, disks=(ForeignDisk(name="vda", source=disk),)
    )
    assert [action for action in stage.engine.actions if isinstance(action, ImportGuest)] == [
        ImportGuest(source=disk, name=name, machine=machine) for name in ("web-1", "web2")
    ]


def test_further_disks_of_a_definition_go_with_it(stage: Stage, definition: Path) -> None:
    disk, data = definition.with_name("disk.qcow2"), definition.with_name("data.raw")
    data.write_bytes(b"any")
    definition.write_text(DOMAIN.format(disk=disk, more=SECOND.replace("/b", str(data))))
    assert stage.serai("import", str(definition)).code == 0
    (action,) = (each for each in stage.engine.actions if isinstance(each, ImportGuest))
    assert action.machine is not None
    assert [each.source for each in action.machine.disks] == [str(disk), str(data)]
    data.unlink()
    done = stage.serai("import", str(definition), "--format", "json")
    assert (done.code, json.loads(done.err)["code"]) == (3, "file-failed")


@pytest.mark.parametrize(
    ("text", "words", "code", "problem"),
    [
        ("<network/>", (), 2, "definition-refused"),
        ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/shadow'>]><domain>&x;</domain>", (), 2, "definition-refused"),
        (DOMAIN.format(disk="/nonexistent", more=""), (), 3, "file-failed"),
        (DOMAIN.format(disk="/dev/null", more=SECOND.replace("'file'", "'block'", 1)), (), 2, "definition-refused"),
        (DOMAIN.format(disk="/dev/null", more=SECOND), ("--root-only",), 2, "value-invalid"),
        ("any", ("--disk", "/x"), 2, "value-invalid"),
    ],
)  # fmt: skip
def test_refusals(
    stage: Stage, tmp_path: Path, text: str, words: tuple[str, ...], code: int, problem: str
) -> None:
    file = tmp_path / "web.xml"
    file.write_text(text)
    done = stage.serai("import", str(file), "--format", "json", *words)
    assert (done.code, json.loads(done.err)["code"]) == (code, problem)
    assert stage.engine.actions == []


def test_the_sdk(stage: Stage, definition: Path) -> None:
    inn = serai.connect()
    assert inn.catalogue().entries[0].name == "debian"
    assert inn.pull_image("debian:12", name="mine").name == "mine"
    assert inn.import_guest(definition, name="web1").name == "web1"
    with pytest.raises(Invalid):
        inn.import_guest(definition, disk="/dev/null")


async def test_the_sdk_async(stage: Stage, definition: Path) -> None:
    async with serai.aio.connect() as inn:
        assert (await inn.catalogue()).entries[0].name == "debian"
        assert (await inn.pull_image("debian:12", name="mine")).name == "mine"
        assert (await inn.import_guest(definition, name="web1")).name == "web1"
