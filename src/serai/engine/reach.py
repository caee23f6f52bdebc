"""The way from here to the ssh server in a guest.

A guest with ports is called at its address. One on QEMU's own network can't be called from outside:
its QEMU lends a port of the loopback address for the moment of the call, and takes it back as soon as
the guest has answered.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serai.engine.driver import GuestDriver
from serai.engine.running import check_talk
from serai.errors import Code, Conflict, HostFailure, SeraiError
from serai.model.guest import AgentState
from serai.plan.machine import USER_NIC
from serai.qemu.instance import Instance

SSH_PORT = 22
GREETING = b"SSH-"
GREETING_LIMIT = 64 << 10
LOOPBACK = "127.0.0.1"
PORT_TRIES = 5
USER_NETWORK = ipaddress.IPv4Network("10.0.2.0/24")
ASK_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class SshStream:
    """A connection to the ssh server of a guest. ``greeting`` is what it said first."""

    greeting: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def open_ssh(driver: GuestDriver, timeout: float) -> SshStream:
    """Connect to the guest's ssh server and wait for its greeting; the caller closes ``writer``.

    Raises Conflict (``ssh-unreachable``) when nobody answers as one within ``timeout`` seconds.
    """
    instance = check_talk(driver)
    try:
        async with asyncio.timeout(timeout), _address_of(driver, instance) as (host, port):
            reader, writer = await _connect(driver, host, port)
            try:
                greeting = await reader.read(GREETING_LIMIT)
                if not greeting.startswith(GREETING):
                    raise _unreachable(driver, "nobody answers there as an ssh server does")
            except BaseException:
                writer.close()
                raise
    except TimeoutError as error:
        raise _unreachable(driver, f"no answer within {timeout:g} s") from error
    except OSError as error:
        raise _unreachable(driver, error.strerror or str(error)) from error
    return SshStream(greeting, reader, writer)


async def _connect(
    driver: GuestDriver, host: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect from where the guest's port is: in a bubble its address is another's outside."""
    bubble = next((each.bubble for each in driver.record.ports), None)
    if bubble is None:
        return await asyncio.open_connection(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = await asyncio.to_thread(driver.house.cabling.open_socket, bubble, family)
    try:
        await asyncio.get_running_loop().sock_connect(found, (host, port))
        return await asyncio.open_connection(sock=found)
    except BaseException:
        found.close()
        raise


def _unreachable(driver: GuestDriver, why: str) -> Conflict:
    return Conflict(
        Code.SSH_UNREACHABLE,
        f"the ssh server of {driver.name} (port {SSH_PORT}) can't be reached: {why}",
        hint=f"Does it run in the guest? serai exec {driver.name} -- ss -tln; its console: serai console {driver.name}",
    )


@asynccontextmanager
async def _address_of(driver: GuestDriver, instance: Instance) -> AsyncIterator[tuple[str, int]]:
    """Give where the guest's ssh server can be called within the block."""
    if driver.record.ports:
        addresses = [each.address or each.address6 for each in driver.record.ports]
        address = next(filter(None, addresses), "")
        if not address:
            raise _unreachable(driver, "none of its ports has an address that we know")
        yield address, SSH_PORT
        return
    port = await _lend_port(instance, await _inside(driver, instance))
    try:
        yield LOOPBACK, port
    finally:
        with contextlib.suppress(SeraiError):  # it has ended: then the port has, too
            await instance.end_forward(USER_NIC, f"tcp:{LOOPBACK}:{port}")


async def _inside(driver: GuestDriver, instance: Instance) -> str:
    """Return the guest's address in QEMU's own network; "" (QEMU's first) where no agent tells.

    A fork has often another than its source: it asks anew with another MAC address.
    """
    if driver.agent_state is not AgentState.ANSWERING:
        return ""
    with contextlib.suppress(SeraiError, ValueError):
        for untrusted in await instance.agent.interfaces(timeout=ASK_TIMEOUT):
            for each in untrusted.ip_addresses:
                address = ipaddress.ip_address(each.ip_address[:64])
                if address in USER_NETWORK:
                    return str(address)
    return ""


async def _lend_port(instance: Instance, inside: str) -> int:
    """Have QEMU listen on a port of the loopback address for the guest; return which.

    It can't be asked which one it would take, so a free one is looked for, again if somebody was
    quicker.
    """
    for tries_left in reversed(range(PORT_TRIES)):
        port = _free_port()
        try:
            await instance.forward(USER_NIC, f"tcp:{LOOPBACK}:{port}-{inside}:{SSH_PORT}")
        except HostFailure:
            if not tries_left:
                raise
        else:
            return port
    raise AssertionError("the last try raises")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
