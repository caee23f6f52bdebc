"""Where the command starts: the fast path for the list of guests, or the command line."""

import sys
from importlib import import_module

from serai.cli.fast import try_fast


def main() -> int:
    """Run the command and return its exit code."""
    try:
        code = try_fast(sys.argv[1:])
        return int(import_module("serai.cli.main").main()) if code is None else code
    except KeyboardInterrupt:
        return 130  # while a module was being imported


if __name__ == "__main__":
    sys.exit(main())
