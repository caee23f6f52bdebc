"""A guest's new chain on its way: nobody may take a layer of it for unneeded, or for still."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from store_samples import a_guest

from serai.disk.layers import LayerFolder
from serai.engine import heads
from serai.engine.heads import Heads, Switched, settle_heads, store_chain, switch
from serai.engine.layer_keeper import LayerKeeper
from serai.engine.shelf import Shelf
from serai.errors import Code, HostFailure, Interrupted
from serai.model.guest import GuestRecord, Volume
from serai.model.machine import LayerFile
from serai.model.snapshot import Layer
from serai.plan.layers import unneeded


def a_layer(layer_id: str, parent: str = "") -> Layer:
    return Layer(id=layer_id, parent=parent, virtual_size=1 << 20, size=4096, created_at=1.0)


class OneDriver:
    """A driver as far as a chain is concerned."""

    def __init__(self, shelf: Shelf, record: GuestRecord, commit: Any) -> None:
        self.record = record
        self.house = SimpleNamespace(shelf=shelf, journal=SimpleNamespace(commit=commit))

    def revise(self, **changes: object) -> object:
        self.record = msgspec.structs.replace(self.record, **changes)
        return self.record


async def test_no_layer_is_unneeded_while_a_chain_is_being_stored() -> None:
    shelf = Shelf()
    shelf.layers = {"old": a_layer("old")}
    before = Volume(name="root", size=1 << 20, head="root.qcow2", layer="old")
    seen = []

    async def commit(*_: object) -> None:
        seen.append(unneeded(shelf.layers, shelf.tops()))

    driver = OneDriver(shelf, a_guest(1, volumes=(before,)), commit)
    shelf.guests = lambda: [driver.record]
    now = msgspec.structs.replace(before, head="root-new.qcow2", layer="new")
    await store_chain(cast(Any, driver), Heads([now], [a_layer("new", "old")]), ())
    assert seen == [set()]
    assert unneeded(shelf.layers, shelf.tops()) == set()


@pytest.mark.parametrize("why", ["under way", "still a head"])
async def test_what_is_written_to_is_not_merged(tmp_path: Path, why: str) -> None:
    shelf = Shelf()
    shelf.layers = {"low": a_layer("low"), "top": a_layer("top", "low")}
    folder = LayerFolder(tmp_path)
    for layer_id in shelf.layers:
        folder.path(layer_id).write_bytes(b"")
    pools = SimpleNamespace(layers_of=lambda _: folder, is_available=lambda _: True)
    keeper = LayerKeeper(cast(Any, SimpleNamespace(shelf=shelf, pools=pools)))
    with shelf.hold(["top"]):
        if why == "under way":
            with shelf.under_way.on("top"):
                assert await keeper.merge_one() == ""
        else:
            (tmp_path / "head").hardlink_to(folder.path("top"))
            assert await keeper.merge_one() == ""
            (tmp_path / "head").unlink()
        with pytest.raises(Exception, match=r"low|top"):  # now it tries: these are no layers
            await keeper.merge_one()


# -- QEMU and the new heads ------------------------------------------------------------------------


class OneInstance:
    """A QEMU as far as its heads are concerned: it does, refuses or does not say what it is told."""

    def __init__(self, head: Path, answer: Exception | None) -> None:
        self.answer = answer
        self._use(head)

    def _use(self, head: Path) -> None:
        chain = (SimpleNamespace(path=str(head)),)
        self.machine = SimpleNamespace(drives=(SimpleNamespace(name="root", chain=chain),))

    async def switch_heads(self, heads: dict[str, LayerFile], _: float) -> None:
        if self.answer is not None:
            raise self.answer
        self._use(Path(heads["root"].path))

    async def finish_switch(self, heads: dict[str, LayerFile], _: float) -> None:
        self._use(Path(heads["root"].path))


REFUSED = HostFailure(Code.QMP_FAILED, "QEMU refused transaction")
LOST = Interrupted(Code.QMP_LOST, "no answer within 30 s")


@pytest.mark.parametrize(
    ("answer", "done", "unsure"),
    [(None, True, False), (REFUSED, False, False), (LOST, False, True)],
)
async def test_what_qemu_does_not_say_is_not_taken_for_undone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Exception | None,
    done: bool,
    unsure: bool,
) -> None:
    old, new = tmp_path / "root.qcow2", tmp_path / "root-new.qcow2"
    old.touch()
    wanted = {"root": SimpleNamespace(path=str(new), node="root-new")}
    monkeypatch.setattr(heads, "wanted_heads", lambda _: wanted)
    monkeypatch.setattr(heads, "write_running", lambda *_: None)
    instance, switched = OneInstance(old, answer), Switched()
    driver = cast(Any, SimpleNamespace(instance=instance))
    with suppress(HostFailure, Interrupted):
        await switch(driver, cast(Any, instance), switched)
    assert (switched.done, switched.is_unsure) == (done, unsure)
    assert old.exists(), "as long as it is one, a layer with that content is not still"
    await settle_heads(driver)
    assert instance.machine.drives[0].chain[0].path == str(new)
    assert old.exists() == done, "it settles what is not done, and nothing else"
