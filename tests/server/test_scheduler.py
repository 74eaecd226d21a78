"""Shares between classes, age within a class; costs of batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestream_server.engine.scheduler import SHARES, Costs, Head, Scheduler
from statestream_server.engine.work import Priority


class Fixed:
    """A queue with these heads."""

    def __init__(self, **heads: tuple[int, int]) -> None:
        self._heads = [Head(Priority[name], *head) for name, head in heads.items()]

    def heads(self) -> list[Head]:
        return self._heads


ALL = Fixed(LIVE=(1, 1), GENERATE=(2, 1), FORECAST=(3, 1), SUSPECT=(4, 1))


@given(st.lists(st.floats(1e-5, 1e-2), min_size=50, max_size=300))
def test_each_class_gets_its_share(costs: list[float]) -> None:
    """While all classes have work, no class is ahead of another by more than its dearest batch."""
    scheduler, used = Scheduler(), dict.fromkeys(Priority, 0.0)
    for cost in costs:
        choice = scheduler.choose([ALL])
        assert choice is not None
        scheduler.charge(choice.priority, cost)
        used[choice.priority] += cost
        for one in Priority:
            for other in Priority:
                assert used[one] / SHARES[one] - used[other] / SHARES[other] <= max(costs) / SHARES[one] + 1e-9


def test_an_idle_class_saves_nothing_up() -> None:
    """After a long time alone, a class that gets company still has its share, not the other's arrears."""
    scheduler, used = Scheduler(), dict.fromkeys(Priority, 0.0)
    for _ in range(1000):
        choice = scheduler.choose([Fixed(LIVE=(1, 1))])
        assert choice is not None
        scheduler.charge(choice.priority, 0.01)
    for _ in range(1000):
        choice = scheduler.choose([Fixed(LIVE=(1, 1), FORECAST=(2, 1))])
        assert choice is not None
        scheduler.charge(choice.priority, 0.01)
        used[choice.priority] += 0.01
    assert used[Priority.FORECAST] == pytest.approx(used[Priority.LIVE] / 16, rel=0.05)


def test_what_is_put_back_saves_nothing_up() -> None:
    """A class that ran and gives way then is behind those who come: they have what it ran, by their shares."""
    scheduler, ran = Scheduler(), list[Priority]()
    scheduler.choose([Fixed(FORECAST=(1, 1))])
    scheduler.charge(Priority.FORECAST, 0.01)
    for _ in range(5):
        scheduler.choose([Fixed(FORECAST=(1, 1))])
        scheduler.put_back()
    for _ in range(20):
        choice = scheduler.choose([Fixed(LIVE=(2, 1), FORECAST=(1, 1))])
        assert choice is not None
        scheduler.charge(choice.priority, 0.01)
        ran.append(choice.priority)
    assert ran.index(Priority.FORECAST) >= SHARES[Priority.LIVE]


@given(st.dictionaries(st.integers(0, 9), st.integers(0, 1000), min_size=1))
def test_within_a_class_the_oldest_head_runs(ages: dict[int, int]) -> None:
    queues = {number: Fixed(LIVE=(age, 1 << (age % 8))) for number, age in ages.items()}
    choice = Scheduler().choose(queues.values())
    assert choice is not None
    (head,) = choice.queue.heads()
    assert head.age == min(ages.values())
    assert choice.steps == head.steps


def test_nothing_waits_nothing_runs() -> None:
    assert Scheduler().choose([]) is None
    assert Scheduler().choose([Fixed()]) is None


def _affine(fixed: float, each: float, size: int) -> float:
    return fixed + each * size


@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.floats(0, 1)), max_size=40),
    st.integers(1, 256),
    st.integers(1, 4096),
)
def test_rows_stay_within_bounds(observed: list[tuple[int, float]], steps: int, most: int) -> None:
    """Whatever was measured, a batch has one row at least and `most` at most; predictions are never negative."""
    costs = Costs(2e-3)
    for size, seconds in observed:
        costs.observe(size, steps, seconds)
    assert 1 <= costs.rows(steps, most=most) <= most
    assert costs.longest(256) in {1 << exponent for exponent in range(9)}
    assert all(costs.predict(size, length) >= 0 for size in (0, 1, 7, 1000, 10**6) for length in (1, steps, 256))


@given(st.floats(1e-6, 1e-3), st.floats(1e-8, 1e-4), st.lists(st.integers(1, 4096), min_size=1, max_size=12))
def test_predictions_are_not_far_below_the_truth(fixed: float, each: float, sizes: list[int]) -> None:
    """For sizes at or above a measured one: never below half of what a fixed part and a part per row cost."""
    costs = Costs(2e-3)
    for size in sizes:
        costs.observe(size, 1, _affine(fixed, each, size))
    for size in [*sizes, 2 * max(sizes), 5000]:
        assert costs.predict(size) >= 0.49 * _affine(fixed, each, size)


@given(st.floats(1e-6, 1e-4), st.floats(1e-7, 1e-5), st.integers(0, 8))
def test_batches_grow_to_the_target_and_stay(fixed: float, each: float, exponent: int) -> None:
    """Fed with its own batches, the size settles where a batch takes about the target."""
    costs, steps, rows = Costs(2e-3), 1 << exponent, 0
    for _ in range(60):
        rows = costs.rows(steps, most=4096)
        costs.observe(rows, steps, _affine(fixed, each, rows * steps))
    seconds = _affine(fixed, each, rows * steps)
    assert seconds <= 2 * 2e-3 or rows == 1
    assert seconds >= 0.4 * 2e-3 or rows == 4096


@given(st.floats(1e-6, 1e-4), st.floats(1e-7, 1e-5))
def test_longer_slices_have_fewer_rows(fixed: float, each: float) -> None:
    costs = Costs(2e-3)
    for exponent in range(9):
        for rows_exponent in range(13):
            size = 1 << (exponent + rows_exponent)
            costs.observe(1 << rows_exponent, 1 << exponent, _affine(fixed, each, size))
    rows = [costs.rows(1 << exponent, most=4096) for exponent in range(9)]
    assert rows == sorted(rows, reverse=True)


def test_a_size_that_was_too_dear_once_is_tried_again() -> None:
    """Costs of one run may be those of a machine that was busy; a size that never runs would never be corrected."""
    costs, sizes = Costs(2e-3), list[int]()
    costs.observe(1, 1, 1.5e-3)
    costs.observe(2, 1, 9e-3)
    for _ in range(600):
        sizes.append(costs.rows(1, most=64))
        costs.observe(sizes[-1], 1, 1.4e-3 + 1e-5 * sizes[-1])
    assert sizes[0] == 1
    assert sizes[-1] > 16, "and from then on it is known what the next one costs"


def test_unmeasured_costs_start_small() -> None:
    assert Costs(2e-3).rows(1, most=4096) == 64
    assert Costs(2e-3).rows(1, most=3) == 3
    assert Costs(2e-3).predict(100) == float("inf"), "what nobody measured runs beside the loop"


@given(before=st.floats(1e-6, 1e-4), factor=st.floats(2, 50))
def test_limits_follow_costs_that_change(before: float, factor: float) -> None:
    costs, limits = Costs(2e-3), list[int]()
    for each in (before, before * factor, before):
        for _ in range(100):
            costs.observe(8, 1, 8 * each)
            costs.rows(1, most=4096)
        limits.append(costs.rows(1, most=4096))
    assert limits[0] == pytest.approx(min(4096, max(1, 2e-3 / before)), rel=0.01, abs=1)
    assert limits[1] == pytest.approx(min(4096, max(1, 2e-3 / (before * factor))), rel=0.01, abs=1)
    assert limits[2] == pytest.approx(limits[0], rel=0.01, abs=1)


def test_a_step_after_another_is_no_row_beside_another() -> None:
    """256 rows of one step say nothing of one row of 256 steps, once both were measured."""
    costs = Costs(2e-3)
    costs.observe(256, 1, 0.4e-3)
    costs.observe(1, 256, 5e-3)
    assert costs.predict(256, 1) == pytest.approx(0.4e-3)
    assert costs.predict(1, 256) == pytest.approx(5e-3)
    assert costs.rows(1, most=4096) > 256


@given(st.floats(1e-6, 1e-3))
def test_slices_are_as_long_as_fits_the_target(each: float) -> None:
    """Fed with its own slices, the longest settles where one row takes at most the target, and about no less."""
    costs = Costs(2e-3)
    for _ in range(20):
        steps = costs.longest(256)
        costs.observe(1, steps, each * steps)
    steps = costs.longest(256)
    assert each * steps <= 2e-3
    assert steps == 256 or 2 * each * steps > 2e-3


@given(st.floats(1e-6, 1e-3), st.floats(1, 1000), st.floats(1, 1000))
def test_a_slow_run_does_not_shorten_slices_for_good(each: float, first: float, later: float) -> None:
    """Runs that met a bad moment, the first one or a later one, are corrected by those that follow."""
    costs, slow = Costs(2e-3), {0: first, 20: later}
    for number in range(40):
        steps = costs.longest(256)
        costs.observe(1, steps, each * steps * slow.get(number, 1))
    steps = costs.longest(256)
    assert each * steps <= 2e-3 * 1.05
    assert steps == 256 or 2 * each * steps > 2e-3 / 1.05
