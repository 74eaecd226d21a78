"""What the simulation is asked: how large a fleet is, and how long callers wait where parts of it are lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from benchmarks.figures import rounded
from benchmarks.scale.fleet import Costs, Outcome, Setting, calls, quantile, simulate

SIZE: Final = 1000
"""Sessions of a stream: a gateway's, or a pool's."""
BUSY: Final = 0.5
"""How busy a replica and a shard are to be while nothing is lost: a third of them can be spared then."""
NOTICE, FAILOVER = 3.0, 5.0
"""Of a zone that falls silent: seconds until callers notice with `keepalive=2`, and until shards have failed over."""
ASKED: Final = ((10**6, 1.0), (10**6, 10.0), (10**7, 1.0), (10**7, 10.0), (10**8, 10.0))
"""Sessions, and seconds between saves."""
RUNS: Final = (
    Setting(2, 1, 24, 500, period=0.25, seconds=9.0, kill_at=5.0, killed=1, cores=2),
    Setting(3, 1, 24, 500, period=0.25, seconds=9.0, kill_at=5.0, killed=1, cores=2),
)
"""What is run on this machine and simulated, to compare."""
COMPARED: Final = ("replica_seconds", "redis_seconds", "steady_p50", "steady_p99", "pause_p50", "pause_max")
"""The figures that a real run and a simulated one both have."""


@dataclass(frozen=True)
class Size:
    """A fleet for so many sessions that step once a second.

    Attributes:
        replicas: Processes that serve, a processor each.
        shards: Redis primaries, a processor each.
        callers_gbit: Gigabits a second between callers and replicas, both ways.
        store_gbit: Gigabits a second from replicas to Redis.
        store_gbyte: Memory of all shards together, replicas of Redis not counted.
    """

    sessions: int
    save_interval: float
    replicas: int
    shards: int
    callers_gbit: float
    store_gbit: float
    store_gbyte: float


def costs_of(measured: Mapping[str, Mapping[str, float]]) -> Costs:
    """The medians of what was measured."""
    found = {name: float(one["median"]) for name, one in measured.items()}
    names = Costs.__dataclass_fields__
    return Costs(**{name: max(0.0, found[name]) for name in names if name in found}, round_trip=found["trip"])


def size_of(costs: Costs, measured: Mapping[str, Mapping[str, float]], sessions: int, interval: float) -> Size:
    """The smallest fleet that is as busy as it may be, every session stepping once a second."""
    saves = 1 / max(1.0, interval)
    step = costs.frame / SIZE + costs.step
    # How many are saved at once depends on how many a replica has, on which the cost of a call depends.
    each, replicas = float(SIZE), 1
    for _ in range(20):
        record = costs.record + costs.call * calls(each) / each
        replicas = max(3, math.ceil(sessions * (step + saves * record) / BUSY))
        each = sessions / replicas
    shard_record = costs.shard_record + costs.shard_call * calls(each) / each
    wire = {name: measured[name]["median"] for name in ("step_wire", "record_wire", "record_memory")}
    return Size(
        sessions,
        interval,
        replicas,
        max(3, math.ceil(sessions * saves * shard_record / BUSY)),
        sessions * wire["step_wire"] * 8e-9,
        sessions * saves * wire["record_wire"] * 8e-9,
        sessions * wire["record_memory"] * 1e-9,
    )


def losses(size: Size) -> Iterator[tuple[str, Setting]]:
    """What is lost of a fleet: a replica, five, and a third of everything, which falls silent."""
    whole = Setting(
        size.replicas, size.shards, size.sessions // SIZE, SIZE, save_interval=size.save_interval, seconds=7.0,
        kill_at=4.0,
    )  # fmt: skip
    yield "one", replace(whole, killed=1)
    yield "five", replace(whole, killed=min(5, size.replicas - 1))
    yield (
        "zone",
        replace(
            whole, killed=size.replicas // 3, shards_down=size.shards // 3, notice=NOTICE, failover=FAILOVER,
            seconds=13.0,
        ),
    )  # fmt: skip


def setting_of(recorded: Mapping[str, Any]) -> Setting:
    """What was written down of a setting."""
    return Setting(**recorded)


def said(outcome: Outcome) -> dict[str, Any]:
    """The figures of an outcome."""
    return {
        "steady_p50": rounded(quantile(outcome.steady, 0.5)),
        "steady_p99": rounded(quantile(outcome.steady, 0.99)),
        "pause_p50": rounded(quantile(outcome.pauses, 0.5)),
        "pause_p99": rounded(quantile(outcome.pauses, 0.99)),
        "pause_max": rounded(quantile(outcome.pauses, 1.0)),
        "elsewhere_p99": rounded(quantile(outcome.elsewhere, 0.99)),
        "replica_busy": rounded(float(outcome.replica_busy[outcome.setting.killed :].mean())),
        "shard_busy": rounded(float(outcome.shard_busy.mean())),
        "unanswered": outcome.queued,
    }


def compared(costs: Costs, setting: Setting) -> dict[str, float]:
    """The figures of a real run, as simulated: medians over five seeds."""
    each = []
    for seed in range(5):
        found = simulate(costs, replace(setting, seed=seed))
        busy = simulate(costs, replace(setting, seed=seed, killed=0, seconds=setting.kill_at))
        pauses = np.asarray(found.pauses)
        each.append(
            {
                "replica_seconds": float(busy.replica_busy.sum()),
                "redis_seconds": float(busy.shard_busy.sum()),
                "steady_p50": quantile(found.steady, 0.5),
                "steady_p99": quantile(found.steady, 0.99),
                "pause_p50": quantile(pauses, 0.5),
                "pause_max": quantile(pauses, 1.0),
            }
        )
    return {name: float(np.median([one[name] for one in each])) for name in COMPARED}


def asked(measured: Mapping[str, Mapping[str, float]], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All fleets, and what happens to each."""
    costs, found = costs_of(measured), list[dict[str, Any]]()
    for sessions, interval in ASKED:
        size = size_of(costs, measured, sessions, interval)
        lost = dict[str, Any]()
        for name, setting in losses(size):
            say(f"{sessions:,} sessions saved every {interval:g} s, {size.replicas} replicas: {name} lost")
            lost[name] = {"killed": setting.killed, "shards_down": setting.shards_down} | said(simulate(costs, setting))
        found.append({name: rounded(value) for name, value in asdict(size).items()} | {"lost": lost})
    return found
