"""What a server told, as logits: nothing is left of what stood in their memory before."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.decoding.served_teacher import _Table
from rsd.serving.told import Told

WIDTH = 30
LISTS = st.dictionaries(st.integers(0, WIDTH - 1), st.floats(-20, 0, width=32), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.none() | LISTS, min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_table_is_as_a_fresh_one(rounds):
    table = _Table(WIDTH)
    for told in rounds:
        want = np.full((len(told), WIDTH), -np.inf, dtype=np.float32)
        for row, one in zip(want, told, strict=True):
            if one is None:
                row[:] = np.nan
            else:
                row[list(one)] = list(one.values())
        made = table.of([None if one is None else Told(list(one), list(one.values())) for one in told])
        np.testing.assert_array_equal(made.numpy(), want)
