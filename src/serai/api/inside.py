"""The inside of a guest, and its looks: commands, files, console, log, screen."""

from asyncio import StreamReader, StreamWriter
from typing import Any

from litestar import WebSocket
from litestar.types import ASGIApp

from serai.api.answers import BYTES, PNG, TAR, TEXT, answer_bytes, answer_json, answer_nothing
from serai.api.bodies import LogQuery, NoBody, NoQuery, PullQuery, PushQuery
from serai.api.calls import Call, Room
from serai.api.follow import follow_log, read_log
from serai.api.streams import Stream, attended, race, read_chunks, start_stream, until_closing
from serai.errors import Code, NotFound
from serai.model.talk import ExecRequest

CONSOLE_CHUNK = 64 << 10
NORMAL_CLOSURE = 1000
SERVICE_RESTART = 1012


async def run_command(call: Call[NoQuery, ExecRequest]) -> ASGIApp:
    """Run a command in a guest.

    Its agent runs `argv` as it is, without a shell. `stdin`, `stdout` and `stderr` are base64. The
    answer comes when the command has ended. The code of a command that a signal ended is 128 and
    the signal's number.
    """
    work = call.room.engine.execute(call.subject, call.body)
    return answer_json(await attended(call.room, call.request, work))


async def pull_file(call: Call[PullQuery, NoBody]) -> ASGIApp:
    """Read a file of a guest.

    With `pack` the path is a folder and the answer a tar of what is in it. If it fails under way,
    the connection is cut before the end of the answer.
    """
    query = call.query
    chunks = call.room.engine.pull(call.subject, query.path, pack=query.pack)
    return await start_stream(call, TAR if query.pack else BYTES, chunks)


async def push_file(call: Call[PushQuery, NoBody]) -> ASGIApp:
    """Write a file into a guest.

    The body is the file, of any length. With `unpack` it is a tar and the path a folder, which is
    made if it is missing. If it fails, a part of it may have been written.
    """
    query = call.query
    chunks = read_chunks(call.request)
    work = call.room.engine.push(
        call.subject, query.path, chunks, mode=int(query.mode, 8), unpack=query.unpack
    )
    await until_closing(call.room, work)
    return answer_nothing()


async def show_log(call: Call[LogQuery, NoBody]) -> ASGIApp:
    """Read the serial log of a guest.

    Also that of a guest that does not run. With `follow` the answer goes on with what the guest
    prints, until the guest is deleted or the client has enough. The bytes are the guest's: do not
    trust them.
    """
    engine, query = call.room.engine, call.query
    guest_id = engine.guest(call.subject).id
    path = engine.log_path(guest_id)

    def exists() -> bool:
        try:
            return bool(engine.guest(guest_id))
        except NotFound:
            return False

    if query.follow:
        chunks = follow_log(path, tail=query.tail, exists=exists)
        return Stream(TEXT, chunks, room=call.room)
    return Stream(TEXT, read_log(path, tail=query.tail))


async def take_screenshot(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Take a picture of a guest's screen."""
    work = call.room.engine.screenshot(call.subject)
    return answer_bytes(await attended(call.room, call.request, work), PNG)


async def show_vnc(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Tell where a VNC viewer connects.

    The path of a unix socket on the daemon's host that only the daemon's owner can open.
    """
    return answer_json(call.room.engine.vnc(call.subject))


async def show_ssh(call: Call[NoQuery, NoBody]) -> ASGIApp:
    """Tell how ssh gets into a guest.

    As whom, and a file on the daemon's host with the guest's own host keys, as its agent tells them:
    nobody has to believe whoever answers. The way in is the WebSocket `/ssh/stream`.
    """
    work = call.room.engine.find_ssh(call.subject)
    return answer_json(await attended(call.room, call.request, work))


async def open_ssh(room: Room, socket: WebSocket[Any, Any, Any]) -> None:
    """Connect to the ssh server of a guest.

    Wherever its network is. Binary messages in both directions are the bytes of the connection. The
    server closes with 1000 when the guest does, else as for a console.
    """
    await socket.accept()
    stream = await room.engine.open_ssh(str(socket.path_params["guest"]))
    try:
        await socket.send({"type": "websocket.send", "bytes": stream.greeting, "text": None})
        code, reason = await race(
            _pump_in(socket, stream.writer), _pump_out(stream.reader, socket), _wait_closing(room)
        )
    finally:
        stream.writer.close()
    if code:
        await socket.close(code, reason)


async def open_console(room: Room, socket: WebSocket[Any, Any, Any]) -> None:
    """Open the serial console of a guest.

    Binary messages in both directions are the bytes of the console. The server closes with 1000
    when the guest's console ends, with 1012 when the daemon stops, and with 4000 + the HTTP status
    and the problem's code as the reason when something fails.
    """
    await socket.accept()
    guest = str(socket.path_params["guest"])
    reader, writer = await room.engine.open_console(guest)
    try:  # when both sides leave at once, the client's leaving counts: it can't be told any more
        code, reason = await race(
            _pump_in(socket, writer), _pump_out(reader, socket), _wait_closing(room)
        )
    finally:
        writer.close()
    if code:
        await socket.close(code, reason)


async def _pump_out(reader: StreamReader, socket: WebSocket[Any, Any, Any]) -> tuple[int, str]:
    """Pass on what the guest says; ``send`` waits while the client does not read."""
    try:
        while chunk := await reader.read(CONSOLE_CHUNK):
            await socket.send({"type": "websocket.send", "bytes": chunk, "text": None})
    except OSError:
        pass  # either side is gone: over, like at the end
    return NORMAL_CLOSURE, "the guest has ended it"


async def _pump_in(socket: WebSocket[Any, Any, Any], writer: StreamWriter) -> tuple[int, str]:
    """Pass on what the client types; nothing more is read from it while the guest does not take it.

    Returns code 0 when the client is gone: nothing is left to close.
    """
    while True:
        message = await socket.receive()
        if message["type"] != "websocket.receive":
            return 0, ""
        untrusted = message.get("bytes") or (message.get("text") or "").encode()
        try:
            writer.write(untrusted)
            await writer.drain()
        except OSError:
            return NORMAL_CLOSURE, "the guest has ended it"


async def _wait_closing(room: Room) -> tuple[int, str]:
    await room.closing.wait()
    return SERVICE_RESTART, Code.DAEMON_STOPPING
