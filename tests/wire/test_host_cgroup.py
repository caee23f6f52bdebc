"""Control groups: on this host as it is, and on made-up trees of each layout."""

import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from serai.host import cgroup
from serai.host.cgroup import PIDS_LIMIT, ROOT, Cgroup, Cgroups, find_layout
from serai.model.node import CgroupLayout
from serai.units import MIB

NOBODY = 65534


def make_v2(root: Path) -> Path:
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "cgroup.subtree_control").write_text("")
    return root


def make_v1(root: Path, *controllers: str) -> Path:
    for name in controllers:
        (root / name).mkdir()
    return root


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    assert find_layout(tmp_path / "none") is CgroupLayout.NONE
    assert find_layout(tmp_path) is CgroupLayout.NONE
    make_v1(tmp_path, "memory", "pids")
    assert find_layout(tmp_path) is CgroupLayout.V1
    make_v1(tmp_path, "unified")
    assert find_layout(tmp_path) is CgroupLayout.HYBRID
    make_v2(tmp_path)
    assert find_layout(tmp_path) is CgroupLayout.V2


def test_without_control_groups_a_note_says_so(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path)
    assert groups.note == "this host has no control groups"
    assert groups.create("one", memory=MIB) is None
    groups.remove("one")


class Kernel:
    """What the kernel would do in a made-up tree: each new group has its files."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._mkdir = Path.mkdir

    def mkdir(self, path: Path, *words: object, **more: object) -> None:
        self._mkdir(path, *words, **more)  # type: ignore[arg-type]
        for name in self.names:
            (path / name).touch()


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup.os, "geteuid", lambda: 0)


def install(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup.Path, "mkdir", lambda path, *a, **k: kernel.mkdir(path, *a, **k))


@pytest.mark.usefixtures("as_root")
def test_v2_has_one_folder_with_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("cgroup.procs", "cgroup.subtree_control", "pids.max", "memory.max")
    install(Kernel(*files), monkeypatch)
    groups = Cgroups(make_v2(tmp_path))
    group = groups.create("one", memory=300 * MIB)
    assert groups.note == ""
    assert group is not None
    assert group.folders == (tmp_path / "serai" / "one",)
    assert (tmp_path / "serai/one/pids.max").read_text() == str(PIDS_LIMIT)
    assert (tmp_path / "serai/one/memory.max").read_text() == str(300 * MIB)
    assert (tmp_path / "serai/cgroup.subtree_control").read_text() == "+cpu"  # the last of three
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    group.add(4711)
    assert (tmp_path / "serai/one/cgroup.procs").read_text() == "4711"


def test_v2_of_a_user_is_beside_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "user.slice/user@7.service/app.slice/shell.scope"
    own.mkdir(parents=True)
    monkeypatch.setattr(cgroup.os, "geteuid", lambda: 7)
    read = Path.read_text
    monkeypatch.setattr(
        cgroup.Path,
        "read_text",
        lambda path: f"0::/{own.relative_to(tmp_path)}\n" if "proc" in path.parts else read(path),
    )
    groups = Cgroups(make_v2(tmp_path))
    assert groups.create("one") is None
    assert groups.note == "guests share the daemon's control group: Permission denied"
    assert not (own.parent / "serai-7").exists()
    (own.parent / "cgroup.procs").touch()  # delegated: what is moved out of ours may go beside it
    group = Cgroups(tmp_path).create("one")
    assert group is not None
    assert group.folders == (own.parent / "serai-7" / "one",)


@pytest.mark.usefixtures("as_root")
def test_v1_has_a_folder_for_each_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Kernel("cgroup.procs", "pids.max", "memory.limit_in_bytes"), monkeypatch)
    groups = Cgroups(make_v1(tmp_path, "memory", "pids", "devices"))
    group = groups.create("one", memory=MIB)
    assert group is not None
    assert group.folders == (tmp_path / "memory/serai/one", tmp_path / "pids/serai/one")
    assert (tmp_path / "memory/serai/one/memory.limit_in_bytes").read_text() == str(MIB)
    assert not (tmp_path / "devices/serai").exists()


@pytest.mark.usefixtures("as_root")
def test_a_group_can_be_made_twice_and_removed_twice(tmp_path: Path) -> None:
    groups = Cgroups(make_v2(tmp_path))
    assert groups.create("one") is not None
    assert groups.create("one") is not None
    groups.remove("one")
    groups.remove("one")
    assert not (tmp_path / "serai/one").exists()


@pytest.mark.parametrize("where", ["parent", "group"])
@pytest.mark.usefixtures("as_root")
def test_without_the_right_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        if where == "parent" or path.name == "one":
            raise PermissionError(13, "Permission denied")
        os.mkdir(path)

    make_v2(tmp_path)
    monkeypatch.setattr(cgroup.Path, "mkdir", refuse)
    groups = Cgroups(tmp_path)
    assert groups.create("one") is None
    assert groups.note == "guests share the daemon's control group: Permission denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.usefixtures("as_root")
def test_what_root_made_is_no_place_for_a_user() -> None:
    """The daemon of root was here before; the note must be there before any guest is started."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        make_v1(folder, "memory", "pids")
        assert Cgroups(folder).note == ""
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            note = Cgroups(folder).note
        finally:
            os.setresuid(0, 0, 0)
    assert note == "guests share the daemon's control group: Permission denied"


def make_enterable(*folders: Path) -> Cgroup:
    """A made-up group of v1; what is written to a folder's ``tasks`` would move who writes it."""
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "tasks").touch()
        (folder.parent / "tasks").touch()
    return Cgroup(folders)


def test_a_thread_of_its_own_enters_all_folders_and_leaves_them(tmp_path: Path) -> None:
    folders = (tmp_path / "memory/serai/one", tmp_path / "pids/serai/one")
    group = make_enterable(*folders)

    def start() -> tuple[int, list[str]]:
        parents = [folder.parent for folder in folders]
        seen = [(folder / "tasks").read_text() for folder in (*folders, *parents)]
        return threading.get_native_id(), seen

    started = group.try_within(start)
    assert started is not None
    thread, seen = started
    assert seen == ["0", "0", "", ""], "it is in the group, and not out of it yet"
    assert [(folder.parent / "tasks").read_text() for folder in folders] == ["0", "0"]
    assert thread != threading.get_native_id()
    assert thread not in {each.native_id for each in threading.enumerate()}


def test_after_a_failed_start_the_group_is_left(tmp_path: Path) -> None:
    group = make_enterable(tmp_path / "memory/serai/one")

    def fail() -> None:
        raise FileNotFoundError("/no/such")

    with pytest.raises(FileNotFoundError):
        group.try_within(fail)
    assert (tmp_path / "memory/serai/tasks").read_text() == "0"


@pytest.mark.parametrize("lacking", ["both", "one", "right"])
def test_where_no_thread_may_enter_nothing_is_started(tmp_path: Path, lacking: str) -> None:
    folders = (tmp_path / "memory/serai/one", tmp_path / "pids/serai/one")
    group = make_enterable(*folders)
    if lacking == "right":
        (folders[1] / "tasks").unlink()
        (folders[1] / "tasks").mkdir()  # even root can't write to it
    else:
        for folder in folders[lacking == "one" :]:
            (folder / "tasks").unlink()
    started: list[int] = []
    assert group.try_within(lambda: started.append(1)) is None
    assert started == []
    assert (folders[0].parent / "tasks").read_text() == ("0" if lacking == "right" else "")


# -- this host -------------------------------------------------------------------------------------


def folders_of(name: str) -> list[str]:
    """Find a group, while those of others come and go."""
    return [f"{parent}/{name}" for parent, folders, _ in os.walk(ROOT) if name in folders]


@pytest.fixture
def name() -> Iterator[str]:
    """A group of this host, gone afterwards."""
    name = f"test-{uuid.uuid4()}"
    yield name
    until = time.monotonic() + 10
    while folders_of(name):  # busy while the last of it is reaped by init
        assert time.monotonic() < until, "the group is left"
        Cgroups().remove(name)
        time.sleep(0.01)


def test_a_process_is_in_its_group_and_out_of_it(name: str) -> None:
    groups = Cgroups()
    group = groups.create(name, memory=64 * MIB)
    if group is None:
        pytest.skip(groups.note)
    with subprocess.Popen(["sleep", "300"]) as program:
        try:
            group.add(program.pid)
            seen = Path(f"/proc/{program.pid}/cgroup").read_text()
            assert seen.count(name) == len(group.folders)
            for folder in group.folders:
                assert (folder / "cgroup.procs").read_text().split() == [str(program.pid)]
            group.remove()
            assert all(folder.exists() for folder in group.folders), "somebody is in it"
        finally:
            program.kill()
    group.add(program.pid)  # it has ended: no error
    group.remove()
    assert not any(folder.exists() for folder in group.folders)


def test_what_is_started_within_is_in_the_group_from_birth(name: str) -> None:
    group = Cgroups().create(name)
    if group is None:
        pytest.skip(Cgroups().note)
    words = ["cat", "/proc/self/cgroup"]
    ended = group.try_within(lambda: subprocess.run(words, capture_output=True, check=True))
    if ended is None:
        assert find_layout() is CgroupLayout.V2
        return
    assert ended.stdout.decode().count(f"/serai/{name}\n") == len(group.folders)
    assert name not in Path("/proc/self/cgroup").read_text()
    group.remove()
    assert not any(folder.exists() for folder in group.folders), "our thread has left it at once"


def test_the_limits_hold(name: str) -> None:
    groups = Cgroups()
    group = groups.create(name, memory=32 * MIB)
    if group is None:
        pytest.skip(groups.note)
    limits = [path.read_text().strip() for folder in group.folders for path in folder.glob("pids.max")]  # fmt: skip
    assert limits == [str(PIDS_LIMIT)]
    script = f"echo $$ > $1/cgroup.procs; exec head -c {100 * MIB} /dev/zero | tail -c {90 * MIB}"
    folder = next(each for each in group.folders if list(each.glob("memory.*")))
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(folder)], capture_output=True, timeout=30, check=False
    )
    assert len(done.stdout) < 90 * MIB


def test_a_fork_bomb_is_contained(name: str) -> None:
    groups = Cgroups()
    group = groups.create(name)
    if group is None:
        pytest.skip(groups.note)
    for folder in group.folders:
        for limit in folder.glob("pids.max"):
            limit.write_text("5")
    script = "for each in $@; do echo $$ > $each/cgroup.procs; done; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2 & done; wait"  # fmt: skip
    words = ["sh", "-c", script, "sh", *map(str, group.folders)]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False)
    assert b"fork" in done.stderr
