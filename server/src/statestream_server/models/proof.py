"""What is proved of a model before it serves: that it is wired as its signature says, and batch invariance.

Invariance: a session's outputs and states have the same bits alone, in batches of 2, 3, 7 and 64 rows, and
step by step instead of as one sequence. Rows are tried as they are served, gather and scatter included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from statestream import signature as signatures
from statestream.signature import Signature, TensorSpec
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array, Ints
from statestream_server.models.model import ModelLoadError
from statestream_server.models.rows import FIRST_ROW, Axes, Rows, is_batched, max_slice_of, start_values
from statestream_server.models.runtime import Graph, GraphError

_BATCHES = (2, 3, 7, 64)
_STEPS = 7
_BUDGET = 0.1
"""Seconds after which no larger batch is begun."""
_TOLERANCE = 1e-2
"""A difference beyond this share of the largest value is no rounding but another result."""


class Invariance(NamedTuple):
    """What came out: the finding, one sentence for people, and the largest difference seen."""

    finding: BatchInvariance
    note: str
    difference: float


def wiring(graph: Graph, signature: Signature, where: str) -> None:
    """Checks names and types, then runs the graph once and checks the shapes of all that comes out.

    Args:
        graph: The graph as its author wrote it.
        signature: What it is said to be.
        where: The file, for messages.

    Raises:
        ModelLoadError: It is not what the signature says.
    """
    wanted_in = {s.name: s.dtype for s in signature.inputs} | {s.input: s.dtype for s in signature.states}
    wanted_out = {s.name: s.dtype for s in signature.outputs} | {s.output: s.dtype for s in signature.states}
    _check_ports(where, "input", {port.name: port.dtype for port in graph.inputs}, wanted_in)
    _check_ports(where, "output", {port.name: port.dtype for port in graph.outputs}, wanted_out)
    unnamed = sorted({port.name for port in graph.inputs} - set(wanted_in))
    if unnamed:
        raise ModelLoadError(f"{where}: inputs {unnamed} are not in its signature; export it again, or freeze them")
    for spec in (*signature.inputs, *signature.outputs):
        if spec.HasField("time_axis") and spec.shape[spec.time_axis] > 1:
            raise ModelLoadError(
                f"{where}: {spec.name!r} has a time axis of fixed length {spec.shape[spec.time_axis]}; export it with a"
                " free time axis, or without naming one: then one run is one step"
            )
    if all(size >= 0 for spec in signature.inputs for size in signatures.step_shape(spec)):
        _check_run(graph, signature, where)


def _check_ports(where: str, kind: str, found: dict[str, str], wanted: dict[str, str]) -> None:
    for name, dtype in wanted.items():
        if name not in found:
            raise ModelLoadError(
                f"{where}: signature names {kind} {name!r}, the graph has {sorted(found)}; export it again"
            )
        if found[name] != dtype:
            raise ModelLoadError(
                f"{where}: {kind} {name!r} is {found[name] or 'no tensor'}, its signature says {dtype}; export it again"
            )


def _check_run(graph: Graph, signature: Signature, where: str) -> None:
    rng = np.random.default_rng(0)
    n, steps = (2 if is_batched(signature) else 1), (3 if max_slice_of(signature) > 1 else 1)
    start = start_values(signature)
    feeds = dict(zip([spec.name for spec in signature.inputs], random_inputs(signature, n, steps, rng), strict=True))
    feeds = {spec.name: Axes.of_tensor(spec).to_graph(feeds[spec.name]) for spec in signature.inputs}
    for state, value in zip(signature.states, start, strict=False):
        rows = np.broadcast_to(value, (n, *value.shape))
        feeds[state.input] = Axes.of_state(state).to_graph(rows)
    fetches = [spec.name for spec in signature.outputs] + [state.output for state in signature.states]
    try:
        results = dict(zip(fetches, graph.run(feeds, fetches), strict=True))
    except GraphError as error:
        raise ModelLoadError(
            f"{where}: a run of {n} rows and {steps} steps failed ({error}); its signature does not fit the graph,"
            " export it again"
        ) from error
    for spec in signature.outputs:
        sizes = list(spec.shape)
        for axis, size in ((spec.batch_axis, n) if spec.HasField("batch_axis") else (-1, 0),
                           (spec.time_axis, steps) if spec.HasField("time_axis") else (-1, 0)):  # fmt: skip
            if axis >= 0:
                sizes[axis] = size
        _check_shape(where, f"output {spec.name!r}", results[spec.name], sizes, n, steps)
    for state in signature.states:
        sizes = list(state.shape)
        if state.HasField("batch_axis"):
            sizes[state.batch_axis] = n
        _check_shape(where, f"new state {state.output!r}", results[state.output], sizes, n, steps)


def _check_shape(where: str, what: str, found: Array, wanted: Sequence[int], n: int, steps: int) -> None:
    shape = list(found.shape)
    if len(shape) != len(wanted) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
        raise ModelLoadError(
            f"{where}: {what} of {n} rows and {steps} steps has shape {shape}, its signature says {list(wanted)};"
            " export it again with the right batch and time axes"
        )


def random_inputs(signature: Signature, n: int, steps: int, rng: np.random.Generator) -> list[Array]:
    """Inputs that a model takes: [n, steps, *step shape] each; token numbers are in their vocabulary."""
    return [
        _random(spec, (n, steps, *signatures.step_shape(spec)), _most(signature, spec), rng)
        for spec in signature.inputs
    ]


def _most(signature: Signature, spec: TensorSpec) -> int:
    """How many values an integer input has, as far as the signature tells."""
    if signature.HasField("decoding") and signature.decoding.input == spec.name:
        return len(signature.decoding.text.vocabulary)
    return len(spec.text.vocabulary) or 2


def _random(spec: TensorSpec, shape: tuple[int, ...], most: int, rng: np.random.Generator) -> Array:
    dtype = signatures.numpy_dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, most, shape).astype(dtype)


def agree(rows: Rows, reference: Rows, signature: Signature) -> bool:
    """Whether two implementations of the same model's memory give the same results, but for rounding.

    The memories must not have sessions yet; some of their rows are used.
    """
    rng, count = np.random.default_rng(2), 3 if is_batched(signature) else 1
    source = np.arange(FIRST_ROW, FIRST_ROW + count, dtype=np.int64)
    target = source + count
    found, difference = list[list[Array]](), _Difference()
    inputs = [random_inputs(signature, count, min(2, rows.max_slice), rng) for _ in range(3)]
    for memory in (reference, rows):
        memory.grow(FIRST_ROW + 2 * count)
        memory.reset(np.arange(FIRST_ROW, FIRST_ROW + 2 * count, dtype=np.int64))
        outputs = memory.step(source, source, inputs[0])[0] + memory.step(source, target, inputs[1])[0]
        outputs += memory.step(target, target, inputs[2])[0]
        found.append(outputs + memory.read(source) + memory.read(target))
    difference.note(*found)
    return not difference.wrong


def keeps_others(rows: Rows, signature: Signature) -> bool:
    """Whether steps change the rows they write and no bit of any other: that commits in place are what they should be.

    The memory must not have sessions yet; some of its rows are used.
    """
    rng, count = np.random.default_rng(3), 4 if is_batched(signature) else 1
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
        inputs = random_inputs(signature, count, 1, rng)
        rows.step(source, target, inputs)
        if not _same(rows.read(others), [value[others - FIRST_ROW] for value in known]):
            return False
        if not np.intersect1d(source, target).size and not _same(rows.read(source), before):
            return False
    return True


def refuses_the_same(rows: Rows, reference: Rows, signature: Signature) -> bool:
    """Whether two implementations find the same rows bad where a state is NaN or infinite, and leave those as they are.

    The check of a state is arithmetic in the wrapped graph, and rests on what a device's kernels make of such numbers.
    The memories must not have sessions yet; some of their rows are used.
    """
    rng, count = np.random.default_rng(5), 3 if is_batched(signature) else 1
    source = np.arange(FIRST_ROW, FIRST_ROW + count, dtype=np.int64)
    target = source + count
    inputs = random_inputs(signature, count, 1, rng)
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


class _Difference:
    """How far results lie apart that should be the same."""

    def __init__(self) -> None:
        self.exact, self.largest, self.relative = True, 0.0, 0.0
        self._only_integers = True

    @property
    def wrong(self) -> bool:
        """Whether this is more than rounding: large, or in integers although every float is the same."""
        return not self.exact and (self.relative > _TOLERANCE or self._only_integers)

    def note(self, expected: Sequence[Array], found: Sequence[Array]) -> None:
        for one, other in zip(expected, found, strict=True):
            if one.tobytes() == other.tobytes():
                continue
            a, b = one.astype(np.float64), other.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            # Infinities of different sign and numbers against NaN are infinitely far apart.
            gap = float(np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=np.inf)).max())
            self.exact, self.largest = False, max(self.largest, gap)
            if one.dtype.kind == "f":
                self._only_integers = False
                scale = float(np.abs(a[np.isfinite(a)]).max(initial=1e-6))
                self.relative = max(self.relative, gap / scale)


class _Trial:
    """Rows in a state that the model reached by itself, inputs for them, and what came out of the widest batch."""

    def __init__(self, rows: Rows, signature: Signature, most: int) -> None:
        rng = np.random.default_rng(1)
        self.steps = min(_STEPS, rows.max_slice)
        rows.grow(FIRST_ROW + 2 * most)
        self._source = np.arange(FIRST_ROW, FIRST_ROW + most, dtype=np.int64)
        self._target = self._source + most
        self._inputs = random_inputs(signature, most, self.steps, rng)
        rows.reset(self._source)
        first = random_inputs(signature, most, 1, rng)
        rows.step(self._source[:1], self._source[:1], [value[:1] for value in first])
        began = time.perf_counter()
        rows.step(self._source, self._source, first)
        self.seconds = time.perf_counter() - began

    def run(self, rows: Rows, chosen: Ints, cuts: Sequence[int]) -> list[Array]:
        """Outputs and new states of the chosen rows, their steps cut so."""
        source, target, start, parts = self._source[chosen], self._target[chosen], 0, list[list[Array]]()
        for steps in cuts:
            inputs = [np.asarray(value[chosen, start : start + steps], order="C") for value in self._inputs]
            parts.append(rows.step(source, target, inputs)[0])
            source, start = target, start + steps
        return [np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True)] + rows.read(target)


def invariance(
    rows: Rows, padded: Rows, signature: Signature, where: str, clock: Callable[[], float] = time.perf_counter
) -> Invariance:
    """Tries whether rows have the same bits alone, among others, and step by step. Uses some rows of the memory.

    Args:
        rows: The memory as it would serve, without sessions yet.
        padded: The same memory, with batches of one run as two.
        signature: The model's signature.
        where: The file, for messages.
        clock: Seconds that pass; wider batches are left out once they take too long.

    Raises:
        ModelLoadError: Rows depend on their neighbours, or steps on later ones, by more than rounding.
    """
    batched = is_batched(signature)
    deadline = clock() + _BUDGET
    trial = _Trial(rows, signature, _BATCHES[-1] if batched else 2)
    whole, single = [trial.steps], [1] * trial.steps
    cuts = [whole] if trial.steps == 1 else [single, [4, 2, 1]]
    alone, pads, among, apart = _Difference(), _Difference(), _Difference(), _Difference()
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
        for batch in _BATCHES[1:]:
            if clock() + trial.seconds * trial.steps * batch / _BATCHES[-1] > deadline:
                break
            for order in (np.arange(batch), np.arange(batch)[::-1]):
                wider = trial.run(rows, order, whole if order[0] else single)
                among.note(best, [value[np.argsort(order)][:widest] for value in wider])
            best, widest = [value[np.argsort(order)] for value in wider], batch
    _refuse(where, alone, among, apart)
    return _finding(batched, widest, trial.steps, alone, pads, among, apart)


def _refuse(where: str, alone: _Difference, among: _Difference, apart: _Difference) -> None:
    if apart.wrong:
        raise ModelLoadError(
            f"{where}: the same steps one by one and as one sequence differ by up to {apart.largest:.3g}: the model"
            " looks ahead (is it bidirectional?), draws random numbers, or a state or the time axis is wrong;"
            " export it again"
        )
    if alone.wrong or among.wrong:
        raise ModelLoadError(
            f"{where}: the same row alone and in a batch differs by up to {max(alone.largest, among.largest):.3g}:"
            " rows influence each other (is a batch axis wrong, or batch normalisation in training mode?);"
            " export it again"
        )


def _finding(
    batched: bool,
    widest: int,
    steps: int,
    alone: _Difference,
    pads: _Difference,
    among: _Difference,
    apart: _Difference,
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
