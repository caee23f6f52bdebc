"""User data for cloud-init, looked at before a guest is made: pure.

It is the user's own and is passed on as it is; here is only decided whether it can be what it says,
and whether reading it could hurt whoever does. A cloud-config is read by a loader that makes nothing but plain
values, within limits of depth and size *after* its aliases are filled in, so that a few lines can't
become gigabytes. No password may stand in it in clear: what we keep, backups and forks keep too.

What is behind a jinja header becomes a cloud-config only in the guest, so it is not looked into.
"""

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import yaml

from serai.errors import Code, Invalid

LIMIT = 512 << 10
DEPTH_LIMIT = 32
NODES_LIMIT = 100_000
"""How many values a cloud-config may have once all aliases are filled in."""
PARTS_LIMIT = 64
JINJA = "## template: jinja"
CLOUD_CONFIG = "#cloud-config"
KINDS = "#cloud-config, a script that begins with #!, a MIME multi-part, or ## template: jinja before one of the first two"  # fmt: skip
CONFIG_TYPES = frozenset({"text/cloud-config"})
OTHER_TYPES = frozenset(
    {
        "text/x-shellscript",
        "text/x-shellscript-per-boot",
        "text/x-shellscript-per-instance",
        "text/x-shellscript-per-once",
        "text/jinja2",
    }
)

_MIME = re.compile(r"(mime-version|content-type):", re.IGNORECASE)
_HASH = re.compile(r"\$[0-9a-z]+\$.+|[!*].*|", re.DOTALL)
"""A password as crypt(3) has it, one that is locked, or none."""

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_user_data(untrusted: str) -> str:
    """Return user data if cloud-init can take it, else raise Invalid (``user-data-invalid``)."""
    try:
        size = len(untrusted.encode())
    except UnicodeEncodeError as error:
        raise _refused("it is no text") from error
    if size > LIMIT:
        raise _refused(
            f"it has {size} bytes, and at most {LIMIT >> 10} KiB are taken",
            "Let it fetch the rest, or push it later: serai push",
        )
    if "\0" in untrusted:
        raise _refused(
            "it holds a NUL character", "It is plain text; unpack it if it is compressed."
        )
    if not untrusted.strip():
        raise _refused("it is empty", f"It is {KINDS}.")
    _check_kind(untrusted)
    return untrusted


def _check_kind(text: str) -> None:
    first = text.split("\n", 1)[0].rstrip()
    if _MIME.match(first):
        _check_multipart(text)
    elif first == JINJA:
        rest = text.split("\n", 1)[1] if "\n" in text else ""
        if not rest.startswith((CLOUD_CONFIG, "#!")):
            raise _refused("after the jinja header comes neither #cloud-config nor a script")
    elif first == CLOUD_CONFIG:
        check_cloud_config(text)
    elif not text.startswith("#!"):
        raise _refused("what it is can't be told from its first line", f"It is {KINDS}.")


def _check_multipart(text: str) -> None:
    try:
        message = email.message_from_string(text, policy=email.policy.default)
        parts = [part for part in _walk(message) if not part.is_multipart()]
    except (ValueError, LookupError, RecursionError, TypeError, AttributeError) as error:
        raise _refused("its MIME parts can't be read") from error
    if not message.is_multipart() or not parts:
        raise _refused("it begins as a MIME message, but has no parts")
    for number, part in enumerate(parts, 1):
        _check_part(part, number)


def _walk(message: EmailMessage) -> Iterator[EmailMessage]:
    """Give a message and all in it; Invalid with too many."""
    for number, part in enumerate(message.walk()):
        if number > PARTS_LIMIT:
            raise _refused(f"it has more than {PARTS_LIMIT} MIME parts")
        yield part


def _check_part(part: EmailMessage, number: int) -> None:
    kind = part.get_content_type()
    if kind in OTHER_TYPES:
        return
    if kind not in CONFIG_TYPES and kind != "text/plain":
        raise _refused(
            f"part {number} is {kind[:60]!r}, which is not taken",
            f"Parts are {', '.join(sorted(CONFIG_TYPES | OTHER_TYPES))}.",
        )
    try:
        content = part.get_payload(decode=True)
        text = content.decode() if isinstance(content, bytes) else ""
    except (UnicodeDecodeError, ValueError, LookupError) as error:
        raise _refused(f"part {number} is no text") from error
    if kind in CONFIG_TYPES:
        check_cloud_config(text)
    else:
        _check_plain(text, number)


def _check_plain(text: str, number: int) -> None:
    """A part of no special type is what its first line says, as the whole would be."""
    if _MIME.match(text):
        raise _refused(f"part {number} is a MIME message in a MIME message")
    _check_kind(text)


def check_cloud_config(untrusted: str) -> None:
    """Raise Invalid unless it is a cloud-config: a YAML mapping of plain values, within limits."""
    try:
        _measure(untrusted)
        untrusted_config = yaml.load(untrusted, Loader=Loader)  # noqa: S506 - a safe one
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _refused(f"it is no YAML{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise _refused(f"it is no YAML: {str(error)[:100]}") from error
    if untrusted_config is None:
        return
    if not isinstance(untrusted_config, dict):
        raise _refused("a cloud-config is a mapping: lines like `key: value`")
    for path in _clear_passwords(untrusted_config):
        raise _refused(
            f"{path} is a password in clear",
            "Put its hash there, as this prints it: openssl passwd -6; or use --ssh-key",
        )


def _measure(untrusted: str) -> None:
    """Count what the YAML becomes, without making it; Invalid when that is too much or too deep."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str, int]] = []
    total = 0
    for event in yaml.parse(untrusted, Loader=Loader):
        anchor = getattr(event, "anchor", None)
        match event:
            case yaml.AliasEvent():
                if anchor not in sizes:
                    raise _refused(f"its alias *{anchor} stands for what it is in, or for nothing")
                total += sizes[anchor]
            case yaml.CollectionStartEvent():
                total += 1
                open_nodes.append((anchor or "", total))
            case yaml.CollectionEndEvent():
                name, before = open_nodes.pop()
                sizes |= {name: total - before + 1} if name else {}
            case yaml.ScalarEvent():
                total += 1
                sizes |= {anchor: 1} if anchor else {}
            case _:
                pass
        if total > NODES_LIMIT:
            raise _refused(f"it becomes more than {NODES_LIMIT} values")
        if len(open_nodes) > DEPTH_LIMIT:
            raise _refused(f"it nests more than {DEPTH_LIMIT} deep")


def _clear_passwords(config: dict[Any, Any]) -> Iterator[str]:
    """Give the places of passwords that are not hashes, as cloud-init's modules would read them."""
    if _is_clear(config.get("password")):
        yield "password"
    chpasswd = config.get("chpasswd")
    if isinstance(chpasswd, dict):
        yield from _clear_in_chpasswd(chpasswd)
    users = config.get("users")
    named = [config.get("user"), *(users if isinstance(users, list) else ())]
    if isinstance(users, dict):
        named += users.values()
    for user in named:
        if isinstance(user, dict):
            yield from _clear_in_user(user)


def _clear_in_chpasswd(chpasswd: dict[Any, Any]) -> Iterator[str]:
    listed = chpasswd.get("list")
    lines = listed.splitlines() if isinstance(listed, str) else listed
    for line in lines if isinstance(lines, list) else ():
        if _is_clear(str(line).partition(":")[2].strip()):
            yield "chpasswd.list"
    users = chpasswd.get("users")
    for user in users if isinstance(users, list) else ():
        if isinstance(user, dict) and user.get("type") != "RANDOM" and _is_clear(user.get("password")):  # fmt: skip
            yield "chpasswd.users"


def _clear_in_user(user: dict[Any, Any]) -> Iterator[str]:
    if user.get("plain_text_passwd"):
        yield "users: plain_text_passwd"
    for key in ("passwd", "hashed_passwd"):
        if _is_clear(user.get(key)):
            yield f"users: {key}"


def _is_clear(password: object) -> bool:
    """Tell whether it is a password that somebody could use."""
    if password is None or isinstance(password, bool):
        return False
    return str(password) not in ("R", "RANDOM") and not _HASH.fullmatch(str(password))


def _refused(why: str, hint: str = "") -> Invalid:
    return Invalid(
        Code.USER_DATA_INVALID,
        f"the user data can't be used: {why}",
        hint=hint or f"It is {KINDS}.",
    )
