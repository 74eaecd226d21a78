"""Scores: how likely what arrives was, as the step before it expected; and the past of a session that they go by.

A *likelihood* is the logarithm of the density of what arrived under the model's head, summed over the values of a step.
Its p-value is conformal (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005): one more than the
past scores that were as low, among one more than there are. Of scores that are exchangeable it is at most a with a
probability of at most a, whatever the model is worth. Without a head the score is the modified z-score of Iglewicz and
Hoaglin ("How to Detect and Handle Outliers", 1993): how far the residual is from the median of those before it, in
standard deviations as their median absolute deviation has them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from statestream.contract import signature as signatures
from statestream.contract.observations import LEAST_PAST, Expected, score_memory
from statestream.contract.signature import Signature, TensorSpec
from statestream_server.arrays import Array, Bools, Ints
from statestream_server.models import distributions
from statestream_server.models.distributions import Floats

_MAD: Final = 1.482602218505602
"""The standard deviation of a normal distribution in its median absolute deviations."""
_MEAN: Final = 1.2533141373155003
"""And in its mean absolute deviations: where half of the residuals are the same, the median of theirs is 0."""

Singles: TypeAlias = npt.NDArray[np.float32]


class Memory(NamedTuple):
    """What some sessions keep of their past scores, each [n, ...].

    Attributes:
        seen: [n, S] uint32: how many scores came of each of S series.
        ring: [n, S, K] float32: the last K of them, each where its number falls.
    """

    seen: Array
    ring: Singles


class Past:
    """The memory of all rows; for those that were never scored nothing is kept. Threads may share it."""

    def __init__(self, series: int, size: int) -> None:
        """No rows, of `series` series whose last `size` scores are kept."""
        self._lock = threading.Lock()
        self._places = np.zeros(0, np.int64)
        """[capacity] where the memory of each row is, 0 for nowhere."""
        self._seen = np.zeros((1, series), np.uint32)
        self._ring = np.zeros((1, series, size), np.float32)
        self._free: list[int] = []

    def grow(self, capacity: int) -> None:
        """Makes room for rows up to `capacity` - 1."""
        with self._lock:
            self._places = np.concatenate([self._places, np.zeros(max(0, capacity - len(self._places)), np.int64)])

    def read(self, rows: Ints) -> Memory:
        """Copies of the memory of rows [n]."""
        with self._lock:
            places = self._places[rows]
            if not places.any():  # The usual case, of which nothing is copied.
                shapes = [(len(rows), *array.shape[1:]) for array in (self._seen, self._ring)]
                return Memory(np.broadcast_to(np.uint32(0), shapes[0]), np.broadcast_to(np.float32(0), shapes[1]))
            return Memory(self._seen[places], self._ring[places])

    def write(self, rows: Ints, memory: Memory) -> None:
        """Sets the memory of rows [n], distinct."""
        there = memory.seen.any(axis=1)
        self.reset(rows[~there])
        rows = rows[there]
        if not len(rows):
            return
        with self._lock:
            new = rows[self._places[rows] == 0]
            if len(new) > len(self._free):
                self._more(len(new) - len(self._free))
            self._places[new] = [self._free.pop() for _ in range(len(new))]
            places = self._places[rows]
            self._seen[places], self._ring[places] = memory.seen[there], memory.ring[there]

    def reset(self, rows: Ints) -> None:
        """Forgets the past of rows [n], distinct."""
        with self._lock:
            places = self._places[rows]
            self._free += places[places > 0].tolist()
            self._places[rows] = 0

    def _more(self, count: int) -> None:
        first = len(self._seen)
        count = max(count, min(first, 4096))
        self._seen = np.concatenate([self._seen, np.zeros((count, *self._seen.shape[1:]), np.uint32)])
        self._ring = np.concatenate([self._ring, np.zeros((count, *self._ring.shape[1:]), np.float32)])
        self._free += range(first + count - 1, first - 1, -1)


class Scoring:
    """What the scores of one model are."""

    def __init__(self, signature: Signature) -> None:
        """Of a signature that expects something."""
        self.expected = signatures.expectations(signature)
        """What its steps expect of the next one."""
        self.specs: Sequence[TensorSpec] = signatures.score_outputs(signature)
        """The scores of a step."""
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._likely = [each for each in self.expected if each.likely]
        self._values = [each for each in self.expected if not each.likely]
        self.past = Past(*score_memory(signature))

    def scores(
        self, before: Mapping[str, Array], inputs: Sequence[Array], outputs: Sequence[Array], memory: Memory
    ) -> tuple[list[Array], Memory]:
        """The scores of steps, and what is kept after them; a row's depend on the row alone.

        Args:
            before: By the names of outputs, those of the step before the first [n, ...]; NaN where there was none.
            inputs: What arrived, for every input of the signature [n, T, ...]; NaN is missing.
            outputs: What it came to, for every output [n, T, ...].
            memory: What is kept of [n] sessions; it stays as it is.

        Returns:
            For each of `specs` [n, T, ...] float32, NaN where nothing was expected or nothing arrived; and the memory.
        """
        with np.errstate(all="ignore"):
            found, whole = self._series(before, inputs, outputs)
            return self._compared(found, whole, memory)

    def _series(
        self, before: Mapping[str, Array], inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> tuple[Singles, Bools]:
        """[n, T, S] the likelihood, and all residuals; [n, T] whether all that has a likelihood arrived."""
        count, steps = inputs[0].shape[:2]
        series, whole = list[Array](), np.ones((count, steps), np.bool_)
        if self._likely:
            total, some = np.zeros((count, steps)), np.zeros((count, steps), np.bool_)
            for each in self._likely:
                head = each.value.head
                assert head is not None
                x = self._arrived(each, inputs).astype(np.float64)
                given = distributions.parameters(
                    head, [self._told(each, name, before, outputs) for name in each.value.outputs]
                )
                gone = np.isnan(x).reshape(count, steps, -1)
                log_prob = distributions.log_prob(head, given, x).reshape(count, steps, -1)
                total += np.where(gone, 0.0, log_prob).sum(axis=-1)
                some |= ~gone.all(axis=-1)
                whole &= ~gone.any(axis=-1)
            series.append(np.where(some, total, np.nan)[..., np.newaxis])
        for each in self._values:
            residual = self._arrived(each, inputs).astype(np.float64) - point(each, before, outputs, self._outputs)
            series.append(residual.reshape(count, steps, -1))
        return np.concatenate(series, axis=-1).astype(np.float32), whole

    def _arrived(self, each: Expected, inputs: Sequence[Array]) -> Array:
        value = inputs[self._inputs.index(each.input)]
        return value[..., list(each.places)] if each.places else value

    def _told(self, each: Expected, name: str, before: Mapping[str, Array], outputs: Sequence[Array]) -> Array:
        return _expected(each, name, before, outputs, self._outputs)

    def _compared(self, found: Singles, whole: Bools, memory: Memory) -> tuple[list[Array], Memory]:
        seen, ring = memory.seen.astype(np.int64), memory.ring.copy()
        first, told = int(bool(self._likely)), np.full(found.shape, np.nan, np.float32)
        size = ring.shape[-1]
        for step in range(found.shape[1]):
            value = found[:, step]
            enters = np.isfinite(value)
            held: Bools = np.less(np.arange(size), np.minimum(seen, size)[..., np.newaxis])
            if first:
                enters[:, 0] = whole[:, step] & ~np.isnan(value[:, 0])
                low = ((ring[:, 0] <= value[:, :1]) & held[:, 0]).sum(axis=-1)
                p_value = (1 + low) / (1 + np.minimum(seen[:, 0], size))
                told[:, step, 0] = np.where(enters[:, 0], p_value, np.nan)
            if self._values:
                told[:, step, first:] = robust(value[:, first:], ring[:, first:], held[:, first:])
            rows, series = np.argwhere(enters).T
            ring[rows, series, seen[rows, series] % size] = value[rows, series]
            seen += enters
        arrays: list[Array] = [found[..., 0], told[..., 0]] if first else []
        for each in self._values:
            width = math.prod(each.value.shape)
            arrays.append(told[..., first : first + width].reshape(*found.shape[:2], *each.value.shape))
            first += width
        # A count that would not fit goes on at the same place of the ring.
        seen = np.where(seen > 0xFFFF_0000, seen % size + size, seen)
        return [np.ascontiguousarray(array) for array in arrays], Memory(seen.astype(np.uint32), ring)


def point(each: Expected, before: Mapping[str, Array], outputs: Sequence[Array], names: Sequence[str]) -> Array:
    """What stands for what each step was expected to bring, [n, T, ...]: an output, or the point of a head.

    Args:
        each: What is expected.
        before: By the names of outputs, those of the step before the first [n, ...].
        outputs: For every output [n, T, ...].
        names: The names of all outputs.
    """
    arrays = [_expected(each, name, before, outputs, names) for name in each.value.outputs]
    head = each.value.head
    return arrays[0] if head is None else distributions.point(head, distributions.parameters(head, arrays))


def _expected(
    each: Expected, name: str, before: Mapping[str, Array], outputs: Sequence[Array], names: Sequence[str]
) -> Array:
    """An output as each step finds it: that of the step before, [n, T, ...]; of several steps ahead the next one."""
    found = np.concatenate([before[name][:, np.newaxis], outputs[names.index(name)][:, :-1]], axis=1)
    return found.take(0, axis=2 + each.value.axis) if each.value.steps else found


def robust(value: Singles, ring: Singles, held: Bools) -> Floats:
    """Modified z-scores of values [n, F] among those of a ring [n, F, K] that are held.

    Infinite where all that is held is the same and the value is not; NaN where too little is held.
    """
    count = held.sum(axis=-1)
    ordered = np.sort(np.where(held, ring, np.inf), axis=-1)
    middle = _middle(ordered, count)
    apart = np.abs(np.where(held, ring, np.inf) - middle[..., np.newaxis])
    spread = _MAD * _middle(np.sort(apart, axis=-1), count)
    flat = spread == 0
    if flat.any():
        mean = np.where(held, apart, 0.0).sum(axis=-1, dtype=np.float64) / np.maximum(count, 1)
        spread = np.where(flat, _MEAN * mean, spread)
    off = value - middle
    z = np.where(off == 0, 0.0, off / spread)
    return np.where(count < LEAST_PAST, np.nan, np.where(np.isnan(value), np.nan, z))


def _middle(ordered: Singles, count: Ints) -> Floats:
    """The median of the first `count` [n, F] of ordered values [n, F, K]."""
    last = ordered.shape[-1] - 1
    low = np.take_along_axis(ordered, np.clip((count - 1) // 2, 0, last)[..., np.newaxis], -1)[..., 0]
    high = np.take_along_axis(ordered, np.clip(count // 2, 0, last)[..., np.newaxis], -1)[..., 0]
    return np.asarray((low.astype(np.float64) + high) / 2)
