"""Bounds of what is driven here: rows under way, bytes of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from statestream.contract import errors
from statestream_server.engine.table import Table
from statestream_server.models.model import Model
from statestream_server.sessions.admission.bounds import too_large
from statestream_server.settings import Limits


@contextmanager
def driving(table: Table, rows: int, limits: Limits) -> Iterator[None]:
    """Counts so many rows as driven, whether they are needed already or may come to be; sessions are bounded apart.

    Raises:
        TooManySessions: With those under way they would be too many.
    """
    if table.driven + rows > limits.max_driven_rows:
        raise errors.TooManySessions(
            f"{rows} rows are needed, forecasts and texts under way have {table.driven} of {table.model.name!r}; the"
            f" limit is {limits.max_driven_rows} together. Ask for fewer at a time, or again later",
            retry_after=1.0,
        )
    table.driven += rows
    try:
        yield
    finally:
        table.driven -= rows


def check_answer(model: Model, nbytes: int, limits: Limits) -> None:
    """Checks what an answer has, known or measured.

    Raises:
        AnswerTooLarge: It is more than the server sends.
    """
    most = limits.max_answer_bytes
    if nbytes > most:
        remedy = "Ask for fewer rows or outputs at a time, or raise --max-answer-bytes"
        raise too_large(f"the outputs of model {model.name!r}", nbytes, most, remedy)
