"""The longest files and functions, so that somebody looks: ``make sizes``."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tree import ROOT

SHOWN = 12
FILE_LIMIT = 700
FUNCTION_LIMIT = 100
REASON = "long because"
FOLDERS = ("src", "tests", "bench", "scripts")


@dataclass(frozen=True)
class Piece:
    """A file or function: how long it is, and whether its docstring says why it must be."""

    lines: int
    place: str
    has_reason: bool


def python_files() -> list[Path]:
    """Return every Python file of the project."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def _has_reason(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return REASON in (ast.get_docstring(node) or "").lower()


def _functions(path: Path, tree: ast.Module) -> Iterator[Piece]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            yield Piece(length, place, _has_reason(node))


@cache
def measure() -> tuple[list[Piece], list[Piece]]:
    """Return files and functions, the longest first."""
    files: list[Piece] = []
    functions: list[Piece] = []
    for path in python_files():
        text = path.read_text()
        tree = ast.parse(text, str(path))
        files.append(Piece(len(text.splitlines()), str(path.relative_to(ROOT)), _has_reason(tree)))
        functions.extend(_functions(path, tree))
    longest = lambda piece: -piece.lines  # noqa: E731
    return sorted(files, key=longest), sorted(functions, key=longest)


def report() -> str:
    """Return the table that ``make sizes`` prints."""
    files, functions = measure()
    parts = []
    for title, pieces in (("files", files), ("functions", functions)):
        middle = pieces[len(pieces) // 2].lines
        parts.append(f"longest {title} (of {len(pieces)}; median {middle} lines)")
        parts.extend(f"  {each.lines:5}  {each.place}" for each in pieces[:SHOWN])
    return "\n".join(parts)


if __name__ == "__main__":
    print(report())
