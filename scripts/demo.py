"""The demonstration: a daemon, an image, a guest, its inside, its console, and nothing left behind.

Uses nothing but the command line, as a user would, and prints every command. Everything lies below
``.work/demo``; the image stays there, so that the second time takes seconds. Exit code 0 means that
every step did what it should and that nothing runs any more.
"""

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".work" / "demo"
BIN = ROOT / ".venv" / "bin"
GUEST = "demo1"
COMMAND_LIMIT = 170.0
CONSOLE_LIMIT = 20.0
ESCAPE = b"\x1d"  # ctrl-]


class Demo:
    """Runs commands, shows them and remembers how long each took."""

    def __init__(self) -> None:
        self.environ = {
            **os.environ,
            "SERAI_HOME": str(HOME),
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        }
        self.took: list[tuple[str, float]] = []

    def serai(self, step: str, *words: str) -> None:
        """Run ``serai`` with these words and show what it prints; a failure ends the demo."""
        print(f"\n$ {shlex.join(('serai', *words))}", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            ["serai", *words],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=COMMAND_LIMIT,
            check=False,
        )
        self.took.append((step, time.monotonic() - begun))
        print(_readable(done.stdout), flush=True)
        if done.returncode != 0:
            sys.exit(f"demo: that should have worked; it ended with {done.returncode}")

    def answers(self, *words: str) -> bool:
        """Tell whether a command of ours ends well, and show nothing of it."""
        done = subprocess.run(
            ["serai", *words], env=self.environ, capture_output=True, timeout=30, check=False
        )
        return done.returncode == 0

    def console(self, typed: str, wanted: str) -> None:
        """Open the console as at a terminal, type a line, wait for its answer, leave by ctrl-]."""
        print(f"\n$ serai console {GUEST}", flush=True)
        begun = time.monotonic()
        ours, theirs = pty.openpty()
        program = subprocess.Popen(
            ["serai", "console", GUEST],
            env=self.environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            seen = _converse(ours, b"", b"ctrl-]\r\n")
            seen += _converse(ours, b"\r", b"# ")
            seen += _converse(ours, typed.encode() + b"\r", wanted.encode())
            os.write(ours, ESCAPE)
            program.wait(timeout=CONSOLE_LIMIT)
        finally:
            program.kill()
            program.wait()
            os.close(ours)
        print(_readable(seen.decode(errors="replace")))
        self.took.append(("say something on its console", time.monotonic() - begun))


def _converse(terminal: int, to_type: bytes, wanted: bytes) -> bytes:
    """Type, and read until the console shows ``wanted``."""
    until = time.monotonic() + CONSOLE_LIMIT
    os.write(terminal, to_type)
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            sys.exit(f"demo: the console did not show {wanted!r}, but: {seen!r}")
        seen += os.read(terminal, 4096)
    return seen


def _readable(text: str) -> str:
    """Return the text without empty lines and without the shell's question for the cursor."""
    lines = (line.rstrip() for line in text.replace("\x1b[6n", "").splitlines())
    return "\n".join(line for line in lines if line)


def _clear(demo: Demo) -> None:
    """Remove what an earlier demo left when it was broken off."""
    guests = HOME / "state" / "guests"
    if demo.answers("daemon", "status") or (guests.exists() and any(guests.iterdir())):
        demo.answers("daemon", "start")
        demo.answers("delete", "--force", GUEST)
        demo.answers("daemon", "stop")


def _leftovers() -> list[str]:
    """Return the processes that still have a file of the demo open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(f"{HOME}/") for file in files):
            found.append(process.name)
    return found


def _table(rows: list[tuple[str, float]]) -> str:
    width = max(len(step) for step, _ in rows)
    lines = [f"{step:<{width}}  {seconds:7.2f} s" for step, seconds in rows]
    total = f"{'in all':<{width}}  {sum(seconds for _, seconds in rows):7.2f} s"
    return "\n".join(["", f"{'step':<{width}}    took", *lines, total])


def _guest(demo: Demo) -> None:
    demo.serai("launch a guest, until its agent answers", "launch", "tiny", GUEST)
    demo.serai("list", "list")
    demo.serai("run a command in it", "exec", GUEST, "--", "uname", "-a")
    script = (
        "grep -c ^processor /proc/cpuinfo; free -m | head -n 2; ip -o -4 addr show scope global"
    )
    demo.serai("run a script in it", "exec", GUEST, "--", "sh", "-c", script)
    demo.console("echo here is $((6*7))", "here is 42")
    demo.serai("read its serial log", "log", GUEST)
    demo.serai("stop it", "stop", GUEST)
    demo.serai("delete it", "delete", GUEST)


def main() -> None:
    """Run the demonstration."""
    HOME.mkdir(parents=True, exist_ok=True)
    demo = Demo()
    if "SERAI_DEMO_BEGUN" in os.environ:
        demo.took.append(
            ("install what is missing", time.time() - float(os.environ["SERAI_DEMO_BEGUN"]))
        )
    _clear(demo)
    print("Every line that begins with $ can be typed by hand, after this one:\n")
    print(f'$ export SERAI_HOME={shlex.quote(str(HOME))} PATH={shlex.quote(str(BIN))}:"$PATH"')
    with ExitStack() as stack:
        stack.callback(demo.answers, "daemon", "stop")
        demo.serai("start the daemon", "daemon", "start")
        stack.callback(demo.answers, "delete", "--force", GUEST)
        if demo.answers("image", "show", "tiny"):
            print("\nThe image tiny is there from the last time. It was made by:")
            print("$ serai image build tiny")
        else:
            demo.serai("build the image tiny", "image", "build", "tiny")
        demo.serai("list the images", "image", "list")
        _guest(demo)
        demo.serai("stop the daemon", "daemon", "stop")
    left = _leftovers()
    if left:
        sys.exit(f"demo: processes were left behind: {', '.join(left)}")
    print(_table(demo.took))
    print("\nNothing runs any more. To go on: the export above, then serai daemon start")


if __name__ == "__main__":
    main()
