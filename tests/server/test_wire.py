"""Whatever a caller sends becomes a value or a reason: nothing in the decoders raises anything else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from statestream import errors
from statestream.signature import DTYPES, TensorSpec
from statestream.v1.tensor_pb2 import Tensor
from statestream_server.edges.grpc import singles, wire
from statestream_server.edges.grpc.handles import read_handles
from statestream_server.shapes import check_graph

_SIZES = st.one_of(
    st.integers(-1, 4), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]), st.integers(-(2**63), 2**63 - 1)
)
_NAMES = st.one_of(st.sampled_from(["x", "y", "state", ""]), st.text(max_size=20), st.just("n" * 5000))
_DTYPES = st.one_of(
    st.sampled_from(sorted(DTYPES)), st.sampled_from(["", "object", "<f4", "U9", "complex64"]), st.text()
)
_SPECS = [
    TensorSpec(name="x", dtype="float32", shape=[-1, -1, 2], batch_axis=0, time_axis=1),
    TensorSpec(name="y", dtype="int64", shape=[-1, -1], batch_axis=0, time_axis=1),
]


@st.composite
def any_tensors(draw: Any) -> Tensor:
    """Tensors of which some are almost right and some are anything."""
    shape = draw(st.lists(_SIZES, max_size=70))
    tensor = Tensor(name=draw(_NAMES), dtype=draw(_DTYPES), shape=shape)
    width = np.dtype(tensor.dtype).itemsize if tensor.dtype in DTYPES else 1
    count = math.prod(shape) * width if min(shape, default=0) >= 0 else 0
    fits = count <= 4096 and draw(st.booleans())
    tensor.data = bytes(count) if fits else draw(st.binary(max_size=64))
    return tensor


def error_of(call: Any, *args: Any) -> errors.StatestreamError | None:
    """What a call raised; None where it gave a value."""
    try:
        call(*args)
    except errors.StatestreamError as error:
        return error
    return None


def reason_of(call: Any, *args: Any) -> str | None:
    """The reason that a call raised, which has to fit into a status; None where it gave a value."""
    error = error_of(call, *args)
    assert error is None or errors.to_status(error).ByteSize() < 4096
    return None if error is None else error.reason


@given(any_tensors())
def test_a_tensor_is_an_array_or_a_reason(tensor: Tensor) -> None:
    reason = reason_of(wire.array_of, tensor)
    assert reason in (None, "BAD_TENSOR")
    if reason is None:
        array = wire.array_of(tensor)
        assert list(array.shape) == list(tensor.shape)
        assert array.nbytes == len(tensor.data)


def test_the_shapes_that_numpy_cannot_count() -> None:
    for shape in ([1] * 65, [0, 2**62, 2**62], [2**62, 0, 4], [2**63 - 1]):
        tensor = Tensor(name="x", dtype="float32", shape=shape, data=b"")
        assert reason_of(wire.array_of, tensor) == "BAD_TENSOR"
    assert wire.array_of(Tensor(name="x", dtype="float32", shape=[0, 3])).shape == (0, 3)


def graph_inputs(tensors: list[Tensor]) -> None:
    check_graph(_SPECS, wire.named(tensors, ["x", "y"], "inputs"))


@given(st.lists(any_tensors(), max_size=4), st.integers(0, 5))
def test_inputs_are_arrays_or_a_reason(tensors: list[Tensor], steps: int) -> None:
    assert reason_of(wire.packed_inputs, _SPECS, tensors, steps) in (None, "BAD_TENSOR")
    assert reason_of(wire.inputs_with_axes, _SPECS, tensors, (-1, -1), "series") in (None, "BAD_TENSOR")
    assert reason_of(graph_inputs, tensors) in (None, "BAD_TENSOR")
    found = singles.packed_bytes(singles.ports(_SPECS), tensors, steps)
    if found is not None and steps:
        arrays = wire.packed_inputs(_SPECS, tensors, steps)
        assert [array.tobytes() for array in arrays] == found


@given(st.binary(max_size=100), st.sampled_from(["<u4", "<u8"]), st.integers(0, 20))
def test_a_column_is_an_array_or_a_reason(data: bytes, dtype: str, count: int) -> None:
    for call in (wire.column, wire.optional_column):
        assert reason_of(call, data, dtype, count, "positions") in (None, "BAD_FRAME")
    assert reason_of(read_handles, data) in (None, "BAD_FRAME")


@given(st.integers(-(2**31), 2**31 - 1))
def test_a_mode_is_a_mode_or_a_reason(number: int) -> None:
    assert reason_of(wire.open_mode, number) in (None, "BAD_FRAME")


def test_very_many_tensors_are_counted_not_looked_at() -> None:
    tensors = [Tensor(name=str(number)) for number in range(50_000)]
    error = error_of(wire.named, tensors, ["x"], "inputs")
    assert isinstance(error, errors.BadTensor)
    assert len(error.message) < 200
    assert "49998 more" in error.message
