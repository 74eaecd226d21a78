"""Padding and serialising: what reaches the rows below, and that callers do not notice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.runtime import Graph, providers_for
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import PaddedRows, SerialisedRows
from statestream_server.models.rows import SCRATCH_ROW, Rows
from tests.server.models import graphs


class Watched(NumpyRows):
    """Rows that note the rows and steps of every run."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        self.runs.append((source.tolist(), target.tolist(), inputs[0].shape[1]))
        return super().step(source, target, inputs)

    runs: list[tuple[list[int], list[int], int]]


@pytest.fixture
def rows() -> Watched:
    model, signature = graphs.recurrent("LSTM", hidden=16)
    made = Watched(Graph(model.SerializeToString(), providers_for("cpu")), signature, check_inputs=True)
    made.runs = []
    made.grow(10)
    made.reset(np.arange(10))
    return made


def answers(rows: Rows, chosen: list[int]) -> tuple[Array, Bools, list[Array]]:
    ids = np.asarray(chosen)
    x = np.random.default_rng(0).standard_normal((10, 3, 3)).astype(np.float32)[ids]
    x[ids == 7] = np.nan
    rows.reset(np.arange(1, 10))
    (y,), bad = rows.step(ids, ids, [x])
    return y, bad, rows.read(np.arange(1, 10))


def test_a_batch_of_one_runs_as_two_into_the_scratch_row(rows: Watched) -> None:
    y, bad, after = answers(PaddedRows(rows), [4])
    assert rows.runs == [([4, 4], [4, SCRATCH_ROW], 3)]
    assert y.shape == (1, 3, 2)
    assert bad.shape == (1,)
    plain_y, plain_bad, plain_after = answers(rows, [4])
    assert np.array_equal(y, plain_y)
    assert bad.tolist() == plain_bad.tolist()
    assert all(map(np.array_equal, after, plain_after))


def test_larger_batches_are_not_padded(rows: Watched) -> None:
    answers(PaddedRows(rows), [4, 2])
    assert rows.runs == [([4, 2], [4, 2], 3)]


@pytest.mark.parametrize(("single", "most"), [(True, 1), (False, 256)])
def test_serialised_rows_run_one_by_one(rows: Watched, single: bool, most: int) -> None:
    wrapped = SerialisedRows(rows, single=single)
    y, bad, after = answers(wrapped, [4, 7, 2])
    assert [source for source, _, _ in rows.runs] == [[4], [7], [2]]
    assert bad.tolist() == [False, True, False]
    plain_y, _, plain_after = answers(rows, [4, 7, 2])
    assert np.array_equal(y[[0, 2]], plain_y[[0, 2]])
    assert all(map(np.array_equal, after, plain_after))
    assert wrapped.max_slice == most
    assert (wrapped.capacity, wrapped.columns, wrapped.row_nbytes) == (rows.capacity, rows.columns, rows.row_nbytes)
