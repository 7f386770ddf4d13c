"""The long form, by hand."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from pathlib import Path

from fuzz import driver
from fuzz.check import TARGETS


def main() -> int:
    """Runs the targets one after the other and says what was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzzes the readers.")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--seconds", type=float, default=300, help="for all targets together")
    parser.add_argument("--cases", type=int, default=1 << 40, help="of each target, at most")
    parser.add_argument("--first", type=int, help="the first seed (default: by the clock)")
    parser.add_argument("--kept", type=Path, default=Path("build/fuzz"), help="for what fails")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="reads a kept file again")
    options = parser.parse_args()
    if options.replay:
        faulthandler.enable()
        driver.replay(options.replay)
        print("nothing is wrong with it")
        return 0
    targets = options.target or list(TARGETS)
    first = int(time.time()) * 1_000_000 if options.first is None else options.first
    failed = False
    for target in targets:
        outcome = driver.run(
            target,
            first=first,
            cases=options.cases,
            seconds=options.seconds / len(targets),
            kept=options.kept,
        )
        print(f"{target}: {outcome.cases} cases from seed {first}, {len(outcome.failures)} failed")
        for failure in outcome.failures:
            print(failure)
        sys.stdout.flush()
        failed |= bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
