"""Networks: how long they take to make and change, on a host of their own (a network namespace).

What a request takes is measured whole: sent, done on the host, durable, answered.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keeper import Daemon
from namespaced import open_daemon, open_namespace
from tiny import copy_state, state_with_tiny

from bench.figures import Row, clocked, p50, show_time, show_times
from bench.scene import Scene
from serai.client import network_calls
from serai.client.network_words import network_of, port_of
from serai.host.namespaces import inside
from serai.model.network import Direction, GroupChange, Protocol, Rule

ROUNDS = 20
SETTLE = 0.5
GUESTS, PORTS, GROUPS = 25, 8, 40
MEMORY = "128MiB"


@contextmanager
def networked(ending: str) -> Iterator[tuple[Daemon, str]]:
    """A daemon in a namespace, and the namespace; nothing of either is left."""
    home = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        copy_state(state_with_tiny(), home)
        with open_namespace(ending) as name, open_daemon(home, name) as daemon:
            yield daemon, name
    finally:
        shutil.rmtree(home)


def can_not() -> bool:
    """Tell whether networks can't be measured here."""
    return os.geteuid() != 0


async def measure_networks(scene: Scene) -> list[Row]:
    """Make networks, add ports to a running guest, fork it, change one rule where there are 200 ports."""
    if can_not():
        return []
    with networked("-bench") as (daemon, namespace):
        return [
            _creation(daemon),
            _addition(daemon),
            _fork(daemon, namespace),
            _change(daemon),
        ]


def _row(what: str, times: list[float], limit: float) -> Row:
    return Row(
        what=what, ours=show_times(times), reached=p50(times), limit=limit, unit="", show=show_time
    )


def _creation(daemon: Daemon) -> Row:
    connection, times = daemon.inn.connection, []
    for number in range(ROUNDS):
        spec = network_of(f"n{number}", subnet6=f"fd12:3456:789a:{number + 1:x}::/64")
        call = network_calls.create_network(spec)
        times.append(clocked(lambda call=call: connection.finish(call)))  # type: ignore[misc]
    for number in range(1, ROUNDS):
        daemon.inn.delete_network(f"n{number}")
    return _row("network with bridge, DHCP, names and rules → it is there", times, 0.05)


def _addition(daemon: Daemon) -> Row:
    connection, times = daemon.inn.connection, []
    with daemon.inn.launch("tiny", name="one", memory=MEMORY, networks=["n0"]) as guest:
        for _ in range(ROUNDS):
            time.sleep(SETTLE)
            call = network_calls.add_port(guest.id, port_of("n0"))
            times.append(clocked(lambda call=call: connection.finish(call)))  # type: ignore[misc]
            time.sleep(SETTLE)
            guest.remove_port("net1")
    return _row("port added to a running guest → QEMU has plugged it in", times, 0.03)


def _fork(daemon: Daemon, namespace: str) -> Row:
    times = []
    with daemon.inn.launch("tiny", name="one", memory=MEMORY, networks=["n0"]) as guest:
        guest.fork(name="first").delete(force=True)
        for number in range(ROUNDS):
            time.sleep(SETTLE)
            begun = time.monotonic()
            fork = guest.fork(name=f"f{number}")
            _reach(namespace, fork.info.ports[0].address)
            times.append(time.monotonic() - begun)
            fork.delete(force=True)
    return _row("fork of a guest in a network → reached at its new address", times, 0.5)


def _reach(namespace: str, address: str) -> None:
    """Return when a guest has refused a connection: nobody listens there."""
    with suppress(ConnectionRefusedError):
        inside(namespace, lambda: socket.create_connection((address, 9), timeout=10).close())


def _change(daemon: Daemon) -> Row:
    inn, times = daemon.inn, []
    inn.create_network("many", subnet="10.8.0.0/22")
    for number in range(GROUPS):
        inn.create_group(f"g{number}", inward=["tcp:80", "udp:53"])
    for number in range(GUESTS):
        groups = [f"g{(number * PORTS + port) % GROUPS}" for port in range(PORTS)]
        inn.create("tiny", name=f"p{number}", networks=[f"many,group={each}" for each in groups])
    for number in range(ROUNDS):
        rule = Rule(direction=Direction.IN, protocol=Protocol.UDP, ports=str(1000 + number))
        call = network_calls.change_group("g7", GroupChange(add=(rule,)))
        times.append(clocked(lambda call=call: inn.connection.finish(call)))  # type: ignore[misc]
    return _row(f"one rule changed, {GUESTS * PORTS} ports in {GROUPS} groups", times, 0.02)
