"""The list of guests with next to nothing imported: no click, no asyncio, no HTTP library.

``serai list`` is what people and scripts run most, and completion runs it at each TAB. Whatever is
not the plain case (other options, no daemon, an answer that is no list) is left to the command line
proper, which says what is wrong. ``cli.guests`` prints the same table through the same ``layout``.
"""

import json
import os
import socket
import sys

from serai.cli.layout import guest_table

FORMS = {("list",): "table", ("list", "--format", "table"): "table", ("list", "--format", "json"): "json",
         ("list", "--format=json"): "json", ("list", "--format=table"): "table"}  # fmt: skip
PAGE = 10_000
TIMEOUT = 10.0


def try_fast(arguments: list[str]) -> int | None:
    """Print the list of guests if that is all that is asked; None: not for us, nothing printed."""
    form = FORMS.get(tuple(arguments))
    if form is None:
        return None
    guests = fetch_guests()
    if guests is None:
        return None
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    text = json.dumps(guests) if form == "json" else guest_table(guests, colours=colours)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def fetch_guests() -> list[dict[str, object]] | None:
    """Ask the daemon for all guests; None when that does not work out at once."""
    request = (
        f"GET /v1/guests?limit={PAGE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(_socket_path())
            sock.sendall(request.encode())
            answer = _read_all(sock)
        head, _, body = answer.partition(b"\r\n\r\n")
        page = json.loads(body)
        whole = head.startswith(b"HTTP/1.1 200") and not page["next"]
        return list(page["items"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def _socket_path() -> str:
    """Return the path of the daemon's socket, as ``settings.find_places`` would (a test compares)."""
    home = os.environ.get("SERAI_HOME", "")
    if home:
        return os.path.join(os.getcwd(), home, "run/api.sock")
    if os.geteuid() == 0:
        return "/run/serai/api.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "serai/api.sock")
    state = os.environ.get("XDG_DATA_HOME", "")
    if not state.startswith("/"):
        state = os.path.join(os.environ.get("HOME") or "/", ".local/share")
    return os.path.join(state, "serai/run/api.sock")
