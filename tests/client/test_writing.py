"""The writer of an asyncio client: who writes a frame, and what becomes of a write that its caller began."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from statestream.aio.begun import Begun
from statestream.aio.wakeup import Wakeup
from statestream.aio.writing import Writer


class Core:
    """Gives one frame for each step, or one for all that wait where `together`."""

    def __init__(self) -> None:
        self.waits = deque[int]()
        self.fault: Exception | None = None

    def next_request(self, now: float) -> list[int] | None:
        if self.fault is not None:
            raise self.fault
        frame = [*self.waits]
        self.waits.clear()
        return frame or None

    def due(self) -> float | None:
        return None


class Call:
    """Notes what is written, and by which task; a write takes a turn of the loop."""

    def __init__(self) -> None:
        self.frames = list[tuple[list[int], asyncio.Task[Any] | None]]()
        self.ended: str | None = None

    async def write(self, frame: list[int]) -> None:
        self.frames.append((frame, asyncio.current_task()))
        await asyncio.sleep(0)

    async def done_writing(self) -> None:
        self.ended = "done writing"

    def cancel(self) -> None:
        self.ended = "cancelled"


class World:
    def __init__(self) -> None:
        self.core, self.call, self.state = Core(), Call(), SimpleNamespace(renewing=False, tracing=None)
        self.wakeup = Wakeup(asyncio.get_running_loop())
        self.writer = Writer(self.core, self.state, self.wakeup)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.writer.write(self.call))

    def step(self, number: int) -> None:
        self.core.waits.append(number)
        self.writer.stepped()

    async def settled(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def alone(self, count: int = 20) -> None:
        for number in range(count):
            self.step(number)
            await self.settled()
        self.call.frames.clear()


async def test_a_lone_caller_writes_its_step_itself() -> None:
    world = World()
    await world.settled()
    world.step(0)
    assert not world.call.frames
    await world.settled()
    assert world.call.frames == [([0], world.task)]
    await world.alone()
    world.step(1)
    assert world.call.frames == [([1], asyncio.current_task())]
    await world.settled()
    assert len(world.call.frames) == 1
    world.state.renewing = True
    world.wakeup.set()
    await world.task
    assert world.call.ended == "done writing"


async def test_callers_with_company_gather_again() -> None:
    world = World()
    await world.alone()
    for number in range(3):
        world.step(number)
    await world.settled()
    assert [frame for frame, _ in world.call.frames] == [[0], [1, 2]]
    for _ in range(3):
        for number in range(3):
            world.step(number)
        await world.settled()
    assert [frame for frame, _ in world.call.frames[2:]] == [[0, 1, 2]] * 3
    assert {task for _, task in world.call.frames[1:]} == {world.task}


async def test_a_write_that_was_begun_ends_before_the_stream_does() -> None:
    world = World()
    await world.alone()
    world.step(7)
    world.state.renewing = True
    await world.task
    assert [frame for frame, _ in world.call.frames] == [[7]]
    assert world.call.ended == "done writing"


async def test_a_fault_is_the_writers_and_not_the_callers() -> None:
    world = World()
    await world.alone()
    world.core.fault = KeyError("no such lane")
    world.step(7)
    with pytest.raises(KeyError):
        await world.task
    assert world.call.ended == "cancelled"
    world.step(8)  # Nobody writes; the next stream does.
    assert not world.call.frames


async def test_a_call_that_is_over_ends_the_writer_without_a_word() -> None:
    world = World()
    await world.alone()
    world.core.fault = asyncio.InvalidStateError("the call is over")
    world.step(7)
    await world.task
    assert world.call.ended is None


async def test_a_write_that_nobody_sees_to_is_ended_with_the_writer() -> None:
    """What becomes of it is nobody's then: gRPC's failure of it would be told of as one that was never retrieved."""
    world, waits = World(), asyncio.get_running_loop().create_future()
    await world.alone()

    async def write(frame: list[int]) -> None:
        await waits

    world.call.write = write  # type: ignore[method-assign]
    world.step(7)
    world.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await world.task
    assert waits.cancelled()


class TestBegun:
    async def test_it_goes_on_where_it_is_awaited(self) -> None:
        seen = list[Any]()

        async def work() -> None:
            seen.append("begun")
            await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            seen.append("over")

        begun = Begun(work())
        assert seen == ["begun"]
        await begun
        assert seen == ["begun", "over"]

    async def test_one_that_waits_for_nothing_is_over_at_once(self) -> None:
        async def work() -> None:
            pass

        await Begun(work())

    @pytest.mark.parametrize("waits", [0, 1, 2])
    async def test_what_it_raises_is_raised_where_it_is_awaited(self, waits: int) -> None:
        async def work() -> None:
            for _ in range(waits):
                await asyncio.sleep(0)
            raise OSError("gone")

        begun = Begun(work())
        with pytest.raises(OSError, match="gone"):
            await begun

    async def test_a_cancel_reaches_it(self) -> None:
        seen = list[str]()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                await asyncio.sleep(0)
                seen.append("over")
                raise

        async def waits(begun: Begun) -> None:
            await begun

        task = asyncio.create_task(waits(Begun(work())))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled", "over"]
