"""Even samples."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_bench.sampling import even_rows


@pytest.mark.parametrize(("total", "rows"), [(10, 3), (3, 10), (1, 1), (1000, 999), (7, 7)])
def test_even_rows_are_distinct_and_in_range(total, rows):
    found = even_rows(total, rows)
    assert len(found) == min(total, rows)
    assert (np.diff(found) > 0).all()
    assert found.min() >= 0
    assert found.max() < total
