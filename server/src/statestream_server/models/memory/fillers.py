"""Fillers: what becomes of one input on its way to the model, where callers send observations of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.observations import Expected
from statestream.contract.signature import Elapsed, TensorSpec
from statestream_server.arrays import Array, Bools
from statestream_server.models.memory.scores import point

NEVER: Final = np.iinfo(np.int64).min
"""The time of no step; NumPy's NaT."""


class Filled(NamedTuple):
    """An input as the model takes it.

    Attributes:
        values: [n, T, ...] what it takes.
        last: [n, ...] what is kept of it.
        bad: [n, T] which steps are refused; None where none is.
    """

    values: Array
    last: Array | None = None
    bad: Bools | None = None


class Filler(Protocol):
    """What becomes of one input on its way to the model. A row's depends on the row alone."""

    column: str
    """What it is kept in; "" where nothing is."""

    def fill(self, last: Array, values: Array) -> Filled:
        """Of what was kept of it [n, ...] and what arrived [n, T, ...]."""

    def why(self, last: Array, values: Array, step: int) -> str:
        """Why a step of one row is refused: what was kept [...], what arrived [T, ...]."""


class Times:
    """Times, which become the time since the step before."""

    def __init__(self, spec: TensorSpec) -> None:
        self.column = f"time:{spec.name}"
        self._elapsed: Elapsed = spec.elapsed
        self._dtype, self._shape = signatures.numpy_dtype(spec.dtype), signatures.step_shape(spec)
        self._name = spec.name

    def fill(self, last: Array, values: Array) -> Filled:
        """The time since the step before, in the unit of the graph; see `Filler.fill`."""
        before = np.concatenate([last[:, np.newaxis], values[:, :-1]], axis=1)
        first = before == NEVER
        # Whole nanoseconds apart are exact far beyond any session; so the same steps come to the same bits.
        apart = np.where(first, 0, values - np.where(first, 0, before))
        bad = any_of_steps((values == NEVER) | (apart < 0))
        told = np.where(first, self._elapsed.first, apart * (1e-9 / self._elapsed.seconds))
        told = np.where(bad, 0.0, told).astype(self._dtype).reshape(*values.shape, *self._shape)
        return Filled(told, values[:, -1], bad if bad.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        """A step without a time, or one before the last."""
        now, before = int(values[step]), int(values[step - 1] if step else last)
        if now == NEVER:
            return f"{self._name} has no time (NaT)"
        return (
            f"{self._name} is {_time(now)}, before {_time(before)}, the time of the step before it; steps come in the"
            " order of their times: sort them, or leave late ones out"
        )


class Held:
    """An input whose last value stands in for one that is missing."""

    def __init__(self, spec: TensorSpec) -> None:
        self.column = f"held:{spec.name}"
        self._spec = spec

    def fill(self, last: Array, values: Array) -> Filled:
        """Each missing value is the last one before it."""
        if not np.isnan(values).any():
            return Filled(values, values[:, -1])
        known = np.concatenate([last[:, np.newaxis], values], axis=1)
        steps = np.arange(known.shape[1]).reshape(1, -1, *[1] * (known.ndim - 2))
        newest = np.maximum.accumulate(np.where(np.isnan(known), 0, steps), axis=1)
        filled = np.take_along_axis(known, newest, axis=1)[:, 1:]
        gone = any_of_steps(np.isnan(filled))
        return Filled(filled, filled[:, -1], gone if gone.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        """A value is missing that none came before."""
        return (
            f"{_gap(self._spec, values[step])}, and no value of this session came before it that could be held; begin"
            " with values that are there"
        )


class Refused:
    """An input of which nothing may be missing."""

    column = ""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec

    def fill(self, last: Array, values: Array) -> Filled:
        """What arrived, as it is."""
        gone = any_of_steps(np.isnan(values))
        return Filled(values, None, gone if gone.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        """A value is missing."""
        return (
            f"{_gap(self._spec, values[step])}; the model refuses gaps. Fill it, or leave the step out; export(...,"
            ' missing={…: "hold"}) has the server fill it'
        )


class Predicted:
    """An input for whose missing values the model's own predictions stand in; they are not known beforehand."""

    def __init__(self, place: int, spec: TensorSpec, expected: Sequence[Expected]) -> None:
        self.place = place
        self.spec = spec
        self._expected = [each for each in expected if each.input == spec.name]
        self.names = [name for each in self._expected for name in each.value.outputs]
        """The outputs that its predictions are made of."""
        self._fed = np.zeros(signatures.step_shape(spec), np.bool_)
        for each in self._expected:
            self._fed[(..., list(each.places)) if each.places else ...] = True

    def fill(self, values: Array, outputs: dict[str, Array]) -> Array:
        """One step [n, 1, ...], of the outputs of the step before it [n, ...]."""
        filled = values.copy()
        for each in self._expected:
            names = list(each.value.outputs)
            found = point(each, outputs, [outputs[name][:, np.newaxis] for name in names], names)
            at = (..., list(each.places)) if each.places else ...
            part = filled[at]
            filled[at] = np.where(np.isnan(part), found, part)
        return filled

    def why(self, values: Array, begun: bool) -> tuple[int, str] | None:
        """Which step [T, ...] of a row has a gap that nothing stands in for, and what it is."""
        gone = np.isnan(values)
        for step in np.flatnonzero(any_of_rows(gone)).tolist():
            unfed = gone[step] & ~self._fed
            if unfed.any():
                named = _gap(self.spec, np.where(unfed, np.nan, 0.0))
                return (
                    step,
                    f"{named}, and nothing is fed back there that could stand in; fill it, or leave the step out",
                )
            if not step and not begun:
                return step, (
                    f"{_gap(self.spec, values[step])}, and a session's first step has no prediction that could stand"
                    " in; begin with values that are there"
                )
        return None


def any_of_steps(which: Array) -> Bools:
    """[n, T] the steps in which something is true of [n, T, ...]."""
    return np.asarray(which.reshape(*which.shape[:2], -1).any(axis=-1), np.bool_)


def any_of_rows(which: Array) -> Bools:
    """[n] the rows in which something is true of [n, ...]."""
    return np.asarray(which.reshape(len(which), -1).any(axis=1), np.bool_)


def _gap(spec: TensorSpec, value: Array) -> str:
    """What of an input's step is missing."""
    gone = np.argwhere(np.isnan(value))[0].tolist() if value.ndim else []
    if gone and gone[-1] < len(spec.columns):
        return f"column {spec.columns[gone[-1]]!r} of {spec.name} is missing (NaN)"
    return f"{spec.name} is missing (NaN){f' at {gone}' if value.size > 1 else ''}"


def _time(nanoseconds: int) -> str:
    if abs(nanoseconds) < 10**17:  # Three years: seconds since some moment, no date.
        return f"{nanoseconds / 1e9:.9g} s"
    return str(np.datetime_as_string(np.datetime64(nanoseconds, "ns"), unit="auto"))
