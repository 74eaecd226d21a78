"""Answers that come in parts, what is kept for callers that are gone, and whose fault a broken stream is laid upon."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream.contract.tensors import from_tensor, read_handles, read_positions
from statestream.core import Group, Lane, OpenTicket, PoolTicket, StepTicket, StreamCore
from statestream.core.partial import Parts
from statestream.core.redelivery import MAX_FAULTS
from statestream.v1 import inference_pb2 as pb
from statestream.v1.tensor_pb2 import RowError, Tensor
from tests.client.wire import LANE, Wire, notice
from tests.client.world import FEATURES, MODEL, World, ones

BROKEN = errors.InternalError("the stream broke")


def in_parts(response: pb.StreamResponse, borders: list[int]) -> list[pb.StreamResponse]:
    """A result with one answer as parts that end at these bytes; others as they are."""
    result = response.result
    if response.WhichOneof("response") != "result" or len(result.handles) != 4 or result.errors:
        return [response]
    data = b"".join(tensor.data for tensor in result.outputs)
    edges = [*sorted({border % len(data) for border in borders} | {0}), len(data)]
    parts = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        part = pb.PartFrame(
            handle=int.from_bytes(result.handles, "little"),
            position=int.from_bytes(result.positions, "little"),
            part=number,
            parts=len(edges) - 1,
            offset=low,
            size=len(data),
            data=data[low:high],
        )
        if not number:
            part.steps = result.steps or int.from_bytes(result.lengths, "little")
            part.outputs.extend(Tensor(name=t.name, dtype=t.dtype, shape=t.shape) for t in result.outputs)
        if high == len(data):
            part.durable_position = int.from_bytes(result.durable_positions, "little")
        parts.append(pb.StreamResponse(frame=response.frame, part=part))
    return parts


@given(
    steps=st.integers(1, 5),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=1, max_size=3),
    borders=st.lists(st.integers(0, 10_000), max_size=8),
    seed=st.integers(0, 99),
)
def test_parts_put_together_are_the_answer(steps: int, shapes: list[list[int]], borders: list[int], seed: int) -> None:
    """Whatever the outputs and wherever they are cut: within a step, within a number, at the border of two outputs."""
    random, dtypes = np.random.default_rng(seed), ["float32", "int64", "bool"]
    arrays = {
        f"y{n}": random.integers(0, 2, (steps, *shape)).astype(dtypes[n]) for n, shape in enumerate([[1], *shapes[:2]])
    }
    result = pb.ResultFrame(handles=bytes(4), positions=bytes(8), steps=steps, durable_positions=b"\7" + bytes(7))
    for name, array in arrays.items():
        result.outputs.add(name=name, dtype=array.dtype.name, shape=array.shape, data=array.tobytes())
    parts, whole = Parts(), None
    for response in in_parts(pb.StreamResponse(frame=3, result=result), borders):
        assert whole is None
        whole = parts.take(3, response.part)
    assert whole is not None
    assert not len(parts)
    assert (whole.result.steps, read_positions(whole.result.durable_positions, 1)[0]) == (steps, 7)
    for name, array in arrays.items():
        assert whole.outputs[name].dtype == array.dtype
        assert (whole.outputs[name] == array).all()


@settings(max_examples=60)
@given(data=st.data())
def test_a_break_at_any_part_replays_to_the_same_answers(data: st.DataObject) -> None:
    """Streams break between any two messages; each step is applied once and answered with what it came to."""
    wire = Wire(World(durability=data.draw(st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]))))
    wire.connect()
    handles = wire.open("a", "b", "c")
    tickets = [(int(h), wire.step(h, ones(data.draw(st.integers(1, 4))))) for _ in range(2) for h in handles]
    for _ in range(400):
        while wire.send():
            pass
        moved = wire.serve()
        wire.responses = [
            part
            for one in wire.responses
            for part in in_parts(one, data.draw(st.lists(st.integers(0, 99), max_size=3)))
        ]
        count = data.draw(st.integers(0, 6))
        moved |= any([wire.deliver() for _ in range(count)])
        if data.draw(st.integers(0, 9)) == 0:
            wire.cut()
            wire.connect()
        elif not (moved or wire.responses or wire.core.busy):
            break
    wire.settle()
    at = dict.fromkeys(handles.tolist(), 0)
    for handle, ticket in tickets:
        assert ticket.error is None
        assert ticket.value[:, 0].tolist() == [at[handle] + n + 1 for n in range(ticket.steps)]
        at[handle] += ticket.steps
    assert {name: row.position for name, row in wire.world.rows.items()} == dict(zip("abc", at.values(), strict=True))


def test_a_gap_among_parts_is_no_answer() -> None:
    result = pb.ResultFrame(handles=bytes(4), positions=bytes(8), steps=1, durable_positions=bytes(8))
    result.outputs.add(name="y", dtype="float32", shape=[1, 4], data=bytes(16))
    first, second, third = in_parts(pb.StreamResponse(frame=1, result=result), [5, 9])
    parts = Parts()
    with pytest.raises(errors.BadFrame, match="expected part 0"):
        parts.take(1, second.part)
    assert parts.take(1, first.part) is None
    with pytest.raises(errors.BadFrame, match="part 2 of 3 came, from byte 9 on; expected part 1, from byte 5 on"):
        parts.take(1, third.part)


def test_other_answers_come_between_parts(wire: Wire) -> None:
    """A large answer holds nobody else up, and is counted once it is whole."""
    first, second = wire.open("a", "b")
    large, small = wire.step(first, ones(4)), wire.step(second, ones(2))
    while wire.send():
        pass
    while wire.serve():
        pass
    (one,) = wire.responses
    rows = from_tensor(one.result.outputs[0])
    lengths = read_handles(one.result.lengths)
    assert lengths.tolist() == [4, 2]
    answers = []
    for place, (low, high) in enumerate(((0, 4), (4, 6))):
        result = pb.ResultFrame(
            handles=one.result.handles[4 * place : 4 * place + 4],
            positions=bytes(8),
            steps=high - low,
            durable_positions=bytes(8),
        )
        result.outputs.add(name="y", dtype="float32", shape=[high - low, FEATURES], data=rows[low:high].tobytes())
        answers.append(pb.StreamResponse(frame=one.frame, result=result))
    begin, *rest = in_parts(answers[0], [3, 17])
    wire.responses = [begin, answers[1], *rest]
    wire.deliver()
    assert not wire.core.progress - wire.core._answers
    wire.deliver()
    assert small.done
    assert not large.done
    wire.run()
    assert large.value[:, 0].tolist() == [1, 2, 3, 4]


@pytest.fixture
def orphan() -> World:
    """Two sessions with three kept replies each, whose caller is gone."""
    world = World()
    first = Wire(world)
    first.connect()
    for handle in first.open("a", "b"):
        for _ in range(3):
            first.step(handle, ones(2))
    while first.send() or first.serve():
        pass
    return world


def asked(world: World, *ids: str) -> tuple[Wire, OpenTicket, list[pb.StreamResponse]]:
    """A wire that asked for sessions with their replies, the ticket, and the messages with them."""
    wire = Wire(world, StreamCore(b"2" * 16, 2000))
    wire.connect()
    ticket = wire.core.open(Group(MODEL, 0, False), list(ids), pb.OPEN_MODE_EITHER, replies=True)
    while wire.send():
        pass
    while wire.serve():
        pass
    wire.deliver()
    replies, wire.responses = wire.responses, []
    return wire, ticket, replies


def test_each_session_opens_with_the_last_of_its_replies(orphan: World) -> None:
    """They are counted: no message says that it is the last, and none of another session is waited for."""
    wire, ticket, replies = asked(orphan, "a", "b")
    assert len(replies) == 6
    wire.responses = [part for reply in replies[:5] for part in in_parts(reply, [3, 9])]
    wire.run()
    assert ticket.left == 1
    assert wire.core.busy
    wire.responses = replies[5:]
    wire.run()
    assert ticket.done
    assert [[start for start, _ in ticket.replies[row]] for row in (0, 1)] == [[0, 2, 4]] * 2
    assert wire.world.frames[-1] == "open", "nothing else was asked for"


def test_a_reply_that_was_acknowledged_meanwhile_is_not_waited_for(orphan: World) -> None:
    wire, ticket, replies = asked(orphan, "a")
    gone = errors.to_status(errors.AlreadyApplied("acknowledged meanwhile"))
    error = RowError(handle=0, position=0, status=gone)
    wire.responses = [pb.StreamResponse(frame=replies[0].frame, result=pb.ResultFrame(errors=[error])), *replies[1:]]
    wire.run()
    assert ticket.done
    assert [start for start, _ in ticket.replies[0]] == [2, 4]
    assert not ticket.errors


def test_a_notice_ends_the_wait_for_replies(orphan: World) -> None:
    wire, ticket, replies = asked(orphan, "a", "b")
    wire.responses = [replies[0], notice(0, errors.SessionMoved("a newer writer has it"))]
    wire.run()
    assert isinstance(ticket.errors[0], errors.SessionMoved)
    assert not ticket.done
    wire.responses = replies
    wire.run()
    assert ticket.done
    assert list(ticket.replies) == [1]


def test_a_session_that_goes_elsewhere_before_its_replies_came_is_asked_for_again(orphan: World) -> None:
    wire, ticket, _ = asked(orphan, "a")
    wire.responses = [notice(0, errors.NotOwner("elsewhere"))]
    wire.now += 1.0
    wire.run()
    wire.now += 1.0
    wire.run()
    assert ticket.done
    assert [start for start, _ in ticket.replies[0]] == [0, 2, 4]


def test_replies_that_always_break_the_stream_are_told_to_their_caller(orphan: World) -> None:
    """`return_replies` never waits for ever, however busy the other sessions are."""
    wire, ticket, _ = asked(orphan, "a")
    (other,) = np.asarray([int(h) for h in wire.core.open(Group(MODEL, 0, False), ["c"], pb.OPEN_MODE_EITHER).handles])
    for _ in range(MAX_FAULTS + 1):
        assert not ticket.done
        wire.cut(BROKEN)
        wire.connect()
        while wire.send():
            pass
        while wire.serve():
            pass
        wire.responses = [one for one in wire.responses if one.WhichOneof("response") == "opened"]
        wire.run()
    assert isinstance(ticket.errors[0], errors.InternalError)
    assert ticket.done
    step = wire.step(int(other), ones(1))
    wire.settle()
    assert step.value[0, 0] == 1


@pytest.mark.parametrize("pool", [False, True])
def test_a_session_that_breaks_every_stream_fails_alone(pool: bool) -> None:
    """Who was under way with it is tried by itself, and goes on."""
    wire = Wire(core=StreamCore(bytes(16), 1000))
    wire.connect()
    handles = wire.open(*"abcdefgh")
    guilty = int(handles[3])
    tickets: list[StepTicket | PoolTicket] = (
        [wire.pool(handles, ones(8, 1), 1)] if pool else [wire.step(h, ones(1)) for h in handles]
    )
    for _ in range(100):
        while wire.send():
            pass
        breaks = any(
            request.HasField("chunk") and guilty in read_handles(request.chunk.handles) for request in wire.requests
        )
        if breaks:
            wire.cut(BROKEN)
            wire.connect()
        elif not (wire.serve() or wire.deliver()) and not wire.core.busy:
            break
    table = wire.core.table
    assert [table.failures.get(int(h)) is not None for h in handles] == [int(h) == guilty for h in handles]
    if isinstance(tickets[0], PoolTicket):
        assert list(tickets[0].errors) == [3]
        assert tickets[0].value["y"][:, 0, 0].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    else:
        assert [ticket.error is not None for ticket in tickets] == [int(h) == guilty for h in handles]
    assert not wire.core.departures.suspicious or wire.core.busy is False


def wide(answer_bytes: int) -> Lane:
    """The lane of a model whose outputs the signature calls so large."""
    return Lane(MODEL, 1, LANE.names, LANE.dtypes, LANE.shapes, LANE.step_bytes, answer_bytes)


def test_what_is_sent_and_not_answered_stays_within_the_window_of_kept_replies() -> None:
    """A client that keeps to the window is never refused for it: what it has the answers of is told with the chunk."""
    world = World(window=8)
    world.limits.max_kept_bytes = 5000
    wire = Wire(world)
    wire.connect()
    (handle,) = wire.open("a")
    lane = wide(1000)
    tickets = [StepTicket(lane, int(handle), (ones(2).tobytes(),), 2, single=False) for _ in range(9)]
    for ticket in tickets:
        wire.core.step(ticket)
    most = 0
    while wire.send() or wire.serve() or wire.deliver():
        row = world.rows["a"]
        most = max(most, sum(2 * 1000 for _ in row.replies))
    assert all(ticket.done and ticket.error is None for ticket in tickets)
    assert most == 4000


def test_frames_and_chunks_of_large_answers_are_small() -> None:
    """Cut by what they come to, not only by what they bring."""
    world = World(window=64, max_steps=64)
    world.limits.max_answer_bytes = world.limits.max_kept_bytes = 4000
    wire = Wire(world)
    wire.connect()
    handles = wire.open(*"abcd")
    ticket = PoolTicket(wide(1000), handles, (ones(4, 6).tobytes(),), 6, 6)
    wire.core.step(ticket)
    while wire.send():
        pass
    sent = [(len(read_handles(r.chunk.handles)), r.chunk.steps) for r in wire.requests if r.HasField("chunk")]
    assert sent == [(1, 4)] * 4
    wire.settle()
    assert ticket.error is None
    assert ticket.value["y"][:, :, 0].tolist() == [[1, 2, 3, 4, 5, 6]] * 4


def test_an_answer_that_is_too_large_is_told_and_the_session_goes_on(wire: Wire) -> None:
    (handle,) = wire.open("a")
    wire.world.refuse.append(errors.AnswerTooLarge("90 MB", metadata={"size": "90000000", "limit": "64000000"}))
    first, behind = wire.step(handle, ones(2)), wire.step(handle, ones(1))
    wire.run()
    assert isinstance(first.error, errors.AnswerTooLarge)
    assert isinstance(behind.error, errors.AnswerTooLarge)
    after = wire.step(handle, ones(1))
    wire.run()
    assert after.value[0, 0] == 1
