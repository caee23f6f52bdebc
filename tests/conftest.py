"""Fixtures and options that all rings share; those of real guests are in tests/guest/conftest.py."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whoever starts us in the background may have it ignored, and programs that we start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sit",
        action="store_true",
        help="when a test with real guests fails, wait for a human before its daemon is ended",
    )


@pytest.fixture
def serai_home() -> Iterator[Path]:
    """A fresh folder with a short path, for SERAI_HOME; removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="serai-"))
    yield home
    shutil.rmtree(home)
