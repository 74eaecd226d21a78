"""Chunks that the server refuses: who hears of it, what is sent again, and that the session goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from statestream import errors
from statestream.core import Lane, StepTicket
from statestream.core.blocks import Block
from statestream.v1 import inference_pb2 as pb
from tests.client.wire import Wire, make_core
from tests.client.world import FEATURES, MODEL


def test_a_refused_chunk_fails_those_behind_it_and_the_session_goes_on(wire: Wire) -> None:
    (handle,) = wire.open("a")
    good = wire.step(handle, np.ones((1, FEATURES)))
    bad = wire.step(handle, np.full((1, FEATURES), np.nan))
    late = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert good.error is None
    assert isinstance(bad.error, errors.NonFiniteState)
    assert isinstance(late.error, errors.NonFiniteState)
    assert "before this one" in late.error.message
    again = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert again.value[0, 0] == 2
    assert wire.core.table.stale[handle] == 0


def test_a_bad_row_leaves_its_neighbours_alone(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    x = np.ones((3, 1, FEATURES), np.float32)
    x[1] = np.nan
    ticket = wire.pool(handles, x, 1)
    wire.run()
    assert list(ticket.errors) == [1]
    assert ticket.value["y"][:, 0, 0].tolist() == [1, 0, 1]
    assert wire.core.table.next[handles].tolist() == [1, 0, 1]


def test_a_chunk_refused_for_a_while_is_sent_again_by_itself(wire: Wire) -> None:
    (handle,) = wire.open("a")
    wire.world.refuse.append(errors.Overloaded("full", retry_after=2.0))
    tickets = [wire.step(handle, np.ones((1, FEATURES))) for _ in range(4)]
    wire.run()
    assert not any(ticket.done for ticket in tickets)
    assert wire.core.due() == 2.0
    wire.now = 2.0
    wire.run()
    assert [float(ticket.value[0, 0]) for ticket in tickets] == [1, 2, 3, 4]


def test_a_chunk_refused_for_too_long_is_the_callers_to_know() -> None:
    wire = Wire(core=make_core(retry_seconds=5.0))
    wire.connect()
    (handle,) = wire.open("a")
    ticket = wire.step(handle, np.ones((1, FEATURES)))
    while not ticket.done and wire.now < 60:
        wire.world.refuse = [errors.StoreUnavailable("away", retry_after=1.0)]
        wire.run()
        wire.now += 1.0
    assert isinstance(ticket.error, errors.StoreUnavailable)
    assert 5.0 <= wire.now <= 8.0
    wire.world.refuse.clear()
    assert wire.core.table.next[handle] == 0
    good = wire.step(handle, np.ones((1, FEATURES)))
    wire.run()
    assert good.value[0, 0] == 1


def test_a_step_too_large_for_a_message_is_refused_here(wire: Wire) -> None:
    (handle,) = wire.open("a")
    lane = Lane(MODEL, 1, ("x",), ("float32",), ((2 << 20,),), 8 << 20)
    ticket = StepTicket(lane, int(handle), (bytes(8 << 20),), 1, single=True)
    wire.core.step(ticket)
    assert isinstance(ticket.error, errors.BadTensor)
    assert "8,388,608 bytes" in ticket.error.message


def test_a_frame_refused_as_a_whole_fails_its_chunks_only(wire: Wire) -> None:
    first, second = wire.open("a", "b")
    bad, good = wire.step(first, np.ones((1, FEATURES))), wire.step(second, np.ones((1, FEATURES)))
    request = wire.core.next_request(0.0)
    assert request is not None
    status = errors.to_status(errors.BadFrame("unreadable", metadata={"field": "inputs"}))
    wire.core.receive(pb.StreamResponse(frame=request.frame, refused=pb.RefusedFrame(status=status)), 0.0)
    assert isinstance(bad.error, errors.BadFrame)
    assert isinstance(good.error, errors.BadFrame)
    again = wire.step(first, np.ones((1, FEATURES)))
    wire.run()
    assert again.value[0, 0] == 1


def test_refusals_of_a_whole_pool_are_looked_up_together(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done once for a frame is not done for every row of it: that would grow with the square of the rows."""
    count, calls = 300, list[str]()
    handles = wire.open(*(f"s{number}" for number in range(count)))

    def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(self: Block, *given: object) -> object:
            calls.append(name)
            return real(self, *given)

        return call

    for name in ("find", "settle", "still_waiting"):
        monkeypatch.setattr(Block, name, counted(name, getattr(Block, name)))
    ticket = wire.pool(handles, np.full((count, 1, FEATURES), np.nan, np.float32), 1)
    wire.run()
    assert len(ticket.errors) == count
    assert len({id(error) for error in ticket.errors.values()}) == count, "each caller raises an error of its own"
    assert len(calls) < 20
    again = wire.pool(handles, np.ones((count, 1, FEATURES), np.float32), 1)
    wire.run()
    assert not again.errors
    assert (again.value["y"] == 1).all()


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("moves", range(3))
def test_some_of_a_pool_are_refused_with_others_behind_them(wire: Wire, moves: int, sent: bool) -> None:
    """Whatever has left by then: what is behind a refused row fails, in flight or not, and nothing else does."""
    handles = wire.open(*"abcdef")
    x = np.ones((6, 1, FEATURES), np.float32)
    x[[1, 2, 4]] = np.nan
    pool = wire.pool(handles, x, 1)
    for move in [wire.send, wire.serve][:moves]:
        move()
    behind = [wire.step(handles[row], np.ones((1, FEATURES))) for row in (0, 1, 2)]
    if sent:
        wire.send()
    late = wire.pool(handles[2:5], np.ones((3, 1, FEATURES), np.float32), 1)
    wire.run()
    assert sorted(pool.errors) == [1, 2, 4]
    assert behind[0].error is None
    assert all(isinstance(step.error, errors.NonFiniteState) for step in behind[1:])
    assert sorted(late.errors) == [0, 2]
    assert not wire.core.table.stale.any()
    assert not wire.core.table.in_flight.any()
    again = wire.pool(handles, np.ones((6, 1, FEATURES), np.float32), 1)
    wire.run()
    assert not again.errors
    rows = [wire.world.rows[name] for name in "abcdef"]
    assert [row.position for row in rows] == wire.core.table.next[handles].tolist()
