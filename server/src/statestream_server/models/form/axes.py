"""Axes: which axes of a drafted graph may hold sessions and steps: guesses, the best first; proof tries them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from statestream_server.models.form.draft import Draft, Held
from statestream_server.models.form.pairs import Tensor, UnsettledError, shapes_line
from statestream_server.models.form.told import BATCH, TIME, Shape


class Guess(NamedTuple):
    """One way to see the axes.

    Attributes:
        inputs: By input, all its axes: a length, "batch" or "time".
        states: The same of the states.
        alone: Whether a run has one row.
        timed: Whether an input has an axis of steps.
        follow: States of which nobody told the shape and that have free axes beside that of sessions: they start with
            the length 1 there, and follow the inputs from then on. Only those of a guess whose inputs are all told.
    """

    inputs: Sequence[Shape]
    states: Sequence[Shape]
    alone: bool
    timed: bool
    follow: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """In words."""
        return ("one row a run" if self.alone else "batched") + (", steps in one run" if self.timed else "")


def guesses(draft: Draft) -> list[Guess]:
    """Ways to see the axes of a draft with memory, those that allow most first.

    Raises:
        UnsettledError: There are more free axes than sessions and steps need, and nobody told their lengths.
    """
    for each in (*draft.inputs, *(held.old for held in draft.states)):
        if each.dims is None and each.name not in draft.shapes:
            raise UnsettledError(f"the graph does not say how many axes {each.name!r} has", [shapes_line(each, None)])
    free = dict.fromkeys(key for each in draft.inputs for key in _free(each, draft))
    if len(free) > 2:  # Exporters may call an axis anew for each tensor: then its place tells.
        placed = replace(draft, inputs=[_unnamed(each) for each in draft.inputs])
        free = dict.fromkeys(key for each in placed.inputs for key in _free(each, placed))
        draft = placed if len(free) <= 2 else draft
    if len(free) > 2:
        wide = max(draft.inputs, key=lambda each: len(_free(each, draft)))
        raise UnsettledError(
            f"input {wide} has more free axes than sessions and steps need",
            [shapes_line(wide, draft.shapes.get(wide.name))],
        )
    named = {size for state in draft.states for size in state.old.dims or () if isinstance(size, str)}
    ways = sorted(
        (
            (batch, time)
            for batch in [*free, None]
            for time in [*free, None]
            if (batch is None or batch != time) and set(free) <= {batch, time}
        ),
        key=lambda way: (way[0] is None, way[0] not in named, way[1] is None),
    )
    found = list[Guess]()
    for alone in (False, True):
        # One row needs no axis, so what is free is rather that of steps.
        for batch, time in reversed(ways) if alone else ways:
            guess = _guess(draft, batch, time, alone=alone)
            if guess is not None and guess not in found:
                found.append(guess)
    return found


def _guess(draft: Draft, batch: str | None, time: str | None, *, alone: bool) -> Guess | None:
    """The shapes that follow from what free axes are; None where it cannot be so."""
    words: dict[str | None, int | str] = {batch: BATCH, time: TIME}
    inputs = []
    for each in draft.inputs:
        shape = list(draft.shapes.get(each.name) or (
            size if isinstance(size, int) else words[_key(size, axis)] for axis, size in enumerate(each.dims or ())
        ))  # fmt: skip
        if alone and shape and BATCH not in shape and shape[0] == 1:
            shape[0] = BATCH
        inputs.append(tuple(shape))
    follow = frozenset(each.old.name for each in draft.states if _follows(each, draft))
    states = [_state(each, draft, batch, alone=alone) for each in draft.states]
    known = [shape for each, shape in zip(draft.states, states, strict=True) if each.old.name not in follow]
    if not alone and not all(BATCH in shape for shape in (*inputs, *known)):
        return None
    return Guess(inputs, states, alone, any(TIME in shape for shape in inputs), follow)


def _follows(held: Held, draft: Draft) -> bool:
    """Whether a state has the size of what callers send, as frames of any resolution: only a run can tell which."""
    told = held.old.name in draft.shapes or held.alone
    free = [size for size in held.old.dims or () if not isinstance(size, int)]
    return not told and len(free) > 1 and all(each.name in draft.shapes for each in draft.inputs)


def _state(held: Held, draft: Draft, batch: str | None, *, alone: bool) -> Shape:
    """The shape of a state: its one free axis is that of sessions."""
    tensor = held.old
    if tensor.name in draft.shapes:
        return draft.shapes[tensor.name]
    dims = list(tensor.dims or ())
    free = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
    same = [axis for axis in free if dims[axis] == batch]
    if held.alone or _follows(held, draft):
        return tuple(size if isinstance(size, int) else 1 for size in dims)
    if len(free) > 1:
        raise UnsettledError(
            f"state {tensor} has {len(free)} axes of free length, and a state keeps one shape",
            [shapes_line(tensor, None)],
        )
    if alone and not free:
        same = [axis for axis, size in enumerate(dims) if size == 1][:1]
    for axis in same or free:
        dims[axis] = BATCH
    return tuple(size if size is not None else 1 for size in dims)


def _free(tensor: Tensor, draft: Draft) -> list[str]:
    """The free axes of an input of which nothing is told, as groups: of one name, or unnamed at one place."""
    if tensor.name in draft.shapes:
        return []
    return [_key(size, axis) for axis, size in enumerate(tensor.dims or ()) if not isinstance(size, int)]


def _unnamed(tensor: Tensor) -> Tensor:
    dims = None if tensor.dims is None else tuple(size if isinstance(size, int) else None for size in tensor.dims)
    return tensor._replace(dims=dims)


def _key(size: int | str | None, axis: int) -> str:
    return str(size) if size is not None else f"#{axis}"


def lengths(shape: Shape, rows: int, steps: int) -> Iterator[int]:
    """The lengths of axes with so many rows and steps."""
    for size in shape:
        yield rows if size == BATCH else steps if size == TIME else int(size)
