"""What the asyncio link's task waits on."""

from __future__ import annotations

import asyncio

from statestream.aio.bell import Bell


async def test_a_ring_wakes_and_one_before_it_spares_the_wait() -> None:
    bell = Bell(asyncio.get_running_loop())
    waiting = bell.wait()
    assert not waiting.done()
    bell.ring()
    bell.ring()
    await asyncio.wait_for(waiting, 10)
    assert bell.wait().done()
    bell.silence()
    assert not bell.wait().done()


async def test_a_wait_that_was_cancelled_does_not_take_the_next_ring() -> None:
    bell = Bell(asyncio.get_running_loop())
    bell.wait().cancel()
    bell.ring()
    assert bell.wait().done()
