"""The protocol's model: with all rules nothing breaks, without any one of them something does."""

from __future__ import annotations

import functools

import pytest

from tests.model import words
from tests.model.explorer import explore, replay
from tests.model.rules import ALL, NAMES, Faults, Setting
from tests.model.settings import CURES, FOUND_AS, HOLDS, HOLDS_LONGER, HOLDS_SLOWLY, SHOWN_BY
from tests.model.state import State
from tests.model.world import finished, next_fair

_with_all_rules = functools.cache(explore)
"""Several rules and faults share a setting; what holds there with all rules is found once."""


@pytest.mark.parametrize(
    "setting",
    [*HOLDS, *(pytest.param(setting, marks=pytest.mark.slow) for setting in HOLDS_SLOWLY)],
    ids=words.faults,
)
def test_no_schedule_breaks_an_invariant(setting: Setting) -> None:
    found = _with_all_rules(setting)
    told = words.sentences(setting, ALL, found) if found.violation else []
    assert not told, "\n".join(told)
    assert found.complete


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("setting", HOLDS_LONGER, ids=words.faults)
def test_no_long_schedule_breaks_an_invariant(setting: Setting) -> None:
    found = explore(setting)
    told = words.sentences(setting, ALL, found) if found.violation else []
    assert not told, "\n".join(told)
    assert found.complete or found.depth == setting.depth


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_is_needed(name: str) -> None:
    setting = SHOWN_BY[name]
    found = explore(setting, ALL.without(name), most_states=200_000)
    assert found.violation, f"nothing breaks without {name}"
    assert not _with_all_rules(setting).violation, "the faults alone are no reason"
    # The schedule is one that can be followed, and every event of it has its words.
    assert len(replay(setting, ALL.without(name), found.schedule)) >= len(found.schedule)
    assert len(words.sentences(setting, ALL.without(name), found)) > len(found.schedule)


@pytest.mark.parametrize("fault", CURES)
def test_each_fault_is_found_without_its_cure(fault: str) -> None:
    name, setting = CURES[fault]
    rules = ALL.without(name)
    found = explore(setting, rules, most_states=10_000, wanted=FOUND_AS.get(fault, ""))
    assert found.violation, f"without {name}, {fault!r} was not found"
    print(*words.sentences(setting, rules, found), sep="\n")
    assert not _with_all_rules(setting).violation, "the faults alone are no reason"


def test_every_rule_has_its_setting() -> None:
    assert set(SHOWN_BY) == set(NAMES)


def test_without_faults_the_client_gets_everything() -> None:
    state: State = replay(Setting(3, Faults()), ALL, ())[0]
    events = 0
    while (step := next_fair(state, ALL)) is not None and not finished(state, ALL):
        state, events = step[1], events + 1
    assert finished(state, ALL)
    assert state.client.delivered == 3
    assert state.store.record is not None
    assert state.store.record.memory == (0, 1, 2)
    assert events > 12
