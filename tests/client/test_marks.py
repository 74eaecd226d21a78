"""Marks: outputs are a function of the steps since the last reset before them; a cursor stays until the next one."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import strategies as st

from statestream import errors
from statestream.contract.tensors import from_tensor
from statestream.core import Group, PoolTicket, StepTicket
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Aio, Twin
from tests.client.wire import Wire, error_of, make_core
from tests.client.world import FEATURES, MODEL, World
from tests.support.searching import searched


def ones(steps: int = 1) -> np.ndarray:
    return np.ones((steps, FEATURES), np.float32)


def first(ticket: StepTicket) -> float:
    """The first output of a step; raises what became of it."""
    assert ticket.done
    if ticket.error is not None:
        raise ticket.error
    return float(ticket.value[0, 0])


def first_now(wire: Wire, handle: int) -> float:
    ticket = wire.step(handle, ones())
    wire.run()
    return first(ticket)


@pytest.mark.parametrize("moves", range(12))
def test_a_step_submitted_while_a_reset_is_under_way_follows_it(wire: Wire, moves: int) -> None:
    (handle,) = handles = wire.open("a")
    before = [wire.step(handle, ones()) for _ in range(3)]
    reset = wire.reset(handles)
    for _ in range(moves):  # Any point between the call and its answer.
        _ = wire.send() or wire.serve() or wire.deliver()
    after = [wire.step(handle, ones()) for _ in range(2)]
    again = wire.reset(handles)
    last = wire.step(handle, ones(6))  # The server takes 4 at most.
    wire.settle()
    assert [first(ticket) for ticket in before + after] == [1, 2, 3, 1, 2]
    assert error_of(reset) is error_of(again) is None
    with pytest.raises(errors.BadTensor):
        first(last)
    assert wire.core.table.next[handle] == wire.world.rows["a"].position == 7
    assert wire.core.table.origin[handle] == wire.world.rows["a"].origin == 7


def test_steps_behind_a_reset_leave_without_waiting_for_its_answer(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    for _ in range(2):
        wire.step(handle, ones())
        wire.reset(handles)
    while wire.send():
        pass
    assert [request.chunk.marks for request in wire.requests] == [b"", b"\1", b"", b"\1"]


def test_a_reset_among_the_sessions_of_a_pool(wire: Wire) -> None:
    handles = wire.open("a", "b", "c")
    for handle in handles:
        wire.step(handle, ones())
    reset = wire.reset(handles[1:])
    pool = wire.pool(handles, np.ones((3, 1, FEATURES)), 1)
    wire.run()
    assert error_of(reset) is None
    assert pool.value["y"][:, 0, 0].tolist() == [2, 1, 1]
    assert wire.core.table.origin[handles].tolist() == [0, 2, 2]


@pytest.mark.parametrize("lose", [False, True])
@pytest.mark.parametrize("moves", range(10))
def test_a_stream_that_is_lost_at_any_point_of_a_reset(wire: Wire, moves: int, lose: bool) -> None:
    (handle,) = handles = wire.open("a")
    before = wire.step(handle, ones(2))
    reset = wire.reset(handles)
    after = wire.step(handle, ones())
    for _ in range(moves):
        _ = wire.send() or wire.serve() or wire.deliver()
    wire.cut()
    wire.world.restart(lose_everything=lose)
    wire.settle()
    assert (first(before), error_of(reset), first(after)) == (1, None, 1)
    row = wire.world.rows["a"]
    assert (row.position, row.origin, row.state[0]) == (4, 3, 1)


def test_chunks_before_a_reset_leave_the_buffer_once_it_is_durable(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    wire.step(handle, ones(4))
    wire.reset(handles)
    wire.step(handle, ones())
    wire.run()
    wire.core.flush(handles)
    wire.run()
    wire.core.buffer.advance(wire.now)
    wire.core.buffer.advance(wire.now + 10)
    assert len(wire.core.buffer) == 0
    assert wire.core.table.floor[handle] == 6


def test_a_joined_replay_ends_at_marks_and_carries_the_last_cursor(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    wire.step(handle, ones(), b"1")
    wire.step(handle, ones(), b"2")
    wire.reset(handles)
    wire.reset(handles)
    wire.step(handle, ones(), b"3")
    wire.step(handle, ones(), b"4")
    wire.run()
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.connect()
    before = len(wire.world.frames)
    wire.settle()
    row = wire.world.rows["a"]
    assert (row.position, row.origin, row.state[0], row.cursor) == (6, 4, 2, b"4")
    assert wire.world.frames[before:].count("chunk") == 4


def test_a_cancelled_reset_is_dropped_until_it_is_sent(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    first_step = wire.step(handle, ones())
    reset = wire.reset(handles)
    wire.core.cancel(reset)
    second = wire.step(handle, ones())
    wire.run()
    assert [first(first_step), first(second), wire.world.rows["a"].position] == [1, 2, 2]
    reset = wire.reset(handles)
    while wire.send():
        pass
    wire.core.cancel(reset)
    third = wire.step(handle, ones())
    wire.run()
    assert first(third) == 1
    assert not wire.core.busy


def test_what_is_behind_a_refused_chunk_is_refused_with_it_and_nothing_goes_onto_the_old_history(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    kept, bad = wire.step(handle, ones()), wire.step(handle, np.full((1, FEATURES), np.nan))
    reset, after = wire.reset(handles), [wire.step(handle, ones()) for _ in range(3)]
    wire.run()
    assert first(kept) == 1
    for ticket in (bad, reset, *after):
        assert isinstance(error_of(ticket), errors.NonFiniteState)
    row = wire.world.rows["a"]
    assert (row.position, row.origin, row.state[0]) == (1, 0, 1)
    assert first_now(wire, handle) == 2


@pytest.mark.parametrize("error", [errors.StateLost, errors.SessionMoved, errors.ModelNotFound])
def test_a_reset_mends_a_session_that_failed(wire: Wire, error: type[errors.StatestreamError]) -> None:
    """It is opened again as it is on the server, and marked there; it has its cursor."""
    (handle,) = handles = wire.open("a")
    wire.step(handle, ones(3), b"here")
    wire.run()
    wire.core.log.fail(handle, error("gone"), heard=True)
    with pytest.raises(error):
        first_now(wire, handle)
    reset, step = wire.reset(handles), wire.step(handle, ones())
    wire.run()
    assert error_of(reset) is None
    assert first(step) == 1
    row = wire.world.rows["a"]
    assert (row.position, row.origin, row.cursor) == (5, 4, b"here")
    assert wire.core.table.cursors[handle] == b"here"
    assert wire.core.table.origin[handle] == 4


def test_a_session_that_a_reset_mends_starts_from_its_own_values_where_it_is_found_nowhere() -> None:
    """What is set once for a session is kept over a reset: where the session is gone the server hears it again."""
    wire = Wire()
    wire.connect()
    start = {"h": np.stack([ones()[0] * 5, ones()[0] * 6])}
    handles = wire.core.open(Group(MODEL, 0, False), ["a", "b"], pb.OPEN_MODE_REPLACE, start).handles
    wire.run()
    for handle in handles.tolist():
        wire.core.log.fail(handle, errors.StateLost("gone"), heard=True)
    wire.world.restart(lose_everything=True)
    wire.reset(handles)
    opens = list[pb.OpenFrame]()
    while wire.send() or wire.serve() or wire.deliver():
        opens += [each.open for each in wire.requests if each.HasField("open") and each.open not in opens]
    sent = {name: from_tensor(frame.initial_states[0]).tolist() for frame in opens for name in frame.ids}
    assert sent == {"a": [[5, 5]], "b": [[6, 6]]}
    assert [first_now(wire, handle) for handle in handles.tolist()] == [1, 1]  # All else is as the model says.


def test_what_is_behind_a_refused_mending_fails_with_it_and_another_mends_it(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    wire.core.log.fail(handle, errors.SessionMoved("gone"), heard=True)
    claim = wire.world.claim

    def refused(*args: object, **kwargs: object) -> object:
        raise errors.ModelNotFound("gone")

    wire.world.claim = refused  # type: ignore[method-assign,assignment]
    reset, step = wire.reset(handles), wire.step(handle, ones())
    wire.run()
    assert isinstance(error_of(reset), errors.ModelNotFound)
    with pytest.raises(errors.ModelNotFound):
        first(step)
    wire.world.claim = claim  # type: ignore[method-assign]
    reset, step = wire.reset(handles), wire.step(handle, ones())
    wire.run()
    assert error_of(reset) is None
    assert first(step) == 1


def test_closes_take_their_turn_before_and_after_a_reset(wire: Wire) -> None:
    handles = wire.open("a", "b")
    before = wire.reset(handles[:1])
    closed = wire.core.close(handles[:1], delete=False)
    late = wire.core.close(handles[1:], delete=False)
    after = wire.reset(handles[1:])
    strays = [wire.step(int(handle), ones()) for handle in handles]
    wire.settle()
    assert closed.done
    assert late.done
    assert error_of(before) is None
    assert isinstance(error_of(after), errors.Closed)
    for stray in strays:
        with pytest.raises(errors.Closed, match="before it was stepped"):
            first(stray)


def test_the_cursor_that_is_known_is_that_of_what_is_answered(wire: Wire) -> None:
    (handle,) = wire.open("a")
    known = wire.core.table.cursors
    step = wire.step(handle, ones(), b"one")
    mark = wire.mark(handle, b"two")
    assert handle not in known
    wire.run()
    assert first(step) == 1
    assert error_of(mark) is None
    assert known[handle] == b"two"
    assert first_now(wire, handle) == 2
    assert known[handle] == b"two"
    wire.core.close(np.array([handle]), delete=False)
    wire.run()
    assert handle not in known
    (again,) = wire.open("a")
    assert known[again] == b"two"


def test_a_session_that_is_stepped_without_a_pause_settles(wire: Wire) -> None:
    """As for a fork beside a stream of steps, which sends one for each that is answered."""
    (handle,) = handles = wire.open("a")
    steps = [wire.step(handle, ones()) for _ in range(3)]
    settled = wire.core.settle(handles)
    for _ in range(300):
        _ = wire.send() or wire.serve() or wire.deliver()
        if sum(not step.done for step in steps) < 3:
            steps.append(wire.step(handle, ones()))
        if settled.done:
            break
    assert settled.done
    assert not settled.errors
    assert [first(step) for step in steps if step.done] == [1, 2, 3]
    wire.run()
    assert [first(step) for step in steps] == [*range(1, len(steps) + 1)]
    assert not wire.core.busy


def test_what_a_settle_held_back_leaves_without_another_answer(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    settled, step = wire.core.settle(handles), wire.step(handle, ones())
    assert wire.send()
    assert settled.done
    wire.run()
    assert first(step) == 1


def test_giving_up_wakes_everybody_behind_a_reset(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    wire.step(handle, ones())
    waiting = [
        wire.reset(handles),
        wire.step(handle, ones()),
        wire.pool(handles, np.ones((1, 1, FEATURES)), 1),
        wire.core.flush(handles),
        wire.reset(handles),
    ]
    wire.core.give_up(errors.ServerUnavailable("nobody answers"))
    assert all(ticket.done for ticket in waiting)
    assert not wire.core.busy


@searched(
    70,
    200,
    seed=st.integers(0, 2**32),
    durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]),
)
def test_outputs_are_a_function_of_the_steps_since_the_last_reset(seed: int, durability: pb.DurabilityMode) -> None:
    """Random schedules of steps, pools, resets, flushes, cancellations, frames, answers, lost streams and restarts."""
    rng = random.Random(seed)
    room = rng.choice([64 << 20, 2000])  # The small buffer has steps wait for room.
    wire = Wire(World(durability), make_core(keep_seconds=rng.choice([0.0, 5.0]), replay_buffer_bytes=room))
    wire.connect()
    handles = wire.open(*"abc")
    # By session, in order: a step, [T, F] with its ticket and its row there, or a reset.
    done: dict[int, list[tuple[np.ndarray | None, StepTicket | PoolTicket, int]]] = {h: [] for h in handles}
    for _ in range(rng.randrange(20, 120)):
        wire.now += 0.1
        action, handle = rng.random(), int(rng.choice(handles))
        if action < 0.25:
            x = np.array([[rng.randrange(9)] * FEATURES for _ in range(rng.randrange(1, 5))], np.float32)
            done[handle].append((x, wire.step(handle, x), -1))
        elif action < 0.3:
            chosen = np.sort(np.array(rng.sample(list(handles), rng.randrange(1, 4))))
            xs = np.array([[[rng.randrange(9)] * FEATURES] * 2 for _ in chosen], np.float32)
            pool = wire.pool(chosen, xs, 2)
            for row, one in enumerate(chosen.tolist()):
                done[one].append((xs[row], pool, row))
        elif action < 0.4:
            chosen = np.sort(np.array(rng.sample(list(handles), rng.choice([1, 1, 2]))))
            reset = wire.reset(chosen)
            for row, one in enumerate(chosen.tolist()):
                done[one].append((None, reset, row))
        elif action < 0.45 and done[handle]:
            cancel_last(wire, done, handle)
        elif action < 0.48:
            wire.core.flush(handles)
        elif action < 0.65:
            wire.send()
        elif action < 0.8:
            wire.serve()
        elif action < 0.94:
            wire.deliver()
        elif action < 0.96:
            wire.world.refuse.append(errors.Overloaded("full", retry_after=0.3))
        elif action < 0.98 and wire.stream is not None:
            wire.cut()
            if rng.random() < 0.5:
                wire.world.restart()
        elif wire.stream is None:
            wire.connect()
    wire.settle()
    for handle, session_id in zip(handles.tolist(), "abc", strict=True):
        state = np.zeros(FEATURES, np.float32)
        position = 0
        for one in done[handle]:
            steps, ticket, row = one
            assert error_of(ticket) is None
            if steps is None:
                state, position = np.zeros(FEATURES, np.float32), position + 1
                continue
            got: np.ndarray = ticket.value["y"][row] if isinstance(ticket, PoolTicket) else ticket.value
            assert got.tolist() == (state + np.cumsum(steps, axis=0)).tolist()
            state, position = got[-1], position + len(steps)
        assert wire.world.rows[session_id].position == wire.core.table.answered[handle] == position
        assert wire.world.rows[session_id].origin == wire.core.table.origin[handle]
        assert (wire.world.rows[session_id].state == state).all()


def cancel_last(wire: Wire, done: dict[int, list], handle: int) -> None:
    """Cancels the last operation of a session; the model forgets it where it was dropped."""
    _, ticket, _ = done[handle][-1]
    core = wire.core
    if isinstance(ticket, StepTicket) and not ticket.done:
        core.cancel(ticket)
        if not ticket.framed and core.table.next[handle] == ticket.start:
            done[handle].pop()


async def test_steps_of_both_twins_while_their_session_is_reset(fake: Fake, twin: Twin) -> None:
    client = await twin.connect(fake.address)
    try:
        session = await twin.call(client.session, "sum", "a")
        for _ in range(20):
            await twin.call(session.step, ones()[0])
            resetting = asyncio.create_task(twin.call(session.reset))
            stepping = [asyncio.create_task(twin.call(session.step, ones()[0])) for _ in range(3)]
            async with asyncio.timeout(30):
                await resetting
                values = sorted([float((await task)[0]) for task in stepping])
            # Threads start in any order, so a step may be before the reset; the loop's tasks start as they were made.
            assert values == [1, 2, 3] if twin.name == "aio" else values[0] in (1, 2)
            await twin.call(session.reset)
            assert session.position == session.origin > 0
    finally:
        await twin.call(client.close)


async def test_a_reset_that_is_cancelled_leaves_a_usable_session(fake: Fake) -> None:
    client = await Aio().connect(fake.address)
    try:
        session = await client.session("sum", "a")
        for turns in range(8):
            await session.reset()
            steps = [asyncio.create_task(session.step(ones()[0])) for _ in range(2)]
            resetting = asyncio.create_task(session.reset())
            for _ in range(turns):
                await asyncio.sleep(0)
            resetting.cancel()
            async with asyncio.timeout(30):
                values = [float((await step)[0]) for step in steps]
                await asyncio.wait([resetting])
                last = float((await session.step(ones()[0]))[0])
            assert values == [1, 2]
            assert last in (1, 3)
    finally:
        await client.close()
