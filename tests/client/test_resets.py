"""Resets among other operations: a session's outputs are a function of its steps since the last reset before them."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream.core import Group, OpenTicket, PoolTicket, StepTicket
from statestream.core.resets import Reset
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Aio, Twin
from tests.client.wire import Wire, make_core
from tests.client.world import FEATURES, MODEL, World


def ones(steps: int = 1) -> np.ndarray:
    return np.ones((steps, FEATURES), np.float32)


def first(ticket: StepTicket) -> float:
    """The first output of a step; raises what became of it."""
    assert ticket.done
    if ticket.error is not None:
        raise ticket.error
    return float(ticket.value[0, 0])


@pytest.mark.parametrize("moves", range(12))
def test_a_step_submitted_while_a_reset_runs_follows_it(wire: Wire, moves: int) -> None:
    (handle,) = handles = wire.open("a")
    before = [wire.step(handle, ones()) for _ in range(3)]
    reset = wire.core.reset(handles)
    for _ in range(moves):  # Any point between the call and its answer.
        _ = wire.send() or wire.serve() or wire.deliver()
    after = [wire.step(handle, ones()) for _ in range(2)]
    again = wire.core.reset(handles)
    last = wire.step(handle, ones(6))  # The server takes 4 at most.
    wire.settle()
    assert [first(ticket) for ticket in before + after] == [1, 2, 3, 1, 2]
    assert reset.done
    assert again.done
    assert not (reset.errors)
    assert not (again.errors)
    with pytest.raises(errors.BadTensor):
        first(last)
    assert wire.core.table.next[handle] == wire.world.rows["a"].position == 0


@pytest.mark.parametrize("moves", range(10))
def test_a_stream_that_is_lost_at_any_point_of_a_reset(wire: Wire, moves: int) -> None:
    (handle,) = handles = wire.open("a")
    before = wire.step(handle, ones(2))
    wire.core.reset(handles)
    after = wire.step(handle, ones())
    for _ in range(moves):
        _ = wire.send() or wire.serve() or wire.deliver()
    wire.cut()
    wire.world.restart()
    wire.settle()
    assert (first(before), first(after), wire.world.rows["a"].position) == (1, 1, 1)


def test_chunks_of_an_ended_history_are_not_replayed_and_take_no_room(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    wire.step(handle, ones(4))
    wire.step(handle, ones(1))
    wire.run()
    wire.core.reset(handles)
    wire.run()
    new = wire.step(handle, ones(1))
    wire.run()
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.settle()
    assert (first(new), wire.world.rows["a"].state[0], wire.world.rows["a"].position) == (1, 1, 1)
    wire.core.flush(handles)
    wire.run()
    wire.core.buffer.advance(wire.now)
    wire.core.buffer.advance(wire.now + 10)
    assert len(wire.core.buffer) == 0
    assert wire.core.table.floor[handle] == 1


def test_a_reset_starts_from_the_start_values_after_a_server_that_forgot(wire: Wire) -> None:
    ticket = wire.core.open(
        Group(MODEL, 0, False), ["a"], pb.OPEN_MODE_EITHER, {"h": np.full((1, FEATURES), 7, np.float32)}
    )
    wire.run()
    handle = int(ticket.handles[0])
    assert first_now(wire, handle) == 8
    wire.core.reset(ticket.handles)
    wire.run()
    wire.cut()
    wire.world.restart(lose_everything=True)
    wire.settle()
    assert first_now(wire, handle) == 1


def first_now(wire: Wire, handle: int) -> float:
    ticket = wire.step(handle, ones())
    wire.run()
    return first(ticket)


def test_a_cancelled_reset_is_dropped_until_it_has_begun(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    first_step = wire.step(handle, ones())
    reset = wire.core.reset(handles)
    second = wire.step(handle, ones())
    gone = wire.step(handle, ones())
    wire.core.cancel(gone)
    wire.core.cancel(reset)
    wire.run()
    assert [first(first_step), first(second), wire.world.rows["a"].position] == [1, 2, 2]
    reset = wire.core.reset(handles)
    while wire.send():
        pass
    wire.core.cancel(reset)
    third = wire.step(handle, ones())
    wire.run()
    assert first(third) == 1
    assert not wire.core.busy
    assert not gone.done


def test_what_is_behind_a_refused_reset_fails_with_it_and_another_mends_it(wire: Wire) -> None:
    (handle,) = handles = wire.open("a")
    claim = wire.world.claim

    def refused(*args: object, **kwargs: object) -> object:
        raise errors.ModelNotFound("gone")

    wire.world.claim = refused  # type: ignore[method-assign,assignment]
    reset, step = wire.core.reset(handles), wire.step(handle, ones())
    wire.run()
    assert isinstance(reset.errors[0], errors.ModelNotFound)
    with pytest.raises(errors.ModelNotFound):
        first(step)
    wire.world.claim = claim  # type: ignore[method-assign]
    reset, step = wire.core.reset(handles), wire.step(handle, ones())
    wire.run()
    assert not reset.errors
    assert first(step) == 1


def test_closes_take_their_turn_before_and_after_a_reset(wire: Wire) -> None:
    handles = wire.open("a", "b")
    before = wire.core.reset(handles[:1])
    closed = wire.core.close(handles[:1], delete=False)
    late = wire.core.close(handles[1:], delete=False)
    after = wire.core.reset(handles[1:])
    strays = [wire.step(int(handle), ones()) for handle in handles]
    wire.settle()
    assert closed.done
    assert late.done
    assert not before.errors
    assert isinstance(after.errors[0], errors.Closed)
    for stray in strays:
        with pytest.raises(errors.Closed, match="before it was stepped"):
            first(stray)


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
        wire.core.reset(handles),
        wire.step(handle, ones()),
        wire.pool(handles, np.ones((1, 1, FEATURES)), 1),
        wire.core.flush(handles),
        wire.core.reset(handles),
    ]
    wire.core.give_up(errors.ServerUnavailable("nobody answers"))
    assert all(ticket.done for ticket in waiting)
    assert not wire.core.busy


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]))
def test_outputs_are_a_function_of_the_steps_since_the_last_reset(seed: int, durability: pb.DurabilityMode) -> None:
    """Random schedules of steps, pools, resets, flushes, cancellations, frames, answers, lost streams and restarts."""
    rng = random.Random(seed)
    room = rng.choice([64 << 20, 2000])  # The small buffer has steps wait for room.
    wire = Wire(World(durability), make_core(keep_seconds=rng.choice([0.0, 5.0]), replay_buffer_bytes=room))
    wire.connect()
    handles = wire.open(*"abc")
    # By session, in order: a step, [T, F] with its ticket and its row there, or a reset.
    done: dict[int, list[tuple[np.ndarray, StepTicket | PoolTicket, int] | OpenTicket]] = {h: [] for h in handles}
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
            reset = wire.core.reset(chosen)
            for one in chosen.tolist():
                done[one].append(reset)
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
            if isinstance(one, OpenTicket):
                assert one.done
                assert not one.errors
                state, position = np.zeros(FEATURES, np.float32), 0
                continue
            x, ticket, row = one
            assert ticket.done
            assert ticket.error is None
            got: np.ndarray = ticket.value["y"][row] if isinstance(ticket, PoolTicket) else ticket.value
            assert got.tolist() == (state + np.cumsum(x, axis=0)).tolist()
            state, position = got[-1], position + len(x)
        assert wire.world.rows[session_id].position == wire.core.table.answered[handle] == position
        assert (wire.world.rows[session_id].state == state).all()


def cancel_last(wire: Wire, done: dict[int, list], handle: int) -> None:
    """Cancels the last operation of a session; the model forgets it where it was dropped."""
    last = done[handle][-1]
    core = wire.core
    if isinstance(last, OpenTicket):
        waits = any(isinstance(one, Reset) and one.ticket is last and not one.begun for one in core.resets.queue)
        core.cancel(last)
        if waits:
            for others in done.values():
                if last in [one for one in others if isinstance(one, OpenTicket)]:
                    others[:] = [one for one in others if one is not last]
    elif isinstance(last[1], StepTicket) and not last[1].done:
        ticket = last[1]
        held = ticket in core.resets.queue or ticket in core.chunks.backlog
        core.cancel(ticket)
        if held or (not ticket.framed and core.table.next[handle] == ticket.start):
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
            assert session.position == 0
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
