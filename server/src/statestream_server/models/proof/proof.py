"""What is proved of a model before it serves: that it is wired as its signature says, and batch invariance.

Invariance: a session's outputs and states have the same bits alone, in batches of 2, 3, 7 and 64 rows, and
step by step instead of as one sequence. Rows are tried as they are served, gather and scatter included.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateCheck
from statestream.v1.model_pb2 import BatchInvariance
from statestream_server.arrays import Array, Ints
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.memory.checks import failing
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import draws
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import FIRST_ROW, Axes, Rows, is_batched, max_slice_of, start_values

_BATCHES = (2, 3, 7, 64)
_STEPS = 7
_COPIES, _MOST_BYTES = 4, 256 << 20
"""Batches whose rows, with what is read of them, take more are not tried: states may be large."""
_TRIED_ROWS, _TRIED_STEPS = 2, 3
_FIRST_SIZES = (1, 2, 7)
_BUDGET = 0.1
"""Seconds after which no larger batch is begun."""
_TOLERANCES = {"float16": 5e-2, "float32": 3e-2, "float64": 1e-6}
"""A difference beyond this share of the largest value is no rounding but another result, by element type.

Rounding grows over steps; where scales are measured over the batch it is that of 8 bits. A graph in double may have
parts in single precision, as recurrent layers are."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Invariance(NamedTuple):
    """What came out: the finding, one sentence for people, and the largest difference seen."""

    finding: BatchInvariance
    note: str
    difference: float


def wiring(graph: Graph, signature: Signature, where: str, prove: Callable[[Draws], _T]) -> _T:
    """Checks names and types, then runs the graph once and checks the shapes of all that comes out; then proves more.

    Where the graph refuses what was drawn, all is done again with safer values: it may have a domain. Where a run gives
    what is no number, safer values are preferred, too: a state that is not committed proves nothing.

    Args:
        graph: The graph as its author wrote it.
        signature: What it is said to be.
        where: The file, for messages.
        prove: What else is to be seen with the same way of drawing; it may raise GraphError.

    Returns:
        What `prove` returns.

    Raises:
        ModelLoadError: It is not what the signature says, or refuses all that was drawn.
    """
    _check_names(graph, signature, where)
    sized = all(size >= 0 for spec in signature.inputs for size in signatures.step_shape(spec))
    tried, first, odd = list[str](), None, list[Draws]()
    ways = draws.ladder(signature)
    for way in ways:
        try:
            if sized and not _check_run(graph, way, where):
                odd.append(way)
                continue
            return prove(way)
        except GraphError as error:
            tried, first = [*tried, str(way)], first or error
            _log.info("%s: refuses %s (%s); tried again with safer values", where, way, error)
    for way in odd:
        try:
            return prove(way)
        except GraphError as error:
            tried, first = [*tried, str(way)], first or error
    steps = "" if max_slice_of(signature) == 1 else f" and {_TRIED_STEPS} steps"
    raise ModelLoadError(
        f"{where}: no values were found that it takes: a run of {_TRIED_ROWS} rows{steps} failed with"
        f" {', with '.join(tried)} ({first}). Export it again with statestream_export.export, whose example or ranges=…"
        " tell what it takes"
    ) from first


def _check_names(graph: Graph, signature: Signature, where: str) -> None:
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


def _check_run(graph: Graph, way: Draws, where: str) -> bool:
    """Runs the graph once and checks all shapes; whether all that came out are numbers."""
    rng, signature = np.random.default_rng(0), way.signature
    n, steps = (_TRIED_ROWS if is_batched(signature) else 1), (_TRIED_STEPS if max_slice_of(signature) > 1 else 1)
    start = start_values(signature)
    feeds = dict(zip([spec.name for spec in signature.inputs], way.inputs(n, steps, rng), strict=True))
    feeds = {spec.name: Axes.of_tensor(spec).to_graph(feeds[spec.name]) for spec in signature.inputs}
    for state, value in zip(signature.states, start, strict=False):
        rows = np.broadcast_to(value, (n, *value.shape))
        feeds[state.input] = Axes.of_state(state).to_graph(rows)
    fetches = [spec.name for spec in signature.outputs] + [state.output for state in signature.states]
    results = dict(zip(fetches, graph.run(feeds, fetches), strict=True))
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
    return not (
        any(failing(StateCheck.STATE_CHECK_NAN, results[spec.name][None]).any() for spec in signature.outputs)
        or any(failing(state.check, results[state.output][None]).any() for state in signature.states)
    )


def first_runs(graph: Graph, way: Draws) -> None:
    """Runs a graph without a batch axis as its first callers would; that it refuses is no finding.

    Some graphs end the process at a size: better where they are tried than where they serve.
    """
    for steps in _FIRST_SIZES:
        inputs = way.inputs(1, steps, np.random.default_rng(7))
        specs = way.signature.inputs
        feeds = {spec.name: Axes.of_tensor(spec).to_graph(value) for spec, value in zip(specs, inputs, strict=True)}
        with contextlib.suppress(GraphError):
            graph.run(feeds, [spec.name for spec in way.signature.outputs])


def _check_shape(where: str, what: str, found: Array, wanted: Sequence[int], n: int, steps: int) -> None:
    shape = list(found.shape)
    if len(shape) != len(wanted) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
        raise ModelLoadError(
            f"{where}: {what} of {n} rows and {steps} steps has shape {shape}, its signature says {list(wanted)};"
            " export it again with the right batch and time axes"
        )


def agree(rows: Rows, reference: Rows, way: Draws) -> bool:
    """Whether two implementations of the same model's memory give the same results, but for rounding.

    The memories must not have sessions yet; some of their rows are used.

    Raises:
        GraphError: The reference refuses what was drawn.
    """
    rng, count = np.random.default_rng(2), 3 if is_batched(way.signature) else 1
    source = np.arange(FIRST_ROW, FIRST_ROW + count, dtype=np.int64)
    target = source + count
    found, difference = list[list[Array]](), Difference()
    inputs = [way.inputs(count, min(2, rows.max_slice), rng) for _ in range(3)]
    for memory in (reference, rows):
        memory.grow(FIRST_ROW + 2 * count)
        memory.reset(np.arange(FIRST_ROW, FIRST_ROW + 2 * count, dtype=np.int64))
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

    def __init__(self) -> None:
        self.exact, self.largest, self.relative = True, 0.0, 0.0
        self._only_integers = True

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
                self.relative = max(self.relative, gap / scale / _TOLERANCES.get(one.dtype.name, 1e-2))


class _Trial:
    """Rows in a state that the model reached by itself, inputs for them, and what came out of the widest batch."""

    def __init__(self, rows: Rows, way: Draws, most: int) -> None:
        rng = np.random.default_rng(1)
        self.steps = min(_STEPS, rows.max_slice)
        rows.grow(FIRST_ROW + 2 * most)
        self._source = np.arange(FIRST_ROW, FIRST_ROW + most, dtype=np.int64)
        self._target = self._source + most
        self._inputs = way.inputs(most, self.steps, rng)
        rows.reset(self._source)
        first = way.inputs(most, 1, rng)
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
    rows: Rows, padded: Rows, way: Draws, where: str, clock: Callable[[], float] = time.perf_counter
) -> Invariance:
    """Tries whether rows have the same bits alone, among others, and step by step. Uses some rows of the memory.

    Args:
        rows: The memory as it would serve, without sessions yet.
        padded: The same memory, with batches of one run as two.
        way: How inputs are drawn.
        where: The file, for messages.
        clock: Seconds that pass; wider batches are left out once they take too long.

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
    alone, pads, among, apart = Difference(), Difference(), Difference(), Difference()
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
    _refuse(where, alone, among, apart)
    return _finding(batched, widest, trial.steps, alone, pads, among, apart)


def _refuse(where: str, alone: Difference, among: Difference, apart: Difference) -> None:
    if apart.wrong:
        raise ModelLoadError(
            f"{where}: the same steps one by one and as one sequence differ by up to {apart.largest:.3g}: the model"
            " looks ahead (is it bidirectional?), draws random numbers, or a state or the time axis is wrong;"
            " export it again"
        )
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
