"""Talking to the inside of a guest: commands, files and folders, all through its agent.

Nothing here changes a guest's state, so none of it goes through the guest's task. Folders travel
as tar: written to a temporary file in the guest and unpacked there by the guest's own ``tar``.
"""

import posixpath
from collections.abc import AsyncIterator

from serai.engine.driver import GuestDriver
from serai.engine.running import check_talk, note_agent
from serai.errors import Code, HostFailure, Interrupted, Invalid, SeraiError
from serai.model.guest import AgentState
from serai.model.talk import ExecRequest, ExecResult
from serai.qemu.agent import Agent

TAR_TIMEOUT = 600.0
PATH_LIMIT = 4096


def agent_of(driver: GuestDriver) -> Agent:
    """Return the guest's agent; Conflict when the guest's state does not let anybody talk to it."""
    return check_talk(driver).agent


async def execute(driver: GuestDriver, request: ExecRequest) -> ExecResult:
    """Run a command in the guest and return what became of it.

    Raises Interrupted (``agent-timeout``) after ``request.timeout``: the command may still run.
    """
    if not request.argv or not request.argv[0]:
        raise Invalid(Code.VALUE_INVALID, "there is no command to run")
    if any("\0" in text for text in (*request.argv, *request.env, *request.env.values())):
        raise Invalid(Code.VALUE_INVALID, "a command cannot hold a NUL character")
    agent = agent_of(driver)
    try:
        result = await agent.execute(request)
    except SeraiError as error:
        _note_failure(driver, error)
        raise
    note_agent(driver, AgentState.ANSWERING)
    return result


def _note_failure(driver: GuestDriver, error: SeraiError) -> None:
    if error.code is Code.AGENT_UNAVAILABLE:
        note_agent(driver, AgentState.SILENT)


def check_guest_path(path: str) -> str:
    """Return ``path`` if it is an absolute path that can exist in a guest."""
    if not path.startswith("/") or "\0" in path or len(path.encode()) > PATH_LIMIT:
        raise Invalid(
            Code.VALUE_INVALID,
            "a path in a guest is absolute and at most 4096 bytes",
            hint="Write it from the root, like /tmp/file.",
        )
    return posixpath.normpath(path)


async def push(
    driver: GuestDriver, path: str, chunks: AsyncIterator[bytes], *, mode: int, unpack: bool
) -> None:
    """Write ``chunks`` to the file ``path``; with ``unpack`` they are a tar for the folder ``path``.

    The folder is made if it is missing. On failure a part of it may be there.
    """
    path = check_guest_path(path)
    agent = agent_of(driver)
    if not unpack:
        await agent.write_file(path, chunks, mode=mode)
        return
    archive = f"/tmp/.serai-{driver.house.new_id()}.tar"  # noqa: S108 - in the guest
    try:
        await agent.write_file(archive, chunks, mode=0o600)
        await _must(agent, ["mkdir", "-p", "--", path])
        await _must(agent, ["tar", "-xf", archive, "-C", path])
    finally:
        await _remove(agent, archive)


async def pull(driver: GuestDriver, path: str, *, pack: bool) -> AsyncIterator[bytes]:
    """Give the content of the file ``path``; with ``pack`` a tar of the folder's content."""
    path = check_guest_path(path)
    agent = agent_of(driver)
    if not pack:
        async for chunk in agent.read_file(path):
            yield chunk
        return
    archive = f"/tmp/.serai-{driver.house.new_id()}.tar"  # noqa: S108 - in the guest
    try:
        await _must(agent, ["tar", "-cf", archive, "-C", path, "."])
        async for chunk in agent.read_file(archive):
            yield chunk
    finally:
        await _remove(agent, archive)


async def _must(agent: Agent, argv: list[str]) -> None:
    result = await agent.execute(ExecRequest(argv=argv, timeout=TAR_TIMEOUT))
    if result.code != 0:
        untrusted_words = result.stderr[-400:].decode(errors="replace").strip()
        raise HostFailure(
            Code.FILE_FAILED,
            f"{argv[0]} failed in the guest: {untrusted_words or f'code {result.code}'}",
            details={"argv": " ".join(argv)},
        )


async def _remove(agent: Agent, path: str) -> None:
    try:
        await agent.execute(ExecRequest(argv=["rm", "-f", "--", path], timeout=10.0))
    except (SeraiError, Interrupted):
        pass  # the guest is gone or hangs: then so is its temporary file, at its next start
