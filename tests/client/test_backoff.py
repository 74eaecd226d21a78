"""Where to connect next, and when."""

from __future__ import annotations

import pytest

from statestream import Settings
from statestream.backoff import MOST, Backoff, parse_addresses
from statestream.calls import Attempts
from statestream.errors import BadTensor, Draining, Overloaded, ServerUnavailable, StatestreamError


def test_addresses_are_read_and_wrong_ones_named() -> None:
    assert parse_addresses("a:1, b:2,") == ("a:1", "b:2")
    assert parse_addresses("unix:/tmp/s") == ("unix:/tmp/s",)
    for wrong in ("", "a", "a:", ":1", "a:b"):
        with pytest.raises(ValueError, match="host:port"):
            parse_addresses(wrong)


def test_the_first_round_has_no_wait_then_waits_grow_to_a_limit() -> None:
    backoff = Backoff(("a:1", "b:2"), draw=lambda: 1.0)
    waits, addresses = [], []
    for _ in range(20):
        addresses.append(backoff.address)
        waits.append(backoff.failed())
    assert addresses == ["a:1", "b:2"] * 10
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == MOST
    backoff.succeeded()
    assert backoff.failed() == 0.0


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
