"""What waits becomes frames, and what comes becomes answers: few frames, the callers' order, pieces put together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream.core import Group, Lane, StepTicket, Table
from statestream.core.blocks import Block, Draft, Single
from statestream.core.sinks import DISCARD
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire
from tests.client.world import FEATURES, split


def test_single_steps_that_wait_share_one_frame(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(100)])
    wire.world.frames.clear()
    tickets = [wire.step(handle, np.full((1, FEATURES), n)) for n, handle in enumerate(handles)]
    wire.run()
    assert wire.world.frames == ["chunk"]
    assert [float(ticket.value[0, 0]) for ticket in tickets] == list(range(100))


def test_a_crowd_on_an_idle_stream_leaves_in_two_halves_and_then_as_it_is_answered(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(256)])
    wire.world.frames.clear()
    for handle in handles:
        wire.step(handle, np.ones((1, FEATURES)))
    assert [wire.send(), wire.send(), wire.send()] == [True, True, False]
    wire.serve()
    wire.deliver()
    for handle in handles[:128]:
        wire.step(handle, np.ones((1, FEATURES)))
    assert [wire.send(), wire.send()] == [True, False]
    wire.run()
    assert wire.core.table.answered[handles].tolist() == [2] * 128 + [1] * 128


def test_frames_of_a_crowd_are_as_few_after_many_reconnects_as_before(wire: Wire) -> None:
    handles = wire.open(*[str(n) for n in range(64)])
    for _ in range(20):
        for handle in handles:
            wire.step(handle, np.ones((1, FEATURES)))
        wire.send()
        wire.cut()
        wire.connect()
        wire.run()
    assert wire.core.log.sessions_in_flight == 0
    first = [wire.step(handle, np.ones((1, FEATURES))) for handle in handles[:48]]
    assert wire.send()
    wire.step(handles[48], np.ones((1, FEATURES)))
    assert wire.send()  # The second frame leaves at once, however small it is.
    wire.step(handles[49], np.ones((1, FEATURES)))
    assert not wire.send()  # A third one waits: 48 answers are coming.
    wire.run()
    assert all(ticket.done for ticket in first)


def test_steps_of_one_session_keep_their_order_and_take_a_frame_each(wire: Wire) -> None:
    (handle,) = wire.open("a")
    tickets = [wire.step(handle, np.ones((n % 3 + 1, FEATURES))) for n in range(20)]
    wire.run()
    ends = np.cumsum([n % 3 + 1 for n in range(20)])
    assert [float(ticket.value[-1, 0]) for ticket in tickets] == ends.tolist()
    assert wire.world.frames.count("chunk") == 20


def test_of_steps_that_wait_only_the_last_is_dropped_when_cancelled(wire: Wire) -> None:
    (handle,) = wire.open("a")
    tickets = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(4)]
    wire.core.cancel(tickets[3])
    wire.core.cancel(tickets[1])  # One is behind it: it runs, and nobody hears.
    late = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert late.value[0, 0] == wire.world.rows["a"].position == 4
    assert not wire.core.busy
    alone = wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(alone)
    assert not wire.core.busy
    assert wire.core.table.next[handle] == 4


def test_cancelling_drops_only_a_chunk_with_nothing_behind_it(wire: Wire) -> None:
    (handle,) = wire.open("a")
    kept, dropped = wire.step(handle, np.ones((1, FEATURES))), wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(dropped)
    wire.core.cancel(kept)
    behind = wire.step(handle, np.full((1, FEATURES), 10))
    wire.run()
    assert behind.value[0, 0] == 10
    first, second = wire.step(handle, np.ones((1, FEATURES))), wire.step(handle, np.ones((1, FEATURES)))
    wire.core.cancel(first)
    wire.run()
    assert second.value[0, 0] == 12


def test_single_steps_behind_a_pool_and_a_pool_behind_them_keep_their_order(wire: Wire) -> None:
    handles = wire.open("a", "b")
    first = wire.pool(handles, np.ones((2, 9, FEATURES)), 9)
    singles = [wire.step(handles[0], np.ones((1, FEATURES))) for _ in range(3)]
    last = wire.pool(handles, np.ones((2, 1, FEATURES)), 1)
    wire.run()
    assert first.value["y"][:, -1, 0].tolist() == [9, 9]
    assert [float(ticket.value[0, 0]) for ticket in singles] == [10, 11, 12]
    assert last.value["y"][:, 0, 0].tolist() == [13, 10]


def test_a_pool_step_is_one_frame_and_ragged_rows_keep_zeros_past_their_end(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    wire.world.frames.clear()
    x = np.ones((3, 3, FEATURES))
    ticket = wire.pool(handles, x, np.array([3, 1, 0]))
    wire.run()
    assert ticket.done
    assert not ticket.errors
    assert ticket.value["y"][:, :, 0].tolist() == [[1, 2, 3], [1, 0, 0], [0, 0, 0]]
    assert wire.world.frames == ["chunk"]


def test_an_answer_in_pieces_is_put_together_in_any_order(wire: Wire) -> None:
    handles = wire.open(*"abcdef")
    x = np.arange(6 * 2 * FEATURES).reshape(6, 2, FEATURES)
    ticket = wire.pool(handles, x, 2)
    wire.send()
    wire.serve()
    (whole,) = wire.responses
    wire.responses = split(whole, 2)
    for part in wire.responses:
        part.frame = whole.frame
    wire.deliver()
    assert not ticket.done
    assert wire.core.table.answered[handles].tolist() == [0, 0, 2, 2, 2, 2]
    wire.run()
    np.testing.assert_array_equal(ticket.value["y"], np.cumsum(x, axis=1))


def test_a_long_pool_sequence_is_cut_at_the_limit_and_joined(wire: Wire) -> None:
    handles = wire.open("a", "b")
    x = np.random.default_rng(1).integers(0, 9, (2, 11, FEATURES)).astype(np.float32)
    ticket = wire.pool(handles, x, 11)
    wire.run()
    np.testing.assert_array_equal(ticket.value["y"], np.cumsum(x, axis=1))
    assert wire.core.table.answered[handles].tolist() == [11, 11]


def test_a_close_of_very_many_sessions_is_several_frames(monkeypatch: pytest.MonkeyPatch, wire: Wire) -> None:
    monkeypatch.setattr("statestream.core.controls.FRAME_SESSIONS", 4)
    handles = wire.open(*"abcdefghij")
    wire.world.frames.clear()
    ticket = wire.core.close(handles, delete=True)
    wire.run()
    assert ticket.done
    assert wire.world.frames == ["close"] * 3
    assert not wire.world.rows


def test_an_idle_session_acknowledges_once_enough_replies_are_in(wire: Wire) -> None:
    (handle,) = wire.open("a")
    for _ in range(8):
        wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert len(wire.world.rows["a"].replies) < 8


def test_a_go_away_stops_new_frames_and_drains(wire: Wire) -> None:
    (handle,) = wire.open("a")
    first = wire.step(handle, np.ones((1, FEATURES)))
    wire.send()
    wire.core.receive(pb.StreamResponse(go_away=pb.GoAwayFrame()), 0.0)
    second = wire.step(handle, np.ones((1, FEATURES)))
    assert not wire.core.drained
    wire.serve()
    wire.deliver()
    assert first.done
    assert wire.core.drained
    assert not wire.send()
    wire.cut()
    wire.connect()
    wire.run()
    assert second.value[0, 0] == 2


LANES = [
    Lane("m", 1, ("x",), ("float32",), ((2,),), 8),
    Lane("m", 2, ("x", "mask"), ("float32", "uint8"), ((1,), ()), 5),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(LANES),
            st.integers(0, 3),
            st.integers(0, 1 << 40),
            st.integers(1, 3),
            st.integers(0, 1 << 40),
            st.binary(min_size=8, max_size=8),
        )
    )
)
def test_a_frame_that_is_filled_in_anew_is_as_one_made_anew(
    steps: list[tuple[Lane, int, int, int, int, bytes]],
) -> None:
    """Of one chunk in numbers, whatever frames of either lane came before, and of a block of one chunk."""
    tables = [Table(), Table()]
    for table in tables:
        table.allocate(Group("m", 1, False), ["a", "b", "c", "d"])
    drafts: dict[Lane, Draft] = {}
    for frame, (lane, handle, start, length, answered, data) in enumerate(steps, start=1):
        inputs = tuple((data * 3)[: length * size] for size in ((8,) if len(lane.names) == 1 else (4, 1)))
        ticket = StepTicket(lane, handle, inputs, length, single=False)
        ticket.start = start
        single = Single(ticket)
        block = Block(lane, np.array([handle]), np.array([start]), length, inputs, DISCARD)
        single.frame = block.frame = frame
        for table in tables:
            table.answered[handle] = answered
        made = block.request(tables[1], {})
        assert single.request(tables[0], drafts).SerializeToString() == made.SerializeToString()
        assert tables[0].acked[handle] == tables[1].acked[handle] == answered
