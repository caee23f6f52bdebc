"""What is on the shelf and held there."""

import pytest

from serai.engine.shelf import Shelf


def test_what_is_held_counts_as_stood_on_until_it_is_closed():
    shelf = Shelf()
    first, second = shelf.hold(["a", "b"]), shelf.hold(iter(["a"]))
    assert +shelf.tops() == {"a": 2, "b": 1}
    first.close()
    assert +shelf.tops() == {"a": 1}
    with pytest.raises(ValueError, match="no"), second:
        raise ValueError("no")
    assert +shelf.tops() == {}
