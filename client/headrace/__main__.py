"""``headrace`` and ``python -m headrace``."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Runs the command line; a Ctrl-C while it loads ends it as one later does."""
    try:
        # What the modules hold stays to the end: to look through it again and again, while they
        # are loaded and later, is in vain and takes a fifth of the start.
        gc.disable()
        from headrace.cli import app

        gc.freeze()
        gc.enable()
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
