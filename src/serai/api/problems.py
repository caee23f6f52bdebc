"""Errors become RFC 9457 problem documents here, and only here are their HTTP statuses known.

Three ways lead in: an error of ours that a handler raised, an error of Litestar's own (no such
route, wrong method, body too large), and an exception that nobody foresaw. The last becomes the
code ``bug``: its trace goes to the log under a reference, and only the reference to the client.
``refusal`` is for the requests that never become one: bytes that are no HTTP, endless headers.
"""

import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Message

from serai.api.answers import PROBLEM_JSON
from serai.errors import (
    Bug,
    Code,
    Family,
    Invalid,
    NotFound,
    Problem,
    SeraiError,
)
from serai.units import shorten

log = logging.getLogger(__name__)

_S = HTTPStatus

FAMILY_STATUS: Mapping[Family, HTTPStatus] = {
    Family.INVALID: _S.BAD_REQUEST,
    Family.NOT_FOUND: _S.NOT_FOUND,
    Family.CONFLICT: _S.CONFLICT,
    Family.DENIED: _S.FORBIDDEN,
    Family.BUSY: _S.SERVICE_UNAVAILABLE,
    Family.HOST_FAILURE: _S.BAD_GATEWAY,
    Family.INTERRUPTED: _S.GATEWAY_TIMEOUT,
    Family.BUG: _S.INTERNAL_SERVER_ERROR,
}
"""For a code that this version does not know, as one in a job of a newer daemon."""

STATUS_CODES: Mapping[HTTPStatus, tuple[Code, ...]] = {
    _S.BAD_REQUEST: (
        Code.BODY_INVALID, Code.NAME_INVALID, Code.SIZE_INVALID, Code.VALUE_INVALID, Code.USAGE,
        Code.REQUEST_MALFORMED, Code.SUBNET_INVALID, Code.ADDRESS_OUTSIDE, Code.RULE_INVALID,
        Code.SSH_KEY_INVALID, Code.USER_DATA_INVALID,
    ),
    _S.FORBIDDEN: (Code.PERMISSION, Code.NETWORK_UNAVAILABLE),
    _S.NOT_FOUND: (
        Code.GUEST_NOT_FOUND, Code.IMAGE_NOT_FOUND, Code.JOB_NOT_FOUND, Code.ROUTE_NOT_FOUND,
        Code.SNAPSHOT_NOT_FOUND, Code.SCHEDULE_NOT_FOUND, Code.VOLUME_NOT_FOUND, Code.POOL_NOT_FOUND,
        Code.NETWORK_NOT_FOUND, Code.PORT_NOT_FOUND, Code.GROUP_NOT_FOUND, Code.FORWARD_NOT_FOUND,
    ),
    _S.METHOD_NOT_ALLOWED: (Code.METHOD_NOT_ALLOWED,),
    _S.REQUEST_TIMEOUT: (Code.REQUEST_TOO_SLOW,),
    _S.CONFLICT: (
        Code.GUEST_EXISTS, Code.GUEST_STATE, Code.NEEDS_STOP, Code.SHRINK_REFUSED,
        Code.IMAGE_EXISTS, Code.IMAGE_IN_USE, Code.JOB_NOT_CANCELLABLE, Code.JOB_CANCELLED,
        Code.IDEMPOTENCY_REUSED, Code.DAEMON_RUNNING, Code.SNAPSHOT_EXISTS, Code.SNAPSHOT_STATE,
        Code.SNAPSHOT_UNFIT, Code.UNSAVED_WORK, Code.SCHEDULE_EXISTS,
        Code.VOLUME_EXISTS, Code.VOLUME_IN_USE, Code.VOLUME_IS_ROOT, Code.VOLUME_OWN,
        Code.VOLUME_NOT_ATTACHED, Code.VOLUME_HELD, Code.NO_PORT, Code.NO_CD_DRIVE, Code.POOL_EXISTS,
        Code.POOL_IN_USE,
        Code.NETWORK_EXISTS, Code.NETWORK_IN_USE, Code.BRIDGE_MISSING, Code.SUBNET_OVERLAP,
        Code.SUBNET_EXHAUSTED, Code.ADDRESS_TAKEN, Code.GROUP_EXISTS, Code.GROUP_IN_USE,
        Code.FORWARD_EXISTS, Code.GUEST_IN_BUBBLE,
    ),
    _S.PRECONDITION_FAILED: (Code.VERSION_CONFLICT,),
    _S.REQUEST_ENTITY_TOO_LARGE: (Code.BODY_TOO_LARGE,),
    _S.UNPROCESSABLE_ENTITY: (
        Code.IMAGE_REFUSED, Code.IMAGE_DIGEST_MISMATCH, Code.IMAGE_UNFIT, Code.INDEX_REFUSED,
        Code.DEFINITION_REFUSED,
    ),
    _S.REQUEST_HEADER_FIELDS_TOO_LARGE: (Code.HEAD_TOO_LARGE,),
    _S.INTERNAL_SERVER_ERROR: (Code.BUG,),
    _S.BAD_GATEWAY: (
        Code.IMAGE_CORRUPT, Code.DOWNLOAD_FAILED, Code.BUILD_FAILED, Code.GUEST_START_FAILED,
        Code.AGENT_UNAVAILABLE, Code.AGENT_PROTOCOL, Code.EXEC_FAILED, Code.FILE_FAILED,
        Code.QMP_FAILED, Code.FIRST_BOOT_FAILED, Code.SSH_UNREACHABLE, Code.TOOL_MISSING, Code.TOOL_FAILED, Code.TOOL_TOO_OLD,
        Code.FIRMWARE_MISSING, Code.DATABASE_FAILED, Code.DAEMON_START_FAILED, Code.SNAPSHOT_CORRUPT,
        Code.POOL_UNAVAILABLE,
        Code.NETWORK_FAILED, Code.FORWARD_FAILED,
    ),
    _S.SERVICE_UNAVAILABLE: (
        Code.QUEUE_FULL, Code.MEMORY_SHORT, Code.MOMENT_MISSED, Code.GUEST_UNRESPONSIVE, Code.DAEMON_STOPPING,
        Code.DAEMON_UNREACHABLE,
    ),
    _S.GATEWAY_TIMEOUT: (
        Code.TIMEOUT, Code.AGENT_TIMEOUT, Code.GUEST_STOP_TIMEOUT, Code.QMP_LOST,
        Code.JOB_INTERRUPTED,
    ),
    _S.INSUFFICIENT_STORAGE: (Code.DISK_FULL, Code.POOL_FULL),
}  # fmt: skip
"""Every code has its place here. 502 and 504 are about what stands behind us: QEMU, tools, agents."""

CODE_STATUS: Mapping[str, HTTPStatus] = {
    code: status for status, codes in STATUS_CODES.items() for code in codes
}

RETRY_AFTER = "1"


class ProblemDocument(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as RFC 9457 has it, with the members that programs should rely on: ``code``.

    ``title`` and ``type`` belong to the code; ``detail`` and ``message`` are the same sentence for
    people; ``hint`` says what to do next; ``details`` are facts for programs. ``job`` is the id of
    the job that failed, if there was one.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    family: Family
    message: str
    hint: str = ""
    details: dict[str, str] = {}
    job: str = ""


def status_of(family: Family, code: str) -> HTTPStatus:
    """Return the HTTP status of a problem."""
    return CODE_STATUS.get(code, FAMILY_STATUS[family])


def document_of(problem: Problem, *, job: str = "") -> ProblemDocument:
    """Return ``problem`` as it is sent."""
    return ProblemDocument(
        type=f"/docs#problem-{problem.code}",
        title=problem.code.replace("-", " ").capitalize(),
        status=status_of(problem.family, problem.code),
        detail=problem.message,
        code=problem.code,
        family=problem.family,
        message=problem.message,
        hint=problem.hint,
        details=problem.details,
        job=job,
    )


def refusal(error: SeraiError) -> bytes:
    """Return a complete HTTP/1.1 answer for a connection that is closed after it."""
    document = document_of(error.problem())
    body = msgspec.json.encode(document)
    head = (
        f"HTTP/1.1 {document.status} {_S(document.status).phrase}\r\n"
        f"content-type: {PROBLEM_JSON}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def closing_of(error: SeraiError) -> tuple[int, str]:
    """Return the code and reason with which a WebSocket is closed for ``error``.

    4000 to 4999 are free for applications (RFC 6455, 7.4.2).
    """
    return 4000 + status_of(error.family, error.code), error.code


def refuse_socket(error: SeraiError) -> list[Message]:
    """Return the ASGI messages that refuse a WebSocket's handshake with a problem document."""
    document = document_of(error.problem())
    body = msgspec.json.encode(document)
    messages: Any = [
        {
            "type": "websocket.http.response.start",
            "status": document.status,
            "headers": [(b"content-type", PROBLEM_JSON.encode())],
        },
        {"type": "websocket.http.response.body", "body": body},
    ]
    return list(messages)


def error_of(raised: Exception, path: str) -> SeraiError:
    """Return what is told of an exception, whoever raised it."""
    if isinstance(raised, SeraiError):
        return raised
    if isinstance(raised, HTTPException) and raised.status_code < _S.INTERNAL_SERVER_ERROR:
        return _of_litestar(raised, path)
    return Bug(
        Code.BUG,
        "serai made a mistake; the daemon's log has the trace",
        hint="Please report it with the part of the log that holds this reference.",
        details={"reference": secrets.token_hex(4)},
    )


def _of_litestar(raised: HTTPException, untrusted_path: str) -> SeraiError:
    if raised.status_code == _S.NOT_FOUND:
        return no_route(untrusted_path)
    if raised.status_code == _S.METHOD_NOT_ALLOWED:
        methods = (raised.headers or {}).get("allow", "").split(", ")
        allowed = sorted(method for method in methods if method.isupper())
        return Invalid(
            Code.METHOD_NOT_ALLOWED,
            f"{shorten(untrusted_path)} does not take this method",
            hint=f"It takes {', '.join(allowed)}." if allowed else "Open it as a WebSocket.",
            details={"allow": ", ".join(allowed)},
        )
    if raised.status_code == _S.REQUEST_ENTITY_TOO_LARGE:
        return Invalid(
            Code.BODY_TOO_LARGE,
            "the body is larger than this request may have",
            hint="Only files have no limit: PUT /v1/guests/{guest}/files.",
        )
    return Invalid(Code.REQUEST_MALFORMED, str(raised.detail)[:200])


def no_route(untrusted_path: str) -> SeraiError:
    """Return the error for a path that leads nowhere."""
    return NotFound(
        Code.ROUTE_NOT_FOUND,
        f"there is nothing at {shorten(untrusted_path)}",
        hint="GET /docs shows all that there is.",
    )


def on_error(request: Request[Any, Any, Any], raised: Exception) -> Response[bytes]:
    """Turn what went wrong into the answer, and log it if it was not the client's doing."""
    error = error_of(raised, request.scope["path"])
    _log(error, raised, f"{request.method} {shorten(request.scope['path'])}")
    document = document_of(error.problem())
    headers = {"retry-after": RETRY_AFTER} if error.family is Family.BUSY else {}
    if error.code is Code.METHOD_NOT_ALLOWED:
        headers["allow"] = error.details.get("allow", "")
    return Response(
        msgspec.json.encode(document),
        status_code=document.status,
        headers=headers,
        media_type=PROBLEM_JSON,
    )


def _log(error: SeraiError, raised: Exception, what: str) -> None:
    if error is not raised and error.family is Family.BUG:
        log.error("%s: bug %s", what, error.details.get("reference"), exc_info=raised)
    elif error.family in {Family.BUG, Family.HOST_FAILURE}:
        log.warning("%s: %s: %s", what, error.code, error.message)
