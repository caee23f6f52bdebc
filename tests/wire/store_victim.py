"""A process that is there to be killed while it commits. Run by test_store_kill.

Reads lines ``FIRST PATH``; for each, forks a child that prints ``pid N``, then commits guests
numbered from FIRST, five at a time, and prints each number once it is acknowledged. When the child
is dead it prints ``dead``. Forked, because importing takes far longer than a round.
"""

import asyncio
import os
import sys
from pathlib import Path

from store_samples import a_guest, an_event

from serai.store.changes import AddEvent, PutGuest
from serai.store.database import Store, open_store

CALLERS = 5


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def commit_for_ever(store: Store, first: int) -> None:
    number = first
    while True:
        await store.commit(PutGuest(a_guest(number)), AddEvent(an_event(number)))
        say(str(number))
        number += CALLERS


async def run(path: Path, first: int) -> None:
    async with open_store(path) as store, asyncio.TaskGroup() as group:
        for caller in range(CALLERS):
            group.create_task(commit_for_ever(store, first + caller))


def main() -> None:
    for line in sys.stdin:
        first, path = line.rstrip("\n").split(" ", 1)
        pid = os.fork()
        if pid == 0:
            say(f"pid {os.getpid()}")
            asyncio.run(run(Path(path), int(first)))
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
