"""What calls of Predict may share is proved: a row has the same bits alone and among others, or calls run alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from statestream.signature import Signature, TensorSpec, ValueRange
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array
from statestream_server.models.graphs.runtime import Graph, GraphError, providers_for
from statestream_server.models.model import BatchPolicy
from statestream_server.models.proof import sharing
from statestream_server.models.proof.draws import Draws
from statestream_server.models.proof.sharing import SharedGraph, Sharing
from tests.server.models.graphs import Builder

EXACT = BatchInvariance.BATCH_INVARIANCE_EXACT
PADDED = BatchInvariance.BATCH_INVARIANCE_PADDED
APPROXIMATE = BatchInvariance.BATCH_INVARIANCE_APPROXIMATE
UNKNOWN = BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
Made = tuple[onnx.ModelProto, Signature]


def spec(name: str, *shape: int, dtype: str = "float32", batch: int | None = 0) -> TensorSpec:
    made = TensorSpec(name=name, dtype=dtype, shape=shape)
    if batch is not None:
        made.batch_axis = batch
    return made


def signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    return Signature(format=1, inputs=inputs, outputs=outputs)


def scaled() -> Made:
    """Activations in 8 bits, their scale measured over the run: ONNX Runtime's dynamic quantisation."""
    b = Builder(1)
    small, scale, zero = b.add("DynamicQuantizeLinear", ["x"], 3)
    # 7 bits: with 8, processors without VNNI add two products in 16 bits that do not hold them.
    weights = b.constant(np.random.default_rng(0).integers(-64, 64, (16, 4)).astype(np.int8))
    total = b.add("Cast", [b.add("MatMulInteger", [small, weights, zero])], to=TensorProto.FLOAT)
    b.add("Mul", [total, scale], ["y"])
    made = signature([spec("x", -1, 16)], [spec("y", -1, 4)])
    return b.model(made), made


def linear() -> Made:
    b = Builder(1)
    b.add("Tanh", [b.add("Gemm", ["x", b.weight(64, 8), b.weight(8)])], ["y"])
    made = signature([spec("x", -1, 64)], [spec("y", -1, 8)])
    return b.model(made), made


def centred() -> Made:
    """Every row less the mean of all rows of the run."""
    b = Builder()
    b.add("Sub", ["x", b.add("ReduceMean", ["x"], axes=[0])], ["y"])
    made = signature([spec("x", -1, 3)], [spec("y", -1, 3)])
    return b.model(made), made


def sliding() -> Made:
    """Sums of 32 neighbours along an axis of any length: shorter runs are refused."""
    b = Builder()
    b.add("Conv", ["x", b.weight(1, 1, 32)], ["y"])
    made = signature([spec("x", -1, 1, -1)], [spec("y", -1, 1, -1)])
    return b.model(made), made


def loaded(made: Made) -> Graph:
    return Graph(made[0].SerializeToString(), providers_for("cpu"))


def prove(made: Made) -> Sharing:
    return sharing.prove(loaded(made), Draws(made[1]), "m.onnx")


def test_rows_that_mind_nobody_are_exact() -> None:
    found = prove(linear())
    assert found.finding in (EXACT, PADDED)
    assert found.rows > 2
    assert not found.wrong


@pytest.mark.parametrize("made", [scaled, centred])
@pytest.mark.parametrize("policy", BatchPolicy)
def test_rows_that_mind_their_neighbours_share_with_nobody(made: object, policy: BatchPolicy) -> None:
    model = made()  # type: ignore[operator]
    shared, found = sharing.shared(loaded(model), Draws(model[1]), policy, "m.onnx")
    assert found.finding == APPROXIMATE
    assert found.difference > 0
    assert "by up to" in found.note
    assert found.wrong == (made is centred)
    # Rounding is shared where the operator chose to be told only; what is no rounding never is.
    assert (shared.together > 1) == (policy == BatchPolicy.WARN and not found.wrong)


def test_a_length_that_is_refused_is_not_tried() -> None:
    found = prove(sliding())
    assert found.finding in (EXACT, PADDED)
    assert found.rows > 1


def test_what_takes_no_values_that_were_found_shares_with_nobody() -> None:
    class Picky:
        def predict(self, inputs: Sequence[Array]) -> list[Array]:
            raise GraphError("not these")

    way = Draws(linear()[1])
    shared, found = sharing.shared(Picky(), way, BatchPolicy.PAD, "m.onnx")
    assert (found.finding, shared.together) == (UNKNOWN, 1)
    assert "not these" in found.note


def test_without_a_batch_axis_calls_run_one_by_one() -> None:
    made = signature([spec("x", 3, batch=None)], [spec("y", 3, batch=None)])
    found = sharing.prove(loaded(linear()), Draws(made), "m.onnx")
    assert (found.finding, found.rows) == (UNKNOWN, 1)


class Lone:
    """Answers one row in other bits than many, and counts rows of its runs."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def predict(self, inputs: Sequence[Array]) -> list[Array]:
        (x,) = inputs
        self.runs.append(x.shape[1])
        return [x.T + np.float32(1e-6 if x.shape[1] == 1 else 0)]


LONE = signature([spec("x", 2, -1, batch=1)], [spec("y", -1, 2)])


def test_a_call_of_one_row_runs_as_two_where_that_mends_it() -> None:
    graph = Lone()
    shared, found = sharing.shared(graph, Draws(LONE), BatchPolicy.PAD, "m.onnx")
    assert (found.finding, shared.together) == (PADDED, found.rows)
    graph.runs.clear()
    x = np.asarray([[1.0], [2.0]], np.float32)
    (y,) = shared.predict([x])
    assert y.tolist() == [[1, 2]]
    (both,) = shared.predict([np.repeat(x, 3, axis=1)])
    assert both.tolist() == [[1, 2]] * 3
    assert graph.runs == [2, 3]


def test_the_policy_that_serialises_runs_row_by_row() -> None:
    graph = Lone()
    shared, _ = sharing.shared(graph, Draws(LONE), BatchPolicy.SERIALISE, "m.onnx")
    assert shared.together == 1
    graph.runs.clear()
    (y,) = shared.predict([np.asarray([[1.0, 3.0], [2.0, 4.0]], np.float32)])
    np.testing.assert_allclose(y, [[1, 2], [3, 4]], atol=1e-5)
    assert graph.runs == [1, 1]


def test_wider_runs_are_left_out_once_they_take_too_long() -> None:
    made, ticks = linear(), iter(range(1000))
    found = sharing.prove(loaded(made), Draws(made[1]), "m.onnx", clock=lambda: float(next(ticks)))
    assert found.rows == 3
    assert SharedGraph(loaded(made), made[1], found, BatchPolicy.WARN).together == 3


def test_draws_are_of_the_ranges_that_a_signature_tells() -> None:
    """A table of two rows: with values beyond 0 and 1 nothing would run."""
    b = Builder()
    b.add("Gather", [b.weight(2, 3), b.add("Cast", ["flag"], to=TensorProto.INT64)], ["y"])
    made = signature([spec("flag", -1)], [spec("y", -1, 3)])
    made.inputs[0].ranges.append(ValueRange(lowest=0, highest=1, whole=True))
    found = prove((b.model(made), made))
    assert found.finding == EXACT
    assert "values of its ranges" in found.note
