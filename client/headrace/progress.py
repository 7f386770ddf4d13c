"""What a run counts, and the live line on standard error that shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from headrace.tokens import WordCounts

STAGES = (
    "build",
    "start",
    "read",
    "parse",
    "tokenize",
    "starve",
    "pack",
    "wait",
    "scatter",
    "write",
)
"""Where time goes: building the entry; starting the server and the feeders; in a thread of their
own: reading and decompressing, parsing, tokenizing; in the thread that feeds the server: starving
for prepared blocks, packing batches, waiting for vectors, putting them at their rows, writing."""


@dataclass(slots=True)
class Counters:
    """What a run has done so far; times in seconds.

    Attributes:
        rows: rows whose vectors are done, bad rows included.
        bad_rows: rows that could not be embedded.
        truncated_rows: rows cut to ``max_length``.
        tokens: tokens of the rows, special tokens included, padding not.
        padded_tokens: tokens computed, padding included.
        batches: batches sent.
        bytes_done: bytes of input, as stored, that the done rows came from.
        bytes_resumed: bytes of input, as stored, whose rows earlier runs have done.
        tokenized: what the word cache was asked for, and how it fared.
        seconds: by stage, see :data:`STAGES`; several feeders' seconds are added up.
        cpu_seconds: by stage, what the stage's own thread computed.
    """

    rows: int = 0
    bad_rows: int = 0
    truncated_rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    bytes_done: int = 0
    bytes_resumed: int = 0
    tokenized: WordCounts = field(default_factory=WordCounts)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def padding(self) -> float:
        """Share of the computed tokens that is padding, 0 to 1."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to ``stage``."""
        start, cpu_start = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
            self.cpu_seconds[stage] += time.thread_time() - cpu_start

    def add_feeder(self, other: Counters) -> None:
        """Adds the times and words of a feeder."""
        self.tokenized.add(other.tokenized)
        for mine, others in ((self.seconds, other.seconds), (self.cpu_seconds, other.cpu_seconds)):
            for stage, seconds in others.items():
                mine[stage] += seconds


class ProgressLine:
    """One line on standard error: rewritten in place on a terminal, now and then elsewhere.

    Args:
        total_bytes: bytes of all inputs as stored, or None where that is not known.
        quiet: shows nothing.
        stream: where to write; standard error by default.
    """

    def __init__(
        self, total_bytes: int | None, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._total = total_bytes
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._pause = 0.2 if self._live else 10.0
        self._start = self._last = time.monotonic()
        self._width = 0

    def start(self) -> None:
        """Begins the time of which rates are told."""
        self._start = time.monotonic()

    def update(self, counters: Counters) -> None:
        """Shows the counters, if the last time is long enough ago."""
        if self._is_due():
            self._show(describe(counters, self._last - self._start, self._total))

    def step(self, line: str) -> None:
        """Shows a line of other work, if the last time is long enough ago."""
        if self._is_due():
            self._show(line)

    def notice(self, line: str) -> None:
        """Writes a line that stays."""
        self.close()
        if not self._quiet:
            self._write(f"headrace: {line}\n")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._quiet or now - self._last < self._pause:
            return False
        self._last = now
        return True

    def _show(self, line: str) -> None:
        if self._live:
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(line + "\n")

    def close(self) -> None:
        """Clears the line."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody can see it: the run goes on without
            self._quiet, self._width = True, 0


def describe(counters: Counters, seconds: float, total_bytes: int | None) -> str:
    """Returns the progress line after ``seconds`` of work."""
    elapsed = max(seconds, 1e-9)
    before = counters.bytes_resumed
    if before and not counters.rows:
        far = f": {counters.bytes_done / total_bytes:.0%}" if total_bytes else ""
        return f"reading again what is done{far}"
    parts = [
        f"{counters.rows:,} rows",
        f"{counters.rows / elapsed:,.0f} rows/s",
        f"{counters.tokens / elapsed:,.0f} tokens/s",
        f"padding {counters.padding:.1%}",
    ]
    if counters.bad_rows:
        parts.append(f"{counters.bad_rows:,} bad")
    if total_bytes and counters.bytes_done:
        share = min(1.0, counters.bytes_done / total_bytes)
        parts.append(f"{share:.0%}")
        here = share - before / total_bytes
        if here > 0:
            parts.append(f"ETA {_clock(elapsed * (1 - share) / here)}")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
