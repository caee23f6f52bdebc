"""What this host can do: QEMU, firmware, acceleration and rights, asked once and kept.

The answer (``Capabilities``) is the only input for decisions about it; nobody compares versions
elsewhere. It is cached beside the database, keyed by the boot and the QEMU binary, since starting
QEMU and probing KVM takes up to seconds.
"""

import asyncio
import contextlib
import os
import platform
import zlib
from pathlib import Path
from typing import Any

import msgspec

from serai.errors import Code, HostFailure, SeraiError
from serai.host.cgroup import find_layout
from serai.host.kvm_probe import CODE, choose_accel
from serai.host.process import find_program, run
from serai.model.node import Capabilities
from serai.settings import Settings

OLDEST_QEMU = (7, 2)
ASK_TIMEOUT = 20.0

UEFI_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
QUESTIONS = (
    {"execute": "qmp_capabilities"},
    {"execute": "query-version"},
    {"execute": "query-machines"},
    {"execute": "qom-list-types", "arguments": {"implements": "device"}},
    {"execute": "qom-list-types", "arguments": {"implements": "user-creatable"}},
    {"execute": "query-command-line-options", "arguments": {"option": "sandbox"}},
    {"execute": "quit"},
)


class Cached(msgspec.Struct, frozen=True, kw_only=True):
    """Capabilities and what they were found for."""

    key: str
    capabilities: Capabilities


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What QEMU said of itself."""

    version: tuple[int, int, int]
    machine_type: str
    devices: frozenset[str]
    objects: frozenset[str]
    sandbox: bool


async def find_capabilities(settings: Settings, cache: Path) -> Capabilities:
    """Return what this host can do, from ``cache`` if nothing has changed since.

    Raises HostFailure: ``tool-missing`` without QEMU, ``tool-too-old`` before 7.2.
    """
    qemu = settings.qemu or find_program("qemu-system-x86_64")
    key = await asyncio.to_thread(_key, qemu, settings)
    known = await asyncio.to_thread(_read_cache, cache)
    if known is not None and known.key == key:
        return known.capabilities
    found = await _find(qemu, settings)
    await asyncio.to_thread(_write_cache, cache, Cached(key=key, capabilities=found))
    return found


def _key(qemu: str, settings: Settings) -> str:
    """Return what the answer depends on: host, QEMU, settings, and what this version asks."""
    try:
        facts = os.stat(qemu)
    except OSError as error:
        raise HostFailure(
            Code.TOOL_MISSING,
            f"{qemu} is missing: {error.strerror}",
            hint="Install it: apt-get install qemu-system-x86",
        ) from error
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    firmware = ",".join(str(os.path.exists(code)) for code, _ in UEFI_FIRMWARE)
    tools = ",".join(_path_or_empty(name) for name in ("qemu-img", "setpriv"))
    kvm = os.access("/dev/kvm", os.R_OK | os.W_OK)
    asked = zlib.crc32(repr((Capabilities.__struct_fields__, QUESTIONS, CODE)).encode())
    parts = (boot, qemu, facts.st_mtime_ns, facts.st_size, settings.accel, os.geteuid())
    return " ".join(str(part) for part in (*parts, firmware, tools, kvm, asked))


def _read_cache(cache: Path) -> Cached | None:
    try:
        return msgspec.json.decode(cache.read_bytes(), type=Cached)
    except (OSError, msgspec.DecodeError):
        return None


def _write_cache(cache: Path, found: Cached) -> None:
    """Keep the answer; where that can't be, it is found out again the next time."""
    new = cache.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(found))
        new.replace(cache)


async def _find(qemu: str, settings: Settings) -> Capabilities:
    answers = await _ask_qemu(qemu)
    accel, reason = await choose_accel(qemu, settings.accel)
    firmware = next((pair for pair in UEFI_FIRMWARE if os.path.exists(pair[0])), ("", ""))
    return Capabilities(
        qemu_path=qemu,
        qemu_version=".".join(map(str, answers.version)),
        machine_type=answers.machine_type,
        accel=accel,
        accel_reason=reason,
        devices=answers.devices,
        objects=answers.objects,
        sandbox=answers.sandbox,
        qemu_img_path=_path_or_empty("qemu-img"),
        uefi_code=firmware[0],
        uefi_vars=firmware[1],
        setpriv_path=_path_or_empty("setpriv"),
        cgroup=find_layout(),
        privileged=os.geteuid() == 0,
        cpus=len(os.sched_getaffinity(0)),
        memory=total_memory(),
        processor=_processor(),
        notes=_notes(),
    )


def _processor() -> str:
    """Return the model of the processor, which guests see under KVM; "" where it has no name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == "model name":
            return value.strip()
    return ""


def _notes() -> tuple[str, ...]:
    notes = []
    if os.geteuid() != 0:
        notes.append("not root: all guests run as this user, without a uid and control group each")
    if not _path_or_empty("setpriv"):
        notes.append("setpriv is missing: QEMU is started without dropping privileges")
    if platform.machine() != "x86_64":
        notes.append(f"this host is {platform.machine()}: x86-64 guests are emulated")
    return tuple(notes)


def _path_or_empty(name: str) -> str:
    try:
        return find_program(name)
    except SeraiError:
        return ""


async def _ask_qemu(qemu: str) -> Answers:
    """Start QEMU without a machine, ask it all questions at once, read the answers.

    Its greeting tells the version, so that an old one is called old whatever it can't answer.
    """
    done = await run(
        [
            qemu, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
            "-qmp", "stdio",
        ],
        timeout=ASK_TIMEOUT,
        input=b"".join(msgspec.json.encode(question) + b"\n" for question in QUESTIONS),
    )  # fmt: skip
    try:
        lines = [msgspec.json.decode(line) for line in done.stdout.splitlines() if line]
        numbers = lines[0]["QMP"]["version"]["qemu"]
        version = (numbers["major"], numbers["minor"], numbers["micro"])
        if version[:2] < OLDEST_QEMU:
            raise _too_old(qemu, version)
        return _read_answers(version, [line["return"] for line in lines if "return" in line])
    except (ValueError, LookupError, TypeError, StopIteration, RecursionError) as error:
        raise HostFailure(
            Code.TOOL_FAILED,
            f"{qemu} gave answers that can't be read",
            hint="Is it a QEMU at all? The setting qemu names another.",
            details={"why": repr(error)[:500]},
        ) from error


def _too_old(qemu: str, version: tuple[int, int, int]) -> HostFailure:
    return HostFailure(
        Code.TOOL_TOO_OLD,
        f"{qemu} is version {'.'.join(map(str, version))}; serai needs 7.2 or newer",
        hint="Use Debian 12 or newer, or name another with the setting qemu.",
    )


def _read_answers(version: tuple[int, int, int], returns: list[Any]) -> Answers:
    machines, devices, objects, sandbox = returns[2:6]
    return Answers(
        version=version,
        machine_type=next(each["name"] for each in machines if each.get("alias") == "q35"),
        devices=frozenset(each["name"] for each in devices),
        objects=frozenset(each["name"] for each in objects),
        sandbox=any(each["option"] == "sandbox" and each["parameters"] for each in sandbox),
    )


def total_memory() -> int:
    """Return the host's memory in bytes."""
    return _meminfo("MemTotal")


def available_memory() -> int:
    """Return how much memory could be used now without swapping, in bytes (proc(5))."""
    return _meminfo("MemAvailable")


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0
