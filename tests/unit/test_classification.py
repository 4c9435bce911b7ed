"""Outputs as classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_sidecar.server.classification import classify

DTYPES = [np.int8, np.uint8, np.int64, np.uint64, np.bool_, np.float16, np.float32, np.float64]


def test_the_largest_first() -> None:
    """Rows by themselves, equal values by index, labels where there are some, values as C writes them."""
    rows = np.array([[0.25, 3, -1], [2, 2, 2.5]], np.float32)
    assert classify(rows, 2, True, ("a", "b")).tolist() == [["3.000000:1:b", "0.250000:0:a"], ["2.500000:2", "2.000000:0:a"]]
    assert classify(rows, 9, False).tolist() == ["3.000000:1", "2.500000:5", "2.000000:3", "2.000000:4", "0.250000:0", "-1.000000:2"]
    assert classify(np.zeros((0, 4), np.float32), 2, True).shape == (0, 2)
    assert classify(np.zeros((2, 0), np.float32), 2, True).shape == (2, 0)
    assert classify(np.float32(7), 3, False).tolist() == ["7.000000:0"]
    edges = np.array([[np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0]], np.int64)
    assert [t.split(":")[1] for t in classify(edges, 3, True)[0]] == ["1", "2", "0"]
    assert classify(np.array([[1, np.nan, 2, -np.inf]], np.float32), 4, True)[0].tolist()[0] == "2.000000:2"


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_as_sorting_does(data: Any, dtype: Any) -> None:
    """Indices are those of a stable sort by falling value, for every datatype."""
    kind = np.dtype(dtype).kind
    if kind == "f":
        element: st.SearchStrategy[Any] = st.floats(-1000, 1000, width=16)
    elif kind == "b":
        element = st.booleans()
    else:
        element = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    values = data.draw(st.lists(element, min_size=1, max_size=12))
    count = data.draw(st.integers(1, 14))
    found = classify(np.array([values], dtype), count, True)[0].tolist()
    expected = sorted(range(len(values)), key=lambda i: (-float(values[i]) if kind == "f" else -int(values[i]), i))[:count]
    assert [int(t.split(":")[1]) for t in found] == expected
