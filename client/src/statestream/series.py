"""Series: the past and the known future of a forecast, as callers give them, by a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from statestream.contract.errors import BadTensor
from statestream.contract.observations import is_filled
from statestream.contract.signature import known_places
from statestream.contract.tensors import Array, Ints
from statestream.layout import Input, Layout, shown
from statestream.tables import read
from statestream.wanted import Wanted, listed


class Past(NamedTuple):
    """Past inputs of some series, one series after the other.

    Attributes:
        inputs: By name, [S, ...one step].
        lengths: [N] the steps of each.
        alone: Whether it is one series, given without an axis for series.
        names: The series' names, where they have some.
    """

    inputs: Mapping[str, Array]
    lengths: Ints
    alone: bool
    names: Sequence[Any] | None = None

    def some(self, series: Ints) -> Past:
        """Some of the series, by number."""
        ends = np.cumsum(self.lengths)
        lengths = self.lengths[series]
        ends_here = np.cumsum(lengths)
        steps = np.repeat(ends[series] - ends_here, lengths) + np.arange(int(ends_here[-1]))
        inputs = {name: array[steps] for name, array in self.inputs.items()}
        names = None if self.names is None else [self.names[each] for each in series.tolist()]
        return Past(inputs, self.lengths[series], self.alone, names)


def history(layout: Layout, x: Input) -> tuple[dict[str, Array], Ints, bool]:
    """Past inputs of one series or several, one after the other.

    From [T, F…] (one series), [N, T, F…], a list of N arrays [T, F…] that differ in T, or [T] of a model with one
    feature.

    Returns:
        The arrays [S, F…] by input, the steps [N] of each series, and whether it was one series.

    Raises:
        BadTensor: Names the input, what came, and what was expected.
    """
    inputs, found = dict[str, Array](), list[tuple[Ints, bool]]()
    for name, value in layout.by_name(x):
        index = layout.names.index(name)
        several = value if isinstance(value, list | tuple) else ()
        ragged = len({len(one) if isinstance(one, np.ndarray) and one.ndim else -1 for one in several}) > 1
        parts = [_series(layout, index, one) for one in (several if ragged else [value])]
        if ragged and not all(alone for _, alone in parts):
            raise layout.bad(index, parts[0][0], "a list of arrays [T, …], one for each series")
        first, alone = parts[0]
        if ragged:
            lengths = np.asarray([len(one[0]) for one, _ in parts])
            inputs[name], alone = np.concatenate([one[0] for one, _ in parts]), False
        else:
            lengths = np.full(len(first), first.shape[1])
            inputs[name] = first.reshape(-1, *first.shape[2:])
        found.append((lengths, alone))
    lengths, alone = found[0]
    if any(other.tolist() != lengths.tolist() for other, _ in found):
        raise BadTensor(
            f"the inputs {listed(inputs)} differ in series or steps; expected the same of each",
            metadata={"field": layout.names[0]},
        )
    return inputs, lengths, alone


def _series(layout: Layout, index: int, value: Input) -> tuple[Array, bool]:
    """[N, T, F…] of one input, and whether it came without N."""
    array, shape = read(layout.wanted[index], value), layout.shapes[index]
    came = array
    if array.ndim == 1 and math.prod(shape) == 1 and len(shape) == 1:
        array = array[:, np.newaxis]
    alone = array.ndim == len(shape) + 1
    if alone:
        array = array[np.newaxis]
    if array.ndim != len(shape) + 2 or not array.shape[0] or not array.shape[1]:
        raise layout.bad(index, came, f"[T, …] or [N, T, …] with … = {shown(shape)} and T at least 1")
    layout.check_step(index, came, array.shape[2:])
    return array, alone


def future(layout: Layout, x: Input, count: int, h: int) -> dict[str, Array]:
    """What is known beforehand, by input [N, h, …what nothing is fed to], for N series.

    From [h, …], which holds for all series, or [N, h, …]; a dict by name where several inputs are known. More steps
    than h are left out.

    Raises:
        BadTensor: Something is missing, unknown, or too short; names the input.
    """
    known = {spec.name: known_places(layout.signature, spec.name) for spec in layout.inputs}
    wanted = {name: places for name, places in known.items() if places is None or places}
    if not wanted:
        raise BadTensor(
            f"model {layout.model.name!r} is fed all its inputs; leave out future", metadata={"field": "future"}
        )
    given = x if isinstance(x, Mapping) and set(x) & set(wanted) else {next(iter(wanted)): x}
    if set(given) != set(wanted):
        raise BadTensor(f"future has {listed(given)}; expected {listed(wanted)}", metadata={"field": "future"})
    found = {}
    for name, places in wanted.items():
        index = layout.names.index(name)
        mine, shape = layout.wanted[index], layout.shapes[index]
        columns = mine.names
        if places is not None:
            shape, columns = (*shape[:-1], len(places)), [columns[place] for place in places]
        width = shape[-1] if shape else None
        named = tuple(columns) if mine.columns else ()
        array = read(Wanted(f"future of {name}", name, mine.dtype, named, width), given[name])
        if array.ndim == 1 and shape == (1,):
            array = array[:, np.newaxis]
        if array.ndim == len(shape) + 1:
            array = np.broadcast_to(array, (count, *array.shape))
        if array.ndim != len(shape) + 2 or array.shape[2:] != shape or len(array) != count:
            raise BadTensor(
                f"future of {name} has shape {list(array.shape)}; expected [{count}, {h}, …] or [{h}, …] with … ="
                f" {shown(shape)}",
                metadata={"field": "future"},
            )
        if array.shape[1] < h:
            raise BadTensor(
                f"future of {name} has {array.shape[1]} steps; expected {h}, as many as are forecast",
                metadata={"field": "future", "expected": str(h)},
            )
        found[name] = array[:, :h]
    return found


def check_past(layout: Layout, past: Past) -> None:
    """Checks that a past has no gaps, but for those that the server fills.

    Raises:
        BadTensor: Names the series, the row and the column of the first.
    """
    for name, array in past.inputs.items():
        filled = is_filled(layout.inputs[layout.names.index(name)])
        if array.dtype.kind != "f" or filled or not np.isnan(array).any():
            continue
        step, *place = np.argwhere(np.isnan(array))[0].tolist()
        ends = np.cumsum(past.lengths)
        series = int(np.searchsorted(ends, step, side="right"))
        row = step - int(ends[series] - past.lengths[series])
        columns = layout.wanted[layout.names.index(name)].columns
        where = f", column {columns[place[-1]]!r}" if place and columns else f", at {place}" if place else ""
        whose = series if past.names is None else past.names[series]
        raise BadTensor(
            f"history is nan in series {whose!r}, row {row} of {past.lengths[series]}{where} of {name}; this model's"
            " file says nothing of gaps: fill them, or export it with missing={…} and the server does",
            metadata={"field": "history", "series": str(whose), "row": str(row)},
        )
