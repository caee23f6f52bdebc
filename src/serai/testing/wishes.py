"""Which machine a test wants, and how the warm image for it is called."""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serai.client.guests import Guest
from serai.errors import Code, Invalid
from serai.units import shorten

Setup = Callable[[Guest], object]
"""Prepares the machine that all tests are given forks of."""

SIZES = ("memory", "cpus", "disk", "firmware")
WORDS = ("image", *SIZES, "warm")
IMAGE_LETTERS = 24
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A machine: the image, what its spec says apart from the defaults, and whether it is forked."""

    image: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    warm: bool = True

    @property
    def key(self) -> str:
        """Return a text that is the same for the same wish only."""
        return f"{self.image} {sorted(self.spec.items())} {self.warm}"


def read_wish(image: str, words: Iterable[Mapping[str, Any]]) -> Wish:
    """Return what ``words`` ask for, the later over the earlier; Invalid for one that is unknown."""
    found: dict[str, Any] = {"image": image, "warm": True}
    for each in words:
        if unknown := sorted(set(each) - set(WORDS)):
            raise Invalid(
                Code.VALUE_INVALID,
                f"{shorten(unknown[0])} is nothing that a guest for a test can be given",
                hint=f"It takes {', '.join(WORDS)}.",
            )
        found |= each
    image, warm = found.pop("image"), found.pop("warm")
    return Wish(image=str(image), spec=found, warm=bool(warm))


def family_of(wish: Wish, root: Path) -> str:
    """Return how the names of all warm images for this wish of the project in ``root`` begin."""
    digest = hashlib.sha256(f"{root} {wish.key}".encode()).hexdigest()
    return f"pytest-{wish.image[:IMAGE_LETTERS]}-{digest[:8]}-"


def warm_name(family: str, parts: Iterable[str]) -> str:
    """Return the name of the warm image that is made from ``parts``."""
    return family + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def guest_name(test: str, unique: str) -> str:
    """Return a guest's name that tells people which test it belongs to."""
    words = re.sub(r"[^a-z0-9]+", "-", test.lower().removeprefix("test_")).strip("-")
    return f"t-{words[:40].strip('-')}-{unique}" if words else f"t-{unique}"


def print_of(setup: Setup | None, files: Iterable[Path]) -> str:
    """Return a fingerprint of the file that ``setup`` is written in, and of the content of ``files``.

    Invalid when a file is missing, or when it can't be told where ``setup`` is written.
    """
    if setup is None:
        return ""
    try:
        source = inspect.getsourcefile(inspect.unwrap(setup))
    except TypeError:
        source = None
    if source is None:
        raise Invalid(
            Code.VALUE_INVALID,
            f"serai_setup gives {shorten(repr(setup))}, which is no function of a file",
            hint="Let it return a function that takes a guest, and prepares that.",
        )
    digest = hashlib.sha256()
    for path in [Path(source), *files]:
        for inner in _files_in(path):
            _add(digest, path, inner)
    return digest.hexdigest()


def _files_in(path: Path) -> list[Path]:
    if not path.exists():
        raise Invalid(
            Code.VALUE_INVALID,
            f"{path}, which serai_setup_files names, is not there",
            hint="Paths there are relative to the file that has the setting.",
        )
    if not path.is_dir():
        return [path]
    inside = (each for each in path.rglob("*") if each.is_file())
    return sorted(each for each in inside if "__pycache__" not in each.parts)


def _add(digest: "hashlib._Hash", top: Path, path: Path) -> None:
    """Add name, mode and content of a file; its length is told first, so that nothing runs together."""
    found = path.stat()
    digest.update(f"{path.relative_to(top)} {found.st_mode} {found.st_size}\n".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
