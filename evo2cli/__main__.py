"""`evo2`, and `python -m evo2cli`."""

import os
import sys
import threading

from evo2cli.cli import app


def main() -> int:
    """Run `evo2` with the arguments of this process; returns its exit code, or ends the process with it."""
    code = app.main()
    if any(thread.daemon for thread in threading.enumerate()):
        # One may wait for input with the lock of a stream, and an interpreter that shuts down beside it aborts.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
