"""Files that are elsewhere, by their URL: the way to ``fetch``, which is imported when it is needed.

What speaks http costs a daemon 6 MB, and most fetch an image now and then, if ever.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from serai.errors import Code, Invalid

WORKER = "serai.disk.fetch"

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A complete download. ``digest`` is hex, of the algorithm that was asked for; ``url`` is where
    it was asked for (``plain_url``)."""

    path: Path
    size: int
    digest: str
    url: str


def is_url(place: str) -> bool:
    """Tell a URL from a path."""
    return "://" in place


def check_url(place: str) -> None:
    """Refuse what is no http or https URL (Invalid, ``value-invalid``)."""
    import_module(WORKER).check_url(place)


def shown(place: str) -> str:
    """Return a URL as it may be stored and shown, without user, password and query; a path as it is."""
    if not is_url(place):
        return place
    worker = import_module(WORKER)
    plain: str = worker.plain_url(worker.check_url(place))
    return plain


def beside(place: str, ending: str) -> str:
    """Return the place of the file beside, whose name has ``ending`` too."""
    if not is_url(place):
        return place + ending
    url: str = import_module(WORKER).url_beside(place, ending)
    return url


async def fetch(
    url: str,
    target: Path,
    *,
    limit: int,
    sha256: str = "",
    sha512: str = "",
    reserve: int = 0,
    report: Report = lambda done, total: None,
) -> Fetched:
    """Download ``url`` to ``target``, as ``fetch.fetch`` does and says."""
    fetched: Fetched = await import_module(WORKER).fetch(
        url, target, limit=limit, sha256=sha256, sha512=sha512, reserve=reserve, report=report
    )
    return fetched


def digest_mismatch(what: str, expected: str, found: str) -> Invalid:
    """Return the problem of a file that is not the one that was meant."""
    return Invalid(
        Code.IMAGE_DIGEST_MISMATCH,
        f"{what} has another digest than was given",
        hint="Check the digest at its source: the file may be newer, or not what it seems.",
        details={"expected": expected, "found": found},
    )
