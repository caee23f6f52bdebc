"""Format, lint, types and dead code, each by its tool; beside the other tests, since it takes as long as many."""

import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT

SOURCES = ("src", "tests", "bench", "scripts")
TOOLS = {
    "run: make fmt": ("ruff", "format", "--check", "--quiet", *SOURCES),
    "lint": ("ruff", "check", "--quiet", *SOURCES),
    "types": ("mypy",),
    "dead code": ("vulture",),
}


@pytest.mark.parametrize("what", TOOLS)
def test_nothing_is_found(what: str) -> None:
    name, *arguments = TOOLS[what]
    words = [str(Path(sys.executable).with_name(name)), *arguments]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{what}\n{done.stdout}{done.stderr}"
