"""An Instance for tests: a process that is no QEMU, with a QMP peer that speaks for it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fake_qemu import FakeQemu
from test_qemu_instance import SOON, UNCONFINED

from serai.host.process import spawn
from serai.model.machine import Machine
from serai.qemu.instance import Instance


@asynccontextmanager
async def adopted(qemu: FakeQemu, machine: Machine, folder: Path) -> AsyncIterator[Instance]:
    """Adopt it as this machine; what the peer was told for that is forgotten."""
    null = os.open(os.devnull, os.O_RDWR)
    process = await spawn(["/bin/sleep", "60"], pass_fds=(), stderr_to=null, confinement=UNCONFINED)
    os.close(null)
    instance = await Instance.adopt(
        machine, process, started_at=1.0, run_dir=folder, state_dir=folder, timeout=SOON
    )
    qemu.told.clear()
    yield instance
    await instance.end(0.0)
    await instance.close()
