"""Makes the blocking SDK of the async one, word by word: ``make blocking``.

Each ``src/serai/client/NAME_async.py`` gives a ``NAME.py`` that says the same without ``await``. Both are
kept in git, so that what is read, debugged and completed is plain source; a test of habits compares them.
What must differ stands in a comment: ``# blocking: LINE`` becomes that line.
"""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "src" / "serai" / "client"
RUFF = ROOT / ".venv" / "bin" / "ruff"
SUFFIX = "_async"

WORDS = (
    (r"# blocking: ", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__", r"__\1__"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync_connection\b", "blocking"),
    (rf"\b(\w+){SUFFIX}\b", r"\1"),
    (r"\bserai\.aio\b", "serai"),
    (r"\basync SDK\b", "blocking SDK"),
)
"""What is written → what it is in the blocking SDK, one after the other."""

_AWAITED = re.compile(r"(?<![\w\])])\(await ")


def sources() -> list[Path]:
    """Return the files of which others are made."""
    return sorted(CLIENT.glob(f"*{SUFFIX}.py"))


def made_of(source: Path) -> Path:
    """Return the file that is made of ``source``."""
    return source.with_stem(source.stem.removesuffix(SUFFIX))


def blocking(source: Path) -> str:
    """Return the text of the file that is made of ``source``."""
    text = _without_brackets(source.read_text())
    for written, meant in WORDS:
        text = re.sub(written, meant, text)
    head = f"# Made of {source.name} by scripts/make_blocking.py: change that file, then `make blocking`.\n"
    return _tidy(head + text, made_of(source))


def _without_brackets(text: str) -> str:
    """Return a text whose ``(await x.y()).z`` are ``await x.y().z``: without waiting it is the same."""
    at = 0
    while found := _AWAITED.search(text, at):
        begin, at = found.span()
        end = _closing(text, begin)
        inner = ast.parse(text[at:end], mode="eval").body
        if isinstance(inner, ast.Call) and text[end + 1 : end + 2] in (".", "["):
            text = f"{text[:begin]}await {text[at:end]}{text[end + 1 :]}"
    return text


def _closing(text: str, opening: int) -> int:
    """Return where the bracket ends that is at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"a bracket does not end: {text[opening : opening + 80]!r}")


def _tidy(text: str, file: Path) -> str:
    """Return a text as ruff would have it at the place of ``file``."""
    mend = ["check", "--quiet", "--select=I,UP028", "--fix", "--unsafe-fixes"]
    for how in (mend, ["format"]):
        command = [str(RUFF), *how, "--stdin-filename", str(file), "-"]
        text = subprocess.run(
            command, input=text, capture_output=True, text=True, check=True
        ).stdout
    return text


if __name__ == "__main__":
    for each in sources():
        made_of(each).write_text(blocking(each))
