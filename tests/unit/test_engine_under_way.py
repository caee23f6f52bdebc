"""What somebody is at work on: counted, left by whatever end, waited for."""

import asyncio

import pytest

from serai.engine.under_way import UnderWay


def test_it_is_under_way_until_the_last_one_leaves():
    under_way = UnderWay()
    with under_way.on("a", "b"):
        with under_way.on("b", "c"):
            assert under_way.ids() == {"a", "b", "c"}
        assert under_way.ids() == {"a", "b"}
    assert under_way.ids() == set()


def test_a_failure_ends_it_too():
    under_way = UnderWay()
    with pytest.raises(ValueError, match="no"), under_way.on("a", "a"):
        raise ValueError("no")
    assert under_way.ids() == set()


async def test_who_waits_goes_on_when_all_of_it_is_over():
    under_way = UnderWay()
    await under_way.over("a")
    first, second = under_way.on("a"), under_way.on("a")
    first.__enter__()
    second.__enter__()
    waiting = asyncio.ensure_future(under_way.over("a"))
    first.__exit__(None, None, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    second.__exit__(None, None, None)
    await asyncio.wait_for(waiting, 5)
