"""Even samples of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly(texts: list[str], rows: int) -> list[str]:
    """Returns at most ``rows`` of ``texts``, spread evenly over them."""
    return [texts[index] for index in even_rows(len(texts), rows)]


def even_rows(total: int, rows: int) -> NDArray[np.int64]:
    """Returns int64[min(rows, total)]: row numbers below ``total``, evenly spread, ascending."""
    count = min(rows, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
