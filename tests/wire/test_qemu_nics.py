"""NICs that come and go, against a QMP peer: what is told to QEMU, and what is undone."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from adopted import adopted
from fake_qemu import FakeQemu, fake_qemu
from test_qemu_instance import MACHINE, SOON

from serai.errors import Code, Conflict, HostFailure
from serai.model.machine import Nic
from serai.qemu.instance import Instance

NET0 = Nic(name="net0", mac="02:00:00:00:00:01", tap="st0", place="spare0")
NET1 = Nic(name="net1", mac="02:00:00:00:00:02", tap="st1")


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qmp.sock") as fake:
        fake.answers["query-chardev"] = [{"label": "agent", "frontend-open": False}]
        fake.answers["human-monitor-command"] = ""
        yield fake


@pytest.fixture
async def instance(qemu: FakeQemu, tmp_path: Path) -> AsyncIterator[Instance]:
    async with adopted(qemu, dataclasses.replace(MACHINE, nics=(NET0,)), tmp_path) as instance:
        yield instance


@pytest.fixture
def tap() -> Iterator[int]:
    fd = os.memfd_create("tap")
    yield fd
    os.close(fd)


async def test_a_nic_is_plugged_where_there_is_room(
    qemu: FakeQemu, instance: Instance, tap: int
) -> None:
    plugged = await instance.plug_nic(NET1, tap)
    assert plugged.place == "spare1" and instance.machine.nics == (NET0, plugged)
    given, netdev, device = qemu.told
    assert (given.arguments, given.inode) == ({"fdname": "tap:net1"}, os.fstat(tap).st_ino)
    assert netdev.arguments == {"type": "tap", "id": "net1", "fd": "tap:net1"}
    assert (device.arguments["bus"], device.arguments["mac"]) == ("spare1", NET1.mac)
    with pytest.raises(Conflict) as raised:
        await instance.plug_nic(dataclasses.replace(NET1, name="net2"), tap)
    assert raised.value.code is Code.NEEDS_STOP


@pytest.mark.parametrize(
    ("fails", "undone"), [("netdev_add", "closefd"), ("device_add", "netdev_del")]
)
async def test_what_fails_is_undone(
    qemu: FakeQemu, instance: Instance, tap: int, fails: str, undone: str
) -> None:
    qemu.errors[fails] = "no room"
    with pytest.raises(HostFailure):
        await instance.plug_nic(NET1, tap)
    assert qemu.names()[-1] == undone and instance.machine.nics == (NET0,)


async def test_a_nic_is_gone_when_the_guest_lets_go(qemu: FakeQemu, instance: Instance) -> None:
    leaving = asyncio.ensure_future(instance.unplug_nic("net0", SOON))
    await qemu.wait_told("device_del")
    qemu.tell("DEVICE_DELETED", device="disk0", path="/machine/peripheral/disk0")
    qemu.tell("DEVICE_DELETED", path="/machine/peripheral/net0-device/virtio-backend")
    await asyncio.sleep(0)
    assert not leaving.done()
    qemu.tell("DEVICE_DELETED", device="net0-device", path="/machine/peripheral/net0-device")
    await leaving
    assert qemu.names() == ["device_del", "netdev_del"] and instance.machine.nics == ()


async def test_a_guest_that_does_not_let_go_keeps_it(qemu: FakeQemu, instance: Instance) -> None:
    with pytest.raises(HostFailure) as raised:
        await instance.unplug_nic("net0", 0.1)
    assert raised.value.code is Code.TIMEOUT and instance.machine.nics == (NET0,)


async def test_cables_are_pulled_where_there_are_any(qemu: FakeQemu, instance: Instance) -> None:
    instance.machine = dataclasses.replace(
        instance.machine, nics=(NET0, Nic(name="user", mac="52:54:00:00:00:01"))
    )
    await instance.set_links(False)
    await instance.set_user_links(True)
    assert [each.arguments for each in qemu.told] == [
        {"name": "net0", "up": False},
        {"name": "user", "up": True},
    ]


async def test_qemus_own_words_about_a_forward_are_told(qemu: FakeQemu, instance: Instance) -> None:
    await instance.forward("net0", "tcp::80-:80")
    assert qemu.told[0].arguments == {"command-line": "hostfwd_add net0 tcp::80-:80"}
    qemu.answers["human-monitor-command"] = "Could not set up host forwarding rule\r\n"
    with pytest.raises(HostFailure) as raised:
        await instance.forward("net0", "tcp::80-:80")
    assert raised.value.code is Code.FORWARD_FAILED
    assert raised.value.message.endswith(": Could not set up host forwarding rule")
