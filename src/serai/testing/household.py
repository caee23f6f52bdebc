"""Which daemon the guests of tests come from, and how several processes share it.

    explicit home        the daemon of that home; started if none runs
    none given           the daemon of this environment, if one runs
    none runs            a private one, in a home of its own in the cache

Every process that uses it holds a lock on a file of its own (``pytest/users/ID``) as long as it lives, and its
guests bear that id. So it is known what a killed process left: a guest whose lock is free. Whoever comes
or goes does so behind a door (``pytest/door``), one at a time; who goes last ends a daemon
that was started here, unless guests were kept in it.
"""

import fcntl
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Self

from serai.client import guest_calls
from serai.client.guests import Guest
from serai.client.inn import Inn, connect
from serai.errors import Code, HostFailure, SeraiError
from serai.model.node import DaemonStatus
from serai.settings import Places, find_places

OWNER = "pytest-owner"
"""The label that says whose a guest is: the id of a process that runs tests."""
KEPT = "pytest-kept"
"""The label of a guest that stays because its test failed, or because all were to stay."""

DOOR_LIMIT = 120.0
MAKING_LIMIT = 1800.0
"""How long another process may take to build an image and to make it warm, in seconds."""
LOOK_EVERY = 0.05


def choose_places(home: str, environ: Mapping[str, str]) -> Places:
    """Return where the daemon is that is to be used, or started."""
    is_root = os.geteuid() == 0
    if home or environ.get("SERAI_HOME"):
        explicit = home or environ["SERAI_HOME"]
        return find_places({**environ, "SERAI_HOME": explicit}, is_root=is_root)
    usual = find_places(environ, is_root=is_root)
    if _status(usual) is not None:
        return usual
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or '/tmp'}/.cache"  # noqa: S108
    return find_places({"SERAI_HOME": f"{cache}/serai-pytest"}, is_root=is_root)


def _status(places: Places) -> DaemonStatus | None:
    """Return how the daemon of these places is; None when none answers there."""
    with connect(places.socket) as inn:
        try:
            return inn.status()
        except SeraiError as error:
            if error.code is not Code.DAEMON_UNREACHABLE:
                raise
    return None


class Household:
    """A daemon that runs, for one process that runs tests; ``close`` when it has no more use of it."""

    def __init__(self, places: Places, environ: Mapping[str, str]) -> None:
        """Come in: start the daemon if need be, and clear what killed processes left."""
        self.places = places
        self.owner = uuid.uuid4().hex[:12]
        self.inn: Inn = connect(places.socket)
        self._environ = environ
        self._folder = places.run / "pytest"
        self._users = self._folder / "users"
        self._users.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = -1
        try:
            with self._behind_door():
                self._lock = _try_lock(self._users / self.owner)
                self.status = _status(places) or self._start()
                self._clear()
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def open(cls, home: str, environ: Mapping[str, str]) -> Self:
        """Return the household that these settings lead to."""
        return cls(choose_places(home, environ), environ)

    @property
    def command(self) -> str:
        """Return how the command line is begun so that it finds this daemon."""
        return f"SERAI_HOME={self.places.home} serai" if self.places.home else "serai"

    def _start(self) -> DaemonStatus:
        self.places.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        environ = {**self._environ, "SERAI_HOME": self.places.home}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it outlives who started it
            import_module("serai.daemon_command").start_daemon(self.places, environ)
        status = self.inn.status()
        if status.problem:
            self._end(status.pid)
            raise HostFailure(
                Code.GUEST_START_FAILED,
                f"no guest can be started here: {status.problem}",
                hint="See what is missing: serai doctor",
            )
        (self._folder / "daemon").write_text(str(status.pid))
        return status

    def close(self) -> None:
        """Delete what is left of this process's guests; end the daemon if it is ours to end."""
        try:
            self._delete(self.inn.guests({OWNER: self.owner}))
        except SeraiError as error:
            warnings.warn(f"serai: guests of tests are left: {error.message}", stacklevel=2)
        with self._behind_door():
            self._let_go()
            self._leave()
        self.inn.close()

    def _leave(self) -> None:
        status = _status(self.places)
        if status is None:
            return
        self._clear()
        if self._is_ours(status.pid) and not self._living() and not self._kept():
            self._end(status.pid)
            (self._folder / "daemon").unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:
            return (self._folder / "daemon").read_text() == str(pid)
        except OSError:
            return False

    def _end(self, pid: int) -> None:
        import_module("serai.daemon_command").end_daemon(self.places, pid)

    def _kept(self) -> bool:
        return any(KEPT in guest.info.labels for guest in self.inn.guests())

    # -- who lives ---------------------------------------------------------------------------------

    def _living(self) -> set[str]:
        """Return the ids of the processes that use this daemon now; forget those that are gone."""
        found = set()
        for path in self._users.iterdir():
            lock = _try_lock(path)
            if lock < 0:
                found.add(path.name)
            else:
                path.unlink(missing_ok=True)
                os.close(lock)
        return found

    def _clear(self) -> None:
        """Delete the guests of processes that have ended without doing so."""
        theirs = [guest for guest in self.inn.guests() if OWNER in guest.info.labels]
        living = self._living()
        self._delete([guest for guest in theirs if guest.info.labels[OWNER] not in living])

    def _delete(self, guests: list[Guest]) -> None:
        wrong = self.inn.connection.finish_all(
            guest_calls.delete_guest(each.id, force=True) for each in guests
        )
        for error in wrong:
            warnings.warn(f"serai: a guest of a test is left: {error.message}", stacklevel=2)

    def _let_go(self) -> None:
        if self._lock >= 0:
            (self._users / self.owner).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    # -- one at a time -----------------------------------------------------------------------------

    def _behind_door(self) -> AbstractContextManager[None]:
        return locked(self._folder / "door", DOOR_LIMIT)

    def making(self, what: str) -> AbstractContextManager[None]:
        """Be the only process that makes ``what``, within the block."""
        return locked(self._folder / f"making-{what}", MAKING_LIMIT)


def _try_lock(path: Path) -> int:
    """Return a descriptor that holds the lock of a file; -1 when somebody else does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


@contextmanager
def locked(path: Path, limit: float) -> Iterator[None]:
    """Hold the lock of a file within the block; HostFailure (``timeout``) after ``limit`` seconds."""
    until = time.monotonic() + limit
    while (fd := _try_lock(path)) < 0:
        if time.monotonic() > until:
            raise HostFailure(
                Code.TIMEOUT,
                f"another process that runs tests has held {path} for {limit:.0f} s",
                hint="See which one, and end it if it hangs: fuser -v " + str(path),
            )
        time.sleep(LOOK_EVERY)  # flock(2) has no limit of its own
    try:
        yield
    finally:
        os.close(fd)
