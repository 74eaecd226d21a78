"""The search: every schedule of events, breadth first, each state once.

Besides the invariants that events check, every state must be able to finish: from there, without a further
fault, the client gets the rest of its outputs and the store all inputs, or the application is told why not.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

from tests.model.rules import ALL, Rules, Setting
from tests.model.state import State, Violation, start
from tests.model.world import Event, apply, calm, check, finished, next_fair, successors

LONGEST_WAY = 200
"""Events within which a state must finish once nothing fails any more."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        states: Distinct states seen.
        depth: Events of the longest schedule looked at.
        complete: Whether every reachable state was seen.
        seconds: How long it took.
        violation: The invariant that broke, or "".
        schedule: The shortest events that lead there.
        end: The state before the last of them, or the one that never finishes.
    """

    states: int
    depth: int
    complete: bool
    seconds: float
    violation: str = ""
    schedule: tuple[Event, ...] = ()
    end: State | None = None


def explore(setting: Setting, rules: Rules = ALL, *, most_states: int = 10_000_000, wanted: str = "") -> Found:
    """Searches every schedule up to the setting's depth, or to the first violation.

    States are told apart by a 64-bit hash: among a million of them two that differ are taken for one with a
    probability of some 10⁻⁸. Of old states only the hash, the parent and the event's number are kept.

    Args:
        setting: Chunks, faults, depth.
        rules: The rules that hold.
        most_states: Where to stop.
        wanted: Words of the violation that is looked for; others end their schedule, and not the search.
    """
    began = time.perf_counter()
    first = start(setting)
    seen, fine = {hash(first)}, set[int]()
    parents, choices = array("q", [-1]), array("b", [-1])
    level, depth = [(0, first)], 0
    while level and depth < setting.depth and len(parents) < most_states:
        following: list[tuple[int, State]] = []
        for number, state in level:
            for choice, (event, after) in enumerate(successors(state, rules)):
                if isinstance(after, Violation) and wanted not in str(after):
                    continue
                if isinstance(after, Violation):
                    schedule = (*_schedule(setting, rules, parents, choices, number), event)
                    seconds = time.perf_counter() - began
                    return Found(len(parents), depth + 1, False, seconds, str(after), schedule, state)
                key = hash(after)
                if key in seen:
                    continue
                seen.add(key)
                parents.append(number)
                choices.append(choice)
                following.append((len(parents) - 1, after))
                if not _finishes(after, rules, fine):
                    schedule = _schedule(setting, rules, parents, choices, len(parents) - 1)
                    text = "from here on the client never gets on, or the store never catches up"
                    return Found(len(parents), depth + 1, False, time.perf_counter() - began, text, schedule, after)
        level = following
        depth += bool(following)
    return Found(len(parents), depth, not level, time.perf_counter() - began)


def _finishes(state: State, rules: Rules, fine: set[int]) -> bool:
    """Whether a state finishes once the faults are over; `fine` has the hashes of those that do."""
    path: list[int] = []
    state = calm(state)
    while not finished(state, rules):
        key = hash(state)
        if key in fine:
            break
        path.append(key)
        try:
            step = next_fair(state, rules)
        except Violation:
            break  # The search comes to it by itself, on a shortest schedule.
        if step is None or len(path) > LONGEST_WAY:
            return False
        state = step[1]
    fine.update(path)
    return True


def _schedule(
    setting: Setting, rules: Rules, parents: array[int], choices: array[int], number: int
) -> tuple[Event, ...]:
    """The events that led to a state."""
    wanted: list[int] = []
    while number:
        wanted.append(choices[number])
        number = parents[number]
    state, events = start(setting), list[Event]()
    for choice in reversed(wanted):
        for at, (event, after) in enumerate(successors(state, rules)):
            if at == choice and isinstance(after, State):
                events.append(event)
                state = after
                break
    return tuple(events)


def replay(setting: Setting, rules: Rules, schedule: tuple[Event, ...]) -> list[State]:
    """The states before each event of a schedule, and the last one that can be reached."""
    states = [start(setting)]
    for event in schedule:
        try:
            after = apply(states[-1], rules, event)
            if after is not None:
                check(after, rules)
        except Violation:
            break
        if after is None:
            raise ValueError(f"{event} is not possible after {len(states) - 1} events of this schedule")
        states.append(after)
    return states
