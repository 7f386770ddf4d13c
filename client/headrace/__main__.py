"""``headrace`` and ``python -m headrace``."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; a Ctrl-C while it loads ends it as one later does."""
    try:
        from headrace.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
