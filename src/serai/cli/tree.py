"""How a tree is drawn as lines: what each line has before its name. Pure.

    clean
    ready
    ├─ try-a
    │  try-a2
    └─ steady
       later

An only child stands right below its parent, so that a long history stays a list; children begin
with a branch where there are several.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Glyphs(NamedTuple):
    """What a tree is drawn with, and what points at the place where one stands."""

    branch: str
    last: str
    line: str
    gap: str
    here: str

    @property
    def all(self) -> str:
        """Return everything at once, to see whether a terminal has it."""
        return "".join(self)


LINES = Glyphs("├─ ", "└─ ", "│  ", "   ", " ← now")
ASCII = Glyphs("|- ", "`- ", "|  ", "   ", " <- now")


def draw_branches(nodes: Sequence[tuple[str, str]], glyphs: Glyphs) -> list[str]:
    """Return what stands before each of ``nodes``, pairs of id and parent's id, parents first.

    One whose parent is not among them is a root.
    """
    known = {node for node, _ in nodes}
    children: dict[str, list[str]] = {}
    for node, parent in nodes:
        children.setdefault(parent if parent in known else "", []).append(node)
    below = {"": ""}
    before = []
    for node, parent in nodes:
        above = parent if parent in known else ""
        indent, siblings = below[above], children[above]
        if len(siblings) == 1:
            before.append(indent)
            below[node] = indent
        else:
            is_last = siblings[-1] == node
            before.append(indent + (glyphs.last if is_last else glyphs.branch))
            below[node] = indent + (glyphs.gap if is_last else glyphs.line)
    return before
