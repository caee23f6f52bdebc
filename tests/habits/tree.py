"""The source tree as data for the tests of habits: modules, their imports, their functions."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "serai"


@dataclass(frozen=True)
class Import:
    """One imported name: the module that imports, the dotted name, and where."""

    module: "Module"
    target: str
    line: int
    is_inside_function: bool

    @property
    def place(self) -> str:
        """Return file and line, as an editor opens them."""
        return f"{self.module.path.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path

    @property
    def name(self) -> str:
        """Return the dotted name: ``serai.qemu.agent``."""
        parts = self.path.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        """Return the first part below the package: ``qemu``, ``errors``, or ``serai`` itself."""
        return room_of(self.name)

    @cached_property
    def tree(self) -> ast.Module:
        """Return the parsed file."""
        return ast.parse(self.path.read_text(), str(self.path))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Return every import; ``from a import b`` gives ``a.b``."""
        return tuple(self._imports(self.tree, inside=False))

    def _imports(self, node: ast.AST, *, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    targets = [alias.name for alias in names]
                case ast.ImportFrom(module=origin, names=names, level=level):
                    assert level == 0, f"{self.path}:{child.lineno}: a relative import"
                    targets = [f"{origin}.{alias.name}" for alias in names]
                case _:
                    is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                    yield from self._imports(child, inside=inside or is_function)
                    continue
            for target in targets:
                yield Import(self, target, child.lineno, inside)

    def calls(self, name: str) -> list[int]:
        """Return the lines that call ``name`` (the last part of what is called)."""
        return self._calls.get(name, [])

    @cached_property
    def _calls(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if isinstance(called, ast.Name | ast.Attribute):
                name = called.id if isinstance(called, ast.Name) else called.attr
                found.setdefault(name, []).append(node.lineno)
        return found


def room_of(dotted: str) -> str:
    """Return the room that a dotted name of the package lies in."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@cache
def modules() -> list[Module]:
    """Return every module of the package, by name."""
    return sorted((Module(path) for path in PACKAGE.rglob("*.py")), key=lambda each: each.name)
