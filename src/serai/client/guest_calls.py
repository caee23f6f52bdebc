"""The requests about guests as values; what is made of them is in ``snapshot_calls``."""

from collections.abc import Sequence

import msgspec

from serai.client.calls import BYTES, SLACK, Call, Page, get, guest_path, page, post
from serai.model.firstboot import FirstBoot, WaitFor
from serai.model.foreign import ForeignMachine
from serai.model.guest import Guest, GuestChange, GuestSpec
from serai.model.job import Job
from serai.model.network import PortSpec
from serai.model.talk import ExecRequest, ExecResult, SshAddress, VncAddress
from serai.model.volume import VolumeWish

NOTHING_TOLD = FirstBoot()


def list_guests(cursor: str = "", *, labels: Sequence[str] = ()) -> Call[Page[Guest]]:
    """Guests by name; only those that have all of ``labels`` (``k=v``)."""
    return page("/v1/guests", Page[Guest], cursor, label=labels)


def show_guest(name: str) -> Call[Guest]:
    """One guest."""
    return get(guest_path(name), Guest)


def launch_guest(
    spec: GuestSpec,
    *,
    ports: Sequence[PortSpec] = (),
    volumes: Sequence[VolumeWish] = (),
    first_boot: FirstBoot = NOTHING_TOLD,
    start: bool = True,
    wait_agent: bool = True,
    wait_for: WaitFor = WaitFor.AGENT,
    ttl: float = 0.0,
) -> Call[Job]:
    """Make a guest of an image and start it, with ports and volumes."""
    how = {"start": start, "wait_agent": wait_agent, "wait_for": str(wait_for), "ttl": ttl}
    body = {**msgspec.to_builtins(spec), **msgspec.to_builtins(first_boot), **how}
    if volumes:
        body["volumes"] = list(volumes)
    if ports:
        body["ports"] = list(ports)
    return post("/v1/guests", Job, body)


def import_guest(
    source: str,
    *,
    name: str = "",
    machine: ForeignMachine | None = None,
    sha256: str = "",
    cpus: int = 0,
    memory: int = 0,
    root_only: bool = False,
) -> Call[Job]:
    """Define a guest from an OVA, or from its root disk and a machine that was read already."""
    body = {
        "source": source, "name": name, "sha256": sha256, "cpus": cpus, "memory": memory,
        "root_only": root_only, "machine": machine,
    }  # fmt: skip
    return post("/v1/imports", Job, body)


def change_guest(name: str, change: GuestChange, version: int = 0) -> Call[Job]:
    """Change size, policy or labels; with ``version`` only if nobody did so meanwhile."""
    headers = {"If-Match": f'"{version}"'} if version else {}
    body = msgspec.json.encode(change)
    return Call(method="PATCH", path=guest_path(name), kind=Job, body=body, headers=headers)


def delete_guest(name: str, *, force: bool = False) -> Call[Job]:
    """Delete a guest and its volumes."""
    query = {"force": "true"} if force else {}
    return Call(method="DELETE", path=guest_path(name), kind=Job, query=query)


def do_to_guest(name: str, verb: str) -> Call[Job]:
    """``start``, ``pause`` or ``resume``."""
    return post(f"{guest_path(name)}/{verb}", Job)


def stop_guest(name: str, *, force: bool = False, timeout: float = 0.0) -> Call[Job]:
    """Stop a guest."""
    return post(f"{guest_path(name)}/stop", Job, {"force": force, "timeout": timeout})


def restart_guest(name: str, *, force: bool = False, timeout: float = 0.0) -> Call[Job]:
    """Stop a guest and start it anew."""
    return post(f"{guest_path(name)}/restart", Job, {"force": force, "timeout": timeout})


def rename_guest(name: str, new: str) -> Call[Job]:
    """Give a guest another name."""
    return post(f"{guest_path(name)}/rename", Job, {"name": new})


def fork_guest(
    guest: str,
    *,
    snapshot: str = "",
    name: str = "",
    count: int = 1,
    keep_identity: bool = False,
    together: tuple[str, ...] = (),
    ttl: float = 0.0,
    wait_agent: bool = True,
) -> Call[Job]:
    """Make new guests from one as it is, or from its snapshot."""
    body = {
        "snapshot": snapshot, "name": name, "count": count,
        "keep_identity": keep_identity, "together": together, "ttl": ttl,
        "wait_agent": wait_agent,
    }  # fmt: skip
    return post(f"{guest_path(guest)}/fork", Job, body)


def run_command(name: str, request: ExecRequest) -> Call[ExecResult]:
    """Run a command in a guest."""
    timeout = request.timeout + SLACK if request.timeout else None
    return post(f"{guest_path(name)}/exec", ExecResult, request, timeout=timeout)


def pull_file(name: str, path: str, *, pack: bool) -> Call[bytes]:
    """Read a file, or a folder as a tar."""
    query = {"path": path} | ({"pack": "true"} if pack else {})
    return Call(method="GET", path=f"{guest_path(name)}/files", query=query, timeout=None)


def push_file(name: str, path: str, *, mode: int, unpack: bool) -> Call[None]:
    """Write a file, or unpack a tar into a folder; the content is sent along."""
    query = {"path": path, "mode": f"{mode:04o}"} | ({"unpack": "true"} if unpack else {})
    files = f"{guest_path(name)}/files"
    return Call(method="PUT", path=files, query=query, content_type=BYTES, timeout=None)


def show_log(name: str, *, follow: bool = False, tail: int | None = None) -> Call[bytes]:
    """The serial log."""
    query = {"follow": "true"} if follow else {}
    if tail is not None:
        query["tail"] = str(tail)
    return Call(method="GET", path=f"{guest_path(name)}/log", query=query, timeout=None)


def take_screenshot(name: str) -> Call[bytes]:
    """What the screen shows, as PNG."""
    return Call(method="GET", path=f"{guest_path(name)}/screenshot")


def show_vnc(name: str) -> Call[VncAddress]:
    """Where a VNC viewer connects."""
    return get(f"{guest_path(name)}/vnc", VncAddress)


def show_ssh(name: str) -> Call[SshAddress]:
    """How ssh gets into a guest."""
    return get(f"{guest_path(name)}/ssh", SshAddress)


def ssh_path(name: str) -> str:
    """Return the address of the WebSocket that leads to the guest's ssh server."""
    return f"{guest_path(name)}/ssh/stream"


def console_path(name: str) -> str:
    """Return the address of the console's WebSocket."""
    return f"{guest_path(name)}/console"
