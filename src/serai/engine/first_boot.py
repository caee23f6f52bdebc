"""What comes of a first boot: waiting for cloud-init and for ssh, and the way in.

What a guest tells of itself is its own word: it is read within limits, and shown, not believed. Not for:
what the guest is told (``seeding``).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from serai.disk.files import naming_disk_problems, replace_file
from serai.engine.driver import GuestDriver
from serai.engine.jobs import LiveJob
from serai.engine.patience import Patience
from serai.engine.reach import open_ssh
from serai.engine.running import check_talk
from serai.engine.talk import agent_of
from serai.errors import Code, Conflict, HostFailure, Interrupted, SeraiError
from serai.host.supervise import wait_until
from serai.model.guest import AgentState
from serai.model.talk import ExecRequest, SshAddress
from serai.plan.firstboot import STAGES, look_words, user_in, who_words
from serai.plan.ssh_keys import read_host_keys

SSH_TRY = 5.0
ASK_EVERY, ASK_SLOWEST = 0.2, 2.0
LOOK_TIMEOUT = 60.0
WHO_TIMEOUT = 20.0
TOLD_LIMIT = 2000


class _Result(msgspec.Struct):
    errors: list[object] = []


class _ResultFile(msgspec.Struct):
    v1: _Result


# -- waiting ---------------------------------------------------------------------------------------


async def wait_ssh(driver: GuestDriver) -> None:
    """Wait until the guest's ssh server answers; Interrupted (``timeout``) if it does not."""

    async def answers() -> bool:
        _check_still_up(driver)
        try:
            stream = await open_ssh(driver, SSH_TRY)
        except Conflict as error:
            if error.code is not Code.SSH_UNREACHABLE:
                raise
            return False
        stream.writer.close()
        return True

    await _wait(driver, "its ssh server answers", answers)


async def wait_cloud_init(driver: GuestDriver, job: LiveJob) -> None:
    """Wait until cloud-init in the guest is done, and tell its stages.

    Raises Conflict (``first-boot-failed``) with what it says went wrong; the guest runs on.
    """
    stage, told = STAGES[0], ""

    async def has_ended() -> bool:
        nonlocal stage, told
        _check_still_up(driver)
        try:
            told = await _ask(driver, look_words(stage), LOOK_TIMEOUT)
        except SeraiError:
            return False  # cloud-init may reboot the guest under way
        first = told.partition("\n")[0]
        if first not in STAGES:
            return bool(first)
        stage = first
        job.progress(STAGES.index(stage), len(STAGES), f"cloud-init: {stage}")
        return False

    await _wait(driver, "cloud-init is done", has_ended)
    await _check_end(driver, told)


async def _check_end(driver: GuestDriver, untrusted: str) -> None:
    """Raise unless what the guest told is a good end."""
    first, _, rest = untrusted.partition("\n")
    why, details = f"there is no working cloud-init in it ({first[:40]!r})", {}
    if first == "ended":
        errors = _errors_in(rest)
        if not errors:
            return
        why = "cloud-init had errors: " + "; ".join(each[:200] for each in errors[:3])
        details["errors"] = "\n".join(errors)[:TOLD_LIMIT]
        with contextlib.suppress(SeraiError):
            words = ["cloud-init", "status", "--long"]
            details["status"] = (await _ask(driver, words, LOOK_TIMEOUT))[:TOLD_LIMIT]
    elif first == "disabled":
        why = "cloud-init is switched off in it, or has found no seed"
    raise Conflict(
        Code.FIRST_BOOT_FAILED,
        f"{driver.name} runs, but {why}",
        hint=f"What it did: serai exec {driver.name} -- cat /var/log/cloud-init-output.log",
        details=details,
    )


def _errors_in(untrusted: str) -> list[str]:
    try:
        return [str(each) for each in msgspec.json.decode(untrusted, type=_ResultFile).v1.errors]
    except (msgspec.DecodeError, RecursionError):
        return ["its result can't be read"]


async def _wait(driver: GuestDriver, what: str, check: Callable[[], Awaitable[bool]]) -> None:
    timeout = driver.house.settings.first_boot_timeout
    patience = Patience(driver, timeout)
    while (left := patience.left()) > 0:
        try:
            await wait_until(what, check, timeout=left, every=ASK_EVERY, slowest=ASK_SLOWEST)
        except HostFailure as error:
            if error.code is not Code.TIMEOUT:
                raise
        else:
            return
    raise Interrupted(
        Code.TIMEOUT,
        f"{driver.name} runs, but it took over {timeout:g} s until {what}",
        hint=f"See what it prints: serai log {driver.name}",
    )


def _check_still_up(driver: GuestDriver) -> None:
    if driver.exited.is_set() or driver.powered_off.is_set():
        raise Conflict(
            Code.GUEST_STATE,
            f"{driver.name} ended during its first boot",
            hint=f"See what it printed: serai log {driver.name}",
        )


async def _ask(driver: GuestDriver, argv: list[str], timeout: float) -> str:
    """Run a command of ours in the guest; what it prints is the guest's word."""
    agent = agent_of(driver)
    untrusted = await agent.execute(ExecRequest(argv=argv, timeout=timeout))
    return untrusted.stdout.decode(errors="replace")


# -- the way in ------------------------------------------------------------------------------------


async def find_ssh(driver: GuestDriver) -> SshAddress:
    """Return how ssh gets into the guest; what its agent tells of its host keys is written down."""
    check_talk(driver)
    path = driver.house.places.guests_run / driver.record.id / "known_hosts"
    alias = f"serai-{driver.record.id}"
    told = ""
    if driver.agent_state is AgentState.ANSWERING:
        told = await _ask(driver, who_words(), WHO_TIMEOUT)
    keys = read_host_keys(told)
    if keys:
        lines = "".join(f"{alias} {key}\n" for key in keys)
        await asyncio.to_thread(_write_known_hosts, path, lines)
    return SshAddress(user=user_in(told), alias=alias, known_hosts=str(path), is_known=bool(keys))


def _write_known_hosts(path: Path, lines: str) -> None:
    with naming_disk_problems("writing down the guest's host keys"):
        replace_file(path, lines.encode())
