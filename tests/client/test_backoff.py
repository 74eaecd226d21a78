"""Where to connect next, and when."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream import Settings
from statestream.arguments import parse_addresses
from statestream.backoff import MOST, Backoff
from statestream.calls import Attempts
from statestream.connection import Connection
from statestream.core import StreamCore
from statestream.errors import BadTensor, Draining, Overloaded, ServerUnavailable, StatestreamError
from statestream.shards import Route
from statestream.v1.inference_pb2 import GoAwayFrame, StreamResponse


def test_addresses_are_read_and_wrong_ones_named() -> None:
    assert parse_addresses("a:1, b:2,") == ("a:1", "b:2")
    assert parse_addresses("unix:/tmp/s") == ("unix:/tmp/s",)
    for wrong in ("", "a", "a:", ":1", "a:b"):
        with pytest.raises(ValueError, match="host:port"):
            parse_addresses(wrong)


def test_the_first_round_has_no_wait_then_waits_grow_to_a_limit() -> None:
    backoff = Backoff(("a:1", "b:2"), draw=lambda: math.nextafter(1.0, 0.0))
    waits, addresses = [], []
    for _ in range(20):
        addresses.append(backoff.address)
        waits.append(backoff.failed())
    assert addresses == ["a:1", "b:2"] * 10
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(MOST)
    backoff.succeeded()
    assert backoff.failed() == 0.0


@given(count=st.integers(2, 6), seed=st.integers(0, 2**32))
def test_every_address_is_tried_before_one_comes_again(count: int, seed: int) -> None:
    backoff = Backoff(tuple(f"a:{n}" for n in range(count)), draw=random.Random(seed).random)
    tried, waits = [backoff.address], list[float]()
    for _ in range(count - 1):
        waits.append(backoff.failed())
        tried.append(backoff.address)
    assert tried[0] == "a:0"
    assert sorted(tried) == sorted(backoff.addresses)
    assert not any(waits)
    for _ in range(20):
        last = backoff.address
        backoff.failed()
        assert backoff.address != last


@pytest.mark.parametrize("move", [Backoff.failed, Backoff.leave])
def test_the_clients_of_one_server_spread_over_the_others(move: Callable[[Backoff], object]) -> None:
    rng = random.Random(5)
    found: Counter[str] = Counter()
    for _ in range(300):
        backoff = Backoff(("a:1", "b:2", "c:3", "d:4"), draw=rng.random)
        backoff.succeeded()
        move(backoff)
        found[backoff.address] += 1
    assert set(found) == {"b:2", "c:3", "d:4"}
    assert min(found.values()) > 70


def test_jitter_takes_any_part_of_the_wait() -> None:
    backoff = Backoff(("a:1",), draw=lambda: 0.0)
    assert [backoff.failed() for _ in range(5)] == [0.0] * 5


def test_attempts_repeat_what_may_help_until_time_is_up() -> None:
    attempts = Attempts(10.0, now=0.0)
    assert attempts.after(ServerUnavailable("gone"), 0.0) > 0
    assert attempts.after(Draining("leaving", retry_after=3.0), 1.0) == 3.0
    assert attempts.after(Overloaded("full", retry_after=0.5), 1.0) == 0.5
    finals: list[tuple[StatestreamError, float]] = [
        (BadTensor("wrong"), 1.0),
        (Overloaded("too large a message"), 1.0),
        (Draining("leaving", retry_after=3.0), 8.0),
    ]
    for error, now in finals:
        with pytest.raises(type(error)):
            attempts.after(error, now)


def test_settings_are_checked_values() -> None:
    assert Settings() == Settings()
    with pytest.raises(ValueError, match="retry_timeout"):
        Settings(retry_timeout=0)
    with pytest.raises(ValueError, match="on_full"):
        Settings(on_full="explode")  # type: ignore[arg-type]


def test_a_stream_that_is_left_without_an_answer_counts_as_a_failure() -> None:
    core = StreamCore(bytes(16), 1)
    state = Connection(core, Route(("a:1", "b:2"), "key"), Settings(), None)
    tried = list[str]()
    for _ in range(4):
        tried.append(state.address)
        state.began(0.0)
        core.receive(StreamResponse(go_away=GoAwayFrame()), 0.0)
        assert state.over()
        state.ended(closed=False)
        state.after(60.0)
    assert tried == ["a:1", "b:2"] * 2
    assert state._backoff.failures == 4, "so that waits between them grow"
