"""Observed rows: gaps in what arrives are filled, times become times since the step before, and what arrived is scored.

What that takes of a session's past (its last values, its last time, its past scores) are columns of its row, beside the
model's: they advance with it in one commit, and are saved, copied and moved with it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.observations import Expected
from statestream.contract.signature import Elapsed, Missing, Signature, TensorSpec
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.memory.policies import Wrapped
from statestream_server.models.memory.scores import Memory, Scoring, point
from statestream_server.models.memory.slab import Slab
from statestream_server.models.rows import SCRATCH_ROW, Column, Rows, nothing, observed_columns

_NEVER: Final = np.iinfo(np.int64).min
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


class _Filler(Protocol):
    """What becomes of one input on its way to the model. A row's depends on the row alone."""

    column: str
    """What it is kept in; "" where nothing is."""

    def fill(self, last: Array, values: Array) -> Filled:
        """Of what was kept of it [n, ...] and what arrived [n, T, ...]."""

    def why(self, last: Array, values: Array, step: int) -> str:
        """Why a step of one row is refused: what was kept [...], what arrived [T, ...]."""


class _Times:
    """Times, which become the time since the step before."""

    def __init__(self, spec: TensorSpec) -> None:
        self.column = f"time:{spec.name}"
        self._elapsed: Elapsed = spec.elapsed
        self._dtype, self._shape = signatures.numpy_dtype(spec.dtype), signatures.step_shape(spec)
        self._name = spec.name

    def fill(self, last: Array, values: Array) -> Filled:
        before = np.concatenate([last[:, np.newaxis], values[:, :-1]], axis=1)
        first = before == _NEVER
        # Whole nanoseconds apart are exact far beyond any session; so the same steps come to the same bits.
        apart = np.where(first, 0, values - np.where(first, 0, before))
        bad = _steps((values == _NEVER) | (apart < 0))
        told = np.where(first, self._elapsed.first, apart * (1e-9 / self._elapsed.seconds))
        told = np.where(bad, 0.0, told).astype(self._dtype).reshape(*values.shape, *self._shape)
        return Filled(told, values[:, -1], bad if bad.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        now, before = int(values[step]), int(values[step - 1] if step else last)
        if now == _NEVER:
            return f"{self._name} has no time (NaT)"
        return (
            f"{self._name} is {_time(now)}, before {_time(before)}, the time of the step before it; steps come in the"
            " order of their times: sort them, or leave late ones out"
        )


class _Held:
    """An input whose last value stands in for one that is missing."""

    def __init__(self, spec: TensorSpec) -> None:
        self.column = f"held:{spec.name}"
        self._spec = spec

    def fill(self, last: Array, values: Array) -> Filled:
        if not np.isnan(values).any():
            return Filled(values, values[:, -1])
        known = np.concatenate([last[:, np.newaxis], values], axis=1)
        steps = np.arange(known.shape[1]).reshape(1, -1, *[1] * (known.ndim - 2))
        newest = np.maximum.accumulate(np.where(np.isnan(known), 0, steps), axis=1)
        filled = np.take_along_axis(known, newest, axis=1)[:, 1:]
        gone = _steps(np.isnan(filled))
        return Filled(filled, filled[:, -1], gone if gone.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        return (
            f"{_gap(self._spec, values[step])}, and no value of this session came before it that could be held; begin"
            " with values that are there"
        )


class _Refused:
    """An input of which nothing may be missing."""

    column = ""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec

    def fill(self, last: Array, values: Array) -> Filled:
        gone = _steps(np.isnan(values))
        return Filled(values, None, gone if gone.any() else None)

    def why(self, last: Array, values: Array, step: int) -> str:
        return (
            f"{_gap(self._spec, values[step])}; the model refuses gaps. Fill it, or leave the step out; export(...,"
            ' missing={…: "hold"}) has the server fill it'
        )


class _Predicted:
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
        for step in np.flatnonzero(_rows(gone)).tolist():
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


class ObservedRows(Wrapped):
    """Rows whose callers send observations; the rows of the model are inside."""

    def __init__(self, rows: Rows, signature: Signature) -> None:
        """Rows of a signature as the file has it."""
        super().__init__(rows)
        self._inner = rows
        self._lock = threading.Lock()
        self.row_by_row = rows.row_by_row
        expected = signatures.expectations(signature)
        self._fillers: dict[int, _Filler] = {}
        self._predicted = list[_Predicted]()
        for place, spec in enumerate(signature.inputs):
            if spec.HasField("elapsed"):
                self._fillers[place] = _Times(spec)
            elif spec.missing == Missing.MISSING_HOLD:
                self._fillers[place] = _Held(spec)
            elif spec.missing == Missing.MISSING_REFUSE:
                self._fillers[place] = _Refused(spec)
            elif spec.missing == Missing.MISSING_PREDICT:
                self._predicted.append(_Predicted(place, spec, expected))
        own = observed_columns(signature)
        kept = [column for column in own if not column.sparse]
        self._slab = Slab(kept, [np.asarray(_NEVER) if c.dtype.kind == "i" else nothing(c) for c in kept])
        self._places = {column.name: place for place, column in enumerate(kept)}
        self.scoring = Scoring(signature) if signatures.score_outputs(signature) else None
        """What scores there are; None where the model expects nothing."""
        self.score_specs = self.scoring.specs if self.scoring is not None else ()
        """The scores of a step."""
        self._outputs = [spec.name for spec in signature.outputs]
        self._feedback = [
            (place, column.name.removeprefix("feedback:"))
            for place, column in enumerate(rows.columns)
            if column.name.startswith("feedback:")
        ]
        self._own = len(rows.columns)
        self._columns = (*rows.columns, *own)
        self.grow, self.reset, self.read, self.write, self.copy = (
            self._grow, self._reset, self._read, self._write, self._copy,
        )  # fmt: skip
        self.step = self._step if self._fillers or self._predicted else rows.step

    @property
    def columns(self) -> Sequence[Column]:
        """The model's, what is kept of inputs, the past of scores."""
        return self._columns

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row that was never scored."""
        return self._inner.row_nbytes + self._slab.row_nbytes

    def _grow(self, capacity: int) -> None:
        self._inner.grow(capacity)
        with self._lock:
            self._slab.grow(capacity)
        if self.scoring is not None:
            self.scoring.past.grow(capacity)

    def _reset(self, rows: Ints) -> None:
        self._inner.reset(rows)
        self._slab.reset(rows)
        if self.scoring is not None:
            self.scoring.past.reset(rows)

    def _read(self, rows: Ints) -> list[Array]:
        past = [*self.scoring.past.read(rows)] if self.scoring is not None else []
        return [*self._inner.read(rows), *self._slab.read(rows), *past]

    def _write(self, rows: Ints, values: Sequence[Array]) -> None:
        kept = self._own + len(self._slab.columns)
        self._inner.write(rows, values[: self._own])
        self._slab.write(rows, values[self._own : kept])
        if self.scoring is not None:
            if len(values) > kept:
                self.scoring.past.write(rows, Memory(values[kept], values[kept + 1]))
            else:
                self.scoring.past.reset(rows)

    def _copy(self, source: Ints, target: Ints) -> None:
        self._inner.copy(source, target)
        self._slab.copy(source, target)
        if self.scoring is not None:
            self.scoring.past.reset(target)

    # ── steps ──────────────────────────────────────────────────────────────────────────────────

    def _step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """One run of the model, of rows with gaps that it fills itself one for every step; see `Rows.step`."""
        with self._lock:
            return self._filled(source, target, inputs)

    def _filled(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        ready, last, refused = list(inputs), dict[str, Array](), np.zeros(len(source), np.bool_)
        for place, filler in self._fillers.items():
            found = filler.fill(self._last(filler, source), inputs[place])
            ready[place] = found.values
            if found.bad is not None:
                refused |= found.bad.any(axis=1)
            if found.last is not None:
                last[filler.column] = found.last
        to = np.where(refused, SCRATCH_ROW, target) if refused.any() else target
        gaps = self._gaps(ready)
        if gaps is None:
            outputs, bad = self._inner.step(source, to, ready)
        else:
            outputs, bad = self._with_gaps(source, to, ready, gaps)
        bad = bad | refused
        good = ~bad
        for name, value in last.items():
            self._slab.arrays[self._places[name]][target[good]] = value[good]
        return outputs, bad

    def _last(self, filler: _Filler, rows: Ints) -> Array:
        """What is kept of an input; nothing of one of which nothing is."""
        return self._slab.arrays[self._places[filler.column]].take(rows, axis=0) if filler.column else rows

    def _gaps(self, inputs: Sequence[Array]) -> Bools | None:
        """[n] the rows in which something is missing that is to be predicted; None for none of them."""
        found: Bools | None = None
        for each in self._predicted:
            gone = np.isnan(inputs[each.place])
            if gone.any():
                rows = _rows(gone)
                found = rows if found is None else found | rows
        return found

    def _with_gaps(self, source: Ints, target: Ints, inputs: Sequence[Array], gaps: Bools) -> tuple[list[Array], Bools]:
        """Rows with gaps step by step, each filled from the step before; the others in one run."""
        bad, whole = np.zeros(len(source), np.bool_), np.flatnonzero(~gaps)
        parts = list[tuple[Ints, list[Array]]]()
        if len(whole):
            outputs, bad[whole] = self._inner.step(source[whole], target[whole], [array[whole] for array in inputs])
            parts.append((whole, outputs))
        places = np.flatnonzero(gaps)
        outputs, bad[places] = self._one_by_one(source[places], target[places], [array[places] for array in inputs])
        parts.append((places, outputs))
        joined = [np.empty((len(source), *array.shape[1:]), array.dtype) for array in outputs]
        for at, arrays in parts:
            for mine, array in zip(joined, arrays, strict=True):
                mine[at] = array
        return joined, bad

    def _one_by_one(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        before, told = self._inner.read(target), list[list[Array]]()
        bad = np.zeros(len(source), np.bool_)
        try:
            now = source
            for step in range(inputs[0].shape[1]):
                values = [array[:, step : step + 1] for array in inputs]
                outputs = self.expected(now)
                for each in self._predicted:
                    values[each.place] = filled = each.fill(values[each.place], outputs)
                    bad |= _rows(np.isnan(filled))
                outputs_of, wrong = self._inner.step(now, target, [np.ascontiguousarray(value) for value in values])
                told.append(outputs_of)
                bad |= wrong
                now = target
        except BaseException:
            self._inner.write(target, before)
            raise
        if bad.any():
            # The steps before one that is refused are not applied either.
            self._inner.write(target[bad], [value[bad] for value in before])
        return [np.concatenate(arrays, axis=1) for arrays in zip(*told, strict=True)], bad

    def blame(self, source: Ints, inputs: Sequence[Array]) -> dict[int, tuple[int, str]]:
        """Why rows were refused, as far as it was what arrived of their observations: by place a step, and what it has.

        Args:
            source: [n] the rows that they started from, as they were then.
            inputs: What arrived, for every input [n, T, ...].
        """
        why = dict[int, tuple[int, str]]()
        for place, filler in self._fillers.items():
            last, values = self._last(filler, source), inputs[place]
            bad = filler.fill(last, values).bad
            for row in np.flatnonzero(bad.any(axis=1)).tolist() if bad is not None else ():
                step = int(np.argmax(bad[row])) if bad is not None else 0
                why.setdefault(row, (step, filler.why(last[row], values[row], step)))
        for each in self._predicted:
            values, expected = inputs[each.place], self.expected(source)
            for row in np.flatnonzero(_rows(np.isnan(values))).tolist():
                known = all(not np.isnan(expected[name][row]).all() for name in each.names)
                if (found := each.why(values[row], known)) is not None:
                    why.setdefault(row, found)
        return why

    # ── scores ─────────────────────────────────────────────────────────────────────────────────

    def expected(self, rows: Ints) -> dict[str, Array]:
        """By the names of outputs, those of the last steps of rows [n, ...]; NaN where there was none."""
        values = self._inner.read(rows)
        return {name: values[place] for place, name in self._feedback}

    def score(
        self,
        before: dict[str, Array],
        source: Ints,
        target: Ints,
        good: Bools,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
    ) -> list[Array]:
        """Scores steps that ran, and commits the past of those that are `good`.

        Args:
            before: What `expected` had of the rows `source` before the run.
            source: [n] the rows that they started from.
            target: [n] the rows that they ended on.
            good: [n] which of them were committed.
            inputs: What arrived, for every input [n, T, ...].
            outputs: What it came to, for every output.

        Returns:
            For each of `scoring.specs` [n, T, ...].
        """
        assert self.scoring is not None
        found, memory = self.scoring.scores(before, inputs, outputs, self.scoring.past.read(source))
        self.scoring.past.write(target[good], Memory(memory.seen[good], memory.ring[good]))
        return found


def observed(rows: Rows, signature: Signature) -> Rows:
    """Rows as their callers use them: observed, where the signature has anything of it."""
    asks = any(spec.missing or spec.HasField("elapsed") for spec in signature.inputs)
    return ObservedRows(rows, signature) if asks or signatures.score_outputs(signature) else rows


def _steps(which: Array) -> Bools:
    """[n, T] the steps in which something is true of [n, T, ...]."""
    return np.asarray(which.reshape(*which.shape[:2], -1).any(axis=-1), np.bool_)


def _rows(which: Array) -> Bools:
    """[n] the rows in which something is true of [n, ...]."""
    return np.asarray(which.reshape(len(which), -1).any(axis=1), np.bool_)


def _gap(spec: TensorSpec, value: Array) -> str:
    """What of an input's step is missing."""
    gone = np.argwhere(np.isnan(value))[0].tolist() if value.ndim else []
    if gone and gone[-1] < len(spec.columns):
        return f"column {spec.columns[gone[-1]]!r} of {spec.name} is missing (NaN)"
    return f"{spec.name} is missing (NaN){f' at {gone}' if value.size > 1 else ''}"


def _time(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.9g} s" if abs(nanoseconds) < 10**17 else str(np.datetime64(nanoseconds, "ns"))
