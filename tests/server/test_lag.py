"""What is known of the event loop: how late it wakes up, and how much one turn of it does."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from statestream_server.lag import BUCKETS, Lag, TurnLoad


@given(st.lists(st.floats(-1.0, 100.0), max_size=50))
def test_every_wake_up_is_in_the_bucket_of_its_lag(lags: list[float]) -> None:
    lag = Lag()
    for seconds in lags:
        lag.note(seconds)
    assert sum(lag.counts) == len(lags)
    for exponent in range(BUCKETS - 1):
        below = sum(max(0.0, seconds) * 1e3 < 2**exponent for seconds in lags)
        # A lag is counted in whole milliseconds.
        assert sum(lag.counts[: exponent + 1]) == below
    assert lag.most == max([0.0, *lags])


async def test_it_looks_again_and_again_until_it_stops() -> None:
    loop, twice = asyncio.get_running_loop(), asyncio.Event()

    class Watched(Lag):
        def note(self, seconds: float) -> None:
            super().note(seconds)
            if sum(self.counts) == 2:
                twice.set()

    lag = Watched()
    lag.start()
    await twice.wait()
    lag.stop()
    assert not [handle for handle in getattr(loop, "_scheduled", ()) if not handle.cancelled()]


async def test_a_turn_is_what_is_done_before_the_loop_comes_round() -> None:
    turns = TurnLoad()
    turns.note(rows=100)
    turns.note(rows=50, errors=70)
    turns.note(rows=10)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    turns.note(rows=120, nbytes=1 << 20)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (turns.rows, turns.errors, turns.nbytes) == (150, 70, 1 << 20)
    turns.forget()
    assert turns.rows == 0
