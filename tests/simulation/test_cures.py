"""The simulation finds the faults that it was made for: each cure is taken out, and the oracle must complain.

Plans are made for the kind of fault, small, and drawn here: how `plan.draw` draws does not change what they mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from statestream_server.arrays import Ints
from statestream_server.engine.table import UNBOUND, Table
from statestream_server.sessions.ownership.claims import Claims
from statestream_server.sessions.ownership.placement import Placement
from statestream_server.sessions.writes import Writes
from statestream_server.settings import Durability
from tests.simulation.plan import Calls, Fault, Operation, Plan
from tests.simulation.replaced import replacing
from tests.simulation.world import simulate

pytestmark = pytest.mark.timeout(60)

SESSIONS = "statestream_server.sessions"
SEARCHED = 200
"""Schedules at most: nearly always one of the first ten or, for A5, thirty shows it."""


@dataclass(frozen=True)
class Cure:
    """One cure.

    Attributes:
        rule: What holds with it.
        without: What takes the place of which shipped name when it is taken out.
        plan: The schedule of a seed.
        said: What is in the oracle's complaint then.
    """

    rule: str
    without: dict[str, Any]
    plan: Callable[[int], Plan]
    said: str


# What stood in place of the cures.


def _states_left_out(copies: bool) -> dict[str, Any]:
    """Claims without the states of new sessions, which are written behind them, as any other state is."""

    def _carried(self: Any, opening: Any, table: Table, moves: Any) -> dict[int, Any]:
        if (opening.owner == UNBOUND) is copies:
            return {place: move.carried for place, move in moves.items()}
        return carried(self, opening, table, moves)

    def installed(self: Any, opening: Any, group: Any, held: Any, promise: Any) -> Any:
        opened = install(self, opening, group, held, promise)
        table, rows = opened.table, opened.rows[opened.created]
        table.dirty[rows] = True
        table.queued[rows] = table.position[rows]
        return opened

    carried, install = Claims._carried, Placement.install
    return {
        f"{SESSIONS}.ownership.claims.Claims._carried": _carried,
        f"{SESSIONS}.ownership.placement.Placement.install": installed,
    }


def _fence(claim: Any, kept: Any, epoch: int, *, held: bool) -> int:
    """A claim fences whatever was before it, the row of the process that asked for it as well."""
    return epoch


def _is_there(target: Any) -> bool:
    """The session is compared, not the claim."""
    return bool(target.table.serial[target.row] == target.claims[0][0])


async def _settled(self: Any, target: Any) -> None:
    table, rows = target.table, np.asarray([target.row])
    while _is_there(target) and (table.claiming[target.row] or not table.lane.idle(rows).all()):
        await self._sessions.undisputed(table, rows)
        await self._engine.settled(table, rows)


def _claimed_during_its_save() -> dict[str, Any]:
    """A row that is claimed anew during its save is neither durable nor dirty."""

    def _settle(self: Writes, table: Table, capture: Any, saved: Any, asked: Any) -> Ints:
        rows = capture.rows
        anew = rows[(table.serial[rows] == capture.serials) & (table.epoch[rows] != capture.epochs)]
        dirty = table.dirty[anew].copy()
        fenced = settle(self, table, capture, saved, asked)
        table.dirty[anew] = dirty
        return fenced

    def installed(self: Any, opening: Any, group: Any, held: Any, promise: Any) -> Any:
        table, rows = group.table, group.rows[group.kept]
        dirty = table.dirty[rows].copy()
        opened = install(self, opening, group, held, promise)
        table.dirty[rows] = dirty
        return opened

    settle, install = Writes._settle, Placement.install
    return {
        f"{SESSIONS}.writes.Writes._settle": _settle,
        f"{SESSIONS}.ownership.placement.Placement.install": installed,
    }


# Schedules in which they are met.


def _plan(
    r: random.Random, seed: int, durability: Durability, callers: list[Calls], faults: list[Fault], store: float = 0.0
) -> Plan:
    """One server, two sessions; a store that takes up to `store` seconds for each way."""
    return Plan(
        seed,
        durability,
        interval=r.choice((0.3, 1.0)),
        servers=1,
        sessions=2,
        wild=2,
        callers=tuple(callers),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        jitter=r.choice((0.0, 0.002)),
        stalls=0.0,
        slow_network=r.choice((0.0005, 0.005)),
        slow_store=store or r.choice((0.005, 0.05)),
    )


def _crashes(r: random.Random) -> list[Fault]:
    return [Fault("crash", 0.2 + 0.5 * n + 0.5 * r.random(), 0, 0.05) for n in range(3)]


def _made(kind: str) -> Callable[[int], Plan]:
    """Sessions are made all the time, and the server is killed."""

    def plan(seed: int) -> Plan:
        r = random.Random(f"{kind} {seed}")
        callers = [
            Calls(client, tuple(Operation(kind, client, 0.1 * r.random(), 1) for _ in range(8))) for client in range(2)
        ]
        return _plan(r, seed, r.choice((Durability.INTERVAL, Durability.SYNC)), callers, _crashes(r))

    return plan


def _claims_fail(seed: int) -> Plan:
    """A session is stepped while another client opens it, and the store fails, often behind what it did."""
    r = random.Random(f"fence {seed}")
    steps = tuple(Operation("step", 0, 0.05 * r.random()) for _ in range(25))
    opens = tuple(Operation("open", 0, 0.3 * r.random()) for _ in range(5))
    faults = [Fault("store_fails", 1.5 * r.random(), 0, 0.3, 0.4 + 0.6 * r.random()) for _ in range(3)]
    return _plan(r, seed, Durability.INTERVAL, [Calls(0, steps), Calls(1, opens)], faults)


def _unary_beside_opens(seed: int) -> Plan:
    """Calls without a stream, and a client that opens the same session anew and steps it."""
    r = random.Random(f"unary {seed}")
    unary = Calls(99, tuple(Operation("unary_step", 0, 0.3 * r.random()) for _ in range(12)), unary=True)
    client = Calls(0, tuple(Operation(one, 0, 0.1 * r.random()) for _ in range(4) for one in ("open", "step", "close")))
    return _plan(r, seed, Durability.INTERVAL, [unary, client], [], store=0.1)


def _claimed_during_saves(seed: int) -> Plan:
    """A client opens a session while the record of another's step is on its way; then nothing happens to it."""
    r = random.Random(f"settle {seed}")
    steps = Calls(0, (Operation("open", 0, 0.0), Operation("step", 0, 0.5 * r.random())))
    opens = Calls(
        1, (Operation("open", 1, 0.0), Operation("open", 0, 0.2 + 0.7 * r.random()), Operation("flush", 0, 0))
    )
    return _plan(r, seed, Durability.SYNC, [steps, opens], [], store=0.3)


CURES = {
    "A1": Cure(
        "a claim carries the state of a new session: both are one write",
        _states_left_out(copies=False),
        _made("born"),
        "it does not begin with what it was made of",
    ),
    "A2": Cure(
        "a claim of which nobody heard takes nothing from the row that its own process has",
        {"statestream_server.stores.rules._fence": _fence},
        _claims_fail,
        "was safe",
    ),
    "A3 fork": Cure(
        "a fork is there with its state, or not at all",
        _states_left_out(copies=True),
        _made("fork"),
        "it does not begin with what it was made of",
    ),
    "A3 restore": Cure(
        "a restored session is there with its state, or not at all",
        _states_left_out(copies=True),
        _made("snapshot"),
        "it does not begin with what it was made of",
    ),
    "A4": Cure(
        "a chunk runs under the claim that its call found, or not at all",
        {f"{SESSIONS}.unary.Unary._is_there": staticmethod(_is_there), f"{SESSIONS}.unary.Unary._settled": _settled},
        _unary_beside_opens,
        "a claim that was not the newest",
    ),
    "A5": Cure(
        "a row that is claimed anew during its save is saved again",
        _claimed_during_its_save(),
        _claimed_during_saves,
        "though nothing was wrong",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CURES)
def test_a_fault_is_found_where_its_cure_is_taken_out_and_not_where_it_is_in(name: str) -> None:
    cure = CURES[name]
    for seed in range(SEARCHED):
        assert simulate(cure.plan(seed)).violations == (), seed
        with replacing(cure.without):
            found = simulate(cure.plan(seed)).violations
        if any(cure.said in one for one in found):
            return
    raise AssertionError(f"{SEARCHED} schedules do not show that {cure.rule}")
