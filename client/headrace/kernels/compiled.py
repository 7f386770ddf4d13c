"""How the loops are compiled, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])

LANE = 8


class _Kept(FunctionCache):  # type: ignore[misc]
    """Numba's cache on the disk; without it, or where it is damaged, functions are compiled."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns what is kept, or None; clears what cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 -- unpickling what is damaged raises anything
            with suppress(Exception):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a compiled function, where there is room for it."""
        with suppress(Exception):
            super().save_overload(sig, data)

    @property
    def there(self) -> bool:
        """Whether something is kept."""
        return Path(self._cache_file._index_path).exists()  # noqa: SLF001


def compiled(function: F) -> F:
    """Has a function of arrays and numbers compiled when it is called for the first time."""
    loop = numba.njit(nogil=True)(function)
    with suppress(RuntimeError):  # nowhere to keep it: every process compiles it anew
        loop._cache = _Kept(function)  # noqa: SLF001 -- as Numba's own cache=True does
    return cast("F", loop)


def is_kept(loop: Callable[..., Any]) -> bool:
    """Returns whether a compiled function need not be compiled again, by all appearances."""
    cache = getattr(loop, "_cache", None)
    return isinstance(cache, _Kept) and cache.there


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
