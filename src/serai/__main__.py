"""Where the command starts: the fast path for the list of guests, or the command line."""

import sys
from importlib import import_module

from serai.cli.fast import try_fast


def main() -> int:
    """Run the command and return its exit code."""
    code = try_fast(sys.argv[1:])
    if code is not None:
        return code
    result = import_module("serai.cli.main").main()
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
