"""The simulation of scale: its laws, what can be computed without it, and that docs/scale.md says its figures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import figures
from benchmarks.scale import ask, page
from benchmarks.scale.fleet import Costs, Fleet, Outcome, Setting, calls, quantile, simulate
from statestream_server.stores.redis_keys import BUCKETS

COSTS = Costs(
    frame=1e-3, step=2e-6, record=1e-5, call=4e-6, claim=4e-5, shard_record=1e-5, shard_call=1e-6, shard_claim=1e-5
)

small = st.builds(
    Setting,
    replicas=st.integers(2, 8),
    shards=st.integers(1, 5),
    streams=st.integers(1, 30),
    size=st.integers(1, 2000),
    period=st.sampled_from([0.25, 1.0]),
    seconds=st.floats(1.0, 5.0),
    kill_at=st.floats(0.5, 3.0),
    killed=st.integers(0, 1),
    shards_down=st.integers(0, 1),
    failover=st.floats(0.0, 2.0),
    save_interval=st.sampled_from([0.5, 1.0, 10.0]),
    notice=st.sampled_from([0.0, 1.0]),
    cores=st.sampled_from([0, 2]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60, deadline=None)
@given(small)
def test_what_arrived_was_served_or_waits(setting: Setting) -> None:
    found = simulate(COSTS, setting)
    assert found.arrived == found.served + found.queued
    assert found.served == len(found.late) * setting.size
    assert (found.late > 0).all()


@settings(max_examples=60, deadline=None)
@given(small)
def test_it_keeps_littles_law(setting: Setting) -> None:
    """As many steps are under way on average as arrive in the time that one takes on average."""
    found = simulate(COSTS, setting)
    if not found.queued and found.served:
        assert found.in_system == pytest.approx(found.served / found.elapsed * found.late.mean(), rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 6), st.integers(10, 40), st.integers(100, 1500), st.integers(0, 100))
def test_more_replicas_never_make_a_pause_longer(replicas: int, streams: int, size: int, seed: int) -> None:
    """Over several seeds, because a single drawn choice of homes can be luckier with fewer."""

    def pause(count: int) -> float:
        of = Setting(count, 3, streams, size, seconds=8.0, kill_at=4.0, killed=1)
        return float(np.mean([quantile(simulate(COSTS, replace(of, seed=seed + n)).pauses, 0.9) for n in range(6)]))

    one_frame = COSTS.frame + size * (COSTS.step + COSTS.claim + COSTS.record)
    # A pause of one frame or two is what is drawn.
    assert pause(4 * replicas) <= pause(replicas) + 3 * one_frame


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 1000), st.integers(0, 100))
def test_work_is_what_was_asked_however_many_do_it(replicas: int, streams: int, size: int, seed: int) -> None:
    """While nothing saturates, replicas together work for the frames, steps and records that there were."""
    setting = Setting(replicas, 2, streams, size, seconds=6.0, save_interval=1.0, seed=seed)
    costs = replace(COSTS, call=0.0)
    found = simulate(costs, setting)
    done = found.replica_busy.sum() * setting.seconds
    saved = streams * size * costs.record
    steps = found.arrived * costs.step + found.arrived / size * costs.frame
    if found.replica_busy.max() < 0.9:
        assert steps + 4 * saved <= done * 1.02 + saved
        assert done <= steps * 1.02 + 8 * saved


def test_a_queue_is_as_long_as_theory_says() -> None:
    """Many streams of one session each at one replica that saves nothing: M/D/1, nearly."""
    costs = replace(
        COSTS, frame=0.004, step=0.0, record=0.0, call=0.0, shard_record=0.0, shard_call=0.0, round_trip=0.0
    )
    waits = []
    for seed in range(8):
        found = simulate(costs, Setting(1, 1, 150, 1, seconds=30.0, kill_at=29.0, save_interval=40.0, seed=seed))
        waits.append(found.steady.mean() - 0.004)
    busy = 150 * 0.004
    theory = 0.004 * busy / (2 * (1 - busy))
    # Periodic streams collide less than those of a Poisson process do.
    assert 0.3 * theory < float(np.mean(waits)) <= 1.1 * theory


def test_the_same_seed_is_the_same_run() -> None:
    setting = Setting(3, 2, 20, 100, killed=1)
    assert simulate(COSTS, setting).late.tolist() == simulate(COSTS, setting).late.tolist()


def test_a_kill_is_noticed_by_those_who_were_served_there() -> None:
    found = simulate(COSTS, Setting(4, 2, 40, 200, period=0.1, killed=1))
    assert set(np.unique(found.stream[found.victims])) == set(range(0, 40, 4))
    assert len(found.pauses) == 10
    assert np.median(found.pauses) > COSTS.reconnect / 2
    assert found.pauses.max() > found.elsewhere.max()
    assert found.queued == 0


def test_a_longer_failover_makes_the_pause_longer() -> None:
    def pause(failover: float) -> float:
        return float(simulate(COSTS, Setting(3, 3, 30, 100, killed=1, shards_down=1, failover=failover)).pauses.max())

    assert pause(0.0) < pause(1.0) < pause(3.0)


def test_calls_are_records_while_there_are_few_and_buckets_where_there_are_many() -> None:
    assert calls(10) == pytest.approx(10, rel=0.01)
    assert calls(10**6) == pytest.approx(BUCKETS)


def test_an_overloaded_fleet_says_that_it_leaves_steps_unanswered() -> None:
    found: Outcome = Fleet(replace(COSTS, step=2e-3), Setting(1, 1, 50, 100, seconds=4.0)).run()
    assert found.queued > 0
    assert found.replica_busy.max() > 0.85


def test_the_page_says_what_the_figures_say() -> None:
    known, written = figures.load(page.FILE), page.PAGE.read_text("utf-8")
    assert set(known) == {"costs", "runs", "asked"}
    assert page.filled(written, known) == written, "python -m benchmarks.scale page writes the page anew"


def test_the_sizes_follow_from_the_costs() -> None:
    known = figures.load(page.FILE)
    measured = known["costs"]["figures"]
    for one, (sessions, interval) in zip(known["asked"]["figures"], ask.ASKED, strict=True):
        size = ask.size_of(ask.costs_of(measured), measured, sessions, interval)
        assert (one["sessions"], one["save_interval"]) == (sessions, interval)
        assert one["replicas"] == figures.rounded(size.replicas)
        assert one["shards"] == figures.rounded(size.shards)
        assert all(lost["unanswered"] == 0 for lost in one["lost"].values())


def test_processor_time_is_predicted() -> None:
    """What sizes follow from; lateness on a busy machine is not (docs/scale.md)."""
    known = figures.load(page.FILE)
    costs = ask.costs_of(known["costs"]["figures"])
    for run in known["runs"]["figures"]:
        found = ask.compared(costs, ask.setting_of(run["setting"]))
        for name in ("replica_seconds", "redis_seconds"):
            assert found[name] == pytest.approx(run["measured"][name]["median"], rel=0.3)


def test_the_page_shows_its_pictures() -> None:
    shown = set(re.findall(r"\(images/(scale-\w+\.png)\)", page.PAGE.read_text("utf-8")))
    assert shown == {file.name for file in figures.IMAGES.glob("scale-*.png")}
