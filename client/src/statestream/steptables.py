"""Steps of a pool as a table: a row a step, whose it is by unique_id, and the same rows back with the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.signature import TensorSpec, step_shape
from statestream.contract.tensors import Array, Ints
from statestream.dataframes import ID, TIME, History, read_history
from statestream.layout import Layout
from statestream.scores import Scored, Scores
from statestream.tables import frame_of
from statestream.wanted import listed

_ARRAYS: Final = (np.ndarray, list, tuple, Mapping)
"""What is looked at no further."""


class Steps(NamedTuple):
    """A table as the arguments of a pool's step.

    Attributes:
        x: By input [n, …] for a step each, [n, T, …] for several.
        rows: [n] which of the pool's sessions.
        lengths: [n] how many steps each has; None where all have as many.
        cursors: [n] as they were given, in the order of the rows.
        told: What makes a table of the outputs.
    """

    x: Mapping[str, Array]
    rows: list[int]
    lengths: Ints | None
    cursors: Sequence[bytes | None] | None
    told: Callable[[Any], Any]


def says_whose(x: Any) -> bool:
    """Whether it is a table that says whose its rows are; of another one they are those of the pool."""
    if isinstance(x, _ARRAYS):
        return False
    frame = frame_of(x)
    return frame is not None and ID in (*frame.columns, *getattr(getattr(x, "index", None), "names", ()))


def read_steps(
    layout: Layout,
    table: Any,
    ids: Sequence[str],
    rows: Sequence[int],
    lengths: object = None,
    cursors: Sequence[bytes | None] | None = None,
) -> Steps:
    """The steps in a table that says whose its rows are, in any order.

    Args:
        layout: The model's.
        table: The table.
        ids: [N] the ids of the pool's sessions.
        rows: [n] which of them are stepped; each has to be in the table.
        lengths: What a caller said of them.
        cursors: [n] likewise.

    Raises:
        BadTensor: A session has no row, or several without ds; a row is of none; columns do not fit. Names them.
    """
    if lengths is not None:
        raise BadTensor(
            f"lengths came with a table; its {ID} says how many rows each session has: leave lengths out",
            metadata={"field": "lengths"},
        )
    history = read_history(layout, table)
    assert history is not None
    chosen = _sessions(ids, rows, history)
    count, past = len(chosen), history.past
    most = int(past.lengths.max())
    places = np.repeat(np.arange(count), past.lengths)
    starts = np.cumsum(past.lengths) - past.lengths
    times = np.arange(len(places)) - np.repeat(starts, past.lengths)
    inputs = {}
    for name, values in past.inputs.items():
        padded = np.zeros((count, most, *values.shape[1:]), values.dtype)
        padded[places, times] = values
        inputs[name] = padded[:, 0] if most == 1 else padded
    if cursors is not None and len(cursors) == len(rows):
        of = dict(zip(rows, cursors, strict=True))
        cursors = [of[row] for row in chosen]
    # Where each row of the table is among the outputs.
    order = np.argsort(np.concatenate(history.rows))
    where = places[order], times[order]

    def told(answer: Any) -> Any:
        return _written(layout, history, where, most == 1, answer, table)

    return Steps(inputs, chosen, None if (past.lengths == most).all() else past.lengths, cursors, told)


def _sessions(ids: Sequence[str], rows: Sequence[int], history: History) -> list[int]:
    """The rows of the pool that the series of a table are for.

    Raises:
        BadTensor: They are not those that the step is for.
    """
    known = {ids[row]: row for row in rows}
    names = [str(name) for name in history.names]
    unknown = [name for name in names if name not in known]
    if unknown:
        elsewhere = [name for name in unknown if name in ids]
        raise BadTensor(
            f"the table has rows of {listed(elsewhere)}, which rows= leaves out; expected only those that it names"
            if elsewhere
            else f"the table has rows of {listed(unknown)}, and the pool no such sessions; it has {listed(ids)}."
            f" Open a pool with them (client.sessions(…, ids=…)), or leave their rows out",
            metadata={"field": ID},
        )
    twice = [name for name, length in zip(names, history.past.lengths.tolist(), strict=True) if length > 1]
    if twice and TIME not in history.frame.columns:
        raise BadTensor(
            f"the table has several rows of {listed(twice)}, and no column {TIME!r} that says which comes first;"
            f" expected a row for each session, or {TIME!r}",
            metadata={"field": ID},
        )
    missing = [name for name in known if name not in set(names)]
    if missing:
        raise BadTensor(
            f"the table has no row of {listed(missing)}; expected rows of all sessions that are stepped. To step only"
            f" those that it has: rows=table[{ID!r}].unique()",
            metadata={"field": ID},
        )
    return [known[name] for name in names]


def _written(layout: Layout, history: History, where: tuple[Ints, Ints], single: bool, answer: Any, came: Any) -> Any:
    """The table of a step's outputs, [n] rows as they came; with scores the pair of it and those, [n] as well."""
    import narwhals.stable.v2 as narwhals

    def rows_of(array: Array | None) -> Any:
        return None if array is None else array[where[0]] if single else array[where]

    if isinstance(answer, Scored):
        table = _written(layout, history, where, single, answer.outputs, came)
        scores, z = answer.scores, answer.scores.z
        mine = {name: rows_of(one) for name, one in z.items()} if isinstance(z, Mapping) else rows_of(z)
        return Scored(table, Scores(rows_of(scores.log_likelihood), rows_of(scores.p_value), mine))
    frame = history.frame
    arrays = answer if isinstance(answer, Mapping) else {layout.outputs[0]: answer}
    specs = [spec for spec in layout.signature.outputs if spec.name in arrays]
    named = [(spec, _names(spec, step_shape(spec))) for spec in specs]
    alone = sum(len(names) for _, names in named) == 1
    whole = narwhals.from_native(
        _bare(frame.select([name for name in (ID, TIME) if name in frame.columns]).to_native())
    )
    for spec, names in named:
        flat = rows_of(arrays[spec.name]).reshape(len(frame), -1)
        for place, name in enumerate(names):
            label = layout.model.name if alone else f"{layout.model.name}-{name}"
            whole = whole.with_columns(narwhals.new_series(label, flat[:, place], backend=frame.implementation))
    native, index = whole.to_native(), getattr(came, "index", None)
    labels = [*getattr(index, "names", ())]
    kept = hasattr(native, "set_axis") and (TIME in came.columns or TIME not in frame.columns)
    return native.set_axis(index, axis=0) if kept and len(labels) == 1 and ID not in labels else native


def _bare(native: Any) -> Any:
    """The same without the labels of its rows, which pandas would join by."""
    return native.reset_index(drop=True) if hasattr(native, "reset_index") else native


def _names(spec: TensorSpec, shape: tuple[int, ...]) -> list[str]:
    """What the numbers of an output are called."""
    count = math.prod(shape)
    if len(spec.columns) == count:
        return list(spec.columns)
    return [spec.name] if count == 1 else [f"{spec.name}_{n}" for n in range(count)]
