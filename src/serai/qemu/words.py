"""What QEMU itself has to say: a file beside the guest's other logs."""

import os
from contextlib import ExitStack
from pathlib import Path

PRIVATE = 0o600
TOLD_OF_WORDS = 2000
NAME = "qemu-system-x86_64: "


def words_path(state_dir: Path) -> Path:
    """Return where QEMU's own words are."""
    return state_dir / "qemu.log"


def open_words(stack: ExitStack, state_dir: Path) -> int:
    """Open the file for what QEMU itself has to say, emptied: it is about this start only."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    fd = os.open(words_path(state_dir), flags, PRIVATE)
    stack.callback(os.close, fd)
    return fd


def read_last_words(state_dir: Path) -> str:
    """Return the end of what QEMU wrote to its log."""
    try:
        with open(words_path(state_dir), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TOLD_OF_WORDS))
            return file.read(TOLD_OF_WORDS).decode(errors="replace").strip()
    except OSError:
        return ""


def gist(words: str) -> list[str]:
    """Return the line that tells most: the last under QEMU's name, else the last."""
    lines = words.splitlines()
    named = [line.partition(NAME)[2] for line in lines if NAME in line]
    return (named or lines)[-1:]
