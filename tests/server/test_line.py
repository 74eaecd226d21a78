"""Tenants that share the engine: who runs in which batch, counted; how long what comes will wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestream import errors
from statestream_server.engine.lane import Lane
from statestream_server.engine.lengths import Lengths
from statestream_server.engine.line import CREDIT, Line, Pace
from statestream_server.engine.still import Still
from statestream_server.engine.work import Priority, Work
from statestream_server.sessions.admission.accounts import FEW_COMING, MOST_WAIT, Budget, Coming


def lane_of(rows: int, *, several: bool = True) -> tuple[Lane, Line]:
    line = Line()
    line.several = several
    lane = Lane(16, line)
    lane.grow(rows)
    return lane, line


def put(lane: Lane, line: Line, tenant: str, first: int, count: int, steps: int = 1) -> None:
    work = Work(np.arange(first, first + count), Lengths(count, steps), [])
    work.tenant = tenant
    lane.enqueue(work, Priority.LIVE, line.behind())


def batch(lane: Lane, line: Line, most: int) -> Counter[str]:
    """Runs the next batch; how many rows of each tenant were in it."""
    head = min(lane.heads(), key=lambda head: head.age)
    line.now = max(line.now, head.age)
    taken = lane.take(Priority.LIVE, head.steps, most)
    lane.advance(taken.parts, head.steps, None, line.behind())
    found = Counter[str]()
    for part in taken.parts:
        found[str(part.work.tenant)] += len(part.places)
    return found


def test_whoever_has_little_waiting_is_in_the_next_batch_whatever_others_have() -> None:
    lane, line = lane_of(2000)
    for frame in range(10):
        put(lane, line, "flood", 100 * frame, 100)
    assert batch(lane, line, 64) == {"flood": 64}
    put(lane, line, "victim", 1500, 8)
    assert batch(lane, line, 64) == {"victim": 8, "flood": 56}
    assert sum(batch(lane, line, 64)["flood"] for _ in range(20) if lane.queued) == 1000 - 64 - 56, "nothing is lost"
    assert lane.queued == 0


def test_one_frame_of_very_many_rows_is_not_ahead_of_what_comes_later() -> None:
    lane, line = lane_of(5000)
    put(lane, line, "flood", 0, 4000)
    assert batch(lane, line, 64) == {"flood": 64}
    put(lane, line, "victim", 4500, 1)
    found = [batch(lane, line, 64) for _ in range(2)]
    assert sum(each["victim"] for each in found) == 1


def test_a_lane_of_one_tenant_runs_as_it_came() -> None:
    lane, line = lane_of(100, several=False)
    for row in range(100):
        put(lane, line, "only", row, 1)
    rows = list[int]()
    while lane.queued:
        taken = lane.take(Priority.LIVE, 1, 7)
        rows += taken.rows.tolist()
        lane.advance(taken.parts, 1, None, line.behind())
    assert rows == list(range(100))


@settings(max_examples=25)
@given(
    loads=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    most=st.integers(8, 24),
    batches=st.integers(3, 6),
)
def test_tenants_that_always_have_something_waiting_get_the_same(loads: list[int], most: int, batches: int) -> None:
    """Each sends frames of another size, so many that there is always some of it left."""
    lane, line = lane_of(2000)
    row = 0
    for tenant, size in enumerate(loads):
        for _ in range(-(-most * batches // size)):
            put(lane, line, str(tenant), row, size)
            row += size
    had = Counter[str]()
    for _ in range(batches):
        had += batch(lane, line, most)
    assert sum(had.values()) == most * batches
    shares = [had[str(tenant)] for tenant in range(len(loads))]
    # A frame is not cut but by the end of a batch.
    assert max(shares) - min(shares) <= 2 * max(loads), shares


def test_what_a_tenant_waits_goes_by_what_it_has_waiting_itself() -> None:
    _, line = lane_of(0)
    for _ in range(100):
        line.age("flood", 10)
    assert line.share("victim") == 0
    assert line.share("flood") == 1
    line.age("victim", 10)
    assert 0 < line.share("victim") < 0.05
    line.several = False
    assert line.share("victim") == 1


def test_who_had_less_than_its_share_is_ahead_with_all_that_it_has_waiting_but_for_a_while_only() -> None:
    """The few steps of one turn run in one batch, where each would have waited for its share of another."""
    lane, line = lane_of(4000)
    lane.cost = CREDIT // 10
    for frame in range(100):
        put(lane, line, "flood", 4 * frame, 4)
    assert batch(lane, line, 10) + batch(lane, line, 10) == {"flood": 20}
    had, row = Counter[str](), 1000
    for _ in range(2):
        put(lane, line, "victim", row, 4)
        row += 4
        had += batch(lane, line, 4)
    assert had == {"victim": 8}, "all that it sent, at once"
    had.clear()
    for _ in range(20):
        put(lane, line, "victim", row, 4)
        row += 4
        had += batch(lane, line, 4)
    assert abs(had["victim"] - had["flood"]) <= 8, "from then on it has the same as the other"


async def test_who_waits_for_the_thread_goes_on_before_its_next_batch() -> None:
    still, order = Still(), list[str]()

    async def read(name: str) -> None:
        async with still:
            order.append(name)

    async def batches() -> None:
        for number in range(2):
            with still.on_thread():
                order.append(f"batch {number}")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            order.append("over")
            await asyncio.sleep(0)  # As the engine's next turn is a turn of the loop.
            await asyncio.sleep(0)

    running = asyncio.create_task(batches())
    await asyncio.sleep(0)
    await asyncio.gather(*(read(str(number)) for number in range(3)))
    await running
    assert order == ["batch 0", "over", "0", "1", "2", "batch 1", "over"]
    async with still:
        pass


def test_of_sessions_that_come_those_of_a_flood_are_refused_and_those_of_others_are_not() -> None:
    now, waits = 0.0, {"flood": 0.0, "victim": 0.0}
    budget = Budget("unary steps", 1 << 20, lambda tenant: waits[tenant or ""])
    coming = Coming(budget, lambda: now)
    with ExitStack() as all_of_them:
        for _ in range(FEW_COMING):  # One after the other, as slow as one is: that tells nothing of many together.
            with coming.one("flood"):
                now += 0.02
        for _ in range(FEW_COMING - 1):
            all_of_them.enter_context(coming.one("flood"))
        for _ in range(FEW_COMING):
            with coming.one("flood"):
                now += 0.02
        all_of_them.enter_context(coming.one("flood"))
        with pytest.raises(errors.Overloaded, match=r"would wait for 1\.\d s"), coming.one("flood"):
            pass
        coming.check("victim")
        with coming.one("victim"):
            pass
    coming.check("flood")
    with budget.holding(1):
        waits["flood"] = 0.6 * MOST_WAIT  # There is time for a step, and not for a session beside those that are here.
        budget.check("flood")
        coming.check("victim")
        with pytest.raises(errors.Overloaded, match=r"limit is 0\.25 s"):
            coming.check("flood")


def test_the_pace_goes_by_what_ended() -> None:
    pace = Pace()
    assert pace.wait(1000) == 0
    first = Pace()
    first.note(1, 0.05)
    assert first.wait(1000) == 0, "one that took long tells nothing of a thousand"
    for _ in range(100):
        pace.note(4, 0.008)
    assert pace.wait(500) == pytest.approx(1.0)


def test_a_call_that_would_wait_too_long_is_refused_and_one_beside_nothing_is_not() -> None:
    waits = {"flood": 2 * MOST_WAIT, "victim": 0.0}
    budget = Budget("unary steps", 1 << 20, lambda tenant: waits[tenant or ""])
    budget.check("flood")
    with budget.holding(1):
        budget.check("victim")
        with pytest.raises(errors.Overloaded, match="would wait for 1.0 s") as caught:
            budget.check("flood")
    assert caught.value.retry_after == 2 * MOST_WAIT
    assert budget.late == 1
