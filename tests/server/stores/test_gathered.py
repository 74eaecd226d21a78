"""Calls that wait for a store's thread: done together, told apart."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from itertools import chain
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream_server.stores.gathered import Gathered


@given(
    asked=st.lists(st.lists(st.integers(), max_size=80), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_each_hears_of_its_own_whoever_is_first(asked: list[list[int]], order: Random) -> None:
    gathered, begun = Gathered[int, str](), list[int]()

    def work(numbers: Sequence[int]) -> list[str]:
        begun.extend(numbers)
        return [str(number) for number in numbers]

    calls = [gathered.put(numbers) for numbers in asked]
    for place in sorted(range(len(calls)), key=lambda _: order.random()):
        assert gathered.done(calls[place], work) == [str(number) for number in asked[place]]
    assert sorted(begun) == sorted(chain.from_iterable(asked)), "each is done once"


def test_what_is_forgotten_is_not_done_and_a_failure_is_told_to_all_it_was_done_with() -> None:
    gathered, begun = Gathered[str, str](), list[str]()

    def work(names: Sequence[str]) -> Sequence[str]:
        begun.extend(names)
        if "bad" in names:
            raise OSError("the disk is full")
        return names

    gone = gathered.put(["gone"])
    gathered.forget(gone)
    gathered.forget(gone)
    with pytest.raises(CancelledError, match="nobody waits"):
        gathered.done(gone, work)
    assert not begun
    calls = [gathered.put([name]) for name in ("a", "bad")]
    for call in calls:
        with pytest.raises(OSError, match="disk is full"):
            gathered.done(call, work)
    assert begun == ["a", "bad"]
    assert gathered.done(gathered.put(["a"]), work) == ["a"]
