"""Writing a volume to one file: qcow2, raw or VMDK, by a confined qemu-img that reads NBD.

It sees neither the layers nor a folder: only a connected socket, and the file that it writes. The file
appears under its name complete, with its checksum known, and never in the place of another.
"""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from serai.disk.convert import ANY_CODE, ENVIRONMENT, TIMEOUT, Workshop, lent
from serai.disk.files import check_room, disk_full, hash_file, naming_disk_problems, sync_folder
from serai.disk.work import run_in_thread
from serai.errors import Code, Conflict, Invalid
from serai.host.process import Limits, run, tool_failed
from serai.model.volume import DiskFile
from serai.units import MIB, shorten

PATH_LENGTH = 4096
ROOM_FOR_TABLES = 64
WHAT = "exporting the volume"
_PERCENT = re.compile(r"\(([0-9]{1,3}\.[0-9]{2})/100%\)")


def check_target(untrusted: str) -> Path:
    """Return the path of a file to be written: absolute, and nothing is there; else Invalid, Conflict."""
    path = Path(untrusted)
    plain = untrusted.isprintable() and len(untrusted) < PATH_LENGTH and ".." not in path.parts
    if not path.is_absolute() or not plain or not path.name:
        raise Invalid(
            Code.VALUE_INVALID,
            f"{shorten(untrusted)} can't be written to",
            hint="Give an absolute path of a file that does not exist yet.",
        )
    if path.is_symlink() or path.exists():
        raise _there(path)
    if not path.parent.is_dir():
        raise Invalid(Code.VALUE_INVALID, f"there is no folder {shorten(str(path.parent))}")
    return path


def _there(path: Path) -> Conflict:
    return Conflict(
        Code.FILE_FAILED,
        f"there is a file {shorten(str(path))} already",
        hint="Choose another name, or remove it.",
    )


def part_of(path: Path, job_id: str) -> Path:
    """Return where the file is while it is written."""
    return path.with_name(f".{path.name[:200]}.{job_id[:8]}.part")


async def write_export(
    server: socket.socket,
    target: Path,
    part: Path,
    form: DiskFile,
    *,
    size: int,
    reserve: int,
    shop: Callable[[int], Workshop],
    export: str,
    report: Callable[[int, int], None],
) -> str:
    """Read a disk of ``size`` bytes from the connected NBD ``server`` into ``target``; return its digest.

    On failure there is neither ``target`` nor ``part``. Raises HostFailure (``disk-full``,
    ``tool-failed``, ``permission``), Conflict (``file-failed``) when somebody made ``target`` meanwhile.
    """
    room = check_room(target.parent, 0, reserve=reserve, what=WHAT)
    bound = size + size // ROOM_FOR_TABLES + 16 * MIB
    with naming_disk_problems(WHAT):
        made = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        confined = shop(room)
        await _convert(
            server, made, form, export, confined.uid, confined.limits(bound),
            lambda line: _tell(line, size, report),
        )  # fmt: skip
        with naming_disk_problems(WHAT):
            return await _publish(made, part, target)
    finally:
        os.close(made)
        part.unlink(missing_ok=True)


async def _convert(
    server: socket.socket,
    made: int,
    form: DiskFile,
    export: str,
    uid: int | None,
    limits: Limits,
    on_line: Callable[[str], None],
) -> None:
    disk = {
        "driver": "nbd",
        "export": export,
        "server": {"type": "fd", "str": str(server.fileno())},
    }
    source = json.dumps({"driver": "raw", "file": disk})
    with lent(uid, made):
        done = await run(
            ["qemu-img", "convert", "-p", "-O", form.value, f"json:{source}", f"/dev/fd/{made}"],
            timeout=TIMEOUT,
            limits=limits,
            uid=uid,
            env=ENVIRONMENT,
            ok=ANY_CODE,
            pass_fds=(server.fileno(), made),
            on_line=on_line,
        )
    if done.code != 0:
        if b"No space left" in done.stderr or b"File too large" in done.stderr:
            raise disk_full(WHAT)
        raise tool_failed(done)


async def _publish(made: int, part: Path, target: Path) -> str:
    """Give the file, once it is on the disk, its name and return its digest."""
    os.fsync(made)
    digest = await run_in_thread(lambda pulse: hash_file(part, pulse))
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise _there(target) from error
    sync_folder(target.parent)
    return digest


def _tell(line: str, size: int, report: Callable[[int, int], None]) -> None:
    match = _PERCENT.search(line)
    if match:
        report(int(float(match[1]) * size / 100), size)
