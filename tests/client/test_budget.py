"""How long callers wait for a server that gets them nowhere."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2

from statestream import errors
from statestream.budget import MAX_FAULTS, RetryBudget

AWAY = errors.ServerUnavailable("away")
FAULT = errors.InternalError("a fault")


def test_waiting_is_counted_from_the_last_answer() -> None:
    budget = RetryBudget(10.0, ["here"])
    assert budget.verdict(busy=True, progress=0, now=0.0, cause=AWAY) is None
    assert budget.verdict(busy=True, progress=1, now=9.0, cause=AWAY) is None
    assert budget.verdict(busy=True, progress=1, now=19.0, cause=AWAY) is None
    error = budget.verdict(busy=True, progress=1, now=19.1, cause=AWAY)
    assert isinstance(error, errors.ServerUnavailable)
    assert "10.1 s" in error.message
    assert budget.verdict(busy=True, progress=1, now=20.0, cause=AWAY) is None


def test_nobody_who_waits_is_told_nothing() -> None:
    budget = RetryBudget(10.0, ["here"])
    budget.verdict(busy=True, progress=0, now=0.0, cause=AWAY)
    assert budget.verdict(busy=False, progress=0, now=100.0, cause=AWAY) is None
    assert budget.verdict(busy=True, progress=0, now=101.0, cause=AWAY) is None


def test_faults_in_a_row_end_it_sooner_and_an_answer_between_them_does_not() -> None:
    budget = RetryBudget(10.0, ["here"])
    for n in range(3 * MAX_FAULTS):
        budget.ended(FAULT, progress=n)
        assert budget.verdict(busy=True, progress=n, now=0.1 * n, cause=FAULT) is None
    for _ in range(MAX_FAULTS - 1):
        budget.ended(FAULT, progress=3 * MAX_FAULTS - 1)
    error = budget.verdict(busy=True, progress=3 * MAX_FAULTS - 1, now=2.0, cause=FAULT)
    assert isinstance(error, errors.InternalError)
    assert "a fault" in error.message


@pytest.mark.parametrize("code", [1000, -1, 2, 13, 15])
def test_a_code_without_a_reason_of_ours_is_an_internal_error(code: int) -> None:
    error = errors.from_status(status_pb2.Status(code=code, message="what"))
    assert type(error) is errors.InternalError
    assert error.message == "what"
