"""The simulation itself: one seed is one schedule, and schedules without a fault keep every promise."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections import Counter

import pytest

import statestream
import statestream_server
from statestream_server.arrays import Ints
from statestream_server.sessions.admission.chunks import Chunks
from statestream_server.sessions.admission.intake import Intake
from tests.simulation import plan, replaced
from tests.simulation.plan import draw
from tests.simulation.world import simulate

NOT_SIMULATED = (
    "statestream.sync",
    "statestream.command",
    "statestream_server.edges.grpc.served",
    "statestream_server.edges.h2",
    "statestream_server.workers",
    "statestream_server.process",
)
"""The other twin, the command, the edge under which the simulated network does not lie, and what starts processes."""

BITING = (
    *plan._FAULTS,
    "two replicas",
    "killed s",
    "killed c",
    "cut",
    "the store fails",
    "cancelled",
    "repeated",
    "late",
    "a clock is wrong",
)
"""Kinds of faults of plans, and what must be seen to come of them: `late` are deadlines, `repeated` kept replies."""

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_is_the_same_schedule(seed: int) -> None:
    one, other = simulate(draw(seed)), simulate(draw(seed))
    assert one.digest == other.digest
    assert one.callbacks == other.callbacks > 100


@pytest.mark.parametrize("seed", [301713, 502267, 9001309, 26013781, 26042790])
def test_schedules_that_broke_a_promise_keep_it(seed: int) -> None:
    """Forks of a history that their callers never had; a durable position that counted what was never saved; opens that
    others outbid, told as unanswered."""
    assert simulate(draw(seed)).violations == ()


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


@pytest.mark.slow
def test_each_kind_of_fault_is_drawn_and_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in what servers, clients and store were seen to do, not in what a plan says."""
    seen: Counter[str] = Counter()

    def repeat(self: Intake, chunks: Chunks, entries: Ints) -> None:
        seen["repeated"] += 1
        kept(self, chunks, entries)

    kept = Intake._repeat
    monkeypatch.setattr(Intake, "_repeat", repeat)
    for seed in range(60):
        for line in simulate(draw(seed), log=True).log:
            _, what, *more = line.split()
            if what == "fault":
                seen[more[0]] += 1
            elif what == "killed":
                seen["killed " + more[0][0]] += 1
            elif what == "ready":
                seen["two replicas"] += more[0].startswith("s1")
            elif what == "store":
                seen["the store fails"] += "fails" in more
                seen["a clock is wrong"] += more[1] == "claim" and any(map(_is_far, more[2:]))
            else:
                seen[what] += 1
                seen["cancelled"] += more[-1:] == ["cancelled"]
    assert {kind for kind in BITING if not seen[kind]} == set()


def _is_far(claim: str) -> bool:
    """Whether a claim's incarnation, a time in microseconds, is of another time."""
    numbers = claim.split("/")
    return len(numbers) == 4 and abs(int(numbers[2]) / 1e6 - replaced.BEGAN) > 30
