"""Threads of the daemon: they share one heap."""

import subprocess
import sys

LOOK = """
import re, threading
from pathlib import Path
from serai.host.threads import share_heap

def reserved() -> int:
    return int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

{call}
before, over = reserved(), threading.Event()
met = threading.Barrier(5)
def work():
    held = [bytes(4000) for _ in range(100)]
    met.wait()
    over.wait()
for _ in range(4):
    threading.Thread(target=work).start()
met.wait()
print(reserved() - before)
over.set()
"""
STACKS = 4 * 10
"""MiB that four threads may have for their stacks."""


def _reserved_by_threads(call: str) -> int:
    text = subprocess.check_output([sys.executable, "-c", LOOK.format(call=call)], text=True)
    return int(text)


def test_threads_reserve_no_heaps_of_their_own() -> None:
    assert _reserved_by_threads("") > 4 * 60  # so the other figure says something
    assert _reserved_by_threads("share_heap()") <= STACKS
