"""A system call made in another process, as if it had asked for it itself: ptrace(2), x86-64 only.

For one thing: what the kernel gives a process for its own memory alone, and this one does not ask for
(``userfault``). Its main thread is stopped for some 100 µs, makes the call in the kernel's own code
(the vDSO), and goes on as if nothing had been. When we are killed meanwhile it is killed with us, so
this is for processes that nobody would miss: a QEMU that waits, with no guest in it.
"""

import ctypes
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGTRAP

STOP_LIMIT = 1.0
LOOK_EVERY = 0.0001
MAPS_LIMIT = 8 << 20

SEIZE, INTERRUPT, DETACH, STEP = 0x4206, 0x4207, 17, 9
READ_REGISTERS, WRITE_REGISTERS = 12, 13
OPTION_EXITKILL = 1 << 20
NO_CALL = (1 << 64) - 1
"""In ``orig_rax``: the thread is in no system call that would have to be begun again."""
SYSCALL = b"\x0f\x05"
NAMES = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)
"""struct user_regs_struct (asm/user_64.h)."""


INDEX = {name: at for at, name in enumerate(NAMES.split())}
Registers = ctypes.c_ulong * len(INDEX)

PTRACE = ctypes.CDLL(None, use_errno=True).ptrace
PTRACE.restype = ctypes.c_long
PTRACE.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def call_in(pid: int, number: int, argument: int) -> int:
    """Have a process make a system call of one argument; return what it got.

    To be called in a thread of its own (``host.threads``): the kernel ties the two threads together. Raises
    OSError with the call's own error, or when the process can't be stopped; it goes on in any case, but
    for one that did not stop within a second: that is ended with our thread.
    """
    if platform.machine() != "x86_64":
        raise OSError("not known how on this architecture")
    entry = _find_entry(pid)
    _ptrace(SEIZE, pid, OPTION_EXITKILL)
    signal = 0
    try:
        _ptrace(INTERRUPT, pid)
        _wait_stopped(pid)
        result = _make_call(pid, entry, number, argument)
    except _Signalled as stopped:
        signal = stopped.signal
        raise
    finally:
        _ptrace(DETACH, pid, signal)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class _Signalled(InterruptedError):
    """A signal came in between; it is delivered when the process goes on."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal} came in between")
        self.signal = signal


def _make_call(pid: int, entry: int, number: int, argument: int) -> int:
    with _registers_kept(pid) as registers:
        wanted = {"rip": entry, "rax": number, "rdi": argument, "orig_rax": NO_CALL}
        for name, value in wanted.items():
            registers[INDEX[name]] = value
        _ptrace(WRITE_REGISTERS, pid, ctypes.addressof(registers))
        _ptrace(STEP, pid)
        _wait_stopped(pid)
        _ptrace(READ_REGISTERS, pid, ctypes.addressof(registers))
        return ctypes.c_long(registers[INDEX["rax"]]).value


@contextmanager
def _registers_kept(pid: int) -> Iterator["ctypes.Array[ctypes.c_ulong]"]:
    """Give a copy of the registers of a stopped process; afterwards it has its own again."""
    kept = Registers()
    _ptrace(READ_REGISTERS, pid, ctypes.addressof(kept))
    try:
        yield Registers.from_buffer_copy(kept)
    finally:
        _ptrace(WRITE_REGISTERS, pid, ctypes.addressof(kept))


def _find_entry(pid: int) -> int:
    """Return the address of an instruction that makes a system call."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        found = re.search(rb"(?m)^([0-9a-f]+)-([0-9a-f]+) r-xp .*\[vdso\]$", file.read(MAPS_LIMIT))
    if found is None:
        raise OSError("it has no vDSO")
    begin, end = (int(each, 16) for each in found.groups())
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = os.pread(memory, end - begin, begin).find(SYSCALL)
    finally:
        os.close(memory)
    if at < 0:
        raise OSError("its vDSO makes no system call")
    return begin + at


def _wait_stopped(pid: int) -> None:
    """Wait until a process has stopped for us; its end stays for whoever waits for that.

    Raises OSError; ``_Signalled`` when it stopped for a signal.
    """
    kinds = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
    limit = time.monotonic() + STOP_LIMIT
    while (found := os.waitid(os.P_PID, pid, kinds)) is None:
        if time.monotonic() > limit:
            raise TimeoutError(f"it did not stop within {STOP_LIMIT:g} s")
        time.sleep(LOOK_EVERY)  # the kernel has no event for it that could be given up
    if found.si_code != os.CLD_TRAPPED:
        raise ProcessLookupError(f"process {pid} has ended")
    signal = int(found.si_status) & 0xFF
    if signal != SIGTRAP:
        raise _Signalled(signal)


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if PTRACE(request, pid, None, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
