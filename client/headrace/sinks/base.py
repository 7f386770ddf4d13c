"""What every sink promises, and how rows are checked and copied."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Sink(Protocol):
    """Takes the rows of a job in output order and leaves one complete file.

    A sink writes into the job's folder. After a write that failed it is of no use but to be closed;
    what was durable before stays, and another sink can go on there.

    Attributes:
        size: bytes of the staged rows, for :meth:`sync` to make durable and to go on from.
    """

    size: int

    def write(
        self,
        vectors: NDArray[np.floating],
        valid: NDArray[np.bool_],
        ids: pa.Array | None,
        first_row: int,
    ) -> None:
        """Appends rows; nothing given here is changed or kept.

        Args:
            vectors: [n, dimension] of float32 or of the sink's own type; what stands in an invalid
                row is ignored.
            valid: bool[n]; an invalid row becomes NaN (npy) or null (Parquet).
            ids: Arrow array of n ids of the sink's ``id_type``; None where rows are numbered.
            first_row: number of the first of these rows; the others follow without a gap.

        Raises:
            OutputError: the disk is full, or another error of the file system.
            ValueError: the arrays do not fit each other or the sink.
        """

    def sync(self) -> None:
        """Makes durable what was written before the call; from any thread.

        Raises:
            OutputError: the file system refused.
        """

    def finish(self) -> None:
        """Completes the file that becomes the output, and makes it durable.

        Raises:
            OutputError: the disk is full, or another error of the file system.
        """

    def close(self) -> None:
        """Closes the files; idempotent."""


def check_rows(
    vectors: NDArray[np.floating],
    valid: NDArray[np.bool_],
    dimension: int,
    kind: np.dtype[np.floating],
) -> None:
    """Checks that rows fit each other and the sink.

    Args:
        vectors: [n, dimension] of float32 or ``kind``.
        valid: bool[n].
        dimension: length of a vector.
        kind: the sink's own type.

    Raises:
        ValueError: a shape or a type is another.
    """
    if vectors.dtype not in {np.dtype(np.float32), kind} or vectors.shape[1:] != (dimension,):
        raise ValueError(
            f"vectors must be float32 or {kind} [n, {dimension}], "
            f"not {vectors.dtype}{list(vectors.shape)}"
        )
    if valid.dtype != np.bool_ or valid.shape != vectors.shape[:1]:
        raise ValueError(
            f"valid must be bool[{len(vectors)}], not {valid.dtype}{list(valid.shape)}"
        )


def fill_rows(
    target: NDArray[np.floating], vectors: NDArray[np.floating], valid: NDArray[np.bool_]
) -> None:
    """Copies rows into a buffer in the buffer's type, NaN where they are invalid.

    A value beyond the range of float16 (65,504) becomes infinite there, and NumPy warns; vectors
    of unit length have none.

    Args:
        target: float32 or float16[n, dimension]; overwritten.
        vectors: [n, dimension] of the same type or of float32.
        valid: bool[n].
    """
    if valid.all():
        np.copyto(target, vectors, casting="same_kind")
        return
    # An invalid row may hold anything, so it is never converted, only overwritten.
    np.copyto(target, vectors, where=valid[:, np.newaxis], casting="same_kind")
    target[~valid] = np.nan
