"""What is said to and heard from the inside of a guest through its agent."""

import msgspec


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A command for the guest. ``stdin`` is base64 in JSON; ``timeout`` 0 waits for ever.

    ``argv`` is run as it is, without a shell.
    """

    argv: list[str]
    stdin: bytes = b""
    env: dict[str, str] = {}
    timeout: float = 0.0


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it. ``code`` is 128 + N after signal N. Output is base64 in JSON.

    ``truncated``: the agent kept only the first part of the output (16 MiB).
    """

    code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class VncAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VNC viewer connects: the path of a unix socket that only the owner can open."""

    socket: str


class SshAddress(msgspec.Struct, frozen=True, kw_only=True):
    """How ssh gets into a guest: through ``serai ssh-proxy``, as ``user``.

    ``known_hosts`` is the path of a file on the daemon's host in which the guest goes by ``alias``.
    ``is_known``: its host keys are in there, as its agent told them; else it has no agent that
    could, and whoever connects first has to believe what the guest says.
    """

    user: str
    alias: str
    known_hosts: str
    is_known: bool
