"""A real daemon in a home of its own, as the tests with real guests and the benchmarks use it."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nursery import Child, Nursery

import serai

START_LIMIT = 60.0
STOP_LIMIT = 30.0
COMMAND_LIMIT = 120.0
WAIT_LIMIT = 60.0


def wait_for(what: str, check: Callable[[], bool], limit: float = WAIT_LIMIT) -> None:
    """Ask until it is so; what a guest does by itself has no other sign from outside."""
    end = time.monotonic() + limit
    while not check():
        assert time.monotonic() < end, f"{what}: not within {limit:g} s"
        time.sleep(0.05)


class Daemon:
    """``serai daemon run`` as a process, and a client. Settings are given by name.

    With ``namespace`` it runs in that network namespace (ip-netns(8)), with all its guests. With ``uid``
    it is an ordinary user's, and so is what ``run`` runs; only root can have that. One that is given a
    ``nursery`` is forked from that: it starts sooner, and is as every other.
    """

    nursery: Nursery | None = None

    def __init__(self, home: Path, *, namespace: str = "", uid: str = "", **settings: str) -> None:
        self.home = home
        self.owner: dict[str, Any] = {}
        if uid:
            self.owner = {"user": int(uid), "group": int(uid), "extra_groups": (), "cwd": home}
        self.namespace = namespace
        self.environ = {**os.environ, "SERAI_HOME": str(home)}
        self.environ.update({f"SERAI_{name.upper()}": text for name, text in settings.items()})
        self.log = home / "daemon.log"
        self.process: subprocess.Popen[bytes] | Child | None = None
        self.inn = serai.connect(self.socket)

    @property
    def socket(self) -> Path:
        """The socket of its API."""
        return self.home / "run" / "api.sock"

    @property
    def pid(self) -> int:
        """The daemon's process; it must run."""
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """True while the process has not ended."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers; what it prints goes to ``log``."""
        reading, writing = os.pipe()
        with self.log.open("ab") as log:
            self.process = self._spawn(log.fileno(), writing)
        os.close(writing)
        ready, _, _ = select.select([reading], [], [], START_LIMIT)
        answered = bool(ready) and os.read(reading, 1) == b"1"
        os.close(reading)
        if not answered:
            self.kill()
            raise RuntimeError(f"the daemon did not start: {self.log.read_text()[-2000:]}")
        self.inn.close()
        self.inn = serai.connect(self.socket)

    def _spawn(self, log: int, ready: int) -> "subprocess.Popen[bytes] | Child":
        if self.nursery is not None:
            return self.nursery.fork(self.environ, self.namespace, log, ready)
        words = [sys.executable, "-m", "serai", "daemon", "run", "--ready-fd", str(ready)]
        if self.namespace:
            words = ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *words]
        return subprocess.Popen(
            words, env=self.environ, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, pass_fds=(ready,), start_new_session=True, **self.owner,
        )  # fmt: skip

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def stop(self) -> None:
        """End it as ``serai daemon stop`` does; guests run on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL; guests run on."""
        self._end(signal.SIGKILL)

    def run(
        self, *words: str, stdin: bytes = b"", timeout: float = COMMAND_LIMIT
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run the command line with this home and return what became of it."""
        return subprocess.run(
            [sys.executable, "-m", "serai", *words],
            env=self.environ, input=stdin, capture_output=True, timeout=timeout, check=False,
            **self.owner,
        )  # fmt: skip

    def qemu_pids(self) -> dict[str, int]:
        """Return the processes that have files of a guest open, by the guest's id."""
        guests = f"{self.home}/state/guests/"
        found = {}
        for pid, path in open_files():
            if path.startswith(guests) and pid != (self.process.pid if self.process else 0):
                found[path.removeprefix(guests).partition("/")[0]] = pid
        return found

    def delete_all(self) -> None:
        """Delete all guests, running or not."""
        for guest in self.inn.guests():
            guest.delete(force=True)

    def delete_warm(self) -> None:
        """Delete all warm images; there are no guests of them any more."""
        for image in self.inn.images():
            if image.warm:
                self.inn.delete_image(image.name)

    def kill_all(self) -> None:
        """End the daemon and every guest by SIGKILL, for when nothing else is sure."""
        if self.is_running:
            self.kill()
        for pid in self.qemu_pids().values():
            pidfd = os.pidfd_open(pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], STOP_LIMIT)
            os.close(pidfd)

    def leftovers(self) -> list[str]:
        """Return what is left after all guests were deleted and the daemon was stopped."""
        left = [f"process {pid} of guest {name}" for name, pid in self.qemu_pids().items()]
        folders = ("guests", "scratch", "layers", "memory", "volumes", "seeds")
        for folder in ("run/guests", *(f"state/{name}" for name in folders)):
            if (self.home / folder).exists():
                left += [str(path) for path in (self.home / folder).iterdir()]
        return left + [str(path) for path in self.home.glob("run/*.sock")]

    def save(self, folder: Path) -> None:
        """Copy what tells why something failed: logs of the daemon and of every guest, events."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.is_running:
            for words in (("events",), ("list",), ("job", "list")):
                done = self.run(*words, "--format", "json", timeout=30)
                (folder / f"{'-'.join(words)}.json").write_bytes(done.stdout or done.stderr)
        for path in [self.log, *self.home.glob("state/guests/*/*.log")]:
            name = str(path.relative_to(self.home)).replace("/", "-")
            shutil.copyfile(path, folder / name.removeprefix("state-guests-"))
        for name, pid in self.qemu_pids().items():
            words_of = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b"\n")
            (folder / f"{name}-argv").write_bytes(words_of)


@contextmanager
def running(keeper: Daemon) -> Iterator[Daemon]:
    """Run it; at the end all its guests are deleted and it is stopped, and nothing may be left.

    A block that has ended it has looked for itself.
    """
    try:
        keeper.start()
        yield keeper
        if keeper.is_running:
            keeper.delete_all()
            keeper.stop()
            assert not (left := keeper.leftovers()), f"left behind: {left}"
    finally:
        keeper.kill_all()


def open_files() -> Iterator[tuple[int, str]]:
    """Give every process's open files."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for file in (process / "fd").iterdir():
                yield int(process.name), os.readlink(file)
        except OSError:
            continue  # it has ended, or is another user's
