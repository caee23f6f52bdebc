"""The doctor: what is missing, the command that mends it, and its exit code."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from serai import doctor_command
from serai.doctor_command import doctor
from serai.errors import Code, Denied, HostFailure
from serai.host import doctor as rooms
from serai.host import packages, process, rights
from serai.host.doctor import CHECKS, find_findings, mend
from serai.host.packages import Package, missing, package_of
from serai.host.process import Completed
from serai.host.rights import lacking_capabilities, why_not_apart
from serai.model.guest import Accel
from serai.model.node import Capabilities, Finding, Severity
from serai.settings import Places, Settings, find_places, read_settings

GOOD = Capabilities(
    qemu_path="/usr/bin/qemu-system-x86_64", qemu_version="7.2.22", machine_type="pc-q35-7.2",
    accel=Accel.KVM, accel_reason="guest code ran under KVM", sandbox=True,
    uefi_code="/code", uefi_vars="/vars", memory=8 << 30, cpus=2,
)  # fmt: skip
MISSING = Package("frob-tools", "/no/such/frob", "frobs images", needed=True)
OPTIONAL = Package("grate", "/no/such/grate", "grates images")


class Host:
    """A made-up host: what is found out of it, and what was run on it."""

    def __init__(self) -> None:
        self.capabilities: Capabilities | HostFailure = GOOD
        self.packages: tuple[Package, ...] = ()
        self.commands: list[tuple[str, ...]] = []
        self.fail = False

    async def find(self, settings: Settings, cache: Path) -> Capabilities:
        if isinstance(self.capabilities, HostFailure):
            raise self.capabilities
        return self.capabilities

    async def run(self, argv: Sequence[str], **more: object) -> Completed:
        self.commands.append(tuple(argv))
        if self.fail:
            raise HostFailure(Code.TOOL_FAILED, "apt-get failed")
        self.packages = ()
        return Completed(tuple(argv), 0, b"", b"")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, serai_home: Path) -> Host:
    made = Host()
    monkeypatch.setenv("SERAI_HOME", str(serai_home))
    monkeypatch.setattr(rooms, "find_capabilities", made.find)
    monkeypatch.setattr(rooms, "run", made.run)
    monkeypatch.setattr(rooms, "missing", lambda: [*made.packages])
    return made


@pytest.fixture
def places(serai_home: Path) -> Places:
    return find_places({"SERAI_HOME": str(serai_home)}, is_root=True)


async def look(places: Places) -> dict[str, Finding]:
    settings = read_settings({"SERAI_ACCEL": "tcg"}, Path("/none"))
    return {finding.name: finding for finding in await find_findings(settings, places)}


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command; its exit code is what it returns to ``cli.main``."""
    codes: list[int] = []
    inner = doctor.callback
    assert inner is not None
    monkeypatch.setattr(doctor, "callback", lambda **words: codes.append(inner(**words)))

    def run(*words: str) -> Result:
        result = CliRunner().invoke(doctor, words)
        if result.exception is None:
            result.exit_code = codes[-1]
        return result

    return run


async def test_a_good_host_has_nothing_to_mend(host: Host, places: Places) -> None:
    found = await look(places)
    assert len(found) == len(CHECKS)
    assert {each.severity for each in found.values()} <= {Severity.OK, Severity.NOTE}
    assert found["acceleration"].message == "KVM: guest code ran under KVM"


async def test_missing_packages_are_named_with_the_command(host: Host, places: Places) -> None:
    host.packages = (MISSING, OPTIONAL, Package("other", "/no", "others", needed=True))
    found = await look(places)
    finding = found["packages"]
    assert finding.severity is Severity.MISSING
    assert "frob-tools (frobs images)" in finding.message
    assert finding.fix[:3] == ("apt-get", "install", "-y")
    assert finding.fix[-2:] == ("frob-tools", "other")
    finding = found["more packages"]
    assert finding.severity is Severity.NOTE
    assert finding.message == "missing: grate (grates images)"
    assert finding.fix[-1] == "grate"


async def test_the_table_is_what_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = Package("there", str(tmp_path), "is there")
    monkeypatch.setattr(packages, "PACKAGES", (there, MISSING, Package("no", "no-such-frob", "x")))
    assert [each.name for each in missing()] == ["frob-tools", "no"]
    assert package_of("no-such-frob") == "no"
    assert package_of("else") == ""


async def test_without_qemu_nothing_is_claimed(host: Host, places: Places) -> None:
    host.capabilities = HostFailure(Code.TOOL_MISSING, "the program qemu is missing")
    found = await look(places)
    assert found["qemu"].severity is Severity.MISSING
    assert found["qemu"].fix == ("apt-get", "install", "-y", "qemu-system-x86")
    for name in ("acceleration", "sandbox", "uefi"):
        assert found[name].severity is Severity.NOTE
        assert found[name].message == "not known without QEMU"


async def test_an_old_qemu_is_not_mended_by_installing_it_again(host: Host, places: Places) -> None:
    host.capabilities = HostFailure(Code.TOOL_TOO_OLD, "version 5.2", hint="Use Debian 12.")
    finding = (await look(places))["qemu"]
    assert finding.severity is Severity.MISSING
    assert finding.message == "version 5.2. Use Debian 12."
    assert finding.fix == ()


async def test_emulation_is_told_with_what_it_means(host: Host, places: Places) -> None:
    host.capabilities = Capabilities(
        qemu_path="q", qemu_version="7.2.0", machine_type="m", accel=Accel.TCG,
        accel_reason="KVM is not used: it hung", memory=1,
    )  # fmt: skip
    found = await look(places)
    assert found["acceleration"].severity is Severity.NOTE
    assert "it hung" in found["acceleration"].message
    assert "no security boundary" in found["acceleration"].message
    assert found["sandbox"].severity is Severity.NOTE
    assert found["uefi"].fix[-1] == "ovmf"
    assert "only" in found["memory"].message


async def test_mend_runs_the_commands_with_fresh_lists(
    host: Host, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.packages = (MISSING,)
    findings = list((await look(places)).values())
    monkeypatch.setattr(rooms.os, "geteuid", lambda: 0)
    await mend(findings, print)
    assert [words[2:4] for words in host.commands] == [("apt-get", "update"), ("apt-get", "install")]  # fmt: skip
    host.commands.clear()
    monkeypatch.setattr(rooms.os, "geteuid", lambda: 1000)
    await mend(findings, print)
    assert {words[:2] for words in host.commands} == {("sudo", "-n")}


async def test_without_root_the_commands_are_told(
    host: Host, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sudo wants a password, or there is none."""
    host.packages, host.fail = (MISSING,), True
    findings = list((await look(places)).values())
    monkeypatch.setattr(rooms.os, "geteuid", lambda: 1000)
    with pytest.raises(Denied) as caught:
        await mend(findings, print)
    assert caught.value.code is Code.PERMISSION
    install = "sudo apt-get install -y --no-install-recommends frob-tools"
    assert caught.value.hint == f"Run it yourself: sudo apt-get update && {install}"
    assert host.commands == [("sudo", "-n", "true")]


async def test_mend_of_a_good_host_runs_nothing(host: Host, places: Places) -> None:
    await mend(list((await look(places)).values()), print)
    assert host.commands == []


async def test_root_that_cannot_keep_guests_apart_is_told(
    host: Host, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def why_not(uid: int) -> str:
        return f"no {uid}"

    monkeypatch.setattr(rooms, "why_not_apart", why_not)
    monkeypatch.setattr(rooms.os, "geteuid", lambda: 0)
    finding = (await look(places))["rights"]
    assert (finding.severity, finding.message) == (Severity.MISSING, "no 1879048192")
    monkeypatch.setattr(rooms.os, "geteuid", lambda: 1000)
    finding = (await look(places))["rights"]
    assert finding.severity is Severity.NOTE
    assert "not root" in finding.message


async def test_who_lacks_only_the_group_is_told_how_to_join(
    host: Host, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.capabilities = msgspec.structs.replace(GOOD, accel=Accel.TCG, accel_reason="no right")
    monkeypatch.setattr(rooms, "lacks_permission", lambda: True)
    monkeypatch.setattr(rooms, "DEVICE", "/dev/null")
    finding = (await look(places))["acceleration"]
    assert finding.fix[:3] == ("usermod", "--append", "--groups")
    monkeypatch.setattr(rooms, "lacks_permission", lambda: False)
    assert (await look(places))["acceleration"].fix == ()


async def test_a_place_that_may_not_be_written_is_told(
    host: Host, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms.os, "access", lambda path, mode: path != places.state.parent)
    finding = (await look(places))["state"]
    assert finding.severity is Severity.MISSING
    assert "SERAI_HOME" in finding.message


def test_capabilities_are_read_from_the_status() -> None:
    full = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n"
    assert lacking_capabilities(full) == []
    docker = full.replace("000001ffffffffff", "00000000a80425fb")
    assert [name.split(":")[0] for name in lacking_capabilities(docker)] == ["CAP_SYS_PTRACE"]
    assert len(lacking_capabilities("")) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_whether_guests_can_be_kept_apart_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await why_not_apart(1_879_048_192) == ""
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        patch.setattr(process, "CLEAN_ENV", {"PATH": "/none"})
        why = await why_not_apart(1_879_048_192)
    assert why.startswith("no program can be started as user 1879048192")
    monkeypatch.setattr(rights, "STATUS", Path(os.devnull))
    assert "CAP_CHOWN" in await why_not_apart(1_879_048_192)


def test_the_command_says_so_and_fails(host: Host, invoke: Callable[..., Result]) -> None:
    assert invoke().exit_code == 0
    host.packages = (MISSING,)
    result = invoke()
    assert result.exit_code == 1
    assert "MISSING  packages: missing: frob-tools" in result.output
    assert "apt-get install -y --no-install-recommends frob-tools" in result.output
    assert host.commands == [], "nothing is changed without --fix"


def test_the_command_as_json(host: Host, invoke: Callable[..., Result]) -> None:
    host.packages = (MISSING,)
    result = invoke("--format", "json")
    assert result.exit_code == 1
    found = {each["name"]: each for each in json.loads(result.output)}
    assert found["packages"]["severity"] == "missing"
    assert found["packages"]["fix"][-1] == "frob-tools"


def test_fix_mends_and_looks_again(host: Host, invoke: Callable[..., Result]) -> None:
    host.packages = (MISSING,)
    result = invoke("--fix")
    assert result.exit_code == 0
    assert "ok       packages" in result.output
    assert len(host.commands) == 2


def test_a_fix_that_fails_is_told(host: Host, invoke: Callable[..., Result]) -> None:
    host.packages, host.fail = (MISSING,), True
    result = invoke("--fix")
    assert isinstance(result.exception, HostFailure)


async def test_this_host_itself(places: Places) -> None:
    """All checks work on the machine that we are on, whatever they find."""
    found = await look(places)
    assert all(finding.message for finding in found.values())
    assert not places.run.exists(), "looking changes nothing"
    assert doctor_command.MARKS.keys() == set(Severity)
