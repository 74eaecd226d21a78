"""Rows on a device: the laws of the slab there, what travels, and what is done where commits are not in place.

The device is the CPU: the path is the same, only its name and its speed are another GPU's. test_cuda.py has the GPU's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream.signature import Signature, numpy_dtype, step_shape
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.graphs.runtime import Binding, Graph, Memory, providers_for
from statestream_server.models.memory.contexts import context_of
from statestream_server.models.memory.device_rows import DeviceRows
from statestream_server.models.memory.device_slab import DeviceSlab
from statestream_server.models.memory.fused_rows import FusedRows
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import BucketedRows, SerialisedRows
from statestream_server.models.proof import proof, warming
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import FIRST_ROW, SCRATCH_ROW, Rows, is_batched
from tests.server.models import graphs
from tests.server.models.test_rows import MODELS, same_bits, values

CPU = providers_for("cpu")
NAMES = ["LSTM-0-1", "LSTM-1-0", "GRU-2-1", "counter", "delay", "half nan", "double", "lonely", "context"]
"""One part a row and several, float and whole numbers, with and without feedback, with and without a batch axis."""


@functools.cache
def model_of(name: str) -> tuple[bytes, Signature]:
    model, signature = MODELS[name]()
    return model.SerializeToString(), signature


def made(name: str, kind: type[FusedRows] | type[DeviceRows], **options: Any) -> Rows:
    model, signature = MODELS[name]()
    rows: Rows = kind(model, signature, CPU, check_inputs=True, **options)
    return rows if is_batched(signature) else SerialisedRows(rows, single=False)


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "two memories"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_schedule_leaves_a_device_and_the_host_with_the_same_rows(
    name: str, in_place: bool, data: st.DataObject, seed: int
) -> None:
    host, device = made(name, FusedRows), made(name, DeviceRows, in_place=in_place)
    signature, rng = model_of(name)[1], np.random.default_rng(seed)
    both, capacity = (host, device), FIRST_ROW + 8
    for rows in both:
        rows.grow(capacity)
        rows.reset(np.arange(capacity))
    for action in data.draw(st.lists(st.sampled_from(["grow", "reset", "write", "copy", "step"]), max_size=10)):
        every = np.arange(FIRST_ROW, capacity)
        chosen = rng.permutation(every)
        n = int(rng.integers(1, 5))
        if action == "grow":
            new = np.arange(capacity, capacity + int(rng.integers(1, 9)))
            capacity += len(new)
            for rows in both:
                rows.grow(capacity)
                assert rows.capacity == capacity
                rows.reset(new)
        elif action == "reset":
            for rows in both:
                rows.reset(chosen[:n])
        elif action == "write":
            given_values = [values(rng, column.dtype, (n, *column.shape)) for column in host.columns]
            for rows in both:
                rows.write(chosen[:n], given_values)
        elif action == "copy":
            for rows in both:
                rows.copy(resized(chosen[n:], n), chosen[:n])
        else:
            source = np.where(rng.random(n) < 0.5, chosen[:n], rng.choice(chosen[n:], n))
            steps = min(int(rng.integers(1, 4)), host.max_slice)
            inputs = [values(rng, numpy_dtype(spec.dtype), (n, steps, *step_shape(spec))) for spec in signature.inputs]
            for value in inputs:
                value[rng.random(n) < 0.2] = np.nan
            (expected, bad), (found, also) = (rows.step(source, chosen[:n], inputs) for rows in both)
            assert bad.tolist() == also.tolist()
            assert all(map(same_bits, expected, found))
        every = np.arange(FIRST_ROW, capacity)
        assert all(map(same_bits, host.read(every), device.read(every)))


def resized(rows: Ints, n: int) -> Ints:
    """n of some rows, again from the first where there are fewer."""
    return np.resize(rows, n)


def test_rows_move_in_pieces_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statestream_server.models.memory.device_slab._CHUNK", 1000)
    rows = made("LSTM-0-1", DeviceRows)
    assert 20 < rows.row_nbytes < 500
    rows.grow(100)
    every, rng = np.arange(100), np.random.default_rng(0)
    given_values = [values(rng, column.dtype, (100, *column.shape)) for column in rows.columns]
    rows.write(every, given_values)
    rows.grow(1000)
    rows.copy(every, every + 500)
    for part in (every, every + 500):
        assert all(map(same_bits, rows.read(part), given_values))
    rows.reset(every)
    *states, fed = rows.read(every)
    assert np.isnan(fed).all()
    assert not any(value.any() for value in states)
    assert [len(value) for value in rows.read(every[:0])] == [0] * len(rows.columns)


@pytest.mark.parametrize("name", ["LSTM-1-0", "GRU-2-1"])
def test_a_step_moves_row_numbers_inputs_outputs_and_the_mask_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, signature = made(name, DeviceRows), model_of(name)[1]
    rows.grow(50_000)
    source = np.arange(1, 9)
    rows.reset(source)
    moved = list[Array]()
    for way in ("give", "take"):
        real = getattr(Binding, way)

        def noting(binding: Binding, name: str, array: Array, real: object = real) -> None:
            moved.append(array)
            real(binding, name, array)  # type: ignore[operator]

        monkeypatch.setattr(Binding, way, noting)
    inputs = [np.ones((8, 2, *step_shape(spec)), numpy_dtype(spec.dtype)) for spec in signature.inputs]
    outputs, bad = rows.step(source, source, inputs)
    expected = [source, source, *inputs, *outputs, bad]
    assert sorted(value.nbytes for value in moved) == sorted(value.nbytes for value in expected)
    moved.clear()
    rows.read(source[:3])
    assert sum(value.nbytes for value in moved) < 4 * rows.row_nbytes


def test_growing_lets_go_of_what_it_grew_out_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's memory is scarce: after `grow` there is one slab."""
    alive = list[object]()
    real = Memory.__init__

    def noting(memory: Memory, *arguments: object) -> None:
        real(memory, *arguments)  # type: ignore[arg-type]
        alive.append(memory.value)

    monkeypatch.setattr(Memory, "__init__", noting)
    rows = made("LSTM-1-0", DeviceRows)
    for capacity in (10, 20, 40):
        rows.grow(capacity)
        row = np.asarray([1])
        rows.reset(row)
        rows.step(row, row, [np.ones((1, 1, 3), np.float32)])
    assert isinstance(rows, DeviceRows)
    held = {id(memory.value) for memory in (*rows._slab._now, *rows._slab._next, *rows._slab._start)}
    assert len(held) == 2 * len(rows.columns)


def test_a_device_without_room_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made("LSTM-1-0", DeviceRows)
    rows.grow(10)
    every = np.arange(10)
    rows.reset(every)
    before = rows.read(every)
    with pytest.raises(MemoryError, match="1099511627776 rows of '[hc]' would be more than the 2147483647 numbers"):
        rows.grow(1 << 40)
    monkeypatch.setattr("statestream_server.models.memory.device_slab._MOST_NUMBERS", 1 << 62)
    with pytest.raises(MemoryError, match="cpu does not give [0-9]+ bytes for rows"):
        rows.grow(1 << 48)
    assert rows.capacity == 10
    assert all(map(same_bits, before, rows.read(every)))
    rows.step(every[1:], every[1:], [np.ones((9, 1, 3), np.float32)])


def test_rows_that_no_step_touches_may_be_read_while_one_runs() -> None:
    rows = made("LSTM-1-0", DeviceRows)
    rows.grow(200)
    rows.reset(np.arange(200))
    stepped, still = np.arange(1, 100), np.arange(100, 200)
    before = rows.read(still)
    x = np.ones((99, 64, 3), np.float32)
    thread = threading.Thread(target=lambda: [rows.step(stepped, stepped, [x]) for _ in range(20)])
    thread.start()
    while thread.is_alive():
        assert all(map(same_bits, before, rows.read(still)))
        rows.copy(still[:50], still[50:])
    thread.join(30)


def test_nodes_that_the_device_leaves_to_the_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, signature = MODELS["LSTM-1-0"]()
    asked = list[set[str]]()

    def elsewhere(graph: Graph, nodes: set[str]) -> list[str]:
        asked.append(nodes)
        return sorted(nodes)

    monkeypatch.setattr(Graph, "elsewhere", elsewhere)
    with pytest.raises(FusionError, match="cpu leaves 5 of the nodes that touch rows to the CPU"):
        DeviceRows(model, signature, CPU, check_inputs=True)
    (names,) = asked
    assert all(names)


def test_a_graph_knows_which_nodes_run_where() -> None:
    model, _ = MODELS["counter"]()
    for i, node in enumerate(model.graph.node):
        node.name = f"node {i}"
    graph = Graph(model.SerializeToString(), CPU)
    names = {node.name for node in model.graph.node}
    assert graph.elsewhere(names) == []
    graph.providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert graph.elsewhere(names)
    assert set(graph.elsewhere(names)) <= names
    assert graph.elsewhere({"another"}) == []


class Spilling(DeviceRows):
    """Rows whose steps also change a row that is none of theirs."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        results = super().step(source, target, inputs)
        other = np.asarray([self.capacity - 1])
        super().write(other, [np.zeros_like(value) for value in self.read(other)])
        return results


class Forgetting(DeviceRows):
    """Rows whose steps also change the rows that they start from."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        results = super().step(source, target, inputs)
        super().copy(target, source) if not np.intersect1d(source, target).size else None
        return results


@pytest.mark.parametrize("name", NAMES)
def test_the_proof_of_commits_in_place(name: str) -> None:
    signature = model_of(name)[1]
    for in_place in (True, False):
        assert proof.keeps_others(made(name, DeviceRows, in_place=in_place), Draws(signature))
    assert proof.keeps_others(made(name, FusedRows), Draws(signature))
    if is_batched(signature):
        model = MODELS[name]()[0]
        assert not proof.keeps_others(Spilling(model, signature, CPU, check_inputs=True), Draws(signature))
        assert not proof.keeps_others(Forgetting(model, signature, CPU, check_inputs=True), Draws(signature))


class Careless(DeviceRows):
    """Rows that commit whatever comes."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        outputs, bad = super().step(source, target, inputs)
        return outputs, np.zeros_like(bad)


@pytest.mark.parametrize("name", MODELS)
def test_the_proof_of_the_check(name: str) -> None:
    model, signature = MODELS[name]()
    plain: Rows = NumpyRows(
        Graph(model.SerializeToString(), CPU), signature, check_inputs=True, context=context_of(model, signature)
    )
    if not is_batched(signature):
        plain = SerialisedRows(plain, single=False)
    for kind in (DeviceRows, FusedRows):
        assert proof.refuses_the_same(made(name, kind), plain, Draws(signature))


@pytest.mark.parametrize("name", ["LSTM-1-0", "half", "half nan", "double"])
def test_rows_that_commit_whatever_comes_fail_the_proof(name: str) -> None:
    model, signature = MODELS[name]()
    plain = NumpyRows(Graph(model.SerializeToString(), CPU), signature, check_inputs=True)
    careless = Careless(model, signature, CPU, check_inputs=True)
    assert not proof.refuses_the_same(careless, plain, Draws(signature))


def test_every_batch_runs_with_a_power_of_two_of_rows() -> None:
    rows, plain = made("LSTM-1-0", DeviceRows), made("LSTM-1-0", FusedRows)
    padded = BucketedRows(rows)
    every, runs = np.arange(1, 40), list[int]()
    real = rows.step

    def noting(source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        runs.append(len(source))
        assert (target[-1] == SCRATCH_ROW) == (len(source) > chosen)
        return real(source, target, inputs)

    rows.step = noting  # type: ignore[method-assign]
    for memory in (padded, plain):
        memory.grow(40)
        memory.reset(every)
    rng = np.random.default_rng(0)
    for chosen in (1, 2, 3, 5, 8, 33):
        x = rng.standard_normal((chosen, 2, 3)).astype(np.float32)
        x[rng.random(chosen) < 0.2] = np.nan
        row = rng.permutation(every)[:chosen]
        (found,), bad = padded.step(row, row, [x])
        (expected,), also = plain.step(row, row, [x])
        assert same_bits(found, expected)
        assert found.flags.c_contiguous
        assert bad.tolist() == also.tolist()
        assert all(map(same_bits, padded.read(every), plain.read(every)))
    assert runs == [1, 2, 4, 8, 8, 64]


def test_warming_runs_every_size_up_to_what_the_engine_would_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows, signature = made("LSTM-1-0", DeviceRows), model_of("LSTM-1-0")[1]
    rows.grow(3)
    kept = np.asarray([2])
    rows.reset(kept)
    before, met, now = rows.read(kept), set[tuple[int, int]](), [0.0]
    real = rows.step

    def noting(source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        met.add((len(source), inputs[0].shape[1]))
        now[0] += 1e-5 * inputs[0].shape[0] * inputs[0].shape[1]
        return real(source, target, inputs)

    rows.step = noting  # type: ignore[method-assign]
    shapes = warming.warm(rows, Draws(signature), "model.onnx", lambda: now[0])
    assert met == {(n, t) for n in (1 << i for i in range(11)) for t in (1 << i for i in range(9)) if n * t <= 1024}
    assert shapes == len(met)
    assert all(map(same_bits, before, rows.read(kept)))
    assert "model.onnx: warmed up to 1024 rows of 1 steps" in caplog.messages
    assert f"model.onnx: {shapes} sizes of batches are warm" in caplog.messages[-1]


def test_warming_ends_with_its_time() -> None:
    rows, signature = made("counter", DeviceRows), graphs.counter()[1]
    rows.grow(2)
    now = iter(np.arange(0, 10_000, 10.0).tolist())
    assert warming.warm(rows, Draws(signature), "model.onnx", lambda: next(now)) == 1


def test_a_slab_needs_no_more_than_its_columns_say() -> None:
    rows = made("LSTM-0-1", DeviceRows)
    assert isinstance(rows, DeviceRows)
    assert isinstance(rows._slab, DeviceSlab)
    rows.grow(7)
    sizes = [int(np.prod(memory.value.shape())) * column.dtype.itemsize // 7 for memory, column in
             zip(rows._slab._now, rows.columns, strict=True)]  # fmt: skip
    assert sizes == [column.nbytes for column in rows.columns]
