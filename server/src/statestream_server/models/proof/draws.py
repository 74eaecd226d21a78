"""Values to try a model with: of the ranges that its signature tells; where it tells none, of safer and safer kinds.

A model takes the values it was made for and no others: what is looked up in a table, counts steps or stands under a
root has a domain. That a graph refuses values which were drawn says nothing against it until the safest are refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, TensorSpec, ValueRange
from statestream_server.arrays import Array, Ints
from statestream_server.models.rows import Rows

_EXACT = 1 << 53
"""Whole numbers up to here are floating numbers, too."""


class Kind(enum.StrEnum):
    """What is drawn where a signature tells no range."""

    NOISE = "noise"
    """Standard normal; whole numbers of the vocabulary, or 0 and 1."""
    UNIT = "numbers between 0 and 1"
    """Whole numbers as above."""
    ONES = "ones"
    ZEROS = "zeros"
    LOWEST = "the lowest values of its ranges"
    """Zeros where there are none."""


@dataclass(frozen=True, slots=True)
class Draws:
    """One way to draw inputs.

    Attributes:
        signature: What is drawn for.
        kind: What is drawn where it tells no range.
        starts: States that start from something else than the signature says, by their inputs [several, *row shape].
    """

    signature: Signature
    kind: Kind = Kind.NOISE
    starts: Mapping[str, Array] = field(default_factory=dict)

    def inputs(self, n: int, steps: int, rng: np.random.Generator) -> list[Array]:
        """[n, steps, *step shape] for every input, and one step where it has no axis for them.

        Axes of any other length that is free have `steps`, too.
        """
        return [self._input(spec, n, steps, rng) for spec in self.signature.inputs]

    def begin(self, rows: Rows, which: Ints) -> None:
        """Lets rows [n] start anew."""
        rows.reset(which)
        if self.starts:
            rows.write(which, self.first(rows.read(which)))

    def first(self, values: Sequence[Array]) -> list[Array]:
        """What rows hold at first, for every column [n, *row shape], of what the signature says."""
        places, found = [state.input for state in self.signature.states], list(values)
        for name, given in self.starts.items():
            place = places.index(name)
            found[place] = given[np.arange(len(found[place])) % len(given)]
        return found

    def __str__(self) -> str:
        """What is drawn, in words."""
        bare = any(not spec.ranges for spec in self.signature.inputs)
        known = any(spec.ranges for spec in self.signature.inputs)
        if self.kind == Kind.LOWEST:
            return str(self.kind)
        return " and ".join(["values of its ranges"] * known + [str(self.kind)] * bare)

    def _input(self, spec: TensorSpec, n: int, steps: int, rng: np.random.Generator) -> Array:
        length = steps if spec.HasField("time_axis") else 1
        shape = (n, length, *(steps if size < 0 else size for size in signatures.step_shape(spec)))
        dtype = signatures.numpy_dtype(spec.dtype)
        if self.kind == Kind.LOWEST:
            lowest = np.nan_to_num([known.lowest for known in spec.ranges] or [0.0], neginf=0.0)
            if dtype.kind in "iu":
                return np.broadcast_to(np.array([_whole(bound, dtype) for bound in lowest], dtype), shape).copy()
            return np.broadcast_to(lowest.astype(dtype), shape).copy()
        if spec.ranges:
            return _counted(spec, steps, of_ranges(spec.ranges, dtype, shape, rng))
        if self.kind in (Kind.ONES, Kind.ZEROS):
            return np.full(shape, self.kind == Kind.ONES, dtype)
        if dtype.kind != "f":
            return rng.integers(0, self._words(spec), shape).astype(dtype)
        drawn = rng.standard_normal(shape) if self.kind == Kind.NOISE else rng.random(shape)
        return drawn.astype(dtype)

    def _words(self, spec: TensorSpec) -> int:
        """How many values an input of whole numbers has, as far as its text tells."""
        if self.signature.HasField("decoding") and self.signature.decoding.input == spec.name:
            decoding = self.signature.decoding
            (scores,) = (each for each in self.signature.outputs if each.name == decoding.output)
            return len(decoding.text.vocabulary) or max(1, signatures.step_shape(scores)[-1])
        return len(spec.text.vocabulary) or 2


def ladder(signature: Signature, starts: Mapping[str, Array] | None = None) -> Iterator[Draws]:
    """Ways to draw, those that tell most of a model first, the safest last; `starts` as in `Draws`."""
    specs, starts = signature.inputs, starts or {}
    if any(not spec.ranges for spec in specs):
        yield from (Draws(signature, kind, starts) for kind in Kind if kind != Kind.LOWEST)
    else:
        yield Draws(signature, starts=starts)
    if any(spec.ranges for spec in specs):
        yield Draws(signature, Kind.LOWEST, starts)


def of_ranges(
    ranges: Sequence[ValueRange], dtype: np.dtype[np.generic], shape: tuple[int, ...], rng: np.random.Generator
) -> Array:
    """Values of one range, or of one for every place along the last axis; infinite bounds are drawn as often as not."""
    drawn = np.empty(shape, dtype)
    for place, known in enumerate(ranges):
        target = drawn if len(ranges) == 1 else drawn[..., place]
        target[...] = _within(known, dtype, target.shape, rng)
    return drawn


def _whole(bound: float, dtype: np.dtype[np.generic]) -> int:
    """A bound as the dtype has it. A double may be beyond both ends: the largest uint64 is rounded up to 2**64."""
    limits = np.iinfo(dtype.name)
    return min(max(int(bound), int(limits.min)), int(limits.max))


def _within(known: ValueRange, dtype: np.dtype[np.generic], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    low, high = known.lowest, known.highest
    if not np.isfinite(low):
        low = min(high, 0.0) - 1 if np.isfinite(high) else 0.0
    if not np.isfinite(high):
        high = max(low, 0.0) + 1
    if dtype.kind == "f":
        if known.whole and -_EXACT <= low <= high <= _EXACT:
            values: Array = rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
        else:
            part = rng.random(shape)
            mixed = low * (1 - part) + high * part
            values = (np.trunc(mixed) if known.whole else mixed).astype(dtype)
        values = np.clip(values, dtype.type(low), dtype.type(high))
    elif dtype.kind == "b":
        values = rng.integers(int(low), int(high), shape, endpoint=True).astype(dtype)
    else:
        values = rng.integers(_whole(low, dtype), _whole(high, dtype), shape, dtype=dtype.type, endpoint=True).astype(
            dtype
        )
    for bound in (known.lowest, known.highest):
        if dtype.kind == "f" and np.isinf(bound):
            values[rng.random(shape) < 0.5] = bound
    return values


def _counted(spec: TensorSpec, steps: int, values: Array) -> Array:
    """Cuts what counts steps to those of the run; the first row has all of them, as the longest of a batch does."""
    if spec.ranges[0].counts_steps:
        values = np.minimum(values, values.dtype.type(steps))
        values[0] = steps
    return values
