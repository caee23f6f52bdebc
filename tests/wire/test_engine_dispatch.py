"""What is refused before anybody carries an action out: the dispatcher with keepers that only take on."""

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from store_samples import a_snapshot, an_image

from serai.engine import dispatch
from serai.engine.dispatch import Dispatcher
from serai.engine.house import House
from serai.errors import Code, Conflict
from serai.host.supervise import Supervisor
from serai.model.actions import ForkGuest, LaunchGuest
from serai.model.guest import GuestSpec
from serai.model.image import Image
from serai.units import MIB

WARM = msgspec.structs.replace(an_image("warm"), snapshot="s", warm=True)


@pytest.fixture
def launched() -> list[LaunchGuest]:
    """What has come as far as the forker."""
    return []


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch, launched: list[LaunchGuest]) -> Dispatcher:
    async def launch(image: Image, action: LaunchGuest, key: str) -> None:
        launched.append(action)

    async def fork(source: object, action: ForkGuest, key: str) -> None:
        pass

    keepers = SimpleNamespace(
        guests=SimpleNamespace(find=lambda name: SimpleNamespace(name=name)),
        images=SimpleNamespace(find=lambda name: WARM),
        snapshots=SimpleNamespace(published=lambda image: a_snapshot(1)),
        forker=SimpleNamespace(launch=launch, fork=fork),
    )
    monkeypatch.setattr(dispatch, "build_keepers", lambda house, submit: keepers)
    house = SimpleNamespace(supervisor=Supervisor(), check_fit=lambda: None)
    return Dispatcher(cast(House, house))


async def test_a_warm_image_with_another_machine_is_refused(
    dispatcher: Dispatcher, launched: list[LaunchGuest]
) -> None:
    await dispatcher.submit(LaunchGuest(spec=GuestSpec(image="warm")))
    with pytest.raises(Conflict) as caught:
        await dispatcher.submit(LaunchGuest(spec=GuestSpec(image="warm", memory=512 * MIB)))
    assert caught.value.code is Code.IMAGE_UNFIT
    assert len(launched) == 1


async def test_a_fork_with_the_name_of_its_source_is_not_told_to_delete_that(
    dispatcher: Dispatcher,
) -> None:
    await dispatcher.submit(ForkGuest(guest="t1"))
    await dispatcher.submit(ForkGuest(guest="t-1", name="t"))
    for source, action in (("t1", ForkGuest(guest="t1", name="t1")),
                           ("t-1", ForkGuest(guest="t-1", name="t", count=2))):  # fmt: skip
        with pytest.raises(Conflict, match=f"a guest {source} already") as caught:
            await dispatcher.submit(action)
        assert (caught.value.code, "delete" in caught.value.hint) == (Code.GUEST_EXISTS, False)
