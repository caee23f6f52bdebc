"""A state folder with warm images of tiny guests, made once and kept in .work/cache for later runs.

A guest of one runs at once, where booting one takes seconds. They are made anew when anything has changed that
may have to do with them: the tiny image, what stores and takes up a guest, QEMU, the processor.
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from keeper import Daemon
from namespaced import open_namespace
from tiny import CACHE, ROOT, built_once, copy_state, state_with_tiny

WARM, WARM_DISK, WARM_PORT = "tiny-warm", "tiny-warm-disk", "tiny-warm-port"
KINDS: dict[str, dict[str, Any]] = {
    WARM: {"memory": "128MiB"},
    WARM_DISK: {"memory": "96MiB", "disk": "64MiB"},
}
if os.geteuid() == 0:  # nobody else may have networks
    KINDS[WARM_PORT] = {"memory": "128MiB", "networks": ["lan"]}
MADE_FROM = ("disk", "engine", "host", "model", "plan", "qemu", "store")
HERE = "@HERE@"
"""Stands for the state folder in what is kept: a machine that was frozen is told where its kernel is."""


@cache
def state_with_warm() -> Path:
    """Return a state folder that holds the image tiny and those of ``KINDS``; see ``copy_warm``."""
    digest = hashlib.sha256(f"{state_with_tiny().name}\n{KINDS}\n{_host()}".encode())
    for room in MADE_FROM:
        for path in sorted((ROOT / "src" / "serai" / room).glob("*.py")):
            digest.update(path.read_bytes())
    return built_once(f"warm-{digest.hexdigest()[:16]}", _build)


def _host() -> str:
    """Return what a memory that was stored may be taken up by."""
    version = ["qemu-system-x86_64", "--version"]
    qemu = subprocess.run(version, check=True, capture_output=True, text=True).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return qemu + next((line for line in lines if line.startswith("model name")), "")


def copy_warm(template: Path, home: Path) -> None:
    """Give ``home`` the images, as ``copy_state`` does; layers are its own, they may be merged."""
    copy_state(template, home)
    shutil.copytree(template / "layers", home / "state" / "layers")
    _rename(home / "state", HERE, str(home / "state"))


def delete_warm(keeper: Daemon) -> None:
    """Delete the warm images, of which no guest is left."""
    for name in KINDS:
        keeper.inn.delete_image(name)


def _rename(state: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(state / "serai.db")) as database:
        database.execute("update snapshots set body = replace(body, ?, ?)", (old, new))
        database.commit()


def _build(folder: Path) -> None:
    home = Path(tempfile.mkdtemp(prefix="warm-", dir=CACHE))
    copy_state(state_with_tiny(), home)
    try:
        if WARM_PORT in KINDS:
            with open_namespace("-warm") as namespace:
                _publish(Daemon(home, namespace=namespace))
        else:
            _publish(Daemon(home))
        _rename(home / "state", str(home / "state"), HERE)
        for path in CACHE.glob("warm-????????????????"):
            shutil.rmtree(path)
        (home / "state").rename(folder)
    finally:
        shutil.rmtree(home)


def _publish(daemon: Daemon) -> None:
    daemon.start()
    try:
        if WARM_PORT in KINDS:
            daemon.inn.create_network("lan")
        for name, kind in KINDS.items():
            with daemon.inn.launch("tiny", **kind) as guest:
                guest.run("until ip -4 -o address show dev eth0 | grep inet; do sleep 0.1; done")
                guest.publish(name)
        for network in daemon.inn.networks():
            daemon.inn.delete_network(network.name)
        daemon.stop()
    finally:
        daemon.kill_all()
