"""Disks that are pulled out, against a QMP peer: their files are closed, also when QEMU takes its time."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from adopted import adopted
from fake_qemu import FakeQemu, fake_qemu
from test_qemu_instance import MACHINE, SOON

from serai.model.image import DiskFormat
from serai.model.machine import Drive, LayerFile, Media
from serai.qemu import drives
from serai.qemu.instance import Instance

HEAD = LayerFile(path="/nowhere", format=DiskFormat.QCOW2, read_only=False, node="v1")
DATA = Drive(name="vol-data", media=Media.DISK, chain=(HEAD,), boot_index=0, port="spare0")


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path / "qmp.sock") as fake:
        fake.answers.update({"query-chardev": [], "qom-list": [], "query-fdsets": []})
        yield fake


@pytest.fixture
async def instance(qemu: FakeQemu, tmp_path: Path) -> AsyncIterator[Instance]:
    async with adopted(qemu, dataclasses.replace(MACHINE, drives=(DATA,)), tmp_path) as instance:
        yield instance


async def test_a_node_that_is_not_free_yet_is_closed_when_it_is(
    qemu: FakeQemu, instance: Instance
) -> None:
    """Its device has left the machine, but QEMU has not freed it: without this it would stay for ever."""
    qemu.errors["blockdev-del"] = "Node v1 is in use"
    pulling = asyncio.create_task(instance.unplug_drive(DATA.name, SOON))
    await qemu.wait_told("blockdev-del", 3)
    assert not pulling.done()
    del qemu.errors["blockdev-del"]
    await asyncio.wait_for(pulling, SOON)
    assert qemu.told[-1].name == "query-fdsets" and instance.machine.drives == ()


async def test_what_never_gets_free_is_left_after_a_while(
    qemu: FakeQemu, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drives, "FREEING_LIMIT", 0.05)
    qemu.errors["blockdev-del"] = "Node v1 is in use"
    await asyncio.wait_for(instance.unplug_drive(DATA.name, SOON), SOON)


async def test_a_node_that_is_not_there_is_not_waited_for(
    qemu: FakeQemu, instance: Instance
) -> None:
    qemu.errors["blockdev-del"] = "Failed to find node with node-name='v1'"
    await asyncio.wait_for(instance.unplug_drive(DATA.name, SOON), SOON)
    assert qemu.names().count("blockdev-del") == 1
