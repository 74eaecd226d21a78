"""The loss: how far a quantised graph is from the float graph, over the examples and over many steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from statestream_export.errors import GateError
from statestream_export.interface import Interface
from statestream_export.running import Graph

Array = np.ndarray
Run = list[Array]
"""The inputs of one run of the graph."""

ROWS = 64
"""The most rows of one run."""
STEPS = 256
"""Steps that a graph with memory is followed for."""
MARKS = (1, 4, 16, 64, 256)
"""Where the drift is told: the mean from the mark before to this one."""
LIMIT = 0.05
"""The mean deviation of an output, as a share of its spread, that is let through unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far one output, or one state after the last step, is from the float graph's.

    Attributes:
        output: Its name.
        largest: The largest absolute difference.
        mean: The mean absolute difference.
        spread: The mean distance of the float graph's values from their mean, or their size where all are the same.
        drift: The mean difference by steps: up to step 1, 4, 16, 64 and 256; empty without memory, and for states.
    """

    output: str
    largest: float
    mean: float
    spread: float
    drift: Mapping[int, float]

    @property
    def share(self) -> float:
        """The mean difference as a share of the spread."""
        return self.mean / (self.spread or 1.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """What quantisation cost and what it saved.

    Attributes:
        layers: How many of each operator were quantised.
        kept: How many of each operator with weights stayed float.
        bytes_before: The float file's size.
        bytes_after: The quantised file's size.
        outputs: How far the outputs are off.
        states: How far the states are off after the last step.
    """

    layers: Mapping[str, int]
    kept: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    outputs: tuple[Deviation, ...]
    states: tuple[Deviation, ...]

    @property
    def worst(self) -> Deviation:
        """The output that is furthest off for its spread."""
        return max(self.outputs, key=lambda each: each.share)


def episodes(interface: Interface) -> Iterator[tuple[list[Run], Run]]:
    """The examples as runs of the graph, up to 64 rows at once, and the states that they start from.

    With memory an episode has 256 steps or as many as the example, in the example's order: one run where the graph
    has a time axis, else a run for each.
    """
    generator = torch.Generator().manual_seed(3)
    length = max(
        [port.example.shape[port.time_axis] for port in interface.inputs if port.time_axis is not None], default=1
    )
    length = max(length, STEPS) if interface.states else length
    single = bool(interface.states) and not interface.timed
    runs = []
    for _ in range(length if single else 1):
        if single:
            runs.append([port.draw(_rows(interface), 1, generator) for port in interface.inputs])
        else:
            runs.append([port.sequence(length, generator) for port in interface.inputs])
    for start in range(0, _rows(interface), ROWS):
        count = min(ROWS, _rows(interface) - start)
        pieces = [
            [
                value.numpy()
                if port.batch_axis is None
                else value.narrow(port.batch_axis, start, count).contiguous().numpy()
                for value, port in zip(run, interface.inputs, strict=True)
            ]
            for run in runs
        ]
        states = [
            port.example.detach().numpy()
            if port.batch_axis is None
            else port.example.detach().narrow(port.batch_axis, 0, 1).repeat_interleave(count, port.batch_axis).numpy()
            for port in interface.states
        ]
        yield pieces, states


def _rows(interface: Interface) -> int:
    sizes = [port.example.shape[port.batch_axis] for port in interface.inputs if port.batch_axis is not None]
    return min(sizes, default=1)


def play(graph: Graph, interface: Interface, runs: Sequence[Run], states: Run) -> Iterator[tuple[Run, Run]]:
    """Runs an episode, the states carried along: for every run what went in, states included, and what came out."""
    count = len(interface.outputs)
    for run in runs:
        given = [*run, *states]
        found = graph(given, len(run[0]), 1)
        states = found[count:]
        yield given, found


def measure(before: Graph, after: Graph, interface: Interface) -> tuple[tuple[Deviation, ...], tuple[Deviation, ...]]:
    """Compares two graphs over the examples, each with the states that it reached itself: outputs, states."""
    ports = (*interface.outputs, *interface.new_states)
    wanted: list[list[Array]] = [[] for _ in ports]
    apart: list[list[Array]] = [[] for _ in ports]
    count = len(interface.outputs)
    for runs, states in episodes(interface):
        both = zip(play(before, interface, runs, states), play(after, interface, runs, states), strict=True)
        pairs = [(one, other) for (_, one), (_, other) in both]
        for place, port in enumerate(ports):
            chosen = pairs if place < count else pairs[-1:]
            axis = port.time_axis
            one, other = (np.concatenate([_steps_first(pair[side][place], axis) for pair in chosen]) for side in (0, 1))
            wanted[place].append(one)
            apart[place].append(_gap(one, other))
    found = [
        _deviation(port.name, want, gap, followed=bool(interface.states) and place < count)
        for place, (port, want, gap) in enumerate(zip(ports, wanted, apart, strict=True))
    ]
    return tuple(found[:count]), tuple(found[count:])


def _steps_first(value: Array, axis: int | None) -> Array:
    """[steps, all the rest] in float64; one step where there is no time axis."""
    front = value[None] if axis is None else np.moveaxis(value, axis, 0)
    return front.reshape(len(front), -1).astype(np.float64)


def _gap(one: Array, other: Array) -> Array:
    """The absolute difference; infinite where only one of two is a number."""
    with np.errstate(invalid="ignore"):
        return np.where(one == other, 0.0, np.nan_to_num(np.abs(one - other), nan=np.inf))


def _deviation(name: str, wanted: Sequence[Array], apart: Sequence[Array], *, followed: bool) -> Deviation:
    want, gap = np.concatenate(wanted, axis=1), np.concatenate(apart, axis=1)
    finite = want[np.isfinite(want)]
    spread = float(np.abs(finite - finite.mean()).mean()) if finite.size else 0.0
    spread = spread or float(np.abs(finite).max(initial=0.0))
    drift = {}
    if followed:
        starts = (0, *MARKS[:-1])
        drift = {
            end: float(gap[start:end].mean()) for start, end in zip(starts, MARKS, strict=True) if len(gap) > start
        }
    return Deviation(name, float(gap.max()), float(gap.mean()), spread, drift)


def judge(found: Loss, limit: float) -> None:
    """Lets a loss through, or says what to do.

    Raises:
        GateError: An output is further off on average than `limit` of its spread.
    """
    worst = found.worst
    if worst.share <= limit:
        return
    raise GateError(
        f"quantised to int8, output {worst.output!r} is {worst.mean:.3g} off on average and {worst.largest:.3g} at"
        f" most, where its values are spread by {worst.spread:.3g}: a loss of {worst.share:.1%}; allowed are"
        f" {limit:.1%}. Nothing was written. Give calibration=… inputs that are like those it will meet, allow more"
        " with max_loss=…, or leave quantize out",
        output=worst.output,
        length=max(worst.drift, default=1),
        difference=worst.largest,
    )
