"""Daemons in a network namespace that a test makes, so that the machine's own network is not touched."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keeper import Daemon, running
from nursery import Nursery

from serai.engine.site import RUN
from serai.host.namespaces import list_namespaces
from serai.plan.network import bubbles_of, owner_of


def in_namespace(name: str, *argv: str) -> str:
    """Run a program in a namespace; return what it prints."""
    words = ["ip", "netns", "exec", name, *argv]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextmanager
def open_namespace(ending: str = "") -> Iterator[str]:
    """Make a network namespace with nothing in it; it is gone afterwards."""
    name = f"serai-test-{os.getpid()}{ending}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        in_namespace(name, "ip", "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def open_daemon(
    home: Path, namespace: str, nursery: Nursery | None = None, **settings: str
) -> Iterator[Daemon]:
    """Run a daemon in the namespace; afterwards nothing of any network may be left there.

    What ``home`` is to have of images is in it already.
    """
    keeper = Daemon(home, namespace=namespace, **settings)
    keeper.nursery = nursery
    try:
        with running(keeper):
            yield keeper
            keeper.delete_all()
            keeper.delete_warm()
            _delete_networks(keeper)
            assert left_of_networks(namespace) == []
            assert bubbles(home) == []
    finally:
        for pid in (pid for each in (namespace, *bubbles(home)) for pid in resolvers(each)):
            os.kill(pid, signal.SIGKILL)
        for each in bubbles(home):
            subprocess.run(["ip", "netns", "delete", each], check=False)
        shutil.rmtree(RUN / owner_of(str(home / "state")), ignore_errors=True)


def _delete_networks(keeper: Daemon) -> None:
    for forwarded in keeper.inn.forwards():
        keeper.inn.remove_forward(forwarded.id)
    for network in keeper.inn.networks():
        keeper.inn.delete_network(network.name)
    for group in keeper.inn.groups():  # last: without a network there is nowhere to hold them
        keeper.inn.delete_group(group.name)


def bubbles(home: Path) -> list[str]:
    """Return the namespaces of the bubbles of a daemon."""
    return list_namespaces(bubbles_of(owner_of(str(home / "state"))))


def resolvers(namespace: str) -> list[int]:
    """Return the processes of dnsmasq in the namespace."""
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    found = []
    for pid in map(int, pids.stdout.split()):
        with suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{pid}/comm").read_text().startswith("dnsmasq"):
                found.append(pid)
    return found


def left_of_networks(namespace: str) -> list[str]:
    """Return what there is of networks in the namespace; "wire" is the test's own."""
    left = [f"dnsmasq {pid}" for pid in resolvers(namespace)]
    links = in_namespace(namespace, "ip", "-br", "link")
    left += [line.split()[0] for line in links.splitlines() if not line.startswith(("lo", "wire"))]
    return left + in_namespace(namespace, "nft", "list", "tables").splitlines()
