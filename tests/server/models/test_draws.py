"""Values to try a model with stay in what its signature tells, and become safer where a graph refuses them."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from statestream import signature as signatures
from statestream.signature import Signature, SignatureError, StateSpec, TensorSpec, ValueRange
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.models.graphs.runtime import providers_for
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import draws, loading, making
from statestream_server.models.proof.draws import Draws, Kind
from tests.server.models.graphs import Builder


def with_ranges(dtype: str, *ranges: ValueRange, **more: int) -> Signature:
    columns = max(len(ranges), 1)
    return Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype=dtype, shape=[-1, columns], batch_axis=0, ranges=ranges)],
        outputs=[TensorSpec(name="y", dtype=dtype, shape=[-1], batch_axis=0)],
    )


LIMITS = {
    "float16": 65504.0, "float32": 3e38, "float64": 1e308, "int8": 127.0, "uint8": 255.0, "int64": 2.0**63,
    "uint64": 2.0**64, "bool": 1.0,
}  # fmt: skip


@st.composite
def known(draw: st.DrawFn, dtype: str) -> ValueRange:
    whole = dtype[0] != "f" or draw(st.booleans())
    least = 0.0 if dtype[0] in "ub" else -LIMITS[dtype]
    bounds = [draw(st.floats(least, LIMITS[dtype])) for _ in range(2)]
    if dtype[0] == "f":
        bounds = [float(np.dtype(dtype).type(bound)) for bound in bounds]
    low, high = sorted(math.floor(bound) if whole else bound for bound in bounds)
    if dtype == "int8":
        low = max(low, -128)
    return ValueRange(lowest=low, highest=high, whole=whole)


def test_a_range_at_the_end_of_an_integer_type_is_drawn_from() -> None:
    """The largest uint64 is no double; the next double is beyond all of them."""
    signature = with_ranges("uint64", ValueRange(lowest=2.0**64, highest=2.0**64, whole=True))
    for way in draws.ladder(signature):
        (drawn,) = way.inputs(5, 2, np.random.default_rng(0))
        assert (drawn == np.uint64(2**64 - 1)).all()


@given(st.data(), st.sampled_from(sorted(LIMITS)))
def test_draws_stay_in_their_ranges(data: st.DataObject, dtype: str) -> None:
    ranges = data.draw(st.lists(known(dtype), min_size=1, max_size=3))
    signature = with_ranges(dtype, *ranges)
    signatures.check(signature)
    for way in draws.ladder(signature):
        (drawn,) = way.inputs(5, 2, np.random.default_rng(0))
        assert drawn.dtype == np.dtype(dtype)
        assert drawn.shape == (5, 1, len(ranges))
        for place, each in enumerate(ranges):
            column = drawn[..., place].astype(object)
            highest = int(np.iinfo(dtype).max) if dtype in ("int64", "uint64") else each.lowest  # 2.0**64 is beyond it.
            assert (column >= np.dtype(dtype).type(min(each.lowest, highest))).all()
            assert (column <= each.highest).all()
            if each.whole:
                assert all(value == int(value) for value in column.ravel())


def test_infinite_bounds_are_drawn_beside_finite_values() -> None:
    """An action mask: 0 where an action is allowed, minus infinity where it is not."""
    signature = with_ranges("float32", ValueRange(lowest=-math.inf, highest=0, whole=True))
    (drawn,) = Draws(signature).inputs(50, 1, np.random.default_rng(0))
    assert np.isneginf(drawn).any()
    assert np.isfinite(drawn).any()
    assert drawn.max() <= 0


def test_what_counts_steps_is_cut_to_them() -> None:
    signature = Signature(
        format=1,
        inputs=[
            TensorSpec(name="tokens", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1),
            TensorSpec(
                name="lengths", dtype="int64", shape=[-1], batch_axis=0,
                ranges=[ValueRange(lowest=2, highest=40, whole=True, counts_steps=True)],
            ),
        ],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1], batch_axis=0)],
    )  # fmt: skip
    signatures.check(signature)
    _, lengths = Draws(signature).inputs(30, 7, np.random.default_rng(0))
    assert lengths.shape == (30, 1)
    assert lengths[0] == 7
    assert lengths.min() >= 2
    assert lengths.max() == 7


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([ValueRange(lowest=2, highest=1)], "from 2.0 to 1.0; expected lowest"),
        ([ValueRange(lowest=math.nan, highest=1)], "expected lowest"),
        ([ValueRange(lowest=0.5, highest=1, whole=True)], "expected whole numbers"),
        ([ValueRange()] * 2, "2 entries for a step of shape"),
        ([ValueRange(highest=1, whole=True, counts_steps=True)], "count steps"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges: list[ValueRange], message: str) -> None:
    signature = with_ranges("float32")
    signature.inputs[0].time_axis = 1
    signature.inputs[0].ranges.extend(ranges)
    with pytest.raises(SignatureError, match=message):
        signatures.check(signature)
    signature = with_ranges("int8", ValueRange(lowest=0, highest=300))
    with pytest.raises(SignatureError, match="int8 does not hold that"):
        signatures.check(signature)


def test_ranges_travel_as_json_and_tell_nothing_to_the_digest(tmp_path_factory: pytest.TempPathFactory) -> None:
    digests = set()
    for ranges in ([], [ValueRange(lowest=0, highest=1, whole=True)]):
        b = Builder()
        b.add("Identity", ["x"], ["y"])
        signature = with_ranges("float32", *ranges)
        signature.outputs[0].shape.append(1)
        assert signatures.loads(signatures.dumps(signature)) == signature
        folder = tmp_path_factory.mktemp("m")
        onnx.save_model(b.model(signature), folder / "model.onnx")
        digests.add(loading.load("m", 1, folder, device="cpu").digest)
    assert len(digests) == 1


def looked_up(offset: int = 0, *, described: bool = True) -> tuple[onnx.ModelProto, Signature]:
    """A running sum of value + table[code - offset], the code in a float column; the table has two rows."""
    b = Builder()
    value, code = b.add("Split", ["x"], 2, axis=1)
    index = b.add("Sub", [b.add("Cast", [code], to=TensorProto.INT64), b.constant(np.asarray(offset, np.int64))])
    found = b.add("Gather", [b.constant(np.asarray([0.5, 7.0], np.float32)), index])
    b.add("Add", [b.add("Add", [value, found]), "total"], ["y"])
    b.add("Identity", ["y"], ["total_out"])
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", dtype="float32", shape=[-1, 2], batch_axis=0)],
        outputs=[TensorSpec(name="y", dtype="float32", shape=[-1, 1], batch_axis=0)],
        states=[StateSpec(input="total", output="total_out", dtype="float32", shape=[-1, 1], batch_axis=0)],
    )
    return b.model(signature), signature


def test_a_table_of_two_rows_is_proved_without_ranges(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("m")
    onnx.save_model(looked_up()[0], folder / "model.onnx")
    model = loading.load("m", 1, folder, device="cpu")
    assert model.batch_invariance == BatchInvariance.BATCH_INVARIANCE_EXACT


def test_codes_that_start_elsewhere_need_their_range(tmp_path_factory: pytest.TempPathFactory) -> None:
    proto, signature = looked_up(10)
    folder = tmp_path_factory.mktemp("m")
    onnx.save_model(proto, folder / "model.onnx")
    with pytest.raises(ModelLoadError, match=r"no values were found that it takes: .*with zeros \(.*ranges="):
        loading.load("m", 1, folder, device="cpu")
    signature.inputs[0].ranges.extend(
        [ValueRange(lowest=-3.5, highest=3.5), ValueRange(lowest=10, highest=11, whole=True)]
    )
    onnx.helper.set_model_props(proto, {signatures.METADATA_KEY: signatures.dumps(signature)})
    onnx.save_model(proto, folder / "model.onnx")
    model = loading.load("m", 1, folder, device="cpu")
    assert model.batch_invariance == BatchInvariance.BATCH_INVARIANCE_EXACT


def test_values_that_give_no_numbers_are_passed_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A root: noise gives NaN, no state would be committed, and nothing would be proved."""
    b = Builder()
    b.add("Add", [b.add("Sqrt", ["x"]), "total"], ["y"])
    b.add("Identity", ["y"], ["total_out"])
    spec = {"dtype": "float32", "shape": [-1, 2], "batch_axis": 0}
    signature = Signature(
        format=1,
        inputs=[TensorSpec(name="x", **spec)],  # type: ignore[arg-type]
        outputs=[TensorSpec(name="y", **spec)],  # type: ignore[arg-type]
        states=[StateSpec(input="total", output="total_out", **spec)],  # type: ignore[arg-type]
    )
    folder = tmp_path_factory.mktemp("m")
    onnx.save_model(b.model(signature), folder / "model.onnx")
    verdict = making.prove(folder / "model.onnx", providers_for("cpu"))
    assert verdict.draws == Kind.UNIT
    assert verdict.batch_invariance == BatchInvariance.BATCH_INVARIANCE_EXACT
