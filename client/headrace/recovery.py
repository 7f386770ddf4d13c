"""What becomes of a run when its server is lost: another one, and the same batches again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from headrace.errors import ServerError, ServerLostError
from headrace.transport import Connection

MOST_IN_A_ROW = 8
_CAREFUL_AFTER = 2


class Lifeline(Protocol):
    """Gets the server back.

    Attributes:
        what: what is being done about it, in a few words.
    """

    what: str

    def explained(self, lost: ServerLostError) -> str:
        """Returns how the server was lost, if more is known than the loss itself."""

    def revive(self, lost: ServerLostError) -> Connection:
        """Returns a connection to the same model, on the server that is there now.

        Args:
            lost: how the one that was there was lost.

        Raises:
            ServerLostError: the run is to stop meanwhile.
            ServerError: there is none.
        """


class Recovery:
    """Counts how often the server was lost over which blocks, and gets it back.

    A block that was in flight is sent again as it was; one that was in flight twice goes one batch
    at a time, with no other beside it. If the server is lost over it once more, it is known over
    which rows.

    Args:
        connection: to the server that is there.
        lifeline: gets the server back; None leaves it at the loss.
        notice: told in one line what happens.

    Attributes:
        connection: to the server that is there now.
        losses: how often the server was lost.
    """

    def __init__(
        self,
        connection: Connection,
        lifeline: Lifeline | None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.connection = connection
        self.losses = 0
        self._lifeline = lifeline
        self._notice = notice
        self._times: Counter[int] = Counter()
        self._in_a_row = 0

    def careful(self, block: int) -> bool:
        """Returns whether a block is to go one batch at a time, with no other beside it."""
        return self._times[block] >= _CAREFUL_AFTER

    def finished(self, block: int) -> None:
        """Notes that a block is embedded."""
        self._times.pop(block, None)
        self._in_a_row = 0

    def recover(
        self,
        lost: ServerLostError,
        in_flight: Iterable[int],
        name_rows: Callable[[int, Sequence[int]], str],
    ) -> Connection:
        """Gets the server back.

        Args:
            lost: how it was lost.
            in_flight: numbers of the blocks that it had batches of.
            name_rows: names rows of a block, by their numbers in it, for a person.

        Raises:
            ServerLostError: nobody can get it back.
            ServerError: it does not come back, or is lost again and again.
        """
        if self._lifeline is None:
            raise lost
        why = self._lifeline.explained(lost)
        self.losses += 1
        self._in_a_row += 1
        if lost.block is not None and lost.rows and self.careful(lost.block):
            raise ServerError(
                f"{name_rows(lost.block, lost.rows)}: three times the server was lost over these "
                f"rows, at last with nothing else to do ({why}); find the one that does it, by "
                f"halves, and take it out, or see whether they need more memory than there is"
            ) from lost
        if self._in_a_row > MOST_IN_A_ROW:
            raise ServerError(
                f"{self._in_a_row} times in a row the server was lost before a block was done "
                f"({why}); see its log"
            ) from lost
        self._times.update(set(in_flight))
        self._notice(f"{why}; {self._lifeline.what}")
        self.connection = self._lifeline.revive(lost)
        return self.connection
