"""The step graph: a shape that comes again finds its arrays, and what is kept stays bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream_server.models.graphs.runtime import Binding, Graph, providers_for
from statestream_server.models.memory import fused_rows
from statestream_server.models.memory.fused_rows import FusedRows, StepGraph
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.slab import Slab
from statestream_server.models.rows import FIRST_ROW, columns_of, start_values
from tests.server.models import graphs

CPU = providers_for("cpu")
MODEL, SIGNATURE = graphs.recurrent("LSTM", hidden=8)


@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 2, 4])), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_batches_of_any_shapes_in_any_order_compute_what_numpy_rows_do(
    shapes: Sequence[tuple[int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    fused = FusedRows(MODEL, SIGNATURE, CPU, check_inputs=True)
    plain = NumpyRows(Graph(MODEL.SerializeToString(), CPU), SIGNATURE, check_inputs=True)
    width, every = SIGNATURE.inputs[0].shape[-1], np.arange(FIRST_ROW, 8)
    for rows in (fused, plain):
        rows.grow(8)
        rows.reset(every)
    kept = []
    for place, (count, steps) in enumerate(shapes):
        target = rng.permutation(every)[:count]
        x = rng.standard_normal((count, steps, width)).astype(np.float32)
        x[rng.random(count) < 0.2] = np.nan
        results = [rows.step(target, target, [x]) for rows in (fused, plain)]
        kept.append([(outputs[0][~bad], bad) for outputs, bad in results])
        if place % 3 == 2:
            fused.grow(8 * (place + 2))
    for (ours, bad), (theirs, plain_bad) in kept:
        np.testing.assert_array_equal(bad, plain_bad)
        np.testing.assert_array_equal(ours, theirs)


def test_few_arrays_stay_bound_and_large_ones_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = StepGraph(MODEL, SIGNATURE, CPU, check_inputs=True)
    slab = Slab(columns_of(SIGNATURE), start_values(SIGNATURE))
    slab.grow(8)
    width = SIGNATURE.inputs[0].shape[-1]

    def bind(binding: Binding) -> None:
        for column, array in zip(graph.slabs, slab.arrays, strict=True):
            binding.fix(column.before, column.after, array.reshape(8 * column.parts, *column.item))

    def run(count: int, steps: int) -> None:
        rows = np.arange(FIRST_ROW, FIRST_ROW + count)
        graph.step(rows, rows, [np.zeros((count, steps, width), np.float32)], bind)

    monkeypatch.setattr(fused_rows, "_MOST_STAGES", 2)
    for shape in ((1, 1), (2, 1), (1, 1), (3, 1)):
        run(*shape)
    assert graph.bound == [(2, 1), (3, 1)]
    monkeypatch.setattr(fused_rows, "_MOST_BYTES", 4 * width * 5)
    run(4, 64)
    assert graph.bound == []
    run(1, 1)
    assert graph.bound == [(1, 1)]
