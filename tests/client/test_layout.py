"""What callers' arrays become, for all kinds of signatures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import series
from statestream.core import PartsTicket, StepTicket
from statestream.errors import BadTensor, Unsupported
from statestream.layout import Layout
from statestream.signature import Signature
from statestream.v1 import model_pb2
from statestream.views import read_model, require_kind


def layout(
    *inputs: tuple[str, str, list[int]], kind: model_pb2.ModelKind = model_pb2.ModelKind.MODEL_KIND_SESSION
) -> Layout:
    """A model whose inputs have batch and time axes before the given shape of a step."""
    signature = Signature(format=1)
    for name, dtype, shape in inputs:
        signature.inputs.add(name=name, dtype=dtype, shape=[-1, -1, *shape], batch_axis=0, time_axis=1)
    signature.outputs.add(name="y", dtype="float32", shape=[-1, -1, 1], batch_axis=0, time_axis=1)
    return Layout(read_model(model_pb2.Model(name="m", version=1, kind=kind, signature=signature)))


FLAT = layout(("x", "float32", [3]))
TOKENS = layout(("token", "int64", []))
TWO = layout(("audio", "float32", [4]), ("rate", "int64", []))
IMAGE = layout(("x", "float32", [2, -1]))


def chunk(of: Layout, x: Any, most: int = 256) -> StepTicket:
    ticket = of.chunk(0, x, most)
    assert isinstance(ticket, StepTicket)
    return ticket


def test_a_step_or_several_are_told_apart_by_rank() -> None:
    assert (chunk(FLAT, np.zeros(3)).steps, chunk(FLAT, np.zeros(3)).single) == (1, True)
    assert (chunk(FLAT, np.zeros((1, 3))).steps, chunk(FLAT, np.zeros((1, 3))).single) == (1, False)
    assert (chunk(TOKENS, 7).steps, chunk(TOKENS, 7).single) == (1, True)
    assert (chunk(TOKENS, [7, 8]).steps, chunk(TOKENS, [7, 8]).single) == (2, False)
    assert chunk(layout(("x", "float32", [1])), 0.5).single


def test_the_ticket_owns_its_data() -> None:
    x = np.zeros(3, np.float32)
    tickets = [chunk(FLAT, x), chunk(FLAT, x[np.newaxis])]
    x[:] = 9
    assert all(not any(ticket.inputs[0]) for ticket in tickets)


def test_the_ticket_of_a_pool_owns_its_data() -> None:
    x = np.zeros((2, 3), np.float32)
    ticket, _ = FLAT.pool(np.arange(2), x, None)
    x[:] = 9
    assert not any(ticket.inputs[0])


def test_memory_order_does_not_matter() -> None:
    x = np.arange(6, dtype=np.float64).reshape(3, 2).T
    assert np.frombuffer(chunk(FLAT, x).inputs[0], np.float32).tolist() == [0, 2, 4, 1, 3, 5]


def test_several_inputs_come_by_name_and_agree_in_steps() -> None:
    ticket = chunk(TWO, {"rate": [1, 2], "audio": np.zeros((2, 4))})
    assert (ticket.steps, ticket.lane.dtypes) == (2, ("float32", "int64"))
    assert [len(data) for data in ticket.inputs] == [2 * 4 * 4, 2 * 8]
    with pytest.raises(BadTensor, match="dict"):
        chunk(TWO, np.zeros(4))
    with pytest.raises(BadTensor, match="2 steps"):
        chunk(TWO, {"rate": [1, 2, 3], "audio": np.zeros((2, 4))})
    with pytest.raises(BadTensor, match="audio"):
        chunk(TWO, {"rate": 1})


def test_free_axes_take_any_size_and_make_lanes_of_their_own() -> None:
    small, large = chunk(IMAGE, np.zeros((2, 5))), chunk(IMAGE, np.zeros((1, 2, 6)))
    assert small.lane is not large.lane
    assert small.lane is chunk(IMAGE, np.ones((2, 5))).lane
    with pytest.raises(BadTensor, match=r"\[2, \?\]"):
        chunk(IMAGE, np.zeros((3, 5)))


@pytest.mark.parametrize(
    ("of", "x", "says"),
    [
        (TOKENS, 0.5, "float64"),
        (TOKENS, np.array(2**63, np.uint64), "outside"),
        (layout(("x", "int8", [])), 200, "outside"),
        (layout(("x", "bool", [])), 1, "int64"),
        (FLAT, np.zeros(3, np.complex64), "complex64"),
        (FLAT, None, "None"),
        (FLAT, np.zeros(4), "shape [4]"),
    ],
)
def test_what_would_lose_something_is_refused(of: Layout, x: Any, says: str) -> None:
    with pytest.raises(BadTensor) as caught:
        of.chunk(0, x, 256)
    assert says in caught.value.message
    assert caught.value.metadata["field"]


@given(steps=st.integers(1, 40), most=st.integers(1, 10))
def test_long_sequences_are_cut_without_loss(steps: int, most: int) -> None:
    x = np.arange(steps * 3, dtype=np.float32).reshape(steps, 3)
    ticket = FLAT.chunk(0, x, most)
    parts = ticket.parts if isinstance(ticket, PartsTicket) else [ticket]
    assert [part.steps for part in parts[:-1]] == [most] * (len(parts) - 1)
    assert b"".join(part.inputs[0] for part in parts) == x.tobytes()


def test_chunks_of_large_steps_stay_small_in_bytes() -> None:
    wide = layout(("x", "float32", [100_000]))
    ticket = wide.chunk(0, np.zeros((7, 100_000), np.float32), 256)
    assert isinstance(ticket, PartsTicket)
    assert [part.steps for part in ticket.parts] == [2, 2, 2, 1]


def test_pool_inputs_and_lengths_are_checked() -> None:
    handles = np.arange(4)
    ticket, single = FLAT.pool(handles, np.zeros((4, 3)), None)
    assert (ticket.steps, single) == (1, True)
    ticket, single = FLAT.pool(handles, np.zeros((4, 5, 3)), [0, 1, 5, 2])
    assert (ticket.steps, single) == (5, False)
    for x, lengths in (
        (np.zeros((3, 3)), None),
        (np.zeros((4, 0, 3)), None),
        (np.zeros((4, 2, 4)), None),
        (np.zeros((4, 2, 3)), [1, 1, 1]),
        (np.zeros((4, 2, 3)), [1, 1, 1, 3]),
    ):
        with pytest.raises(BadTensor):
            FLAT.pool(handles, x, lengths)


def test_history_has_four_faces() -> None:
    one = layout(("x", "float32", [1]))
    for x, steps, alone in (
        (np.zeros(5), [5], True),
        (np.zeros((5, 1)), [5], True),
        (np.zeros((2, 5, 1)), [5, 5], False),
        ([np.zeros(5), np.zeros((3, 1))], [5, 3], False),
    ):
        inputs, lengths, single = series.history(one, x)
        assert (inputs["x"].shape, lengths.tolist(), single) == ((sum(steps), 1), steps, alone)
    with pytest.raises(BadTensor):
        series.history(FLAT, np.zeros(5))
    with pytest.raises(BadTensor):
        series.history(FLAT, np.zeros((0, 3)))


def test_a_model_called_the_wrong_way_says_the_right_one() -> None:
    with pytest.raises(Unsupported, match=r"client\.session"):
        require_kind(FLAT.model, "predict")


@pytest.mark.parametrize(
    ("lengths", "came"),
    [
        ([1, 9], "9"),
        ([-1, 2], "-1"),
        ([1], r"dtype int64 and shape \[1\]"),
        ([1.5, 2], r"dtype float64 and shape \[2\]"),
        ([True, False], r"dtype bool and shape \[2\]"),
    ],
)
def test_lengths_that_do_not_fit_are_told(lengths: list[int], came: str) -> None:
    with pytest.raises(BadTensor, match=rf"lengths has {came}; expected \[2\] whole numbers from 0 to 3"):
        FLAT.pool(np.arange(2), np.zeros((2, 3, 3)), lengths)


def test_errors_tell_the_shape_that_came() -> None:
    """Not the one that it has become on the way."""
    with pytest.raises(BadTensor, match=r"x has shape \[5, 2\]"):
        FLAT.pool(np.arange(5), np.zeros((5, 2)), None)
    with pytest.raises(BadTensor, match=r"rate has shape \[5\]"):
        TWO.pool(np.arange(5), {"audio": np.zeros((5, 3, 4)), "rate": np.zeros(5, np.int64)}, None)
    with pytest.raises(BadTensor, match=r"x has shape \[6, 2\]"):
        series.history(FLAT, np.zeros((6, 2)))
    with pytest.raises(BadTensor, match=r"x has shape \[6\]"):
        series.history(FLAT, np.zeros(6))


def test_an_input_without_time_beside_one_that_has_it_may_come_once() -> None:
    """A static covariate: the shop whose sales a chunk has."""
    signature = Signature(format=1)
    signature.inputs.add(name="shop", dtype="int64", shape=[-1], batch_axis=0)
    signature.inputs.add(name="x", dtype="float32", shape=[-1, -1, 2], batch_axis=0, time_axis=1)
    signature.outputs.add(name="y", dtype="float32", shape=[-1, -1, 1], batch_axis=0, time_axis=1)
    kind = model_pb2.ModelKind.MODEL_KIND_SESSION
    of = Layout(read_model(model_pb2.Model(name="m", version=1, kind=kind, signature=signature)))
    x = np.arange(6).reshape(3, 2)
    wanted = chunk(of, {"x": x, "shop": [3, 3, 3]}).inputs
    for shop in (3, [3], np.int64(3)):
        ticket = chunk(of, {"x": x, "shop": shop})
        assert (ticket.inputs, ticket.steps, ticket.single) == (wanted, 3, False)
    for shop in (3, [3]):
        assert chunk(of, {"x": x[0], "shop": shop}).single
    with pytest.raises(BadTensor, match=r"shop has shape \[2\]; .* 3 steps, as x has"):
        chunk(of, {"x": x, "shop": [3, 3]})
    many, handles = np.stack([x, x]), np.arange(2)
    whole, single = of.pool(handles, {"x": many, "shop": [[3] * 3, [4] * 3]}, None)
    for shops in ([3, 4], [[3], [4]]):
        assert of.pool(handles, {"x": many, "shop": shops}, None)[0].inputs == whole.inputs
    assert not single
    with pytest.raises(BadTensor, match="3 steps a row, as x has"):
        of.pool(handles, {"x": many, "shop": [[3, 3], [4, 4]]}, None)
