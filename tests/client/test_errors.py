"""The table of errors: each reason has one class and one code, and travels as a status and back."""

from __future__ import annotations

from statestream import errors
from tests.support.calls import Failure, failure_of


def test_every_reason_has_one_class_and_one_code() -> None:
    """The table of errors: reasons are unique, and each travels as a status and back."""
    for reason, kind in errors.REASONS.items():
        failure: Failure = failure_of(errors.to_status(kind("what came", metadata={"field": "f"}, retry_after=0.5)))
        assert (failure.reason, failure.code, failure.retry_after) == (reason, kind.code.name, 0.5)
        back = errors.from_status(errors.to_status(kind("what came", metadata={"position": "3"})))
        assert type(back) is kind
        assert back.metadata == {"position": "3"}
