"""What is proved before a model serves: wiring, and that answers do not depend on the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from statestream.signature import Signature, StateSpec, TensorSpec
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.models.graphs.runtime import Graph, providers_for
from statestream_server.models.memory.numpy_rows import NumpyRows
from statestream_server.models.memory.policies import PaddedRows, SerialisedRows
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import proof
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.wiring import proved
from statestream_server.models.rows import Rows, is_batched
from tests.server.models import graphs

CPU = providers_for("cpu")
Made = tuple[onnx.ModelProto, Signature]


def rows_of(made: Made) -> Rows:
    rows: Rows = NumpyRows(Graph(made[0].SerializeToString(), CPU), made[1], check_inputs=True)
    return rows if is_batched(made[1]) else SerialisedRows(rows, single=False)


def invariance(made: Made, clock: Callable[[], float] | None = None) -> proof.Invariance:
    rows = rows_of(made)
    return proof.invariance(rows, PaddedRows(rows), Draws(made[1]), "m.onnx", clock or time.perf_counter)


def wiring(made: Made, signature: Signature | None = None) -> Draws:
    return proved(Graph(made[0].SerializeToString(), CPU), signature or made[1], "m.onnx", lambda way: way)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_gated_cells_are_exact(op: str) -> None:
    found = invariance(graphs.recurrent(op, features=8, hidden=64, layers=2), lambda: 0.0)
    assert found.finding == BatchInvariance.BATCH_INVARIANCE_EXACT
    assert found.difference == 0
    assert "batches up to 64, step by step" in found.note


def test_a_wide_plain_cell_is_exact_once_padded() -> None:
    found = invariance(graphs.recurrent("RNN", hidden=64))
    assert found.finding == BatchInvariance.BATCH_INVARIANCE_PADDED
    assert 0 < found.difference < 1e-4


def test_rounding_that_padding_does_not_mend_is_approximate() -> None:
    """Every answer depends on the number of rows by a millionth: other bits for every batch, but no other result."""
    model, signature = graphs.average("float32")
    rows = NumpyRows(Graph(model.SerializeToString(), CPU), signature, check_inputs=False)

    class Rounding(NumpyRows):
        def step(self, source, target, inputs):  # type: ignore[no-untyped-def]
            outputs, bad = super().step(source, target, inputs)
            return [value + np.float32(1e-6) * len(source) for value in outputs], bad

    rows.__class__ = Rounding
    found = proof.invariance(rows, PaddedRows(rows), Draws(signature), "m.onnx")
    assert found.finding == BatchInvariance.BATCH_INVARIANCE_APPROXIMATE
    assert 1e-6 < found.difference < 1e-3


def test_a_model_without_batch_axis_is_not_tried_in_batches() -> None:
    found = invariance(graphs.lonely())
    assert found.finding == BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
    assert "one by one" in found.note


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"m\.onnx: the same steps .* bidirectional"):
        invariance(graphs.recurrent("LSTM", direction="bidirectional", opset=17))


def test_rows_that_influence_each_other_are_refused() -> None:
    model, signature = graphs.average("float32")
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    mean = helper.make_node("ReduceMean", ["x"], ["mixed"], axes=[0], keepdims=1)
    added = helper.make_node("Add", ["x", "mixed"], ["together"])
    for node in mixed.graph.node:
        for place, name in enumerate(node.input):
            if name == "x":
                node.input[place] = "together"
    nodes = [mean, added, *mixed.graph.node]
    mixed.graph.ClearField("node")
    mixed.graph.node.extend(nodes)
    with pytest.raises(ModelLoadError, match="rows influence each other"):
        invariance((mixed, signature))


def test_slow_models_are_tried_in_smaller_batches() -> None:
    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 0.06

    ticks = clock()
    found = invariance(graphs.recurrent("LSTM"), lambda: next(ticks))
    assert "batches up to 2," in found.note


def test_wiring_accepts_what_is_right() -> None:
    for made in (graphs.recurrent("GRU", layers=2, state_axis=2), graphs.counter(), graphs.delay(), graphs.lonely()):
        wiring(made)


def changed(signature: Signature, change: Callable[[Signature], object]) -> Signature:
    copy = Signature()
    copy.CopyFrom(signature)
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.inputs[0].MergeFrom(TensorSpec(name="z")), "signature names input 'z', the graph has"),
        (lambda s: s.outputs[0].MergeFrom(TensorSpec(name="z")), "signature names output 'z'"),
        (
            lambda s: s.states[0].MergeFrom(StateSpec(dtype="float64")),
            "'h' is float32, its signature says float64",
        ),
        (lambda s: s.states.pop(), r"inputs \['c'\] are not in its signature"),
        (lambda s: s.outputs[0].shape.__setitem__(2, 9), r"output 'y' of 2 rows and 3 steps has shape \[2, 3, 2\]"),
        (lambda s: s.states[0].shape.__setitem__(2, 4), "a run of 2 rows and 3 steps failed"),
        (lambda s: s.inputs[0].shape.__setitem__(1, 16), "time axis of fixed length 16"),
        (
            lambda s: s.outputs[0].MergeFrom(TensorSpec(batch_axis=1, time_axis=0)),
            "right batch and time",
        ),
    ],
)
def test_wiring_refuses_what_is_wrong(change: Callable[[Signature], object], message: str) -> None:
    made = graphs.recurrent("LSTM")
    with pytest.raises(ModelLoadError, match=r"^m\.onnx: .*" + message):
        wiring(made, changed(made[1], change))


def test_random_inputs_stay_in_their_vocabulary() -> None:
    """Tokens that are looked up in a table must be in it."""
    signature = graphs.recurrent("GRU")[1]
    signature.inputs[0].dtype = "int64"
    signature.inputs[0].text.vocabulary.extend("abcde")
    (tokens,) = Draws(signature).inputs(50, 4, np.random.default_rng(0))
    assert tokens.shape == (50, 4, 3)
    assert set(np.unique(tokens)) == {0, 1, 2, 3, 4}


def test_implementations_that_differ_do_not_agree() -> None:
    made = graphs.recurrent("LSTM")
    assert proof.agree(rows_of(made), rows_of(made), Draws(made[1]))
    other = onnx.ModelProto()
    other.CopyFrom(made[0])
    weight = next(tensor for tensor in other.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    assert not proof.agree(rows_of((other, made[1])), rows_of(made), Draws(made[1]))


def test_a_weak_look_ahead_is_no_rounding() -> None:
    """A thousandth of the next step's input in each answer, less than what rounding may grow to."""
    model, signature = graphs.recurrent("GRU", features=2, outputs=2)
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    for node in mixed.graph.node:
        node.output[:] = ["y_alone" if name == "y" else name for name in node.output]
    ints = {name: numpy_helper.from_array(np.asarray([value], np.int64), name)
            for name, value in (("one", 1), ("last", 1 << 62), ("none", 0))}  # fmt: skip
    mixed.graph.initializer.extend([*ints.values(), numpy_helper.from_array(np.asarray(1e-4, np.float32), "little")])
    pads = numpy_helper.from_array(np.asarray([0, 0, 0, 0, 1, 0], np.int64), "pads")
    mixed.graph.initializer.append(pads)
    mixed.graph.node.extend(
        [
            helper.make_node("Slice", ["x", "one", "last", "one"], ["rest"]),
            helper.make_node("Pad", ["rest", "pads"], ["next"]),
            helper.make_node("Mul", ["next", "little"], ["hint"]),
            helper.make_node("Add", ["y_alone", "hint"], ["y"]),
        ]
    )
    with pytest.raises(ModelLoadError, match="another last step changes answers to steps before it by up to .*looks"):
        invariance((mixed, signature))
