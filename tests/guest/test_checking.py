"""`serai check` in a real house: all that is damaged is named and refused, nothing else is touched."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from keeper import Daemon

from serai import Guest, SeraiError
from serai.errors import Code
from serai.model.check import CheckReport, Fault, Finding, FindingKind
from serai.model.snapshot import SnapshotState

STRANGER = "00000000-0000-4000-8000-000000000000"
PUT = "tr '\\0' $BYTE < /dev/zero | head -c 1048576 | dd of=/dev/vda bs=64k seek=$AT conv=notrunc,fsync 2>/dev/null"


def put(guest: Guest, byte: str, at: int) -> None:
    assert guest.run(PUT, env={"BYTE": byte, "AT": str(at * 16)}).ok


@contextmanager
def flipped(path: Path) -> Iterator[None]:
    """Flip a bit of what is not a hole, in the latter half of a file, and flip it back."""
    path.chmod(0o600)
    with path.open("r+b", buffering=0) as file:
        content = file.read()
        where = next(at for at in range(len(content) // 2, len(content)) if content[at])
        file.seek(where)
        file.write(bytes([content[where] ^ 4]))
        yield
        file.seek(where)
        file.write(content[where : where + 1])


@contextmanager
def away(path: Path, aside: Path) -> Iterator[None]:
    """Take a file away, and bring it back."""
    path.rename(aside)
    yield
    aside.rename(path)


def states(guest: Guest) -> dict[str, str]:
    return {each.name: str(each.info.state) for each in guest.snapshots()}


def refused(daemon: Daemon, source: str, why: str) -> None:
    """Neither a fork nor a restore is begun, and the reason is said."""
    guest, _, name = source.partition("@")
    for ask in (
        lambda: daemon.inn.snapshot(source).fork(),
        lambda: daemon.inn.guest(guest).restore(name, force=True),
        lambda: daemon.inn.snapshot(source).publish("image"),
    ):
        with pytest.raises(SeraiError) as caught:
            ask()
        assert caught.value.code is Code.SNAPSHOT_STATE
        assert why in caught.value.message


def make_house(daemon: Daemon) -> Guest:
    """Return a guest with snapshots: with memory (a base), disks only, with memory (its own pages)."""
    guest = daemon.inn.launch("tiny", name="disky", memory="128MiB", disk="64MiB")
    put(guest, "a", 0)
    guest.snapshot("first")
    put(guest, "b", 1)
    guest.snapshot("disks", memory=False)
    put(guest, "c", 2)
    guest.run("head -c 300000 /dev/urandom > /noise")
    guest.snapshot("last")
    return guest


def test_damage_is_named_and_refused_and_repair_deletes_orphans_only(
    daemon: Daemon, tmp_path: Path
) -> None:
    house = make_house(daemon)
    state = daemon.home / "state"
    first = daemon.inn.check()
    assert (first.is_sound, first.layers, first.memories, first.snapshots) == (True, 3, 3, 3)
    told = daemon.run("check")
    assert told.returncode == 0
    assert told.stdout.startswith(b"3 layers, 3 memories, 3 snapshots: all sound (")
    base = next(path.parent for path in state.glob("memory/*/ram"))
    pages = next(state.glob("memory/*/*.pages"))
    layers = sorted(state.glob("layers/*.qcow2"), key=lambda path: path.stat().st_mtime_ns)
    lowest, ids = layers[0], {each.name: each.id for each in house.snapshots()}

    def check(*found: tuple[Fault, FindingKind, str], broken: set[str]) -> tuple[Finding, ...]:
        """Check; what is found, and what becomes of the snapshots, is as given."""
        report = daemon.inn.check()
        assert [(each.fault, each.kind, each.id) for each in report.findings] == list(found)
        assert {name for name, now in states(house).items() if now == "broken"} == broken
        for name in broken:
            refused(daemon, f"disky@{name}", found[0][2])
        return report.findings

    with flipped(lowest):
        [finding] = check(
            (Fault.DAMAGED, FindingKind.LAYER, lowest.stem), broken={"first", "disks", "last"}
        )
        assert finding.snapshots == ("disky@disks", "disky@first", "disky@last")
        assert finding.guests == ("disky",)
    with flipped(base / "ram"):
        check((Fault.DAMAGED, FindingKind.MEMORY, base.name), broken={"first", "last"})
        daemon.kill()  # what was found is stored
        daemon.start()
        house = daemon.inn.guest("disky")
        assert states(house)["first"] == "broken"
        refused(daemon, "disky@first", base.name)
    with flipped(pages):
        check((Fault.DAMAGED, FindingKind.MEMORY, ids["last"]), broken={"last"})
    with flipped(state / "memory" / ids["first"] / "about"):
        check((Fault.DAMAGED, FindingKind.MEMORY, ids["first"]), broken={"first"})
    with away(layers[-1], tmp_path / "layer"):
        check((Fault.MISSING, FindingKind.LAYER, layers[-1].stem), broken={"last"})
    check(broken=set())

    shutil.copyfile(lowest, state / "layers" / f"{STRANGER}.qcow2")
    shutil.copytree(pages.parent, state / "memory" / STRANGER)
    kept = {path for path in state.rglob("*") if STRANGER not in str(path)}
    with flipped(pages):
        told = daemon.run("check", "--repair", "--format", "json")
        assert told.returncode == 7
        report = msgspec.json.decode(told.stdout, type=CheckReport)
        assert (report.unsound, report.mended, report.orphans) == (1, 2, 0)
        assert {path for path in state.rglob("*") if "serai.db" not in path.name} == {
            path for path in kept if "serai.db" not in path.name
        }
    assert daemon.inn.check().is_sound
    assert states(house) == dict.fromkeys(("first", "disks", "last"), str(SnapshotState.READY))
    assert daemon.inn.snapshot("disky@last").fork(name="whole").run("test -s /noise").ok
    house.restore("first", force=True)
    assert not house.run("test -e /noise").ok
    check_beside_other_work(daemon, house)


def check_beside_other_work(daemon: Daemon, house: Guest) -> None:
    """Snapshots, forks and deletions go on while one check follows another, each with repair.

    None of them finds anything or deletes anything.
    """
    done, failures, checks = threading.Event(), [], 0

    def work() -> None:
        try:
            for turn in range(6):
                made = house.snapshot(f"turn{turn}", memory=turn % 2 == 0)
                fork = house.fork(name=f"fork{turn}", wait=False)
                daemon.inn.snapshot(f"disky@{made.name}").delete()
                fork.delete(force=True)
            house.snapshot("end")
        except SeraiError as error:
            failures.append(error.message)
        finally:
            done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        report = daemon.inn.check(repair=True)
        failures += [each.message for each in report.findings]
        checks += 1
    worker.join()
    assert (failures, checks > 3) == ([], True)
    assert daemon.inn.snapshot("disky@end").fork(name="end").run("true").ok
