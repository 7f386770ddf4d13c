"""How the loops are compiled, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

LANE = 8


def compiled(function: F) -> F:
    """Has a function of arrays and numbers compiled when it is called for the first time."""
    try:
        return cast("F", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # nowhere to keep it: every process compiles it anew
        return cast("F", numba.njit(nogil=True)(function))


def inlined(function: F) -> F:
    """Has a function compiled into those that call it: a call with arrays is dear."""
    return cast("F", numba.njit(inline="always")(function))


@compiled
def count_byte(data: NDArray[np.uint8], byte: int) -> int:
    """Returns how often a byte occurs."""
    count = 0
    for one in data:
        count += one == byte
    return count


def eight_bytes(data: bytes) -> NDArray[np.uint64]:
    """Returns uint64[bytes - 7]: the eight bytes that begin at each, without a copy.

    Of fewer than nine bytes it is zeros: NumPy's flags of so short an array are others.
    """
    short = len(data) <= LANE
    return np.ndarray(
        2 if short else len(data) - 7, np.uint64, bytes(9) if short else data, 0, (1,)
    )
