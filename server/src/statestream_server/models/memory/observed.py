"""Observed rows: gaps in what arrives are filled, times become times since the step before, and what arrived is scored.

What that takes of a session's past (its last values, its last time, its past scores) are columns of its row, beside the
model's: they advance with it in one commit, and are saved, copied and moved with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Missing, Signature
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models.memory.fillers import (
    NEVER,
    Filler,
    Held,
    Predicted,
    Refused,
    Times,
    any_of_rows,
    any_of_steps,
)
from statestream_server.models.memory.policies import Wrapped
from statestream_server.models.memory.scores import Memory, Scoring
from statestream_server.models.memory.slab import Slab
from statestream_server.models.rows import SCRATCH_ROW, Column, Rows, nothing, observed_columns


class ObservedRows(Wrapped):
    """Rows whose callers send observations; the rows of the model are inside."""

    def __init__(self, rows: Rows, signature: Signature) -> None:
        """Rows of a signature as the file has it."""
        super().__init__(rows)
        self._inner = rows
        self._lock = threading.Lock()
        self.row_by_row = rows.row_by_row
        expected = signatures.expectations(signature)
        self._fillers: dict[int, Filler] = {}
        self._predicted = list[Predicted]()
        for place, spec in enumerate(signature.inputs):
            if spec.HasField("elapsed"):
                self._fillers[place] = Times(spec)
            elif spec.missing == Missing.MISSING_HOLD:
                self._fillers[place] = Held(spec)
            elif spec.missing == Missing.MISSING_REFUSE:
                self._fillers[place] = Refused(spec)
            elif spec.missing == Missing.MISSING_PREDICT:
                self._predicted.append(Predicted(place, spec, expected))
        own = observed_columns(signature)
        kept = [column for column in own if not column.sparse]
        self._slab = Slab(kept, [np.asarray(NEVER) if c.dtype.kind == "i" else nothing(c) for c in kept])
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
        """One run of the model, of rows with gaps that it fills itself several; see `Rows.step`."""
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

    def _last(self, filler: Filler, rows: Ints) -> Array:
        """What is kept of an input; nothing of one of which nothing is."""
        return self._slab.arrays[self._places[filler.column]].take(rows, axis=0) if filler.column else rows

    def _gaps(self, inputs: Sequence[Array]) -> Bools | None:
        """[n] the rows in which something is missing that is to be predicted; None for none of them."""
        found: Bools | None = None
        for each in self._predicted:
            gone = np.isnan(inputs[each.place])
            if gone.any():
                rows = any_of_rows(gone)
                found = rows if found is None else found | rows
        return found

    def _with_gaps(self, source: Ints, target: Ints, inputs: Sequence[Array], gaps: Bools) -> tuple[list[Array], Bools]:
        """Rows with gaps from gap to gap, each filled from the step before; the others in one run."""
        bad, places, whole = np.zeros(len(source), np.bool_), np.flatnonzero(gaps), np.flatnonzero(~gaps)
        before, parts = self._inner.read(target[places]), list[tuple[Ints, list[Array]]]()
        try:
            outputs, bad[places] = self._by_gaps(source[places], target[places], [array[places] for array in inputs])
            parts.append((places, outputs))
            if len(whole):
                outputs, bad[whole] = self._inner.step(source[whole], target[whole], [array[whole] for array in inputs])
                parts.append((whole, outputs))
        except BaseException:
            # A run that the model refuses leaves no trace: it is tried again in parts, to find out whose fault it is.
            self._inner.write(target[places], before)
            raise
        refused = np.flatnonzero(bad[places])
        if len(refused):
            # The steps before one that is refused are not applied either.
            self._inner.write(target[places[refused]], [value[refused] for value in before])
        joined = [np.empty((len(source), *array.shape[1:]), array.dtype) for array in outputs]
        for at, arrays in parts:
            for mine, array in zip(joined, arrays, strict=True):
                mine[at] = array
        return joined, bad

    def _by_gaps(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """Rows from gap to gap; where one of a row's steps is bad, its target holds what is in between."""
        bad, told, now = np.zeros(len(source), np.bool_), list[list[Array]](), source
        for begin, end in self._pieces(inputs):
            values = [np.ascontiguousarray(array[:, begin:end]) for array in inputs]
            expected = self.expected(now)
            for each in self._predicted:
                first = each.fill(values[each.place][:, :1], expected)
                values[each.place] = np.concatenate([first, values[each.place][:, 1:]], axis=1)
                bad |= any_of_rows(np.isnan(first))
            outputs, wrong = self._inner.step(now, target, values)
            told.append(outputs)
            bad |= wrong
            now = target
        return [np.concatenate(arrays, axis=1) for arrays in zip(*told, strict=True)], bad

    def _pieces(self, inputs: Sequence[Array]) -> Iterator[tuple[int, int]]:
        """From where to where: only the first step of a piece has gaps; powers of two, as every slice."""
        steps = inputs[0].shape[1]
        gone = np.zeros(steps, np.bool_)
        for each in self._predicted:
            gone |= any_of_steps(np.isnan(inputs[each.place])).any(axis=0)
        bounds = [0, *(np.flatnonzero(gone[1:]) + 1).tolist(), steps]
        for begin, end in pairwise(bounds):
            while begin < end:
                length = 1 << ((end - begin).bit_length() - 1)
                yield begin, begin + length
                begin += length

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
            for row in np.flatnonzero(any_of_rows(np.isnan(values))).tolist():
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
