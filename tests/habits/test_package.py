"""What the package gives: lazily at run time, and the same to a type checker."""

import ast
import subprocess
import sys

from tree import PACKAGE

import serai


def test_the_stub_names_what_is_lazily_there() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    names = {
        alias.asname or alias.name
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert names == set(serai.__all__)
    assert all(getattr(serai, name) for name in names)


def test_importing_the_package_imports_next_to_nothing() -> None:
    script = "import sys, serai; print([m for m in sys.modules if m.partition('.')[0] in sys.argv])"
    heavy = ["asyncio", "http", "msgspec", "click", "rich", "httpx"]
    done = subprocess.run(
        [sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
