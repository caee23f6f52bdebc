"""Daemons and QEMUs that are killed between any two steps of a snapshot, a fork, a restore, a publish.

The steps that are most telling; ``make soak`` takes all of them. What must hold is in ``faults``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import (
    AT_REST,
    LIMIT,
    SOURCE,
    Case,
    Victim,
    delete_case,
    die_at,
    fork_case,
    fresh_victim,
    hurt_at,
    is_settled,
    launch_case,
    look,
    merge_case,
    publish_case,
    put,
    qemus,
    reach,
    republish_case,
    restore_case,
    snapshot_case,
    source_of,
    wait_for,
    wait_tidy,
)
from test_coming_in import make_disk, make_ova

from serai.errors import SeraiError

pytestmark = pytest.mark.timeout(240)

CHAIN = ("link */root", "commit PutGuest,PutLayer", "committed PutGuest,PutLayer", "unlink */root")
PRIVATE = ("qmp transaction", "qmp remove-fd", "rename */.running", "qmp xen-save", "unlink */held")
AHEAD = ("memory copy", "memory catch_up", "qmp stop", "memory copy_rest", "memory gather")
STORE = ("rename memory/", "committed PutGuest,PutSnapshot")
BIRTH = ("committed PutGuest", "spawned", "rename */.running", "birth say", "birth hear")


@pytest.fixture
def victim(serai_home: Path) -> Iterator[Victim]:
    """A daemon with a guest that runs and can be asked."""
    with fresh_victim(serai_home) as daemon:
        yield daemon


def die_at_each(daemon: Victim, case: Case, names: tuple[str, ...]) -> None:
    """Die before the first step of each name, and once more while the next daemon takes up."""
    for turn, name in enumerate(names):
        assert die_at(daemon, case, name, again=3 * turn % 7), name


def test_killed_while_a_guest_is_frozen(victim: Victim) -> None:
    source_of(victim).snapshot("first").delete()  # its memory is private from now on
    memory = snapshot_case(victim, memory=True)
    die_at_each(victim, memory, (*CHAIN, *PRIVATE, *STORE))
    die_at_each(victim, snapshot_case(victim, memory=False), ("qmp blockdev-add", "qmp remove-fd"))
    die_at_each(victim, fork_case(victim), (*PRIVATE[:1], *BIRTH))
    die_at_each(victim, publish_case(victim), ("rename memory/", "commit PutImage"))
    die_at_each(victim, republish_case(victim), ("commit DropSnapshot", "committed DropSnapshot"))


def test_killed_while_much_memory_is_saved(victim: Victim) -> None:
    """A guest that has changed much is copied while it runs, held for the rest, and put together."""
    source_of(victim).snapshot("first").delete()
    assert source_of(victim).run("head -c 12000000 /dev/urandom > /tmp/noise").ok
    die_at_each(victim, snapshot_case(victim, memory=True), AHEAD)


def test_killed_while_what_was_frozen_is_used(victim: Victim) -> None:
    source_of(victim).snapshot("first")
    die_at_each(victim, fork_case(victim, "first"), BIRTH)
    die_at_each(victim, launch_case(victim), BIRTH)
    swap = ("spawned", "commit PutGuest", "committed PutGuest", "rename */.running", "qmp cont")
    die_at_each(victim, restore_case(victim, "back"), ("link */", "unlink */running.json", *swap))
    die_at_each(victim, delete_case(victim), ("commit DropSnapshot", "rename memory/"))
    die_at_each(
        victim, merge_case(victim), ("rename layers/", "commit DropLayer", "unlink layers/")
    )


@pytest.mark.parametrize("step", ["qmp migrate-incoming", "commit PutGuest"])
def test_killed_while_one_that_is_off_is_put_back(victim: Victim, step: str) -> None:
    """The QEMU that was to take its memory up is no guest, whatever it looks like."""
    source_of(victim).snapshot("back")
    source_of(victim).stop(force=True)
    victim.trap.set(step)
    with pytest.raises(SeraiError):
        victim.inn.guest(SOURCE).restore("back")
    assert victim.process is not None
    victim.process.wait(LIMIT)
    assert qemus(victim)
    victim.trap.set(0)
    victim.start()
    wait_for("it is settled", lambda: is_settled(victim))
    guest = victim.inn.guest(SOURCE)
    if guest.info.state == "stopped":  # undone
        assert not qemus(victim)
        guest.start()
    assert reach(victim, SOURCE).run("true").ok


def test_killed_while_a_booted_guest_is_frozen(victim: Victim) -> None:
    case = snapshot_case(victim, memory=True, booted=True)
    names = (
        "spawned",
        "plant call_in",
        "plant borrow_file",
        "qmp migrate-incoming",
        "rename */.running",
        "qmp cont",
        "unlink */vnc",
    )
    die_at_each(victim, case, names)


def test_killed_while_a_guest_comes_in(victim: Victim, tmp_path: Path) -> None:
    """It is there with its image and its other disk, or nothing of it is."""
    disk = make_disk(tmp_path)
    archive = str(make_ova(tmp_path, disk, disk))
    inn = victim.inn
    for step in ("rename images/", "commit PutGuest,PutImage", "committed PutGuest,PutImage"):
        victim.trap.set(step)
        with pytest.raises(SeraiError):
            inn.import_guest(archive, name="old")
        assert victim.process is not None
        victim.process.wait(LIMIT)
        victim.trap.set(0)
        victim.start()
        wait_for("it is settled", lambda: is_settled(victim))
        there = "old" in {each.name for each in inn.guests()}
        assert ("old" in {each.name for each in inn.images()}) == there, step
        assert len(inn.volumes()) == there and len(victim.files_in("volumes")) == there, step
        if there:
            inn.guest("old").delete(force=True)
            inn.delete_image("old")
            for volume in inn.volumes():
                volume.delete()
    inn.import_guest(archive, name="old", root_only=True).delete()


def test_a_qemu_is_killed_in_the_midst(victim: Victim) -> None:
    """The source's, the one that is to go on in its place, a fork's."""

    def hurt(case: Case, name: str, turn: int) -> str:
        """End the oldest QEMU (0), or the newest (-1), before the first step of that name."""
        code = hurt_at(victim, case, name, lambda found: [*found][turn])
        wait_for("it rests", lambda: {str(g.info.state) for g in victim.inn.guests()} <= AT_REST)
        wait_tidy(victim)
        assert code != "bug", f"{name}: {victim.log.read_text()[-4000:]}"
        return code

    case = snapshot_case(victim, memory=True, booted=True)
    assert hurt(case, "qmp migrate-incoming", -1)
    case.check(victim, False)  # the source has not noticed
    source_of(victim).snapshot("first").delete()  # its memory is private from now on
    case = snapshot_case(victim, memory=True)
    for name in ("qmp transaction", "qmp xen-save", "qmp cont"):
        wanted = put(source_of(victim), "h").partition("\n")[0]
        assert hurt(case, name, 0)
        wait_for("it has crashed", lambda: victim.inn.guest(SOURCE).info.state == "crashed")
        victim.inn.guest(SOURCE).start()
        source = reach(victim, SOURCE)
        source.run("echo >/mark")
        assert look(source).partition("\n")[0] != wanted  # the case has written another byte since
        source.snapshot("private").delete()
    case = fork_case(victim)
    for name in ("qmp migrate-incoming", "birth hear"):
        assert hurt(case, name, -1)
        case.check(victim, False)
    case = restore_case(victim, "back")
    assert hurt(case, "qmp migrate-incoming", -1)
    case.check(victim, False)
    assert hurt(case, "qmp cont", 0)
    assert victim.inn.guest(SOURCE).info.state in ("stopped", "crashed")  # whoever saw it first
    victim.inn.guest(SOURCE).restore("back", force=True)
    case.check(victim, True)
