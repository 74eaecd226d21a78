"""Contexts: an encoder's output is kept once for all rows that start from it, and for no longer than one has it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from statestream_server.arrays import Ints
from statestream_server.models.graphs.runtime import Graph, providers_for
from statestream_server.models.memory.contexts import Contexts, context_of
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.rows import SCRATCH_ROW
from tests.server.models import graphs

CPU = providers_for("cpu")
KINDS: dict[str, Callable[[], FusedRows | NumpyRows | DeviceRows]] = {
    "host": lambda: FusedRows(*graphs.attending(), CPU, check_inputs=True),
    "device": lambda: DeviceRows(*graphs.attending(), CPU, check_inputs=True),
    "numpy": lambda: NumpyRows(
        Graph(graphs.attending()[0].SerializeToString(), CPU), graphs.attending()[1], check_inputs=True, context=[1]
    ),
}


def rows_of(*numbers: int) -> Ints:
    return np.asarray(numbers, np.int64)


@pytest.fixture(params=KINDS)
def rows(request: pytest.FixtureRequest) -> FusedRows | NumpyRows | DeviceRows:
    made = KINDS[request.param]()
    made.grow(64)
    made.reset(np.arange(64))
    return made


def written(rows: FusedRows | NumpyRows | DeviceRows, which: Ints) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    values = [rng.standard_normal((len(which), *column.shape)).astype(column.dtype) for column in rows.columns]
    rows.write(which, values)
    return values


def test_forks_share_what_the_encoder_said(rows: FusedRows | NumpyRows | DeviceRows) -> None:
    contexts = rows.contexts
    assert contexts is not None
    assert contexts.used == 0
    values = written(rows, rows_of(1, 2))
    assert contexts.used == 2
    forks = np.arange(10, 50)
    rows.copy(np.tile(rows_of(1, 2), 20), forks)
    assert contexts.used == 2
    assert len(np.unique(contexts.of(forks))) == 2
    for each, value in zip(rows.read(forks), values, strict=True):
        assert np.array_equal(each, np.tile(value, (20, *[1] * (value.ndim - 1))))


def test_it_stays_until_the_last_row_lets_go(rows: FusedRows | NumpyRows | DeviceRows) -> None:
    contexts = rows.contexts
    assert contexts is not None
    values = written(rows, rows_of(1))
    rows.copy(rows_of(1, 1), rows_of(7, 8))
    rows.free(rows_of(1, 7))
    assert contexts.used == 1
    assert np.array_equal(rows.read(rows_of(8))[1], values[1])
    written(rows, rows_of(1))
    assert contexts.used == 2
    rows.free(rows_of(1))
    rows.reset(rows_of(8))
    assert contexts.used == 0
    assert (rows.read(rows_of(8))[1] == 0.5).all()


def test_a_row_that_is_written_changes_no_other(rows: FusedRows | NumpyRows | DeviceRows) -> None:
    values = written(rows, rows_of(1))
    rows.copy(rows_of(1), rows_of(2))
    rows.write(rows_of(2), [value + 1 for value in values])
    assert np.array_equal(rows.read(rows_of(1))[1], values[1])
    assert np.array_equal(rows.read(rows_of(2))[1], values[1] + 1)


def test_a_step_elsewhere_shares_too_and_a_refused_one_does_not(rows: FusedRows | NumpyRows | DeviceRows) -> None:
    contexts = rows.contexts
    assert contexts is not None
    written(rows, rows_of(1, 2))
    x = np.zeros((2, 1, 4), np.float32)
    x[1] = np.nan
    _, bad = rows.step(rows_of(1, 2), rows_of(5, 6), [x])
    assert bad.tolist() == [False, True]
    assert contexts.of(rows_of(5, 6)).tolist() == [int(contexts.of(rows_of(1))[0]), 0]
    assert contexts.used == 2


def test_what_a_slab_grows_by_keeps_what_is_shared(rows: FusedRows | NumpyRows | DeviceRows) -> None:
    values = written(rows, rows_of(1, 63))
    rows.grow(1000)
    rows.copy(rows_of(63), rows_of(999))
    rows.step(rows_of(999), rows_of(999), [np.zeros((1, 1, 4), np.float32)])
    assert np.array_equal(rows.read(rows_of(999))[1], values[1][1:])


def test_the_scratch_row_has_nothing() -> None:
    contexts = Contexts(frozenset([0]))
    contexts.grow(8)
    contexts.fresh(rows_of(3))
    contexts.share(rows_of(3, 3, 3), rows_of(SCRATCH_ROW, 4, SCRATCH_ROW))
    contexts.drop(rows_of(3, 4))
    assert contexts.used == 0


def test_only_what_an_encoder_gave_and_the_graph_hands_through_is_shared() -> None:
    model, signature = graphs.attending()
    assert context_of(model, signature) == {1}
    signature.states[1].from_encoder = ""
    assert context_of(model, signature) == frozenset()
    assert context_of(*graphs.recurrent("LSTM", layers=2, hidden=16)) == frozenset()
