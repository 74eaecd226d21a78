"""What a caller's arrays must look like for one model, and how they become chunks; from its signature, without I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from statestream.arguments import number_or_alias
from statestream.contract.errors import BadTensor, Unsupported
from statestream.contract.signature import Signature, numpy_dtype, score_outputs, step_shape
from statestream.contract.tensors import Array, Ints
from statestream.core import (
    ANSWER_BYTES,
    Feed,
    Lane,
    PartsTicket,
    PoolTicket,
    PredictKind,
    PredictTicket,
    StepTicket,
    value_of,
)
from statestream.scores import scored, unscored
from statestream.tables import HasArray, HasArrowStream, HasDataFrame, HasDlpack, is_table, read
from statestream.views import Model
from statestream.wanted import Wanted, listed

Input: TypeAlias = (
    bool | int | float | HasArray | HasDlpack | HasArrowStream | HasDataFrame | Sequence[Any] | Mapping[str, Any]
)
"""An array, a sequence, a number or a table (see `tables.read`); where a model has several inputs, a dict by name."""

CHUNK_BYTES = 1 << 20
"""Chunks are cut so that their inputs stay below this."""


_KINDS = 256
"""Kinds of calls that a layout remembers: where an axis is free, there may be very many."""


class Layout:
    """The inputs and outputs of one model version."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.signature: Signature = model.signature
        self.inputs = list(model.signature.inputs)
        self.names = tuple(spec.name for spec in self.inputs)
        self.outputs = tuple(spec.name for spec in model.signature.outputs)
        self.shapes = tuple(step_shape(spec) for spec in self.inputs)
        self.wanted = tuple(map(Wanted.of, self.inputs))
        self.dtypes = tuple(wanted.dtype for wanted in self.wanted)
        # Beside inputs with a time axis, one without holds for all steps of a chunk: it may come once.
        timed = [spec.HasField("time_axis") for spec in self.inputs]
        self.constant = [any(timed) and not one for one in timed]
        self.leads = self.constant.index(False) if self.inputs else 0
        self.scores = score_outputs(model.signature)
        answers = [(step_shape(spec), numpy_dtype(spec.dtype)) for spec in (*model.signature.outputs, *self.scores)]
        self._answer_bytes = sum(
            math.prod(shape) * dtype.itemsize for shape, dtype in answers if min(shape, default=0) >= 0
        )
        specs = [*self.inputs, *model.signature.outputs]
        self._first = all(spec.HasField("batch_axis") and spec.batch_axis == 0 for spec in specs)
        self._kinds: dict[tuple[Any, ...], PredictKind] = {}
        self._odd: dict[Lane | int, Lane] = {}
        self._scored: dict[Lane, Lane] = {}
        self._lanes: dict[tuple[tuple[int, ...], ...], Lane] = {}
        fixed = all(size >= 0 for shape in self.shapes for size in shape)
        self._lane = self.lane(self.shapes) if fixed else None
        # The common case, one step of one input as the model wants it, skips all checks but these.
        alone = len(self.shapes) == 1 and not self.wanted[0].times
        self._plain = (self._lane, self.shapes[0], self.dtypes[0]) if self._lane and alone else None

    def lane(self, shapes: tuple[tuple[int, ...], ...]) -> Lane:
        """The lane of chunks whose steps have these shapes."""
        lane = self._lanes.get(shapes)
        if lane is None:
            step_bytes = sum(
                math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, self.dtypes, strict=True)
            )
            dtypes = tuple(spec.dtype for spec in self.inputs)
            lane = Lane(self.model.name, self.model.version, self.names, dtypes, shapes, step_bytes, self._answer_bytes)
            self._lanes[shapes] = lane
        return lane

    def odd(self, like: Lane | int) -> Lane:
        """The lane of chunks like those of another, but with cursors; or of marks of a kind, which may have some."""
        lane = self._odd.get(like)
        if lane is None:
            if isinstance(like, Lane):
                lane = like.with_cursors()
            else:
                lane = Lane(self.model.name, self.model.version, (), (), (), 0, mark=like, cursors=True)
            self._odd[like] = lane
        return lane

    def scored(self, like: Lane) -> Lane:
        """The lane of chunks like those of another that are to be scored.

        Raises:
            Unsupported: The model expects nothing that they could be scored by.
        """
        lane = self._scored.get(like)
        if lane is None:
            if not self.scores:
                raise Unsupported(
                    f"model {self.model.name!r} expects nothing of its next input, so no step of it can be scored;"
                    " export it with feedback={output: input}, and with a head for likelihoods"
                )
            lane = self._scored[like] = like.with_scores()
        return lane

    def mark(self, handle: int, kind: int, cursor: bytes = b"") -> StepTicket:
        """A mark of a session; `cursor` is checked already."""
        return StepTicket(self.odd(kind), handle, (), 1, single=True, cursor=cursor)

    def pool_mark(self, handles: Ints, kind: int, cursors: Sequence[bytes]) -> PoolTicket:
        """Marks of a pool's sessions; `cursors` [N] are checked already."""
        return PoolTicket(self.odd(kind), handles, (), 1, 1, cursors=cursors or [b""] * len(handles))

    def chunk(
        self,
        handle: int,
        x: Input,
        max_steps: int,
        max_answer: int = ANSWER_BYTES,
        cursor: bytes = b"",
        score: bool = False,
    ) -> StepTicket | PartsTicket:
        """The chunk of `x`: one step of shape [F…], or T ≥ 1 steps of shape [T, F…]. The data is copied.

        Several chunks where it has more than `max_steps` steps, or inputs or outputs of many bytes: the latter about
        `max_answer`. The last of them has the cursor.

        Raises:
            BadTensor: Names the input, what came, and what was expected.
            Unsupported: They are to be scored, and the model expects nothing.
        """
        plain = self._plain
        usual = plain is not None and not cursor and not score
        if usual and plain is not None and type(x) is np.ndarray and x.shape == plain[1] and x.dtype == plain[2]:
            return StepTicket(plain[0], handle, (x.tobytes(),), 1, single=True)
        arrays, steps, single = self._read(x)
        lane = self._lane or self.lane(self._shapes(arrays, 0 if single else 1))
        lane = self.scored(lane) if score else lane
        most = min(max_steps, max(1, CHUNK_BYTES // max(1, lane.step_bytes)), lane.answer_steps(max_answer))
        if steps <= most:
            lane = self.odd(lane) if cursor else lane
            return StepTicket(lane, handle, tuple(array.tobytes() for array in arrays), steps, single, cursor)
        parts = []
        for low in range(0, steps, most):
            high = min(low + most, steps)
            part = tuple(array[low:high].tobytes() for array in arrays)
            said = cursor if high == steps else b""
            parts.append(
                StepTicket(self.odd(lane) if said else lane, handle, part, high - low, single=False, cursor=said)
            )
        return PartsTicket(parts)

    def pool(
        self,
        handles: Ints,
        x: Input,
        lengths: Sequence[int] | Ints | None,
        feed: Feed | None = None,
        cursors: Sequence[bytes] = (),
        score: bool = False,
    ) -> tuple[PoolTicket, bool]:
        """The chunks of a pool: [N, F…] for a step each, [N, T, F…] for T; and whether it was a step each.

        With `lengths` ([N], 0 to T), row i has lengths[i] steps and the rest of it is padding. Of a stream of steps
        each has the same `feed`.

        Raises:
            BadTensor: Names the input, what came, and what was expected.
            Unsupported: They are to be scored, and the model expects nothing.
        """
        count = len(handles)
        came: list[tuple[Array, bool]] = []
        for name, value in self.by_name(x):
            index = self.names.index(name)
            array = read(self.wanted[index], value)
            rank = len(self.shapes[index])
            here = array.ndim == rank + 1
            if array.ndim not in (rank + 1, rank + 2) or array.shape[0] != count:
                raise self.bad(index, array, f"[{count}, …] or [{count}, T, …] with … = {shown(self.shapes[index])}")
            self.check_step(index, array, array.shape[1 if here else 2 :])
            came.append((array, here))
        first, single = came[self.leads]
        steps, arrays = 1 if single else first.shape[1], []
        if not steps:
            raise BadTensor("T is 0; expected 1 step or more", metadata={"field": self.names[0]})
        for index, (array, here) in enumerate(came):
            long = array[:, np.newaxis] if here else array
            if self.constant[index] and long.shape[1] == 1:
                long = np.broadcast_to(long, (count, steps, *long.shape[2:]))
            elif here != single or long.shape[1] != steps:
                raise self.bad(index, array, f"{steps} steps a row, as {self.names[self.leads]} has")
            arrays.append(long)
        lane = self._lane or self.lane(self._shapes(arrays, 2))
        lane = self.scored(lane) if score else lane
        sizes: Ints | int = steps
        if lengths is not None:
            sizes = _lengths(lengths, count, steps)
        inputs = tuple([array.tobytes() for array in arrays])
        return PoolTicket(self.odd(lane) if cursors else lane, handles, inputs, sizes, steps, feed, cursors), single

    def pool_outputs(self, ticket: PoolTicket, single: bool) -> Any:
        """A pool's outputs as the caller wants them; zeros where no row has any, for sizes that are free none."""
        values: dict[str, Array] = ticket.value or {
            spec.name: np.zeros(
                (len(ticket.handles), ticket.steps, *(max(0, size) for size in step_shape(spec))),
                numpy_dtype(spec.dtype),
            )
            for spec in self.signature.outputs
        }
        if ticket.lane.scored:
            values = self._scores(ticket, values)
        if single:
            values = {name: array[:, 0] for name, array in values.items()}
        return scored(values) if ticket.lane.scored else value_of(values)

    def _scores(self, ticket: PoolTicket, values: dict[str, Array]) -> dict[str, Array]:
        """A pool's outputs and scores, with NaN in the scores of steps that were not applied."""
        lead = len(ticket.handles), ticket.steps
        gone = np.zeros(lead, np.bool_)
        gone[list(ticket.errors)] = True
        if not isinstance(ticket.lengths, int):
            gone |= np.arange(ticket.steps) >= ticket.lengths[:, np.newaxis]
        for spec in self.scores:
            if spec.name not in values:
                values[spec.name] = np.full((*lead, *step_shape(spec)), np.nan, np.float32)
        return unscored(values, gone)

    def items(self, items: Any) -> Any:
        """What a stream of steps iterates over: of a table its rows, in the order of the model's columns."""
        return read(self.wanted[0], items) if len(self.inputs) == 1 and is_table(items) else items

    def predict(self, x: Input) -> dict[str, Array]:
        """The inputs of one run: [B, …] or whatever the graph takes.

        Raises:
            BadTensor: Names the input, what came, and what was expected.
        """
        inputs = {}
        for name, value in self.by_name(x):
            index = self.names.index(name)
            array = read(self.wanted[index], value)
            shape = tuple(self.inputs[index].shape)
            if len(shape) != array.ndim or any(
                size not in (-1, got) for size, got in zip(shape, array.shape, strict=True)
            ):
                raise self.bad(index, array, shown(shape))
            inputs[name] = array
        return inputs

    def rows(self, arrays: Sequence[Array]) -> int:
        """How many rows the inputs of a run have, each of which could be a run of its own; -1 where they cannot."""
        return len(arrays[0]) if self._first and all(len(array) == len(arrays[0]) for array in arrays) else -1

    def call(self, x: Input, outputs: tuple[str, ...], version: int | str | None) -> PredictTicket:
        """One run of a model without memory, of which some outputs are wanted, all where there are no names.

        The data is copied. Calls share frames where the model has its batch axes first.

        Raises:
            BadTensor: Names the input, what came, and what was expected.
        """
        arrays = [*self.predict(x).values()]
        rows = self.rows(arrays)
        shapes = tuple([array.shape[1:] if rows >= 0 else array.shape for array in arrays])
        kind = self._kinds.get((version, outputs, rows < 0, shapes))
        if kind is None:
            kind = self._kind(version, outputs, shapes, shares=rows >= 0)
        return PredictTicket(kind, tuple([array.tobytes() for array in arrays]), rows if rows >= 0 else 1)

    def _kind(
        self, version: int | str | None, outputs: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], *, shares: bool
    ) -> PredictKind:
        """What calls share whose inputs have these shapes; of those that share frames without the batch axis."""
        if len(self._kinds) >= _KINDS:
            self._kinds.clear()
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, self.dtypes, strict=True)]
        answer = 0
        for spec in self.signature.outputs:
            shape = [*spec.shape][1 if shares else 0 :]
            if min(shape, default=0) >= 0 and (not outputs or spec.name in outputs):
                answer += math.prod(shape) * numpy_dtype(spec.dtype).itemsize
        dtypes = tuple(spec.dtype for spec in self.inputs)
        number, alias = number_or_alias(version)
        kind = PredictKind(
            self.model.name, number, self.names, dtypes, shapes, outputs, shares, sum(sizes), answer, alias
        )
        self._kinds[version, outputs, not shares, shapes] = kind
        return kind

    def _read(self, x: Input) -> tuple[list[Array], int, bool]:
        arrays: list[tuple[Array, bool, int]] = []
        for name, value in self.by_name(x) if len(self.names) > 1 or isinstance(x, Mapping) else ((self.names[0], x),):
            index = self.names.index(name)
            array, shape = read(self.wanted[index], value), self.shapes[index]
            if array.ndim == 0 and shape and math.prod(shape) == 1:
                array = array.reshape(shape)
            if array.shape == shape:
                here, count = True, 1
            else:
                here, count = array.ndim == len(shape), len(array) if array.ndim else 1
                if array.ndim not in (len(shape), len(shape) + 1):
                    raise self.bad(index, array, f"{shown(shape)} for one step or [T, …] for T")
                self.check_step(index, array, array.shape if here else array.shape[1:])
                if here:
                    count = 1
                if not count:
                    raise BadTensor(f"{name} has 0 steps; expected 1 or more", metadata={"field": name})
            arrays.append((array, here, count))
        _, single, steps = arrays[self.leads]
        return [self._spread(index, *one, steps, single) for index, one in enumerate(arrays)], steps, single

    def _spread(self, index: int, array: Array, here: bool, count: int, steps: int, single: bool) -> Array:
        """An input over the steps of a chunk: as it is, or what holds for all of them once for each."""
        if (here, count) == (single, steps):
            return array
        if self.constant[index] and count == 1:
            one = array if here else array[0]
            return one if single else np.broadcast_to(one, (steps, *one.shape))
        raise self.bad(index, array, f"{steps} steps, as {self.names[self.leads]} has")

    def by_name(self, x: Input) -> list[tuple[str, Input]]:
        """What came for each input.

        Raises:
            BadTensor: Inputs are missing, or are none of the model's.
        """
        if not isinstance(x, Mapping):
            if len(self.names) > 1:
                raise BadTensor(
                    f"model {self.model.name!r} has inputs {list(self.names)}; expected a dict with an array for each",
                    metadata={"field": self.names[0]},
                )
            return [(self.names[0], x)]
        if set(x) != set(self.names):
            if len(self.names) == 1 and self.wanted[0].columns:
                return [(self.names[0], x)]  # The columns of the only input, by name.
            raise BadTensor(
                f"inputs {listed(x)} came; expected {listed(sorted(self.names))}", metadata={"field": self.names[0]}
            )
        return [(name, x[name]) for name in self.names]

    def check_step(self, index: int, array: Array, got: tuple[int, ...]) -> None:
        """Checks the shape `got` of a step of an array that came for an input, by its number.

        Raises:
            BadTensor: It is not as the model wants it.
        """
        shape = self.shapes[index]
        if len(got) != len(shape) or any(size not in (-1, here) for size, here in zip(shape, got, strict=True)):
            raise self.bad(index, array, f"{shown(shape)} a step")

    def _shapes(self, arrays: Sequence[Array], skip: int) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape[skip:] for array in arrays)

    def bad(self, index: int, array: Array, expected: str) -> BadTensor:
        """The error that says what came for an input, by its number, and what was expected."""
        columns = self.wanted[index].columns
        named = f" (columns {listed(columns)})" if columns else ""
        if array.ndim == 1 and self.shapes[index] == (1,):
            named += "; several steps of one feature are [T, 1]: x.reshape(-1, 1)"
        return BadTensor(
            f"{self.names[index]} has shape {list(array.shape)}; model {self.model.name!r} expects {expected}{named}",
            metadata={"field": self.names[index]},
        )


def _lengths(lengths: Sequence[int] | Ints, count: int, steps: int) -> Ints:
    """The steps of each of so many rows, or a BadTensor that says what came instead."""
    found, expected = np.asarray(lengths), f"expected [{count}] whole numbers from 0 to {steps}"
    if found.shape != (count,) or (count and found.dtype.kind not in "iu"):
        came = f"dtype {found.dtype} and shape {list(found.shape)}"
    else:
        outside = found[(found < 0) | (found > steps)]
        if not len(outside):
            return found.astype(np.int64)
        came = str(outside[0])
    raise BadTensor(f"lengths has {came}; {expected}", metadata={"field": "lengths"})


def shown(shape: Sequence[int]) -> str:
    """A shape, ? where it is free."""
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"
