"""What the asyncio link's task waits on."""

from __future__ import annotations

import asyncio

from statestream.aio.wakeup import Wakeup


async def test_a_call_wakes_and_one_before_it_spares_the_wait() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    waiting = wakeup.wait()
    assert not waiting.done()
    wakeup.set()
    wakeup.set()
    await asyncio.wait_for(waiting, 10)
    assert wakeup.wait().done()
    wakeup.clear()
    assert not wakeup.wait().done()


async def test_a_wait_that_was_cancelled_does_not_take_the_next_call() -> None:
    wakeup = Wakeup(asyncio.get_running_loop())
    wakeup.wait().cancel()
    wakeup.set()
    assert wakeup.wait().done()
