"""The slab: growth keeps what is there, and reading, writing, copying and resetting touch the rows named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream_server.models.memory.slab import Slab
from statestream_server.models.rows import Column

COLUMNS = (
    Column("h", np.dtype(np.float32), (2, 3)),
    Column("n", np.dtype(np.int64), ()),
    Column("b", np.dtype(bool), (5,)),
)
START = [np.arange(6, dtype=np.float32).reshape(2, 3), np.asarray(9), np.ones(5, bool)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["write", "copy", "reset", "grow"]), max_size=30), st.integers(0, 2**32 - 1))
def test_a_slab_is_a_list_of_rows(script: list[str], seed: int) -> None:
    rng, slab, capacity = np.random.default_rng(seed), Slab(COLUMNS, START), 8
    slab.grow(capacity)
    slab.reset(np.arange(capacity))
    expected = {row: [start.copy() for start in START] for row in range(capacity)}
    for action in script:
        count = int(rng.integers(1, 4))
        rows = rng.permutation(capacity)[: 2 * count]
        if action == "grow":
            old, capacity = capacity, capacity + int(rng.integers(1, 3000))
            slab.grow(capacity)
            fresh = np.arange(old, capacity)
            slab.reset(fresh)
            expected.update((row, [start.copy() for start in START]) for row in range(old, capacity))
        elif action == "reset":
            slab.reset(rows)
            expected.update((int(row), [start.copy() for start in START]) for row in rows)
        elif action == "copy":
            slab.copy(rows[:count], rows[count:])
            for source, target in zip(rows[:count].tolist(), rows[count:].tolist(), strict=True):
                expected[target] = [value.copy() for value in expected[source]]
        else:
            values = [(rng.random((len(rows), *c.shape)) * 3).astype(c.dtype) for c in COLUMNS]
            slab.write(rows, values)
            for place, row in enumerate(rows.tolist()):
                expected[row] = [value[place] for value in values]
    for place, found in enumerate(slab.read(np.arange(capacity))):
        assert np.array_equal(found, np.stack([expected[row][place] for row in range(capacity)]))


def test_what_was_read_stays_as_it_was() -> None:
    slab = Slab(COLUMNS, START)
    slab.grow(4)
    slab.reset(np.arange(4))
    copies = slab.read(np.arange(4))
    slab.write(np.arange(4), [np.zeros((4, *column.shape), column.dtype) for column in COLUMNS])
    slab.grow(40_000)
    assert np.array_equal(copies[0][2], START[0])


def test_a_growth_that_the_system_refuses_changes_nothing() -> None:
    slab = Slab(COLUMNS, START)
    slab.grow(10)
    slab.reset(np.arange(10))
    with pytest.raises(MemoryError, match="bytes for rows"):
        slab.grow(1 << 46)
    assert slab.capacity == 10
    assert np.array_equal(slab.read(np.asarray([9]))[0][0], START[0])
    slab.grow(20)
    assert slab.capacity == 20
