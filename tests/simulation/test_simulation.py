"""The simulation itself: one seed is one schedule, and schedules without a fault keep every promise."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

import statestream
import statestream_server
from tests.simulation import replaced
from tests.simulation.plan import draw
from tests.simulation.world import simulate

NOT_SIMULATED = ("statestream.sync", "statestream.command", "statestream_server.workers", "statestream_server.process")
"""The other twin, the command, and what starts processes."""

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_is_the_same_schedule(seed: int) -> None:
    one, other = simulate(draw(seed)), simulate(draw(seed))
    assert one.digest == other.digest
    assert one.callbacks == other.callbacks > 100


def test_other_seeds_are_other_schedules() -> None:
    assert len({simulate(draw(seed)).digest for seed in range(8)}) == 8


def test_schedules_without_faults_keep_every_promise() -> None:
    outcomes = {seed: simulate(dataclasses.replace(draw(seed), faults=())) for seed in range(13)}
    assert {seed: outcome.violations for seed, outcome in outcomes.items() if outcome.violations} == {}
    assert sum(outcome.answered for outcome in outcomes.values()) > 100


def test_crashes_cuts_and_store_faults_keep_every_promise() -> None:
    outcomes = {seed: simulate(draw(seed)) for seed in range(13)}
    assert {seed: outcome.violations for seed, outcome in outcomes.items() if outcome.violations} == {}
    assert any(draw(seed).faults for seed in outcomes)


@pytest.mark.parametrize("seed", [113, 196, 1235])
def test_whoever_asks_for_a_session_that_is_restored_meanwhile_is_answered(seed: int) -> None:
    assert simulate(draw(seed)).violations == ()


def test_what_is_replaced_is_there() -> None:
    for name in (*replaced.REPLACED, *replaced.KEPT):
        replaced.resolve(name)


def test_no_other_module_reads_a_real_clock_or_draws() -> None:
    names = [
        module.name
        for package in (statestream, statestream_server)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.startswith(NOT_SIMULATED)
    ]
    real = set(map(id, replaced.REAL))
    found = {
        f"{name}.{attribute}"
        for name in names
        for attribute, value in vars(importlib.import_module(name)).items()
        if id(value) in real
    }
    assert len(names) > 150
    assert found == {*replaced.CLOCKS, *replaced.DRAWS, *replaced.KEPT} - {"statestream.shards.os"}
