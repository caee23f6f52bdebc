"""What this host can do: asked of QEMU once, kept, and honest about a QEMU that is of no use."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from serai.errors import Code, HostFailure
from serai.host import kvm_probe, tools
from serai.host.kvm_probe import (
    choose_accel,
    lacks_permission,
    runs_guest_code,
    shows_virtualization,
)
from serai.host.process import find_program
from serai.host.tools import available_memory, find_capabilities, total_memory
from serai.model.guest import Accel
from serai.model.node import Capabilities
from serai.settings import Settings, read_settings


def settings_with(**values: str) -> Settings:
    environ = {f"SERAI_{name.upper()}": text for name, text in values.items()}
    return read_settings(environ, Path("/none"))


def answers(major: int, minor: int) -> list[object]:
    version = {"qemu": {"major": major, "minor": minor, "micro": 1}, "package": ""}
    return [
        {"QMP": {"version": version, "capabilities": []}},
        {"return": {}},
        {"return": version},
        {"return": [{"name": f"pc-q35-{major}.{minor}", "alias": "q35"}, {"name": "none"}]},
        {"return": [{"name": "virtio-blk-pci"}]},
        {"return": [{"name": "memory-backend-memfd"}]},
        {"return": [{"option": "sandbox", "parameters": [{"name": "spawn"}]}]},
        {"timestamp": {}, "event": "SHUTDOWN"},
        {"return": {}},
    ]


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A program that says what is in the file beside it, and counts how often it was started."""
    program = tmp_path / "qemu"
    program.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/asked\necho >> {tmp_path}/starts\ncat {tmp_path}/says\n"
    )
    program.chmod(0o755)
    let_say(program, answers(8, 1))
    return program


def let_say(program: Path, lines: list[object]) -> None:
    text = "\r\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (program.parent / "says").write_text(text + "\r\n")


def starts(program: Path) -> int:
    path = program.parent / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


async def ask(program: Path, **more: str) -> Capabilities:
    settings = settings_with(qemu=str(program), accel="tcg", **more)
    return await find_capabilities(settings, program.parent / "state" / "cache.json")


async def test_the_answers_become_capabilities(fake: Path) -> None:
    can = await ask(fake)
    assert (can.qemu_path, can.qemu_version) == (str(fake), "8.1.1")
    assert can.machine_type == "pc-q35-8.1"
    assert can.devices == {"virtio-blk-pci"}
    assert can.objects == {"memory-backend-memfd"}
    assert can.sandbox
    assert can.accel is Accel.TCG
    assert can.memory == total_memory() > available_memory() > 0
    assert can.cpus == len(os.sched_getaffinity(0))


async def test_a_second_question_is_answered_from_the_cache(fake: Path) -> None:
    first = await ask(fake)
    assert await ask(fake) == first
    assert starts(fake) == 1


@pytest.mark.parametrize("change", ["time", "size", "cache", "accel", "old form"])
async def test_the_cache_holds_only_for_what_it_was_found_for(fake: Path, change: str) -> None:
    await ask(fake)
    cache = fake.parent / "state" / "cache.json"
    if change == "time":
        os.utime(fake, (1, 1))
    if change == "size":
        before = fake.stat()
        fake.write_text(fake.read_text() + "#")
        os.utime(fake, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "cache":
        cache.write_bytes(cache.read_bytes()[:100])
    if change == "old form":
        cache.write_text('{"key":"x"}')
    if change == "accel":
        settings = settings_with(qemu=str(fake), accel="auto")
        await find_capabilities(settings, cache)
    else:
        await ask(fake)
    assert starts(fake) >= 2
    assert cache.stat().st_mode & 0o077 == 0 or cache.parent.stat().st_mode & 0o077 == 0


async def test_a_cache_that_cannot_be_written_is_no_failure(fake: Path) -> None:
    (fake.parent / "state").write_text("a file, no folder")
    assert (await ask(fake)).qemu_version == "8.1.1"


@pytest.mark.parametrize(("major", "minor"), [(7, 1), (5, 2), (2, 11)])
async def test_an_old_qemu_is_too_old(fake: Path, major: int, minor: int) -> None:
    let_say(fake, answers(major, minor))
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code is Code.TOOL_TOO_OLD
    assert f"{major}.{minor}.1" in caught.value.message
    assert not (fake.parent / "state" / "cache.json").exists()


async def test_an_old_qemu_is_too_old_whatever_it_cannot_answer(fake: Path) -> None:
    refusal = {"error": {"class": "CommandNotFound", "desc": "?"}}
    let_say(fake, [answers(2, 11)[0], *[refusal] * 6])
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code is Code.TOOL_TOO_OLD


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["QEMU emulator version 7.2"],
        ["{"],
        ["[1]"],
        ["3"],
        ['{"QMP": null}'],
        ['{"QMP": {"version": {"qemu": {"major": 9}}}}'],
        answers(8, 1)[:4],
        [*answers(8, 1)[:3], *answers(8, 1)[4:]],
        [*answers(8, 1)[:3], {"return": []}, *answers(8, 1)[4:]],
        [*answers(8, 1)[:4], {"return": [1, 2]}, *answers(8, 1)[5:]],
        ["[" * 100_000],
    ],
    ids=range(12),
)
async def test_answers_that_are_none(fake: Path, lines: list[object]) -> None:
    let_say(fake, lines)
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code is Code.TOOL_FAILED
    assert str(fake) in caught.value.message


async def test_a_qemu_that_fails_tells_why(fake: Path) -> None:
    fake.write_text("#!/bin/sh\necho 'no such library' >&2; exit 127\n")
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code is Code.TOOL_FAILED
    assert "no such library" in caught.value.message


async def test_a_qemu_that_hangs_is_ended(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write_text("#!/bin/sh\nexec sleep 300\n")
    monkeypatch.setattr(tools, "ASK_TIMEOUT", 0.2)
    began = time.monotonic()
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code is Code.TIMEOUT
    assert time.monotonic() - began < 5


async def test_a_missing_qemu_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(HostFailure) as caught:
        await ask(tmp_path / "none")
    assert caught.value.code is Code.TOOL_MISSING
    assert "apt-get install qemu-system-x86" in caught.value.hint


async def test_a_qemu_that_is_no_program(fake: Path) -> None:
    fake.chmod(0o644)
    with pytest.raises(HostFailure) as caught:
        await ask(fake)
    assert caught.value.code in (Code.TOOL_FAILED, Code.TOOL_MISSING)


async def test_the_real_qemu_can_run_guests(tmp_path: Path) -> None:
    can = await find_capabilities(settings_with(accel="tcg"), tmp_path / "cache.json")
    assert can.machine_type.startswith("pc-q35-")
    assert {"virtio-blk-pci", "virtio-serial-pci", "vmgenid", "isa-debug-exit"} <= can.devices
    assert {"memory-backend-file", "iothread"} <= can.objects
    assert can.sandbox
    assert can.qemu_img_path and can.setpriv_path


# -- the probe -------------------------------------------------------------------------------------


async def test_the_probe_runs_to_its_end_when_emulated() -> None:
    assert await runs_guest_code(find_program("qemu-system-x86_64"), Accel.TCG, 20.0)


async def test_a_guest_that_hangs_ends_the_probe_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cli; hlt`` for ever, as a kernel under a KVM that is none."""
    monkeypatch.setattr(kvm_probe, "CODE", bytes.fromhex("faf4ebfd"))
    began = time.monotonic()
    assert not await runs_guest_code(find_program("qemu-system-x86_64"), Accel.TCG, 0.5)
    assert 0.4 < time.monotonic() - began < 5


async def test_a_guest_that_resets_for_ever_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """A triple fault: the interrupt table is empty."""
    monkeypatch.setattr(kvm_probe, "CODE", bytes.fromhex("fa0f011e007ccc"))
    assert not await runs_guest_code(find_program("qemu-system-x86_64"), Accel.TCG, 0.5)


@pytest.mark.parametrize("script", ["exit 0", "exit 1", "exit 83", "kill -9 $$"])
async def test_only_the_probes_own_exit_code_counts(tmp_path: Path, script: str) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert not await runs_guest_code(str(program), Accel.KVM)
    program.write_text("#!/bin/sh\nexit 85\n")
    assert await runs_guest_code(str(program), Accel.KVM)


async def test_the_probe_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm_probe.tempfile, "tempdir", str(tmp_path))
    assert not await runs_guest_code("/no/such/qemu", Accel.KVM)
    assert list(tmp_path.iterdir()) == []


INTEL = "processor\t: 0\nflags\t\t: fpu vme vmx sse2\nvmx flags\t: vnmi\n"
AMD = "processor\t: 0\nflags\t\t: fpu svm sse2\n"
NEITHER = "processor\t: 0\nmodel name\t: vmx svm\nflags\t\t: fpu hypervisor sse2\nvmx flags\t: \n"


@dataclass
class Kvm:
    """A made-up host: what of KVM it has."""

    passes: bool = True
    device: bool = True
    allowed: bool = True
    probed: int = 0

    async def probe(self, qemu: str, accel: Accel, *rest: object, **more: object) -> bool:
        self.probed += 1
        return self.passes


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kvm:
    made = Kvm()
    monkeypatch.setattr(kvm_probe, "runs_guest_code", made.probe)
    monkeypatch.setattr(kvm_probe.os.path, "exists", lambda path: made.device)
    monkeypatch.setattr(kvm_probe.os, "access", lambda path, mode: made.allowed)
    monkeypatch.setattr(kvm_probe.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(kvm_probe, "CPUINFO", tmp_path / "cpuinfo")
    kvm_probe.CPUINFO.write_text(INTEL)
    return made


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
async def test_kvm_is_used_only_when_the_probe_passed(kvm: Kvm, wanted: str) -> None:
    assert (await choose_accel("qemu", wanted))[0] is Accel.KVM
    kvm.passes = False
    accel, reason = await choose_accel("qemu", wanted)
    assert accel is Accel.TCG
    assert "hung or failed" in reason
    kvm.passes, kvm.allowed = True, False
    assert "group kvm" in (await choose_accel("qemu", wanted))[1]
    kvm.device = False
    assert "no /dev/kvm" in (await choose_accel("qemu", wanted))[1]
    assert kvm.probed == 2


async def test_tcg_can_be_asked_for(kvm: Kvm) -> None:
    assert (await choose_accel("qemu", "tcg"))[0] is Accel.TCG
    assert not kvm.probed


async def test_a_kvm_without_hardware_is_probed_only_when_asked_for(kvm: Kvm) -> None:
    kvm_probe.CPUINFO.write_text(NEITHER)
    accel, reason = await choose_accel("qemu", "auto")
    assert accel is Accel.TCG
    assert "no virtualization" in reason
    assert not kvm.probed
    kvm.allowed = False
    assert not lacks_permission(), "it would be of no use"
    assert "no virtualization" in (await choose_accel("qemu", "auto"))[1]
    kvm.allowed = True
    assert (await choose_accel("qemu", "kvm"))[0] is Accel.KVM
    assert kvm.probed


def test_a_missing_right_is_the_only_thing_that_is_missing(kvm: Kvm) -> None:
    assert not lacks_permission()
    kvm.allowed = False
    assert lacks_permission()
    kvm.device = False
    assert not lacks_permission()


def test_virtualization_is_a_flag_and_nothing_else() -> None:
    assert shows_virtualization(INTEL)
    assert shows_virtualization(AMD)
    assert not shows_virtualization(NEITHER)
    assert not shows_virtualization("")


async def test_this_hosts_kvm_is_judged_in_time() -> None:
    """Whatever this host has, the answer comes, with a reason, and is the probe's."""
    accel, reason = await choose_accel(find_program("qemu-system-x86_64"), "kvm")
    assert reason
    assert (accel is Accel.KVM) == (reason == "guest code ran under KVM")
    if not shows_virtualization(kvm_probe.CPUINFO.read_text()):
        assert accel is Accel.TCG
