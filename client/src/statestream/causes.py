"""What a client adds to a server's refusal: which session it is about, and which number that it sent was not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from statestream.contract.errors import (
    Closed,
    ModelNotFound,
    NonFiniteState,
    PermissionDenied,
    StatestreamError,
    TooManySessions,
    Unauthenticated,
    Unavailable,
    Unsupported,
    quoted,
)
from statestream.contract.tensors import Array
from statestream.core import Lane, PartsTicket, PoolTicket, StepTicket, Ticket
from statestream.layout import Layout

_OF_ALL: Final = (
    Unavailable,
    Unauthenticated,
    PermissionDenied,
    Closed,
    ModelNotFound,
    Unsupported,
    TooManySessions,
)
"""What is about a server, a model or a caller, and not about one session."""


def named(error: StatestreamError, id: str) -> StatestreamError:
    """The error of a session, with its id in the message: on a stream only a number stands for it.

    One that says it, or is about more than one session, is returned as it is.
    """
    if isinstance(error, _OF_ALL) or repr(id) in error.message or quoted(id) in error.message:
        return error
    found = type(error)(
        f"session {id!r}: {error.message}", metadata={**error.metadata, "session": id}, retry_after=error.retry_after
    )
    found.__cause__ = error.__cause__
    return found


def of_step(layout: Layout, ticket: Ticket, id: str) -> StatestreamError:
    """The error of a session's step."""
    error = ticket.error
    assert error is not None
    if not isinstance(error, NonFiniteState):
        return named(error, id)
    parts = ticket.parts if isinstance(ticket, PartsTicket) else [ticket]
    before = 0
    for part in parts:
        if not isinstance(part, StepTicket):
            break
        arrays = _arrays(part.lane, part.inputs, part.steps)
        note = _first(layout, arrays, before)
        if note:
            return _with(error, f"session {id!r}: {note}")
        before += part.steps
    return _with(error, f"session {id!r}: all inputs are finite numbers")


def of_row(layout: Layout, ticket: PoolTicket, row: int, who: Callable[[int], str]) -> StatestreamError:
    """The error of one row of a pool's step."""
    error = ticket.errors[row]
    if not isinstance(error, NonFiniteState):
        return named(error, who(row))
    count = len(ticket.handles)
    arrays = {
        name: array[row]
        for name, array in _arrays(ticket.lane, ticket.inputs, count * ticket.steps, (count, ticket.steps)).items()
    }
    if not isinstance(ticket.lengths, int):
        arrays = {name: array[: ticket.lengths[row]] for name, array in arrays.items()}
    return _with(error, f"session {who(row)!r}: {_first(layout, arrays, 0) or 'all inputs are finite numbers'}")


def _arrays(lane: Lane, inputs: Sequence[bytes], steps: int, lead: tuple[int, ...] | None = None) -> dict[str, Array]:
    return {
        name: np.frombuffer(data, dtype).reshape(*(lead or (steps,)), *shape)
        for name, dtype, shape, data in zip(lane.names, lane.dtypes, lane.shapes, inputs, strict=True)
    }


def _first(layout: Layout, arrays: Mapping[str, Array], before: int) -> str:
    """The first number of [T, …] by input that is not finite, in words; empty where all are."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        step, *index = np.argwhere(~np.isfinite(array))[0].tolist()
        columns = layout.wanted[layout.names.index(name)].columns
        where = f", column {columns[index[-1]]!r}" if index and columns else f", at {index}" if index else ""
        return f"{name} is {array[(step, *index)]} in step {before + step} of those that came{where}"
    return ""


def _with(error: StatestreamError, note: str) -> StatestreamError:
    return type(error)(f"{error.message} ({note})", metadata=error.metadata, retry_after=error.retry_after)
