"""The laws of rows, for all implementations: they agree bit for bit, and touch what they should and no more."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream.signature import Signature, StateCheck, numpy_dtype, step_shape
from statestream_server.arrays import Array
from statestream_server.models.graphs.runtime import Graph, GraphError, providers_for
from statestream_server.models.memory.contexts import context_of
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import SerialisedRows
from statestream_server.models.rows import FIRST_ROW, Rows, is_batched, restart
from tests.server.models import graphs

CAPACITY = 40
CPU = providers_for("cpu")
Maker = Callable[[], tuple[onnx.ModelProto, Signature]]

MODELS: dict[str, Maker] = {
    **{
        f"{op}-{axis}-{time}": functools.partial(
            graphs.recurrent,
            op,
            state_axis=axis,
            input_time=time,
            layers=layers,
            hidden=hidden,
            outputs=3,
            feedback=True,
        )
        for op, axis, time, layers, hidden in (
            ("LSTM", 0, 1, 2, 5),
            ("LSTM", 1, 0, 2, 64),
            ("GRU", 1, 1, 3, 16),
            ("GRU", 2, 1, 2, 8),
            ("RNN", 1, 1, 1, 64),
            ("RNN", 2, 0, 1, 3),
        )
    },
    **{
        f"opset {opset}": functools.partial(graphs.recurrent, "LSTM", layers=2, hidden=16, opset=opset)
        for opset in range(11, 23)
    },
    "nan": functools.partial(graphs.recurrent, "GRU", hidden=16, layers=2, check=StateCheck.STATE_CHECK_NAN),
    "off": functools.partial(graphs.recurrent, "GRU", check=StateCheck.STATE_CHECK_OFF),
    "counter": graphs.counter,
    "delay": graphs.delay,
    "half": graphs.average,
    "half nan": functools.partial(graphs.average, "float16", StateCheck.STATE_CHECK_NAN),
    "double": functools.partial(graphs.average, "float64"),
    "lonely": graphs.lonely,
    "context": graphs.attending,
    "lookup": graphs.lookup,
}


KINDS: dict[str, Callable[..., Rows]] = {
    "host": FusedRows,
    "device": DeviceRows,
    "device, two memories": functools.partial(DeviceRows, in_place=False),
}
pytestmark = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def pair(name: str, kind: str) -> tuple[Rows, Rows, Signature]:
    """Fused rows and NumPy's of one model, with room."""
    model, signature = MODELS[name]()
    both: list[Rows] = [
        KINDS[kind](model, signature, CPU, check_inputs=True),
        NumpyRows(
            Graph(model.SerializeToString(), CPU), signature, check_inputs=True, context=context_of(model, signature)
        ),
    ]
    for rows in both:
        rows.grow(CAPACITY)
    fused, plain = (rows if is_batched(signature) else SerialisedRows(rows, single=False) for rows in both)
    return fused, plain, signature


def same_bits(one: Array, other: Array) -> bool:
    """Equal bits, but for what a NaN carries."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return one.tobytes() == other.tobytes()
    return (
        bool((np.isnan(one) == np.isnan(other)).all())
        and np.nan_to_num(one).tobytes() == np.nan_to_num(other).tobytes()
    )


def test_a_restart_leaves_what_a_session_set_once(kind: str) -> None:
    rows, _, signature = pair("LSTM-1-0", kind)
    rng, which = np.random.default_rng(0), np.arange(FIRST_ROW, FIRST_ROW + 3)
    before = [rng.random((3, *column.shape)).astype(column.dtype) for column in rows.columns]
    rows.write(which, before)
    set_once = Signature()
    set_once.CopyFrom(signature)
    set_once.states[1].constant = True
    restart(rows, set_once, which[:2])
    after = rows.read(which)
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        anew = np.nan if rows.columns[place].name.startswith("feedback:") else 0
        kept = one[:2] if place == 1 else np.full_like(one[:2], anew)
        assert same_bits(other, np.concatenate([kept, one[2:]]))


def values(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> Array:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


ALL = np.arange(FIRST_ROW, CAPACITY)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 12), steps=st.sampled_from([1, 2, 5]))
def test_fused_and_numpy_rows_do_the_same(kind: str, name: str, seed: int, n: int, steps: int) -> None:
    fused, plain, signature = pair(name, kind)
    rng = np.random.default_rng(seed)
    before = [values(rng, column.dtype, (len(ALL), *column.shape)) for column in fused.columns]
    target = rng.permutation(ALL)[:n]
    others = np.setdiff1d(ALL, target)
    source = np.where(rng.random(n) < 0.5, target, rng.choice(others, n))
    inputs = [
        values(rng, numpy_dtype(spec.dtype), (n, min(steps, fused.max_slice), *step_shape(spec)))
        for spec in signature.inputs
    ]
    poisoned = rng.random(n) < 0.3
    for value in inputs:
        if value.dtype.kind == "f":
            value[poisoned] = rng.choice([np.nan, np.inf, -np.inf])
    results = []
    for rows in (fused, plain):
        rows.write(ALL, before)
        results.append((*rows.step(source, target, inputs), rows.read(ALL)))
    (outputs, bad, after), (plain_outputs, plain_bad, plain_after) = results
    assert bad.tolist() == plain_bad.tolist()
    assert all(map(same_bits, outputs, plain_outputs))
    assert all(map(same_bits, after, plain_after))
    assert [value.shape[:2] for value in outputs] == [inputs[0].shape[:2]] * len(outputs)
    kept = np.isin(ALL, np.append(np.setdiff1d(ALL, target), target[bad]))
    for old, new in zip(before, after, strict=True):
        assert same_bits(old[kept], new[kept])


@pytest.mark.parametrize("name", ["LSTM-1-0", "GRU-2-1", "half"])
def test_a_bad_row_changes_neither_its_target_nor_its_neighbours(kind: str, name: str) -> None:
    for rows, signature in ((pair(name, kind)[0], pair(name, kind)[2]), pair(name, kind)[1:]):
        rows.reset(ALL)
        rng = np.random.default_rng(3)
        dtype, shape = numpy_dtype(signature.inputs[0].dtype), step_shape(signature.inputs[0])
        clean = values(rng, dtype, (3, 1, *shape))
        dirty = clean.copy()
        dirty[1, ..., 0] = np.nan
        source, target = np.asarray([1, 2, 3]), np.asarray([1, 5, 3])
        old = rows.read(target)
        outputs, bad = rows.step(source, target, [dirty])
        after = rows.read(target)
        assert bad.tolist() == [False, True, False]
        assert all(same_bits(a[1], b[1]) for a, b in zip(old, after, strict=True))
        rows.reset(ALL)
        expected, fine = rows.step(source, target, [clean])
        assert not fine.any()
        assert same_bits(outputs[0][[0, 2]], expected[0][[0, 2]])
        assert all(same_bits(a[[0, 2]], b[[0, 2]]) for a, b in zip(after, rows.read(target), strict=True))


def test_a_run_that_fails_leaves_all_rows_as_they_are(kind: str) -> None:
    """The states do not need what the graph refuses: nothing but an added dependency keeps them from being written."""
    for rows in pair("lookup", kind)[:2]:
        rows.reset(ALL)
        tokens = np.arange(3).reshape(3, 1, 1)
        rows.step(ALL[:3], ALL[:3], [tokens])
        before = rows.read(ALL)
        with pytest.raises(GraphError):
            rows.step(ALL[:3], ALL[:3], [tokens * 99])
        assert all(map(same_bits, before, rows.read(ALL)))


def test_infinite_states_pass_the_nan_check_and_fail_the_finite_one(kind: str) -> None:
    for name, bad in (("half nan", [False]), ("half", [True])):
        for rows in pair(name, kind)[:2]:
            rows.reset(ALL)
            x = np.full((1, 1, 2, 20), -np.inf, np.float16)
            assert rows.step(np.asarray([1]), np.asarray([1]), [x])[1].tolist() == bad


def test_steps_start_where_the_signature_says_and_count_whole_numbers(kind: str) -> None:
    for rows in pair("counter", kind)[:2]:
        rows.reset(ALL)
        x = np.zeros((2, 1, 2), np.float32)
        for step in range(3):
            (y,), _ = rows.step(np.asarray([4, 9]), np.asarray([4, 9]), [x])
            assert (y == 7 + step).all()
        assert rows.read(np.asarray([4, 9, 5]))[0].tolist() == [10, 10, 7]


def test_a_state_that_depends_on_no_old_one_is_read_before_it_is_overwritten(kind: str) -> None:
    for rows in pair("delay", kind)[:2]:
        rows.reset(ALL)
        row, xs = np.asarray([6]), np.random.default_rng(0).standard_normal((20, 1, 1, 3)).astype(np.float32)
        ys = [rows.step(row, row, [x])[0][0] for x in xs]
        assert np.array_equal(np.stack(ys[1:]), xs[1:] - xs[:-1])


def test_a_step_from_another_row_leaves_that_row_as_it_is(kind: str) -> None:
    for rows in pair("LSTM-1-0", kind)[:2]:
        rows.reset(ALL)
        x = np.ones((2, 4, 3), np.float32)
        rows.step(np.asarray([1, 2]), np.asarray([1, 2]), [x])
        before = rows.read(np.asarray([1]))
        rows.step(np.asarray([1, 1]), np.asarray([7, 8]), [x])
        assert all(map(same_bits, before, rows.read(np.asarray([1]))))
        assert all(map(same_bits, rows.read(np.asarray([7])), rows.read(np.asarray([8]))))


def test_the_feedback_column_holds_the_last_step_of_its_output(kind: str) -> None:
    for rows in pair("GRU-1-1", kind)[:2]:
        rows.reset(ALL)
        assert rows.columns[-1].name == "feedback:y"
        assert np.isnan(rows.read(ALL)[-1]).all()
        x = np.random.default_rng(0).standard_normal((3, 6, 3)).astype(np.float32)
        (y,), _ = rows.step(np.asarray([1, 2, 3]), np.asarray([1, 12, 3]), [x])
        assert same_bits(rows.read(np.asarray([1, 12, 3]))[-1], np.ascontiguousarray(y[:, -1]))
        rows.copy(np.asarray([12]), np.asarray([13]))
        assert all(same_bits(value[0], value[1]) for value in rows.read(np.asarray([12, 13])))


@pytest.mark.parametrize("name", ["LSTM-1-0", "GRU-1-1"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_cut_and_any_company_give_the_same_bits(kind: str, name: str, seed: int) -> None:
    """Of cells that are batch-invariant: what a session answers does not depend on slices and neighbours."""
    rows, rng = pair(name, kind)[0], np.random.default_rng(seed)
    steps = int(rng.integers(2, 80))
    x = rng.standard_normal((len(ALL), steps, 3)).astype(np.float32)
    rows.reset(ALL)
    (expected,), _ = rows.step(ALL, ALL, [x])
    states = rows.read(ALL)
    rows.reset(ALL)
    done, found = np.zeros(len(ALL), np.int64), np.zeros_like(expected)
    while (done < steps).any():
        length = int(rng.integers(1, 20))
        able = np.flatnonzero(done + length <= steps)
        if not len(able):
            able, length = np.flatnonzero(done < steps)[:1], 1
        chosen = rng.permutation(able)[: int(rng.integers(1, len(ALL)))]
        parts = np.stack([x[i, done[i] : done[i] + length] for i in chosen])
        (y,), _ = rows.step(ALL[chosen], ALL[chosen], [parts])
        for i, part in zip(chosen.tolist(), y, strict=True):
            found[i, done[i] : done[i] + length] = part
        done[chosen] += length
    assert same_bits(found, expected)
    assert all(map(same_bits, rows.read(ALL), states))


def test_outputs_are_the_callers_to_keep(kind: str) -> None:
    rows = pair("LSTM-1-0", kind)[0]
    rows.reset(ALL)
    one, x = np.asarray([1]), np.ones((1, 2, 3), np.float32)
    (first,), bad = rows.step(one, one, [x])
    kept, kept_bad = first.copy(), bad.copy()
    rows.step(one, one, [x * np.nan])
    assert same_bits(first, kept)
    assert np.array_equal(bad, kept_bad)


def test_rows_grow_while_another_thread_steps(kind: str) -> None:
    model, signature = MODELS["LSTM-1-0"]()
    rows, alone = KINDS[kind](model, signature, CPU, check_inputs=True), pair("LSTM-1-0", kind)[1]
    rows.grow(CAPACITY)
    rows.reset(ALL)
    alone.reset(ALL)
    x = np.random.default_rng(0).standard_normal((len(ALL), 32, 3)).astype(np.float32)
    outputs: list[Array] = []

    def work() -> None:
        outputs.extend(rows.step(ALL, ALL, [x])[0][0] for _ in range(20))

    thread = threading.Thread(target=work)
    thread.start()
    capacity = CAPACITY
    while thread.is_alive() and capacity < 100_000:
        capacity += 500
        rows.grow(capacity)
    thread.join(30)
    assert rows.capacity == capacity > CAPACITY
    assert len(outputs) == 20
    for output in outputs:
        assert same_bits(output, alone.step(ALL, ALL, [x])[0][0])
