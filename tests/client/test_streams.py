"""Streams of steps: several under way, answers in order, and what becomes of the rest when one is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from statestream import PoolError, PoolStep, aio, errors
from statestream.core import Feed, PoolTicket
from statestream.v1 import inference_pb2 as pb
from tests.client.fake_server import Fake
from tests.client.twins import Aio, Connect, Sync, Twin
from tests.client.wire import LANE, Wire, make_core
from tests.client.world import FEATURES, World, ones, split
from tests.support.searching import searched


def frames(count: int, rows: int, bad: dict[int, int] | None = None) -> list[np.ndarray]:
    """`count` items for a pool of so many rows; `bad` has by item the row whose step is refused."""
    made = [ones(rows) for _ in range(count)]
    for item, row in (bad or {}).items():
        made[item][row] = np.nan
    return made


# ── the law, in the core ───────────────────────────────────────────────────────────────────────


@searched(
    50,
    150,
    seed=st.integers(0, 2**32),
    durability=st.sampled_from([pb.DURABILITY_MODE_INTERVAL, pb.DURABILITY_MODE_SYNC]),
)
def test_of_a_row_that_is_refused_what_came_before_is_applied_whatever_the_schedule(
    seed: int, durability: pb.DurabilityMode
) -> None:
    """Random schedules of a pool's stream, some of it for some rows or ragged; answers in pieces, lost streams."""
    rng = random.Random(seed)
    core = make_core(replay_buffer_bytes=rng.choice([64 << 20, 2000]), keep_seconds=rng.choice([0.0, 5.0]))
    wire, feed = Wire(World(durability), core), Feed()
    wire.connect()
    handles = wire.open(*"abcde")
    sent: list[tuple[PoolTicket, list[int], list[np.ndarray]]] = []
    for _ in range(rng.randrange(20, 120)):
        action = rng.random()
        wire.now += 0.1
        if action < 0.3:
            steps = rng.randrange(1, 7)
            rows = sorted(rng.sample(range(5), rng.randrange(1, 6)))
            lengths = np.array([rng.randrange(steps + 1) for _ in rows])
            x = np.array([[[rng.randrange(9)] * FEATURES for _ in range(steps)] for _ in rows], np.float32)
            if rng.random() < 0.15:
                x[rng.randrange(len(rows)), rng.randrange(steps)] = np.nan
            ticket = PoolTicket(LANE, handles[rows], (x.tobytes(),), lengths, steps, feed)
            core.step(ticket)
            sent.append((ticket, rows, [x[at, :length] for at, length in enumerate(lengths.tolist())]))
        elif action < 0.55:
            wire.send()
        elif action < 0.75:
            wire.serve()
        elif action < 0.92:
            if wire.responses:
                first = wire.responses.pop(0)
                wire.responses[:0] = split(first, rng.randrange(1, 5)) if rng.random() < 0.4 else [first]
                wire.deliver()
        elif action < 0.95:
            wire.world.refuse.append(rng.choice([errors.StoreUnavailable("away"), errors.NotOwner("elsewhere")]))
        else:
            wire.cut()
            if rng.random() < 0.5:
                wire.world.restart()
            wire.connect()
    for _ in range(60):
        wire.now += 1.0
        wire.run()
    state, position, out = np.zeros((5, FEATURES)), [0] * 5, [False] * 5
    for ticket, rows, items in sent:
        assert ticket.done
        assert ticket.error is None
        for at, (row, x) in enumerate(zip(rows, items, strict=True)):
            if not out[row]:
                for low in range(0, len(x), wire.world.limits.max_chunk_steps):
                    chunk = x[low : low + wire.world.limits.max_chunk_steps]
                    if not np.isfinite(chunk).all():
                        out[row] = True
                        break
                    np.testing.assert_array_equal(
                        ticket.value["y"][at, low : low + len(chunk)], state[row] + np.cumsum(chunk, axis=0)
                    )
                    state[row] += chunk.sum(axis=0)
                    position[row] += len(chunk)
                failed = out[row]
            else:
                # A row with nothing to do may be named as out, or not.
                failed = at in ticket.errors if not len(x) else True
            assert (at in ticket.errors) == failed
            if failed:
                assert isinstance(ticket.errors[at], errors.NonFiniteState)
    assert core.table.answered[handles].tolist() == position
    assert [wire.world.rows[name].position for name in "abcde"] == position
    assert not core.log.unsent
    assert not core.log.in_flight


# ── pools ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_pools_stream_is_in_order_and_survives_cuts_and_restarts(
    connect: Connect, twin: Twin, fake: Fake, shards: int
) -> None:
    pool = await twin.call((await connect(shards=shards)).sessions, "sum", ids=[str(n) for n in range(20)])
    answers = await twin.collect(pool.stream, frames(30, 20))
    assert [y[:, 0].tolist() for y in answers] == [[n] * 20 for n in range(1, 31)]
    fake.lose_replies = 3
    answers = await twin.collect(pool.stream, frames(30, 20), ahead=8)
    assert [y[:, 0].tolist() for y in answers] == [[n] * 20 for n in range(31, 61)]

    def killed() -> Iterator[np.ndarray]:
        for n, x in enumerate(frames(12, 20)):
            if n % 5 == 4:
                fake.restart()
            yield x

    answers = await twin.collect(pool.stream, killed(), ahead=3)
    assert [y[:, 0].tolist() for y in answers] == [[n] * 20 for n in range(61, 73)]
    assert pool.positions.tolist() == [72] * 20


@pytest.mark.parametrize("shards", [1, 3])
async def test_items_may_be_for_some_rows_and_ragged(connect: Connect, twin: Twin, shards: int) -> None:
    pool = await twin.call((await connect(shards=shards)).sessions, "sum", ids=[str(n) for n in range(6)])
    items = [
        ones(6),
        PoolStep(ones(2, 3), rows=[4, 0]),
        PoolStep(ones(6, 2), lengths=[2, 1, 0, 2, 2, 0]),
        PoolStep(ones(3), rows=np.array([False] * 3 + [True] * 3)),
        PoolStep(ones(6, 2), lengths=[0] * 6),
    ]
    y = await twin.collect(pool.stream, items)
    assert y[1][:, :, 0].tolist() == [[2, 3, 4], [2, 3, 4]]
    assert y[2][:, :, 0].tolist() == [[5, 6], [2, 0], [0, 0], [2, 3], [5, 6], [0, 0]]
    assert y[3][:, 0].tolist() == [4, 7, 2]
    assert (y[4] == np.zeros((6, 2, FEATURES))).all()
    assert y[4].shape == (6, 2, FEATURES)
    assert pool.positions.tolist() == [6, 2, 1, 4, 7, 2]
    assert await twin.collect(pool.stream, []) == []


async def test_no_more_than_ahead_are_taken_before_an_answer_is(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 3)
    taken, answered = list[int](), list[int]()

    def source() -> Iterator[np.ndarray]:
        for n in range(20):
            taken.append(n)
            yield ones(3)

    def note(y: np.ndarray) -> None:
        answered.append(int(y[0, 0]))
        assert len(taken) <= len(answered) + 2

    await twin.each(note, pool.stream, source(), ahead=3)
    assert answered == list(range(1, 21))
    with pytest.raises(ValueError, match="ahead is 0; expected 1 or more"):
        await twin.collect(pool.stream, source(), ahead=0)


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_refused_row_is_out_and_the_others_go_on(connect: Connect, twin: Twin, fake: Fake, shards: int) -> None:
    ids = [str(n) for n in range(8)]
    pool = await twin.call((await connect(shards=shards)).sessions, "sum", ids=ids)
    items = [*frames(10, 8, bad={3: 5, 6: 2}), PoolStep(ones(2), rows=[5, 1])]
    answers = await twin.collect(pool.stream, items, return_errors=True, ahead=4)
    for n, answer in enumerate(answers[:10]):
        failed = ([5] if n >= 3 else []) + ([2] if n >= 6 else [])
        if not failed:
            assert (answer == n + 1).all()
            continue
        assert isinstance(answer, PoolError)
        assert sorted(answer.errors) == sorted(failed)
        assert all(isinstance(error, errors.NonFiniteState) for error in answer.errors.values())
        wanted = [0 if row in failed else n + 1 for row in range(8)]
        assert isinstance(answer.outputs, np.ndarray)
        assert answer.outputs[:, 0].tolist() == wanted
    assert sorted(answers[10].errors) == [0]
    assert answers[10].outputs[:, 0].tolist() == [0, 11]
    assert pool.positions.tolist() == [10, 11, 6, 10, 10, 3, 10, 10]
    assert [fake.world.rows[name].position for name in ids] == pool.positions.tolist()
    # Out of that stream only.
    assert (await twin.call(pool.step, ones(2), rows=[5, 2]))[:, 0].tolist() == [4, 7]


async def test_where_every_row_is_out_answers_keep_their_shape(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 2)
    items = [*frames(1, 2, bad={0: 0}), *frames(1, 2, bad={0: 1}), ones(2), ones(2, 3)]
    answers = await twin.collect(pool.stream, items, return_errors=True, ahead=1)
    assert [sorted(answer.errors) for answer in answers] == [[0], [0, 1], [0, 1], [0, 1]]
    assert [answer.outputs.shape for answer in answers] == [(2, FEATURES)] * 3 + [(2, 3, FEATURES)]
    assert "an earlier step of this stream failed" in answers[3].errors[0].message
    assert not answers[3].outputs.any()


@pytest.mark.parametrize(
    ("items", "kind"), [(frames(9, 4, bad={5: 1}), PoolError), ([*frames(5, 4), ones(3), ones(4)], errors.BadTensor)]
)
async def test_without_return_errors_the_first_error_ends_it_in_its_turn(
    connect: Connect, twin: Twin, items: list[np.ndarray], kind: type[Exception]
) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 4)
    taken, got = list[int](), list[float]()

    def source() -> Iterator[np.ndarray]:
        for n, x in enumerate(items):
            taken.append(n)
            yield x

    def note(y: np.ndarray) -> None:
        got.append(y[0, 0])

    with pytest.raises(kind):
        await twin.each(note, pool.stream, source(), ahead=3)
    assert got == [1, 2, 3, 4, 5]
    assert taken[-1] == 5 + 2 * (kind is PoolError)
    assert pool.positions[1] == 5


async def test_an_error_of_the_source_comes_after_the_answers(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 4)

    def source() -> Iterator[np.ndarray]:
        yield from frames(3, 4)
        raise OSError("the sensor is gone")

    items: Any = source()
    if isinstance(twin, Aio):

        async def live() -> AsyncIterator[np.ndarray]:
            for x in source():
                yield x

        items = live()
    with pytest.raises(OSError, match="the sensor is gone"):
        await twin.collect(pool.stream, items)
    assert pool.positions.tolist() == [3] * 4


async def test_a_stream_left_early_leaves_the_pool_usable(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 4)
    if isinstance(twin, Sync):

        def leave() -> None:
            answers = pool.stream(frames(50, 4), ahead=8)
            assert next(answers)[0, 0] == 1
            answers.close()

        await asyncio.to_thread(leave)
    else:
        answers = pool.stream(frames(50, 4), ahead=8)
        assert (await anext(answers))[0, 0] == 1
        await answers.aclose()
    assert (await twin.call(pool.step, ones(4)))[:, 0].tolist() == [9] * 4
    assert pool.positions.tolist() == [9] * 4


async def test_a_closed_pool_cannot_be_streamed(connect: Connect, twin: Twin) -> None:
    pool = await twin.call((await connect()).sessions, "sum", 4)
    await twin.call(pool.close)
    with pytest.raises(errors.Closed):
        await twin.collect(pool.stream, frames(2, 4))


async def test_a_cancelled_stream_leaves_no_waiter(fake: Fake) -> None:
    async with aio.connect(fake.address) as client, client.sessions("sum", 4) as pool:
        fake.gate.clear()

        async def consume() -> None:
            async for _ in pool.stream(frames(9, 4), ahead=3):
                pytest.fail("nothing is answered yet")

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(fake.arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fake.gate.set()
        assert (await pool.step(ones(4)) == 4).all()


async def test_a_live_source_of_a_pool_and_its_outputs_do_not_wait_for_each_other(fake: Fake) -> None:
    arrived: asyncio.Queue[np.ndarray | None] = asyncio.Queue()

    async def source() -> AsyncIterator[np.ndarray]:
        while (item := await arrived.get()) is not None:
            yield item

    async with aio.connect(fake.address) as client, client.sessions("sum", 4) as pool:
        outputs = pool.stream(source())
        for n in range(1, 4):
            arrived.put_nowait(ones(4))
            # The source is silent now; the output must come all the same.
            assert (await asyncio.wait_for(anext(outputs), 10))[0, 0] == n
        arrived.put_nowait(None)
        assert [y async for y in outputs] == []


# ── sessions ───────────────────────────────────────────────────────────────────────────────────


async def test_nothing_behind_a_refused_step_of_a_stream_is_applied(connect: Connect, twin: Twin, fake: Fake) -> None:
    """Not even what is sent once the refusal is there, while the caller still has answers before it to look at."""
    session = await twin.call((await connect()).session, "sum", "a")
    items = [ones(), ones(), np.full(FEATURES, np.nan, np.float32), ones(), ones(), ones()]
    with pytest.raises(errors.NonFiniteState):
        # A flush waits for all that was sent before.
        await twin.each(lambda _: session.flush(), session.stream, items, ahead=3)
    assert session.position == fake.world.rows["a"].position == 2
    assert (await twin.call(session.step, ones()))[0] == 3
