"""Refusals: errors as answers over HTTP, a status and one line of JSON."""

from __future__ import annotations

import json
import math
from typing import Final

from starlette.responses import Response

from statestream.contract import errors
from statestream.contract.codes import Code

_STATUS: Final = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 409,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
_LONGEST: Final = 2048


def status_of(error: errors.StatestreamError) -> tuple[int, dict[str, str]]:
    """The status of an error, and the header that says when to come again."""
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    # One that is too large stays so, however long its caller waits.
    return 400 if isinstance(error, errors.AnswerTooLarge) else _STATUS.get(error.code, 500), headers


def refusal(error: errors.StatestreamError) -> Response:
    """What a caller is answered: its status, the reason and the words, and when to come again."""
    status, headers = status_of(error)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    text = json.dumps(
        {"error": f"{error.reason}: {errors.shortened(error.message, _LONGEST)}"}
    )  # In ASCII: callers' texts are quoted in it.
    return Response(text, status, headers, "application/json")
