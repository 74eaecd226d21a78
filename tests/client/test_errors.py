"""The table of errors: each reason has one class and one code, and travels as a status and back."""

from __future__ import annotations

import re

import grpc
import pytest

from statestream import calls, errors
from tests.support.calls import Failure, failure_of


def test_every_reason_has_one_class_and_one_code() -> None:
    """The table of errors: reasons are unique, and each travels as a status and back."""
    for reason, kind in errors.REASONS.items():
        failure: Failure = failure_of(errors.to_status(kind("what came", metadata={"field": "f"}, retry_after=0.5)))
        assert (failure.reason, failure.code, failure.retry_after) == (reason, kind.code.name, 0.5)
        back = errors.from_status(errors.to_status(kind("what came", metadata={"position": "3"})))
        assert type(back) is kind
        assert back.metadata == {"position": "3"}


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("Connection refused", "Is it running"),
        ("Trying to connect an http1.x server (HTTP status 404)", "a port of HTTP; .* 8001"),
        ("SSL_ERROR_SSL: WRONG_VERSION_NUMBER", "speaks no TLS: leave tls out"),
        ("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self signed", r"Tls\(roots=…\)"),
    ],
)
def test_nobody_who_answers_is_told_with_what_to_look_at(details: str, says: str) -> None:
    found = calls.read_code(grpc.StatusCode.UNAVAILABLE, details, "there:8001")
    with pytest.raises(errors.ServerUnavailable, match=f"{details.split()[0]}.*{says}"):
        raise found
    assert re.search(says, calls.unavailable(["there:8001"], 1.0, found).message)


def test_a_server_that_closes_every_connection_may_want_tls() -> None:
    broke = calls.read_code(grpc.StatusCode.UNAVAILABLE, "ipv4:127.0.0.1:8001: Socket closed", "there:8001")
    assert "TLS" not in broke.message, "so do servers that end"
    assert "want TLS (tls=True)" in calls.unavailable(["there:8001"], 1.0, broke).message
