"""DHCP, names and router advertisements for a network: one dnsmasq, which outlives us.

    folder   conf, hosts, names   written by us, read by it again when it is told to (SIGHUP)
             leases/              its own

It runs as a user of its own with the three capabilities that DHCP takes and no others, bound to its
bridge. It is found again by its argv and by the memory file that is its log (docs/design/0003), which
can't grow over 64 KiB, however much a guest makes it complain.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
from pathlib import Path

from serai.errors import Code, HostFailure
from serai.host.namespaces import inside, namespace_words, network_error
from serai.host.process import (
    Confinement,
    Process,
    find_processes,
    find_program,
    read_memory,
    spawn,
)
from serai.host.supervise import wait_until
from serai.model.network import NetworkSpec
from serai.plan.resolver import Lease, configuration, kept_leases, names, reservations

OPTION = "-C"
LOG_LIMIT = 64 << 10
TOLD_OF_LOG = 2000
READY_LIMIT, END_LIMIT = 10.0, 5.0
CAPABILITIES = "-all,+net_admin,+net_raw,+net_bind_service"
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 2, 4


def rewrite_leases(path: Path, leases: tuple[Lease, ...]) -> bool:
    """Keep only known leases in dnsmasq's file; False, and untouched, if it holds no others.

    dnsmasq owns the folder: what lies there is opened once, through no link, and neither waited for
    nor written to unless it is a plain file of one name. `HostFailure` if it is not.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise network_error(f"write {path}", error) from error
    with open(descriptor, "r+b", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise HostFailure(Code.NETWORK_FAILED, f"{path} is no plain file of one name")
        untrusted = file.read().decode(errors="replace")
        kept = kept_leases(untrusted, leases)
        if kept == untrusted:
            return False
        file.seek(0)
        file.truncate()
        file.write(kept.encode())
    return True


class Resolver:
    """The dnsmasq of one network, from ``ensure`` on. ``folder`` is its own, made and removed by it.

    It runs as ``uid``, which nobody else should be; each folder above must let that one through.
    """

    def __init__(
        self, folder: Path, *, bridge: str, spec: NetworkSpec, uid: int, namespace: str = ""
    ) -> None:
        self.spec = spec
        self._folder = folder
        self._bridge = bridge
        self._uid = uid
        self._namespace = namespace
        self._process: Process | None = None
        self._log = -1
        self._lock = asyncio.Lock()

    @property
    def _conf(self) -> Path:
        return self._folder / "conf"

    @property
    def _memory(self) -> str:
        return f"serai-dnsmasq-{self._bridge}"

    @property
    def pid(self) -> int:
        """The number of the process; 0 when none is known to run."""
        return self._process.pid if self._process and not self._process.has_ended else 0

    async def ensure(self, leases: tuple[Lease, ...]) -> str:
        """Have it running with these leases: adopt it, start it, or tell it; say what was done.

        "" if nothing was to do. It may still be on its way when this returns: ``wait_ready``. Raises
        HostFailure: ``network-failed`` without its bridge, ``tool-missing``.
        """
        async with self._lock:
            conf = self._configuration()
            await asyncio.to_thread(self._make_folder)
            is_other = await asyncio.to_thread(self._write, self._conf, conf)
            is_told = await asyncio.to_thread(self._write_leases, leases)
            await self._adopt()
            has_stale = is_told and await asyncio.to_thread(self._forget_stale, leases)
            if self.pid and (is_other or has_stale):
                await self._end()
                await asyncio.to_thread(self._forget_stale, leases)
            if not self.pid:
                await self._start()
                return f"DHCP and names of {self.spec.name} were started"
            if is_told:
                await self._ready()
                self._signal(signal.SIGHUP)
                return f"DHCP and names of {self.spec.name} were told of {len(leases)} leases"
            return ""

    async def wait_ready(self) -> None:
        """Wait until it answers; HostFailure (``tool-failed``) with its words if it ends instead."""
        async with self._lock:
            await self._ready()

    async def wait_ended(self) -> None:
        """Wait until the running one ends; for whoever calls ``ensure`` again then."""
        if self._process is not None:
            await self._process.wait()

    async def remove(self) -> None:
        """End it and remove its folder; fine if there is neither."""
        async with self._lock:
            await self._adopt()
            await self._end()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of it; it goes on, and the next daemon's ``ensure`` adopts it."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _configuration(self) -> str:
        try:
            index = inside(self._namespace, lambda: socket.if_nametoindex(self._bridge))
        except OSError as error:
            raise network_error(f"serve {self._bridge}", error) from error
        return configuration(
            self.spec,
            bridge=self._bridge,
            bridge_index=index,
            hosts=self._folder / "hosts",
            names=self._folder / "names",
            leases=self._folder / "leases" / "leases",
        )

    def _make_folder(self) -> None:
        """Make the folder ours, so that it can put nothing in our way; only its leases are its own."""
        leases = self._folder / "leases"
        for folder in (*reversed(self._folder.parents), self._folder):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o755)  # whatever our umask is
        leases.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(leases, self._uid, self._uid)

    def _write_leases(self, leases: tuple[Lease, ...]) -> bool:
        changed = self._write(self._folder / "hosts", reservations(leases))
        return self._write(self._folder / "names", names(leases, self.spec)) or changed

    def _forget_stale(self, leases: tuple[Lease, ...]) -> bool:
        """Take leases out that belong to nobody any more; True if there were any.

        One that runs writes the file anew from what it remembers: it has to be ended too.
        """
        return rewrite_leases(self._folder / "leases" / "leases", leases)

    def _write(self, path: Path, text: str) -> bool:
        """Have a file with this text, whole at any moment; True if it was another."""
        with contextlib.suppress(FileNotFoundError):
            if path.read_text() == text:
                return False
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)
        return True

    async def _adopt(self) -> None:
        if self.pid:
            return
        self.close()
        found = await asyncio.to_thread(find_processes, OPTION, {str(self._conf)})
        for pid in found.get(str(self._conf), ()):
            process = Process.attach(pid, OPTION, str(self._conf), holds=self._memory)
            if process is not None:
                self._process = process
                return

    async def _start(self) -> None:
        self.close()
        self._log = os.memfd_create(self._memory, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._log, LOG_LIMIT)
        fcntl.fcntl(self._log, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK)
        self._process = await spawn(
            self._words(),
            pass_fds=(),
            stderr_to=self._log,
            confinement=Confinement(uid=None, setpriv="", cgroup=None),
        )

    def _words(self) -> list[str]:
        drop: list[str] = []
        if os.geteuid() == 0:
            drop = [
                find_program("setpriv"), f"--reuid={self._uid}", f"--regid={self._uid}",
                "--clear-groups", f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}",
                f"--bounding-set={CAPABILITIES}", "--no-new-privs", "--",
            ]  # fmt: skip
        enter = namespace_words(self._namespace)
        return [*enter, *drop, find_program("dnsmasq"), OPTION, str(self._conf)]

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.signal(number)

    async def _ready(self) -> None:
        """It reads its files and takes signals only once it has said that it started."""
        await wait_until(
            f"DHCP and names of {self.spec.name}", self._has_started, timeout=READY_LIMIT, every=0.002, slowest=0.05,
        )  # fmt: skip

    def _has_started(self) -> bool:
        if not self.pid:
            raise self._ended_early()
        said = read_memory(self.pid, self._memory, LOG_LIMIT)
        return said is not None and b": started" in said and b": read " in said

    def _ended_early(self) -> HostFailure:
        said = os.pread(self._log, LOG_LIMIT, 0).rstrip(b"\0") if self._log >= 0 else b""
        untrusted_end = said.decode(errors="replace").strip()
        last = untrusted_end.rsplit("\n", 1)[-1][:300]
        return HostFailure(
            Code.TOOL_FAILED,
            f"dnsmasq of {self.spec.name} has ended{f': {last}' if last else ''}",
            hint="Another program may serve the same addresses.",
            details={"stderr": untrusted_end[-TOLD_OF_LOG:]},
        )

    async def _end(self) -> None:
        if self._process is None:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._process.signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_LIMIT):
                        await self._process.wait()
                        break
        finally:
            self.close()
