"""The daemon's settings as one table, and the places that follow from ``SERAI_HOME``.

``SETTINGS`` is the only list: name, how to read it, default and help. ``read_settings`` takes
them from the environment (``SERAI_`` and the name in capitals) over the file ``serai.toml`` in the
state folder; the docs page is made from the same table. ``Settings`` is checked against it by a test.

Who calls this: the daemon (all of it), the CLI and the client (only ``find_places``).
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from serai.errors import Code, Invalid
from serai.units import GIB, MIB, parse_duration, parse_size, shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where everything is. ``state`` survives a reboot, ``run`` need not."""

    home: str
    state: Path
    run: Path

    @property
    def socket(self) -> Path:
        """The socket of the API."""
        return self.run / "api.sock"

    @property
    def lock(self) -> Path:
        """Locked by the daemon that owns these places."""
        return self.run / "daemon.lock"

    @property
    def log(self) -> Path:
        """What a daemon in the background prints."""
        return self.state / "daemon.log"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.state / "serai.db"

    @property
    def ballast(self) -> Path:
        """Room kept back for the database: removed when the disk is full."""
        return self.state / "ballast"

    @property
    def images(self) -> Path:
        """One folder an image, named by digest."""
        return self.state / "images"

    @property
    def guests(self) -> Path:
        """One folder a guest, named by id: volumes, firmware variables, serial log."""
        return self.state / "guests"

    @property
    def layers(self) -> Path:
        """The immutable pieces of volumes: one file a layer, named by id."""
        return self.state / "layers"

    @property
    def volumes(self) -> Path:
        """The heads of volumes in the pool ``default``: one file a volume, named by id."""
        return self.state / "volumes"

    @property
    def memory(self) -> Path:
        """The memory of snapshots: one folder a base or a snapshot, named by id."""
        return self.state / "memory"

    @property
    def firmware(self) -> Path:
        """The firmware's variables of snapshots, under UEFI: one file a snapshot, named by id."""
        return self.state / "firmware"

    @property
    def seeds(self) -> Path:
        """What guests are told at their first boot: one file each, named by its digest."""
        return self.state / "seeds"

    @property
    def keys(self) -> Path:
        """Public keys (``*.pub``, PEM) whose signatures on an index of images are trusted."""
        return self.state / "keys"

    @property
    def guests_run(self) -> Path:
        """One folder a guest, named by id: sockets."""
        return self.run / "guests"

    @property
    def scratch(self) -> Path:
        """Unfinished downloads, imports and builds; emptied when the daemon starts."""
        return self.state / "scratch"


def find_places(environ: Mapping[str, str], *, is_root: bool) -> Places:
    """Return the places for this environment; creates nothing.

    ``SERAI_HOME`` moves everything under itself. Without it: the system's folders for root,
    the XDG base directories for a user.
    """
    home = environ.get("SERAI_HOME", "")
    if home:
        top = Path(home).absolute()
        return Places(home=str(top), state=top / "state", run=top / "run")
    if is_root:
        return Places(home="", state=Path("/var/lib/serai"), run=Path("/run/serai"))
    user = Path(environ.get("HOME") or "/")
    state = (_xdg(environ, "XDG_DATA_HOME") or user / ".local/share") / "serai"
    runtime = _xdg(environ, "XDG_RUNTIME_DIR")
    return Places(home="", state=state, run=runtime / "serai" if runtime else state / "run")


def _xdg(environ: Mapping[str, str], variable: str) -> Path | None:
    """Return a base directory; a relative one is to be ignored (XDG Base Directory 0.8)."""
    path = environ.get(variable, "")
    return Path(path) if path.startswith("/") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: how it is called, read, and explained."""

    name: str
    parse: Callable[[str], object]
    default: object
    help: str


LARGEST = (1 << 31) - 1


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= LARGEST:
        raise Invalid(
            Code.VALUE_INVALID, f"{shorten(text)} is not a whole number from 1 to {LARGEST}"
        )
    return value


def _size_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


def _period(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is no time at all")
    return seconds


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise Invalid(Code.VALUE_INVALID, f"{shorten(text)} is none of {', '.join(allowed)}")
        return text

    return parse


SETTINGS: tuple[Setting, ...] = (
    Setting(name="qemu", parse=str, default="", help="Path of qemu-system-x86_64; empty: look in PATH."),
    Setting(name="accel", parse=_choice("auto", "kvm", "tcg"), default="auto", help="auto uses KVM only after guest code really ran under it."),
    Setting(name="uid_base", parse=_positive, default=1_879_048_192, help="First uid for guests (root only); guest n runs as uid_base + n."),
    Setting(name="log_limit", parse=parse_size, default=1 * MIB, help="Size at which a guest's serial log is cut to its newer half."),
    Setting(name="agent_timeout", parse=_period, default=120.0, help="How long a launch waits for the agent, in seconds. Those in which the host had no processor for the guest do not count."),
    Setting(name="first_boot_timeout", parse=_period, default=600.0, help="How long a launch waits for cloud-init or ssh, if it is asked to, in seconds; counted as agent_timeout is."),
    Setting(name="start_timeout", parse=_period, default=30.0, help="How long QEMU may take to answer its monitor."),
    Setting(name="stop_timeout", parse=_period, default=30.0, help="How long a graceful stop waits before it is forced."),
    Setting(name="heartbeat", parse=_period, default=5.0, help="How often QEMU is asked whether it is there."),
    Setting(name="monitor_timeout", parse=_period, default=10.0, help="How long a monitor may be silent before its guest is called unresponsive."),
    Setting(name="disk_reserve", parse=parse_size, default=256 * MIB, help="Free space below which nothing new is written, and a guest held by a full disk stays held."),
    Setting(name="schedule_interval", parse=_period, default=60.0, help="Shortest interval that a schedule of snapshots may have."),
    Setting(name="body_limit", parse=parse_size, default=1 * MIB, help="Largest request body, file transfers apart."),
    Setting(name="image_limit", parse=parse_size, default=64 * GIB, help="Largest image that is imported, both the file and its virtual size times one."),
    Setting(name="pool_memory", parse=_size_or_none, default=512 * MIB, help="What forks made ahead may take in all; 0: none are made."),
    Setting(name="cold_after", parse=_period, default=6 * 3600.0, help="How long a snapshot's memory must not be used until it is compressed."),
    Setting(name="events_kept", parse=_positive, default=10_000, help="How many events the database keeps."),
    Setting(name="jobs_kept", parse=_positive, default=1_000, help="How many finished jobs the database keeps."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of ``SETTINGS``, one field each."""

    qemu: str
    accel: str
    uid_base: int
    log_limit: int
    agent_timeout: float
    first_boot_timeout: float
    start_timeout: float
    stop_timeout: float
    heartbeat: float
    monitor_timeout: float
    disk_reserve: int
    schedule_interval: float
    body_limit: int
    image_limit: int
    pool_memory: int
    cold_after: float
    events_kept: int
    jobs_kept: int


def _scalar(value: object) -> str:
    """Return a TOML value as the text that stands for it in the environment."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Invalid(Code.VALUE_INVALID, f"{shorten(str(value))} is neither a text nor a number")
    return str(value)


def read_settings(environ: Mapping[str, str], file: Path) -> Settings:
    """Read all settings: environment over ``file`` (TOML, may be missing) over default.

    Raises Invalid (``value-invalid``) that names the setting and where it was set; an unknown
    key in the file is refused.
    """
    found: dict[str, object] = {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise Invalid(Code.VALUE_INVALID, f"{file} can't be read: {error}") from error
    unknown = sorted(set(found) - {field.name for field in fields(Settings)})
    if unknown:
        raise Invalid(Code.VALUE_INVALID, f"{file} sets {unknown[0]!r}, which is no setting")
    values: dict[str, object] = {}
    for setting in SETTINGS:
        variable = f"SERAI_{setting.name.upper()}"
        text, where = environ.get(variable), variable
        try:
            if text is None and setting.name in found:
                where = str(file)
                text = _scalar(found[setting.name])
            values[setting.name] = setting.default if text is None else setting.parse(text)
        except Invalid as error:
            raise Invalid(
                error.code, f"{setting.name} in {where}: {error.message}", hint=error.hint
            ) from error
    return Settings(**values)  # type: ignore[arg-type]


def current_places() -> Places:
    """Return the places for this process's own environment and user."""
    return find_places(os.environ, is_root=os.geteuid() == 0)
