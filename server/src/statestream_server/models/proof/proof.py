"""What is proved of a model's rows before it serves: that they are as those of the reference, and batch invariance.

Invariance: a session's outputs and states have the same bits alone, in batches of 2, 3, 7 and 64 rows, and
step by step instead of as one sequence. Rows are tried as they are served, gather and scatter included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array, Ints
from statestream_server.models.graphs.runtime import GraphError
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import FIRST_ROW, Rows, is_batched

_BATCHES = (2, 3, 7, 64)
_STEPS = 7
_COPIES, _MOST_BYTES = 4, 256 << 20
"""Batches whose rows, with what is read of them, take more are not tried: states may be large."""
_BUDGET = 0.2
"""Seconds of processor time, which finds the same on a busy machine, after which no larger batch is begun."""
ROUNDED: Final = {"float16": 5e-2, "float32": 1e-3, "float64": 1e-6}
"""A difference beyond this share of the largest value is no rounding but another result, by element type.

Rounding grows over steps. A graph in double may have parts in single precision, as recurrent layers are."""
COARSE: Final = {"float16": 5e-2, "float32": 3e-2, "float64": 3e-2}
"""The same where parts are in half precision, or scales are measured over the batch: that is rounding to 8 bits."""
_UNTOUCHED: Final = {"float16": 4e-3, "float32": 1e-6, "float64": 1e-14}
"""The same between two runs of one size in which all that may count is the same: only a transform over all steps, as
of Fourier, rounds otherwise then."""
_FAINT: Final = 0.1
"""Small inputs show what large ones hide where something saturates."""


class Invariance(NamedTuple):
    """What came out: the finding, one sentence for people, and the largest difference seen."""

    finding: BatchInvariance
    note: str
    difference: float


def agree(rows: Rows, reference: Rows, way: Draws, rounded: Mapping[str, float] = ROUNDED) -> bool:
    """Whether two implementations of the same model's memory give the same results, but for rounding.

    The memories must not have sessions yet; some of their rows are used.

    Raises:
        GraphError: The reference refuses what was drawn.
    """
    rng, count = np.random.default_rng(2), 3 if is_batched(way.signature) else 1
    source = np.arange(FIRST_ROW, FIRST_ROW + count, dtype=np.int64)
    target = source + count
    found, difference = list[list[Array]](), Difference(rounded)
    inputs = [way.inputs(count, min(2, rows.max_slice), rng) for _ in range(3)]
    for memory in (reference, rows):
        memory.grow(FIRST_ROW + 2 * count)
        way.begin(memory, np.arange(FIRST_ROW, FIRST_ROW + 2 * count, dtype=np.int64))
        try:
            outputs = memory.step(source, source, inputs[0])[0] + memory.step(source, target, inputs[1])[0]
            outputs += memory.step(target, target, inputs[2])[0]
        except GraphError:
            if memory is reference:
                raise
            return False
        found.append(outputs + memory.read(source) + memory.read(target))
    difference.note(*found)
    return not difference.wrong


def keeps_others(rows: Rows, way: Draws) -> bool:
    """Whether steps change the rows they write and no bit of any other: that commits in place are what they should be.

    The memory must not have sessions yet; some of its rows are used.
    """
    rng, count = np.random.default_rng(3), 4 if is_batched(way.signature) else 1
    every = np.arange(FIRST_ROW, FIRST_ROW + 4 * count, dtype=np.int64)
    rows.grow(FIRST_ROW + len(every))
    rows.reset(every)
    start = rows.read(every)
    known = [_known(value, rng) for value in start]
    # Rows that are stepped hold what the model may be given; all others anything.
    stepped = every[1::4]
    others = np.setdiff1d(every, [*stepped, *(stepped + 1)])
    rows.write(others, [value[others - FIRST_ROW] for value in known])
    for source, target in ((stepped, stepped), (stepped, stepped + 1), (stepped + 1, stepped)):
        before = rows.read(source)
        inputs = way.inputs(count, 1, rng)
        rows.step(source, target, inputs)
        if not _same(rows.read(others), [value[others - FIRST_ROW] for value in known]):
            return False
        if not np.intersect1d(source, target).size and not _same(rows.read(source), before):
            return False
    return True


def refuses_the_same(rows: Rows, reference: Rows, way: Draws) -> bool:
    """Whether two implementations find the same rows bad where a state is NaN or infinite, and leave those as they are.

    The check of a state is arithmetic in the wrapped graph, and rests on what a device's kernels make of such numbers.
    The memories must not have sessions yet; some of their rows are used.
    """
    rng, count = np.random.default_rng(5), 3 if is_batched(way.signature) else 1
    source = np.arange(FIRST_ROW, FIRST_ROW + count, dtype=np.int64)
    target = source + count
    inputs = way.inputs(count, 1, rng)
    for poison in (np.nan, np.inf, -np.inf):
        found = []
        for memory in (reference, rows):
            memory.grow(FIRST_ROW + 2 * count)
            memory.reset(np.append(source, target))
            values, start = memory.read(source), memory.read(target)
            for value in values:
                if value.dtype.kind == "f":
                    value[-1] = poison
            memory.write(source, values)
            _, bad = memory.step(source, target, inputs)
            if not _same([value[bad] for value in memory.read(target)], [value[bad] for value in start]):
                return False
            found.append(bad.tolist())
        if found[0] != found[1]:
            return False
    return True


def _known(value: Array, rng: np.random.Generator) -> Array:
    """Values of the same shape that nothing else would write."""
    return (
        np.frombuffer(rng.bytes(value.nbytes), np.uint8).copy().view(value.dtype).reshape(value.shape)
        if (value.dtype.kind != "b")
        else rng.random(value.shape) < 0.5
    )


def _same(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


class Difference:
    """How far results lie apart that should be the same.

    Attributes:
        exact: Whether all bits are the same.
        largest: The largest difference; infinity where shapes differ.
        relative: The largest as a share of the largest value beside it, for what its element type tells apart: above 1
            it is no rounding.
    """

    def __init__(self, rounded: Mapping[str, float] = COARSE) -> None:
        """`rounded`: what may be rounding, as a share of the largest value by element type."""
        self.exact, self.largest, self.relative = True, 0.0, 0.0
        self._only_integers, self._rounded = True, rounded

    @property
    def wrong(self) -> bool:
        """Whether this is more than rounding: large, or in integers although every float is the same."""
        return not self.exact and (self.relative > 1 or self._only_integers)

    def note(self, expected: Sequence[Array], found: Sequence[Array]) -> None:
        """Adds results and what they should be."""
        for one, other in zip(expected, found, strict=True):
            if one.shape != other.shape:
                self.exact, self.largest, self.relative = False, float("inf"), float("inf")
                continue
            if one.tobytes() == other.tobytes():
                continue
            a, b = one.astype(np.float64), other.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            # Infinities of different sign and numbers against NaN are infinitely far apart.
            with np.errstate(invalid="ignore"):
                gap = float(np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf)).max(initial=0.0))
            self.exact, self.largest = False, max(self.largest, gap)
            if one.dtype.kind == "f":
                self._only_integers = False
                least = float(np.finfo(one.dtype).tiny)
                scale = float(np.abs(a[np.isfinite(a)]).max(initial=least))
                self.relative = max(self.relative, gap / scale / self._rounded.get(one.dtype.name, 1e-2))


class _Trial:
    """Rows in a state that the model reached by itself, inputs for them, and what came out of the widest batch."""

    def __init__(self, rows: Rows, way: Draws, most: int) -> None:
        rng = np.random.default_rng(1)
        self.way, self.rows = way, most
        self.steps = min(_STEPS, rows.max_slice)
        rows.grow(FIRST_ROW + 2 * most)
        self._source = np.arange(FIRST_ROW, FIRST_ROW + most, dtype=np.int64)
        self._target = self._source + most
        self._inputs = way.inputs(most, self.steps, rng)
        way.begin(rows, self._source)
        first = way.inputs(most, 1, rng)
        rows.step(self._source[:1], self._source[:1], [value[:1] for value in first])
        began = time.process_time()
        rows.step(self._source, self._source, first)
        self.seconds = time.process_time() - began

    def fade(self, rows: Rows) -> None:
        """Lets all rows start anew, with small inputs where any numbers are taken."""
        self.way.begin(rows, self._source)
        for spec, value in zip(self.way.signature.inputs, self._inputs, strict=True):
            if value.dtype.kind == "f" and not spec.ranges:
                value *= value.dtype.type(_FAINT)

    def run(self, rows: Rows, chosen: Ints, cuts: Sequence[int], *, last: Ints | None = None) -> list[Array]:
        """Outputs and new states of the chosen rows, their steps cut so; `last`: with the last steps of other rows."""
        source, target, start, parts = self._source[chosen], self._target[chosen], 0, list[list[Array]]()
        every = [value[chosen] for value in self._inputs]
        if last is not None:
            for value, given in zip(every, self._inputs, strict=True):
                value[:, -1] = given[last, -1]
        for steps in cuts:
            inputs = [np.asarray(value[:, start : start + steps], order="C") for value in every]
            parts.append(rows.step(source, target, inputs)[0])
            source, start = target, start + steps
        return [np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True)] + rows.read(target)


def invariance(
    rows: Rows,
    padded: Rows,
    way: Draws,
    where: str,
    clock: Callable[[], float] = time.process_time,
    *,
    rounded: Mapping[str, float] = ROUNDED,
) -> Invariance:
    """Tries whether rows have the same bits alone, among others, and step by step. Uses some rows of the memory.

    Args:
        rows: The memory as it would serve, without sessions yet.
        padded: The same memory, with batches of one run as two.
        way: How inputs are drawn.
        where: The file, for messages.
        clock: Seconds of processor time; wider batches are left out once they take too long.
        rounded: What may be rounding: `ROUNDED`, or `COARSE`.

    Raises:
        ModelLoadError: Rows depend on their neighbours, or steps on later ones, by more than rounding.
        GraphError: It refuses what was drawn.
    """
    batched = is_batched(way.signature)
    deadline = clock() + _BUDGET
    batches = [count for count in _BATCHES if _COPIES * count * rows.row_nbytes <= _MOST_BYTES] or [_BATCHES[0]]
    trial = _Trial(rows, way, batches[-1] if batched else 2)
    whole, single = [trial.steps], [1] * trial.steps
    cuts = [whole] if trial.steps == 1 else [single, [4, 2, 1]]
    alone, pads, among, apart = (Difference(rounded) for _ in range(4))
    widest = 2 if batched else 1
    first = np.arange(widest)
    best = trial.run(rows, first, whole)
    for cut in [whole, *cuts]:
        pieces = trial.run(rows, first, cut)
        apart.note(best, pieces)
        if clock() > deadline:
            break
    if batched:
        for row, cut in ((row, cut) for row in (0, 1) for cut in (whole, single)):
            expected = [value[row : row + 1] for value in best]
            alone.note(expected, trial.run(rows, np.asarray([row]), cut))
            pads.note(expected, trial.run(padded, np.asarray([row]), cut))
        for batch in batches[1:]:
            if clock() + trial.seconds * trial.steps * batch / batches[-1] > deadline:
                break
            for order in (np.arange(batch), np.arange(batch)[::-1]):
                wider = trial.run(rows, order, whole if order[0] else single)
                among.note(best, [value[np.argsort(order)][:widest] for value in wider])
            best, widest = [value[np.argsort(order)] for value in wider], batch
    _check_steps(where, apart)
    _check_reach(trial, rows, where, 2 if batched else 1, _UNTOUCHED if rounded is ROUNDED else rounded)
    _check_rows(where, alone, among)
    return _finding(batched, widest, trial.steps, alone, pads, among, apart)


def _check_reach(trial: _Trial, rows: Rows, where: str, count: int, rounded: Mapping[str, float]) -> None:
    """Checks that the last step changes no answer before it, and a row none beside it, be it ever so little.

    Raises:
        ModelLoadError: One does.
    """
    first, whole, outputs = np.arange(count), [trial.steps], len(trial.way.signature.outputs)
    ahead, beside = Difference(rounded), Difference(rounded)
    for faint in (False, True):
        if faint:
            trial.fade(rows)
        best = trial.run(rows, first, whole)
        if trial.steps > 1:
            changed = trial.run(rows, first, whole, last=(first + 1) % trial.rows)
            ahead.note([value[:, :-1] for value in best[:outputs]], [value[:, :-1] for value in changed[:outputs]])
        if 1 < count < trial.rows:
            beside.note([value[:1] for value in best], [value[:1] for value in trial.run(rows, first * 2, whole)])
    if ahead.wrong:
        raise ModelLoadError(
            f"{where}: another last step changes answers to steps before it by up to {ahead.largest:.3g}: the model"
            " looks ahead (is it bidirectional, or does it normalise over steps?), so it cannot answer step by step"
        )
    if beside.wrong:
        raise ModelLoadError(
            f"{where}: another row changes the answers to the row beside it by up to {beside.largest:.3g}: rows"
            " influence each other (is a batch axis wrong, or batch normalisation in training mode?)"
        )


def _check_steps(where: str, apart: Difference) -> None:
    if apart.wrong:
        raise ModelLoadError(
            f"{where}: the same steps one by one and as one sequence differ by up to {apart.largest:.3g}: the model"
            " looks ahead (is it bidirectional?), draws random numbers, or a state or the time axis is wrong;"
            " export it again"
        )


def _check_rows(where: str, alone: Difference, among: Difference) -> None:
    if alone.wrong or among.wrong:
        raise ModelLoadError(
            f"{where}: the same row alone and in a batch differs by up to {max(alone.largest, among.largest):.3g}:"
            " rows influence each other (is a batch axis wrong, batch normalisation in training mode, or are scales"
            " measured over the batch, as dynamic quantisation does?); export it again"
        )


def _finding(
    batched: bool,
    widest: int,
    steps: int,
    alone: Difference,
    pads: Difference,
    among: Difference,
    apart: Difference,
) -> Invariance:
    tried = f"tried alone and in batches up to {widest}" if batched else "no batch axis: rows run one by one"
    tried += ", step by step and as a sequence" if steps > 1 else ""
    if among.exact and apart.exact and alone.exact:
        exact = BatchInvariance.BATCH_INVARIANCE_EXACT if batched else BatchInvariance.BATCH_INVARIANCE_UNSPECIFIED
        return Invariance(exact, f"the same bits ({tried})", 0.0)
    difference = max(alone.largest, among.largest, apart.largest)
    if among.exact and apart.exact and pads.exact:
        note = f"the same bits once a batch of one runs as two, else up to {difference:.3g} apart ({tried})"
        return Invariance(BatchInvariance.BATCH_INVARIANCE_PADDED, note, difference)
    note = f"bits differ with the batch by up to {difference:.3g} ({tried})"
    return Invariance(BatchInvariance.BATCH_INVARIANCE_APPROXIMATE, note, difference)
