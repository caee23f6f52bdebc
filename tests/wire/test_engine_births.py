"""The files of a new guest: once its birth has failed, nobody makes any more."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from store_samples import a_guest

from serai.engine import births


async def test_no_file_is_made_after_a_birth_was_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(_: object, folder: Path, *__: object) -> None:
        begun.set()
        go_on.wait(10)
        folder.mkdir()

    monkeypatch.setattr(births, "_make_files", make)
    places = SimpleNamespace(guests=tmp_path)
    driver = cast(Any, SimpleNamespace(house=SimpleNamespace(places=places)))
    record = a_guest(1)
    making = asyncio.create_task(births.make_files(driver, record, b""))
    await asyncio.to_thread(begun.wait, 10)
    making.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await making
    assert (tmp_path / record.id).exists(), "it is there when whoever removes it looks"
