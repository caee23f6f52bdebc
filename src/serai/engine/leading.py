"""Forwards by QEMU's own network: they last as long as the QEMU that has them."""

import logging

from serai.engine.driver import GuestDriver
from serai.errors import SeraiError
from serai.model.network import ForwardRecord
from serai.qemu.instance import Instance

log = logging.getLogger(__name__)


async def open_one(driver: GuestDriver, record: ForwardRecord) -> None:
    """Have the guest's QEMU forward a port; nothing happens where it has no network of its own."""
    instance = driver.instance
    netdev = _user_netdev(instance) if instance else ""
    if instance is not None and netdev:
        await instance.forward(netdev, f"{_outside(record)}-:{record.guest_port}")


async def close_one(driver: GuestDriver, record: ForwardRecord) -> None:
    """Have the guest's QEMU forward a port no more."""
    instance = driver.instance
    netdev = _user_netdev(instance) if instance else ""
    if instance is not None and netdev:
        await instance.end_forward(netdev, _outside(record))


def _user_netdev(instance: Instance) -> str:
    """Return the NIC at QEMU's own network, "" where there is none."""
    return next((nic.name for nic in instance.machine.nics if not nic.tap and not nic.place), "")


def _outside(record: ForwardRecord) -> str:
    return f"{record.protocol}:{record.host_address}:{record.host_port}"


async def open_forwards(driver: GuestDriver) -> None:
    """Have a guest's new QEMU forward what leads to it; one that it can't says so in the list."""
    fabric = driver.house.fabric
    for record in list(fabric.forwards.values()):
        if record.guest_id != driver.record.id or record.port:
            continue
        try:
            await open_one(driver, record)
        except SeraiError as error:
            log.warning("%s: %s", driver.name, error.message)
            fabric.forward_problems[record.id] = error.problem()
        else:
            fabric.forward_problems.pop(record.id, None)
