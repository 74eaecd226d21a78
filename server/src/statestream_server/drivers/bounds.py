"""Bounds of what is driven here: rows under way, bytes of an answer."""

from __future__ import annotations

from statestream.contract import errors
from statestream_server.engine.table import Table
from statestream_server.models.model import Model
from statestream_server.sessions.admission.bounds import too_large
from statestream_server.settings import Limits


def check_rows(table: Table, rows: int, limits: Limits) -> None:
    """Checks that so many more rows may be driven; sessions are bounded apart from these.

    Raises:
        TooManySessions: With those under way they would be too many.
    """
    under_way = table.allocated - table.sessions
    if under_way + rows > limits.max_driven_rows:
        raise errors.TooManySessions(
            f"{rows} rows are needed, forecasts and texts under way have {under_way} of {table.model.name!r}; the limit"
            f" is {limits.max_driven_rows} together. Ask for fewer at a time, or again later",
            retry_after=1.0,
        )


def check_answer(model: Model, nbytes: int, limits: Limits) -> None:
    """Checks what an answer has, known or measured.

    Raises:
        AnswerTooLarge: It is more than the server sends.
    """
    most = limits.max_answer_bytes
    if nbytes > most:
        remedy = "Ask for fewer rows or outputs at a time, or raise --max-answer-bytes"
        raise too_large(f"the outputs of model {model.name!r}", nbytes, most, remedy)
