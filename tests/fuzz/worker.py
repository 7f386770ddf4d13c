"""Many cases in a process that may die: ``fuzz.worker TARGET FIRST CASES SECONDS FOLDER``.

The seed that it is at stands in ``FOLDER/seed``; a line of JSON on standard output tells of each
case that failed, and the last one of how many there were.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from fuzz.check import case_of, check

ADDRESS_SPACE = 4 << 30
CASE_SECONDS = 60  # a case takes some milliseconds, and the first one has loops compiled
_MOST_FAILURES = 20


def run(target: str, first: int, cases: int, seconds: float, folder: Path) -> None:
    """Runs the cases of the seeds from ``first`` on until they, or the seconds, are over."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    # A hang in native code lets no handler of Python's run: the signal itself ends the process.
    faulthandler.register(signal.SIGALRM, chain=True)
    with (folder / "seed").open("w+b") as file:
        file.write(bytes(8))
        file.flush()
        place = mmap.mmap(file.fileno(), 8)
    done = failures = 0
    end = time.monotonic() + seconds
    while done < cases and failures < _MOST_FAILURES and (time.monotonic() < end or not done):
        seed = first + done
        place[:] = seed.to_bytes(8, "little")
        signal.alarm(CASE_SECONDS)
        try:
            check(case_of(target, seed), seed, folder)
        except Exception:  # noqa: BLE001 -- which is what is looked for
            failures += 1
            print(json.dumps({"seed": seed, "fault": traceback.format_exc()}), flush=True)
        signal.alarm(0)
        done += 1
    print(json.dumps({"done": done}), flush=True)


def main() -> None:
    """Runs what the arguments say."""
    target, first, cases, seconds, folder = sys.argv[1:]
    run(target, int(first), int(cases), float(seconds), Path(folder))
    os._exit(0)  # not held up by threads of what was read


if __name__ == "__main__":
    main()
