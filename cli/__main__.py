"""Entry point of `advl`, also as `python -m advl_cli`. Ctrl-C gives its exit code from the first line on."""

from __future__ import annotations

import atexit
import sys


def start() -> None:
    """Load the command line and run it."""
    try:
        from advl_pipeline.base.interruption import hold_back_for_good, ignore_for_good

        # Registered first, so that it runs last: once Python removes its handlers, a signal would kill the process.
        atexit.register(ignore_for_good)
        from .main import main

        try:
            main()
        finally:
            # A signal during interpreter shutdown, which takes seconds with torch, must not change the exit code.
            hold_back_for_good()
    except KeyboardInterrupt:
        print("error: Interrupted before anything was done.\n  next:  run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    start()
