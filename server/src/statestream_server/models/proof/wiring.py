"""Whether a graph is wired as its signature says: names, types and shapes, tried in small runs of what was drawn."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateCheck
from statestream_server.arrays import Array
from statestream_server.models.graphs.runtime import Graph, GraphError
from statestream_server.models.memory.numpy_rows import failing
from statestream_server.models.model import ModelLoadError
from statestream_server.models.proof import draws
from statestream_server.models.proof.draws import Draws
from statestream_server.models.rows import Axes, is_batched, max_slice_of, start_values

_TRIED_ROWS, _TRIED_STEPS = 2, 3
_FIRST_SIZES = (1, 2, 7)
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class ShapeError(ModelLoadError):
    """An output or a new state has another shape than the signature says.

    Attributes:
        name: The output.
        rank: How many axes it has.
    """

    def __init__(self, message: str, name: str, rank: int) -> None:
        """What it is, in words, and of which output."""
        super().__init__(message)
        self.name, self.rank = name, rank


def proved(
    graph: Graph,
    signature: Signature,
    where: str,
    prove: Callable[[Draws], _T],
    starts: Mapping[str, Array] | None = None,
) -> _T:
    """Checks names and types, then runs the graph once and checks the shapes of all that comes out; then proves more.

    Where the graph refuses what was drawn, all is done again with safer values: it may have a domain. Where a run gives
    what is no number, safer values are preferred, too: a state that is not committed proves nothing.

    Args:
        graph: The graph as its author wrote it.
        signature: What it is said to be.
        where: The file, for messages.
        prove: What else is to be seen with the same way of drawing; it may raise GraphError.
        starts: What states start from; see `Draws`.

    Returns:
        What `prove` returns.

    Raises:
        ModelLoadError: It is not what the signature says, or refuses all that was drawn.
    """
    _check_names(graph, signature, where)
    sized = all(size >= 0 for spec in signature.inputs for size in signatures.step_shape(spec))
    tried, first, odd = list[str](), None, list[Draws]()
    ways = draws.ladder(signature, starts)
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
    start = way.first([np.repeat(value[None], n, 0) for value in start_values(signature)])
    feeds = dict(zip([spec.name for spec in signature.inputs], way.inputs(n, steps, rng), strict=True))
    feeds = {spec.name: Axes.of_tensor(spec).to_graph(feeds[spec.name]) for spec in signature.inputs}
    for state, value in zip(signature.states, start, strict=False):
        feeds[state.input] = Axes.of_state(state).to_graph(value)
    fetches = [spec.name for spec in signature.outputs] + [state.output for state in signature.states]
    results = dict(zip(fetches, graph.run(feeds, fetches), strict=True))
    for spec in signature.outputs:
        sizes = list(spec.shape)
        for axis, size in ((spec.batch_axis, n) if spec.HasField("batch_axis") else (-1, 0),
                           (spec.time_axis, steps) if spec.HasField("time_axis") else (-1, 0)):  # fmt: skip
            if axis >= 0:
                sizes[axis] = size
        _check_shape(where, "output", spec.name, results[spec.name], sizes, n, steps)
    for state in signature.states:
        sizes = list(state.shape)
        if state.HasField("batch_axis"):
            sizes[state.batch_axis] = n
        _check_shape(where, "new state", state.output, results[state.output], sizes, n, steps)
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


def _check_shape(where: str, what: str, name: str, found: Array, wanted: Sequence[int], n: int, steps: int) -> None:
    shape = list(found.shape)
    if len(shape) != len(wanted) or any(w not in (-1, s) for s, w in zip(shape, wanted, strict=True)):
        raise ShapeError(
            f"{where}: {what} {name!r} of {n} rows and {steps} steps has shape {shape}, its signature says"
            f" {list(wanted)}; export it again with the right batch and time axes",
            name,
            len(shape),
        )
