"""Rows: the memory of one model version, an array for each state with one row a session. Protocol and layout only.

Nothing here runs a model. Arrays of rows have the row as their first axis whatever the graph wants; `Axes`
says how the two arrangements relate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.observations import score_memory
from statestream.contract.signature import Missing, Signature, StateCheck, StateSpec, TensorSpec
from statestream_server.arrays import Array, Bools, Ints

SCRATCH_ROW: Final = 0
"""What must not be kept is written there; it holds anything."""

FIRST_ROW: Final = 1
"""The first row that a session may have."""

MAX_SLICE: Final = 256
"""The most steps of one run, where the graph has a time axis."""

EVERYTHING: Final = "nan inf"
"""All that an input may hold and no number is: of which inputs are held to it see `fused_rows.InputCheck`."""


class Column(NamedTuple):
    """One array of a model's memory, without the row axis.

    Attributes:
        name: What it is called.
        dtype: Its element type.
        shape: Of one row.
        sparse: Whether most rows have nothing but zeros there, so that nothing is kept for them.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    sparse: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class Rows(Protocol):
    """The memory of one model version: for every column an array [capacity, *column.shape].

    Columns are the states in the order of the signature, then the last step of every output that a forecast starts
    from (`forecast_outputs`), named "feedback:<output>", then what is kept of observations (memory/observed.py).

    `step` and `grow` exclude each other. The others may run beside a `step` in another thread as long as they
    touch none of its rows, but never beside `grow`. Nothing can be cancelled half-way.

    Attributes:
        row_by_row: Whether `step` runs the model once for every row: nothing is won by giving it several.
    """

    row_by_row: bool

    @property
    def capacity(self) -> int:
        """Rows there are, row 0 included; sessions use `FIRST_ROW` to capacity - 1."""

    @property
    def columns(self) -> Sequence[Column]:
        """The arrays: states in order, then feedbacks, then what is kept of observations."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row over all columns."""

    @property
    def max_slice(self) -> int:
        """The most steps of one `step`: 256 where every input and output has a time axis, else 1."""

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` rows and keeps what is there; new rows hold unspecified values.

        Raises:
            MemoryError: There is not that much memory; nothing changed.
        """

    def reset(self, rows: Ints) -> None:
        """Sets rows [n] to the signature's start values, feedback columns to NaN where they are of floats."""

    def read(self, rows: Ints) -> list[Array]:
        """Copies of rows [n], for every column [n, *shape]."""

    def write(self, rows: Ints, values: Sequence[Array]) -> None:
        """Sets rows [n] to values, for every column [n, *shape]; sparse ones may be left out, they are zeros then."""

    def copy(self, source: Ints, target: Ints) -> None:
        """Copies rows source [n] to rows target [n]; targets are distinct and no target is a source.

        Copies run on by themselves (a forecast's): what scores are compared with is left out.
        """

    def free(self, rows: Ints) -> None:
        """Has rows [n] let go of what they share with others, as an encoder's output; they are nobody's."""

    def step(self, source: Ints, target: Ints, inputs: Sequence[Array]) -> tuple[list[Array], Bools]:
        """Runs the model once: from the states of rows `source` to the states of rows `target`.

        Args:
            source: [n] rows to start from, n ≥ 1; may repeat.
            target: [n] distinct rows that take the new states; target[i] may be source[i], but no row may be
                another's source and target.
            inputs: In the signature's order, each [n, T, *step shape], C-contiguous, T ≤ max_slice.

        Returns:
            The outputs in the signature's order, each [n, T, *step shape], in memory of their own, and
            bad [n]: rows whose new state, or input, failed the check; their targets are unchanged.
        """


class Axes(NamedTuple):
    """How an array [n, T, …] (or a state's [n, …]) becomes the graph's: `drop` axes of length 1, then transpose.

    Attributes:
        drop: Axes of the row-first array that the graph does not have.
        perm: The transposition that follows.
    """

    drop: tuple[int, ...]
    perm: tuple[int, ...]

    @classmethod
    def of_tensor(cls, spec: TensorSpec) -> Axes:
        """The axes of an input or output, row-first [n, T, *step shape]."""
        batch = spec.batch_axis if spec.HasField("batch_axis") else None
        time = spec.time_axis if spec.HasField("time_axis") else None
        return cls._of((batch, time), len(spec.shape))

    @classmethod
    def of_state(cls, spec: StateSpec) -> Axes:
        """The axes of a state, row-first [n, *row shape]."""
        return cls._of((spec.batch_axis if spec.HasField("batch_axis") else None,), len(spec.shape))

    @classmethod
    def _of(cls, leading: tuple[int | None, ...], rank: int) -> Axes:
        kept = [axis for axis in leading if axis is not None]
        order = kept + [axis for axis in range(rank) if axis not in kept]
        drop = tuple(place for place, axis in enumerate(leading) if axis is None)
        return cls(drop, tuple(order.index(axis) for axis in range(rank)))

    @property
    def plain(self) -> bool:
        """Whether the two arrangements are the same."""
        return not self.drop and self.perm == tuple(range(len(self.perm)))

    @property
    def inverse(self) -> tuple[int, ...]:
        """The transposition from the graph's axes back."""
        return tuple(self.perm.index(axis) for axis in range(len(self.perm)))

    def to_graph(self, values: Array) -> Array:
        """Row-first to the graph's axes; C-contiguous, a view where it can be."""
        return np.asarray(values.squeeze(self.drop).transpose(self.perm), order="C")

    def from_graph(self, values: Array) -> Array:
        """The graph's axes to row-first; a view."""
        return np.expand_dims(values.transpose(self.inverse), self.drop)


def columns_of(signature: Signature) -> tuple[Column, ...]:
    """The columns that the graph itself reads and writes.

    Raises:
        SignatureError: A fed-back output has an axis of free length, so that its last step is no fixed-shape row.
    """
    columns = [
        Column(state.input, signatures.numpy_dtype(state.dtype), signatures.row_shape(state))
        for state in signature.states
    ]
    outputs = {spec.name: spec for spec in signature.outputs}
    for name in signatures.forecast_outputs(signature):
        shape = signatures.step_shape(outputs[name])
        if any(size < 0 for size in shape):
            raise signatures.SignatureError(
                f"feedback output {name!r} has a step of shape {list(shape)}; expected lengths that are all fixed"
            )
        columns.append(Column(f"feedback:{name}", signatures.numpy_dtype(outputs[name].dtype), shape))
    return tuple(columns)


def observed_columns(signature: Signature) -> tuple[Column, ...]:
    """The columns that hold what is kept of observations, behind those of `columns_of`; see memory/observed.py."""
    columns = list[Column]()
    for spec in signature.inputs:
        if spec.HasField("elapsed"):
            columns.append(Column(f"time:{spec.name}", np.dtype("<i8"), ()))
        elif spec.missing == Missing.MISSING_HOLD:
            dtype, shape = signatures.numpy_dtype(spec.dtype), signatures.step_shape(spec)
            columns.append(Column(f"held:{spec.name}", dtype, shape))
    series, size = score_memory(signature)
    if series:
        columns.append(Column("score:seen", np.dtype("<u4"), (series,), sparse=True))
        columns.append(Column("score:past", np.dtype("<f4"), (series, size), sparse=True))
    return tuple(columns)


def start_values(signature: Signature) -> list[Array]:
    """One row at position 0, for every column of the graph's memory an array of its shape."""
    states = [signatures.start_row(state) for state in signature.states]
    return states + [nothing(column) for column in columns_of(signature)[len(states) :]]


def nothing(column: Column) -> Array:
    """What stands in a column where nothing came yet: NaN, 0 where its type has none."""
    return np.full(column.shape, np.nan if column.dtype.kind == "f" and not column.sparse else 0, column.dtype)


def restart(rows: Rows, signature: Signature, which: Ints) -> None:
    """Sets rows [n] to the signature's start values, but for what is set once for a session: that stays."""
    constants = [place for place, state in enumerate(signature.states) if state.constant]
    kept = rows.read(which) if constants else []
    rows.reset(which)
    if constants:
        values = rows.read(which)
        for place in constants:
            values[place] = kept[place]
        rows.write(which, values)


def max_slice_of(signature: Signature) -> int:
    """The most steps that one run of the graph can take."""
    specs = [*signature.inputs, *signature.outputs]
    timed = all(spec.HasField("time_axis") and spec.shape[spec.time_axis] < 0 for spec in specs)
    return MAX_SLICE if timed else 1


def is_batched(signature: Signature) -> bool:
    """Whether one run of the graph can take more than one row."""
    specs: list[TensorSpec | StateSpec] = [*signature.inputs, *signature.outputs, *signature.states]
    return all(spec.HasField("batch_axis") and spec.shape[spec.batch_axis] < 0 for spec in specs)


def is_checked(state: StateSpec) -> bool:
    """Whether anything is asked of a state's new values."""
    return state.check != StateCheck.STATE_CHECK_OFF and signatures.numpy_dtype(state.dtype).kind == "f"
