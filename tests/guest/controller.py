"""A program that starts a QEMU, says so, and waits to be killed: ``controller.py FOLDER STATE KIND``."""

import asyncio
import sys
from pathlib import Path

from instances import find_host, tiny_machine, wait_inside


async def main(folder: Path, tiny_state: Path, kind: str) -> None:
    host = await find_host(tiny_state, folder)
    if kind == "tiny":
        instance = await wait_inside(await host.start(tiny_machine(host, tiny_state)))
    else:
        instance = await host.start()
    if kind == "held":
        await instance.hold()
    print(instance.process.pid, instance.started_at, flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
