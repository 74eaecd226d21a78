"""Steps of a live signal: of those that wait the oldest and the late go, those that were sent never; both twins."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import statestream
from statestream import Latest
from tests.client.fake_server import Fake
from tests.client.twins import Connect, Twin
from tests.client.world import FEATURES


def step(value: int) -> np.ndarray:
    return np.full(FEATURES, value, np.float32)


@given(
    most=st.integers(1, 4),
    deadline=st.sampled_from([None, 1.0, 2.5]),
    acts=st.lists(st.sampled_from(["put", "put", "take", "pass"]), max_size=60),
)
def test_each_step_is_taken_once_in_order_or_dropped_and_told(
    most: int, deadline: float | None, acts: list[str]
) -> None:
    """Whatever the schedule: the newest are kept, none that is late is taken, and none that was taken is dropped."""
    now, taken, told, born = 0.0, list[int](), list[int](), dict[int, float]()
    latest = Latest(most, deadline=deadline, on_drop=lambda number, _: told.append(number), clock=lambda: now)
    for act in acts:
        if act == "put":
            number = latest.put(len(born))
            assert number == len(born)
            born[number] = now
        elif act == "pass":
            now += 1
        elif any(deadline is None or now - born[n] <= deadline for n in born if n not in {*taken, *told}):
            taken.append(next(latest))
            assert deadline is None or now - born[taken[-1]] <= deadline
        waiting = [n for n in born if n not in {*taken, *told}]
        assert latest.waiting == len(waiting) <= most
        assert waiting == sorted(born)[len(born) - len(waiting) :], "the newest are those that wait"
        assert latest.dropped == latest.overrun + latest.late == len(told)
    latest.close()
    taken += list(latest)
    assert sorted([*taken, *told]) == list(born), "each once"
    assert taken == sorted(taken)
    assert told == sorted(told)


@pytest.mark.parametrize("pooled", [False, True])
async def test_a_stream_sends_the_newest_and_its_positions_stand_over_a_break(
    connect: Connect, twin: Twin, fake: Fake, pooled: bool
) -> None:
    client = await connect()
    opened: Any = await twin.call(client.sessions, "sum", 1) if pooled else await twin.call(client.session, "sum", "s")
    told, outputs = list[int](), list[float]()
    latest = Latest(3, on_drop=lambda number, _: told.append(number))
    fake.gate.clear()
    fake.arrived.clear()
    reading = asyncio.create_task(twin.each(lambda y: outputs.append(float(np.ravel(y)[0])), opened.stream, latest))
    latest.put(step(1)[None] if pooled else step(1))
    await asyncio.to_thread(fake.arrived.wait, 20)
    for value in (2, 4, 8, 16, 32):
        latest.put(step(value)[None] if pooled else step(value))
    assert (latest.waiting, told) == (3, [1, 2]), "what is under way is not dropped"
    fake.lose_replies = 1  # What was sent is sent again.
    fake.gate.set()
    latest.close()
    await asyncio.wait_for(reading, 30)
    assert outputs == [1, 9, 25, 57]
    assert (opened.positions.tolist() if pooled else [opened.position]) == [4]
    assert latest.dropped == latest.overrun == 2


async def test_a_step_that_waited_too_long_is_not_sent(connect: Connect, twin: Twin, fake: Fake) -> None:
    session = await twin.call((await connect()).session, "sum", "s")
    now, told = 0.0, list[int]()
    latest = Latest(8, deadline=0.5, on_drop=lambda number, _: told.append(number), clock=lambda: now)
    latest.put(step(1))
    now = 0.4
    latest.put(step(2))
    now = 0.6
    latest.put(step(4))
    latest.close()
    outputs = await twin.collect(session.stream, latest)
    assert [float(y[0]) for y in outputs] == [2, 6]
    assert (told, latest.late, session.position) == ([0], 1, 2)


def test_who_waits_in_a_thread_hears_of_a_step_and_of_the_end() -> None:
    latest, found = Latest(), list[Any]()
    thread = threading.Thread(target=lambda: found.extend(latest))
    thread.start()
    latest.put("x")
    latest.close()
    thread.join(20)
    assert found == ["x"]
    with pytest.raises(ValueError, match="nothing can be put any more"):
        latest.put("y")


async def test_a_taker_that_is_cancelled_takes_nothing() -> None:
    latest = Latest()
    taker = asyncio.ensure_future(anext(latest))
    await asyncio.sleep(0)
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker
    latest.put("x")
    assert await anext(latest) == "x"


@pytest.mark.parametrize(
    ("wrong", "said"), [({"most": 0}, "most is 0"), ({"deadline": 0}, "deadline is 0"), ({"most": "3"}, "most is '3'")]
)
def test_what_it_cannot_be_is_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        statestream.Latest(**wrong)
