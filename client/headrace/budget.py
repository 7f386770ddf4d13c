"""How much memory the processes of a client take, by calculation, and how many a limit allows.

Everything that grows with the input is bounded: the reader holds a window of some blocks, each
feeder three blocks (one being prepared, one at the server, one being written) and the words it
remembers, and blocks wait in a fixed number of places. So the most that a run takes follows from
its settings; ``python -m headrace_bench.memory`` compares it with what is measured. A single line
that is longer than a block adds up to three times itself. The server is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.config import MIB, EmbedConfig
from headrace.contract import Contract
from headrace.errors import UsageError
from headrace.feederpool import AT_ONCE, READ_AHEAD
from headrace.transport import slot_bytes

# Measured: the interpreter with all libraries, and a full word cache beside them in a feeder.
_MAIN_BYTES = 220 * MIB
_FEEDER_BYTES = 430 * MIB
_WINDOW_BLOCKS = 6  # the reader's: read, joined, cut
_BLOCKS = 3
_TEXT_COPIES = 4  # a block as bytes, as a column, as words, as tokens
_GROUP_BYTES = 5 * 64 * MIB  # of a Parquet file: being filled, and being encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run's processes take at most, in bytes.

    Attributes:
        main: the main process, the blocks that wait in shared memory included.
        feeder: each feeder; without feeders this is in the main process.
        waiting_block: a block in shared memory, between the main process and a feeder.
    """

    main: int
    feeder: int
    waiting_block: int

    def total(self, feeders: int) -> int:
        """Returns the sum for a number of feeders; 0 does all in the main process."""
        waiting = (AT_ONCE * feeders + READ_AHEAD) * self.waiting_block
        return self.main + max(1, feeders) * self.feeder + (waiting if feeders else 0)

    @classmethod
    def of(cls, config: EmbedConfig, contract: Contract, block_rows: int, slots: int) -> Budget:
        """Returns the budget of a run.

        Args:
            config: the run's settings.
            contract: the model's.
            block_rows: rows of a block, at most.
            slots: batches in flight.
        """
        dimension = config.truncate_dim or contract.dimension
        vectors = block_rows * dimension * np.dtype(config.dtype).itemsize
        parquet = config.output.suffix == ".parquet"
        in_place = not parquet and config.on_error != "skip"
        return cls(
            main=_MAIN_BYTES + _WINDOW_BLOCKS * config.block_bytes + parquet * _GROUP_BYTES,
            feeder=_FEEDER_BYTES
            + _BLOCKS * (_TEXT_COPIES * config.block_bytes + vectors)
            + slots * slot_bytes(contract),
            waiting_block=config.block_bytes + (0 if in_place else vectors),
        )


def feeders_within(budget: Budget, wanted: int, limit: int | None, *, asked: bool) -> int:
    """Returns how many feeders a run may have.

    Args:
        budget: what they take.
        wanted: how many it would have; 0 does all in the main process.
        limit: bytes that all may take together, or None.
        asked: whether the user has asked for that number.

    Raises:
        UsageError: not even the fewest fit, or not those that were asked for.
    """
    if limit is None or budget.total(wanted) <= limit:
        return wanted
    least = wanted if asked else 0
    for feeders in range(wanted - 1, least - 1, -1):
        if budget.total(feeders) <= limit:
            return feeders
    with_what = f"--feeders {wanted}" if asked else "this model and these settings"
    raise UsageError(
        f"--memory-limit: {with_what} may take {budget.total(least) / MIB:,.0f} MiB, and the limit "
        f"is {f'{limit / MIB:,.0f} MiB' if limit >= MIB else f'{limit} bytes'}; raise it"
        + (", or leave --feeders out" if asked and budget.total(0) <= limit else "")
    )
