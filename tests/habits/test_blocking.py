"""The blocking SDK says what the async one says: it is made of it, word by word."""

import ast
import os
from pathlib import Path

import pytest
from scripts.make_blocking import blocking, made_of, sources


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_the_blocking_modules_are_up_to_date(source: Path) -> None:
    made, text = made_of(source), blocking(source)
    if os.environ.get("SERAI_GOLDEN") == "write":
        made.write_text(text)
    assert made.read_text() == text, f"{made.name} is old: make blocking"


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_nothing_async_is_left_in_them(source: Path) -> None:
    tree = ast.parse(made_of(source).read_text())
    waiting = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, waiting)]
