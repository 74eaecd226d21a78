"""Fusion: wraps a graph so that one run gathers rows, steps them, checks them and commits them in place.

ONNX in, ONNX out; nothing is run here. The wrapped graph takes whole slabs as inputs and gives whole slabs as
outputs. Bound to the same memory, its ScatterND writes only the rows named, so a run costs what its rows cost,
whatever the slab's size. Rows whose new state fails its check are written to the scratch row 0 instead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateCheck, StateSpec, TensorSpec
from statestream_server.models.graphs.fused_names import Names, SlabNames, Wrapped
from statestream_server.models.graphs.operators import info, may_refuse, uses
from statestream_server.models.graphs.refused import FusionError
from statestream_server.models.rows import SCRATCH_ROW, Axes, columns_of, is_checked

_OLDEST_OPSET = 11
"""ScatterND and negative indices of Gather came with it."""


_SMALLEST_ITEM = 64
"""Bytes; see `_place`."""


def fuse(model: onnx.ModelProto, signature: Signature, context: Collection[int] = ()) -> tuple[onnx.ModelProto, Names]:
    """Wraps a graph.

    Args:
        model: The graph as its author wrote it, weights included; it stays as it is.
        signature: Its signature, which fits it.
        context: The places of states that rows share: these are read by slot, and not written.

    Raises:
        FusionError: Its opset is too old, an input is also an output, or a graph without a batch axis may refuse values
            when rows are written already.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise FusionError(f"opset {opset}; wrapping needs {_OLDEST_OPSET} or higher")
    return _Wrapper(model, signature, opset, frozenset(context)).wrap()


def wrapped(model: onnx.ModelProto, signature: Signature, context: Collection[int] = ()) -> Wrapped:
    """Wraps a graph, and serialises it; see `fuse`."""
    made, names = fuse(model, signature, context)
    columns = {slab.before for slab in names.slabs}
    touching = frozenset(node.name for node in made.graph.node if columns & set(node.input))
    return Wrapped(made.SerializeToString(), names, touching, frozenset(context))


class _Wrapper:
    """Adds the nodes of the wrapping to a copy of a graph."""

    def __init__(self, model: onnx.ModelProto, signature: Signature, opset: int, context: frozenset[int]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._model.ClearField("metadata_props")
        self._graph = self._model.graph
        self._signature, self._opset, self._context = signature, opset, context
        self._reads: list[onnx.NodeProto] = []
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...]], str] = {}
        self._prefix = _fresh_prefix(self._graph)
        self._count = 0

    def wrap(self) -> tuple[onnx.ModelProto, Names]:
        columns, prefix, states = columns_of(self._signature), self._prefix, self._signature.states
        own = [place for place in range(len(columns)) if place not in self._context]
        places = [_place(state) for state in states] + [()] * (len(columns) - len(states))
        names = Names(
            source=f"{prefix}source",
            target=f"{prefix}target",
            inputs=tuple(self._enter(spec.name, Axes.of_tensor(spec)) for spec in self._signature.inputs),
            outputs=tuple(self._leave(spec.name, Axes.of_tensor(spec)) for spec in self._signature.outputs),
            slabs=tuple(
                SlabNames(
                    f"{prefix}slab{i}",
                    f"{prefix}slab{i}_out" if i in own else "",
                    math.prod(place or ()),
                    column.shape[len(place or ()) :],
                )
                for i, (column, place) in enumerate(zip(columns, places, strict=True))
            ),
            bad=f"{prefix}bad" if any(is_checked(states[i]) for i in own if i < len(states)) else "",
            slots=f"{prefix}slots" if self._context else "",
        )
        self._keep_types()
        updates = []
        for i, (state, slab, place) in enumerate(zip(states, names.slabs, places, strict=False)):
            rows = state.input if place is not None else self._enter(state.input, Axes.of_state(state))
            read = self._items(self._reads, names.source if i in own else names.slots, place)
            self._put(self._reads, "Gather", [slab.before, read], rows, axis=0)
            if i in own:
                updates.append(state.output if place is not None else self._leave(state.output, Axes.of_state(state)))
        target = self._target(names, updates, places)
        updates += [self._last(names.outputs[i]) for i in self._feedback()]
        for i, update in zip(own, updates, strict=True):
            slab, indices = names.slabs[i], self._indices(target, places[i])
            self._put(self._after, "ScatterND", [slab.before, indices, update], slab.after)
        self._finish(names)
        return self._model, names

    def _items(self, nodes: list[onnx.NodeProto], rows: str, place: tuple[int, ...] | None) -> str:
        """The items that rows [n] or [1, n] are: [*place, n]."""
        if not place:
            return rows
        if (rows, place) not in self._known:
            parts = math.prod(place)
            first = self._put(nodes, "Mul", [rows, self._constant(np.asarray(parts, np.int64))]) if parts > 1 else rows
            steps = np.arange(parts, dtype=np.int64).reshape(*place, 1)
            self._known[rows, place] = self._put(nodes, "Add", [first, self._constant(steps)])
        return self._known[rows, place]

    def _indices(self, rows: str, place: tuple[int, ...] | None) -> str:
        """The items that rows are, as a ScatterND wants them: [*place, n, 1]."""
        items = self._items(self._after, rows, place)
        key = (f"{items} as indices", place or ())
        if key not in self._known:
            shape = self._constant(np.asarray([*(place or ()), -1, 1], np.int64))
            self._known[key] = self._put(self._after, "Reshape", [items, shape])
        return self._known[key]

    def _keep_types(self) -> None:
        """Keeps what the author said of inputs, which are values inside from now on; forgets all other hints.

        Exporters write lengths of their example into hints where they should be free; ONNX Runtime finds them itself.
        """
        outputs = {value.name for value in self._graph.output}
        weights = {tensor.name for tensor in self._graph.initializer}
        self._graph.ClearField("value_info")
        for value in self._graph.input:
            if value.name in outputs:
                raise FusionError(f"{value.name!r} is an input and an output at once")
            if value.name not in weights:
                self._graph.value_info.append(value)

    def _enter(self, inner: str, axes: Axes) -> str:
        """The name of a row-first array that becomes the author's input."""
        if axes.plain:
            return inner
        outer, turned = self._fresh(), _turns(axes.perm)
        value = (
            self._with_axes(self._before, "Squeeze", outer, axes.drop, "" if turned else inner) if axes.drop else outer
        )
        if turned:
            self._put(self._before, "Transpose", [value], inner, perm=list(axes.perm))
        return outer

    def _leave(self, inner: str, axes: Axes) -> str:
        """The name of the row-first array that the author's output becomes."""
        if axes.plain:
            return inner
        value = inner
        if _turns(axes.perm):
            value = self._put(self._after, "Transpose", [inner], perm=list(axes.inverse))
        return self._with_axes(self._after, "Unsqueeze", value, axes.drop) if axes.drop else value

    def _with_axes(self, nodes: list[onnx.NodeProto], op: str, value: str, axes: tuple[int, ...], out: str = "") -> str:
        if self._opset < 13:
            return self._put(nodes, op, [value], out, axes=list(axes))
        return self._put(nodes, op, [value, self._constant(np.asarray(axes, np.int64))], out)

    def _last(self, output: str) -> str:
        """The last step of [n, T, ...]."""
        return self._put(self._after, "Gather", [output, self._constant(np.asarray(-1, np.int64))], axis=1)

    def _written(self) -> list[tuple[int, StateSpec]]:
        """The states that a step writes, with their places."""
        return [(i, state) for i, state in enumerate(self._signature.states) if i not in self._context]

    def _feedback(self) -> list[int]:
        names = [spec.name for spec in self._signature.outputs]
        return [names.index(name) for name in signatures.forecast_outputs(self._signature)]

    def _target(self, names: Names, updates: Sequence[str], places: Sequence[tuple[int, ...] | None]) -> str:
        """The rows to write, [n] or [1, n]: the target, or the scratch row for rows that fail their check."""
        target, checked, sums, wrongs = names.target, list[StateSpec](), list[str](), list[str]()
        alike: dict[tuple[int, np.dtype[np.generic], bool], list[tuple[StateSpec, str]]] = {}
        for (_, state), value in zip(self._written(), updates, strict=False):
            place = _place(state)
            if is_checked(state):
                checked.append(state)
                finite = state.check != StateCheck.STATE_CHECK_NAN
                key = (math.prod(place or ()), signatures.numpy_dtype(state.dtype), finite)
                alike.setdefault(key, []).append((state, value))
        for (parts, dtype, finite), states in alike.items():
            (sums if finite else wrongs).append(self._suspicion(states, parts, dtype, finite))
        if sums:
            wrongs.append(self._put(self._after, "IsNaN", [self._joined("Add", sums)]))
        if wrongs:
            self._joined("Or", wrongs)
            self._after[-1].output[0] = names.bad
            scratch = self._constant(np.asarray(SCRATCH_ROW, np.int64))
            target = self._put(self._after, "Where", [names.bad, scratch, target])
        return self._at_last(target, checked, places)

    def _joined(self, op: str, values: Sequence[str]) -> str:
        joined = values[0]
        for value in values[1:]:
            joined = self._put(self._after, op, [joined, value])
        return joined

    def _suspicion(
        self, states: Sequence[tuple[StateSpec, str]], parts: int, dtype: np.dtype[np.generic], finite: bool
    ) -> str:
        """For every row of new values alike [1, n]: NaN where one is not finite, or else true where one has a NaN."""
        factor, total = np.zeros, list[str]()
        if not finite:
            factor, dtype = np.ones, np.dtype(np.float32)
        for state, value in states:
            size = math.prod(signatures.row_shape(state)) // parts
            if not finite:
                wrong = self._put(self._after, "IsNaN", [value])
                value = self._put(self._after, "Cast", [wrong], to=TensorProto.FLOAT)
            # 0 × infinity and 0 × NaN are NaN, and so are sums with them: one pass of the fastest kernel there is.
            flat = self._put(self._after, "Reshape", [value, self._constant(np.asarray([-1, size], np.int64))])
            weights = self._constant(factor((1, size), dtype))
            total = [self._put(self._after, "Gemm", [weights, flat, *total], transB=1)]
        (found,) = total
        if parts > 1:
            table = self._put(self._after, "Reshape", [found, self._constant(np.asarray([parts, -1], np.int64))])
            found = self._put(self._after, "MatMul", [self._constant(factor((1, parts), dtype)), table])
        if not finite:
            return self._put(self._after, "Greater", [found, self._constant(np.zeros((), np.float32))])
        if dtype != np.float32:
            found = self._put(self._after, "Cast", [found], to=TensorProto.FLOAT)
        return found

    def _at_last(self, rows: str, checked: Sequence[StateSpec], places: Sequence[tuple[int, ...] | None]) -> str:
        """Lets the scatters to rows wait for the gathers, and for whatever of the author's graph may fail.

        A scatter writes the memory that its gather reads, and the graph says which comes first only where the new
        state, or the check of another, depends on the old one. And a run that refuses its inputs must not have written
        anything. Where nothing else says so, the rows take their number from what they wait for.
        """
        shared = set[str]().union(*(self._ancestors(state.output) for state in checked))
        reads = [node.output[0] for node in self._reads if node.op_type == "Gather"]
        lengths = []
        for i, state in self._written():
            place, read = places[i], reads[i]
            if state.input not in self._ancestors(state.output) | shared:
                shape = self._put(self._after, "Shape", [read])
                axis = self._constant(np.asarray([len(place or ())], np.int64))
                lengths.append(self._put(self._after, "Gather", [shape, axis], axis=0))
        for value, batch in self._refusable(shared):
            axis = self._constant(np.asarray([batch], np.int64))
            lengths.append(self._put(self._after, "Gather", [self._put(self._after, "Shape", [value]), axis], axis=0))
        if not lengths:
            return rows
        sizes = self._put(self._after, "Concat", lengths, axis=0) if len(lengths) > 1 else lengths[0]
        length = self._put(self._after, "Gather", [sizes, self._constant(np.asarray([0], np.int64))], axis=0)
        return self._put(self._after, "Reshape", [rows, length])

    def _refusable(self, known: set[str]) -> Iterator[tuple[str, int]]:
        """The author's results, and their batch axes, at which a run may fail although all that is known is there."""
        known = known - {""}  # What a node leaves out, inputs or outputs, has no name.
        refusing = {
            name
            for node in self._graph.node
            if may_refuse(node) and known.isdisjoint(node.output)
            for name in node.output
        }
        results: list[tuple[str, TensorSpec | StateSpec]] = [(spec.name, spec) for spec in self._signature.outputs]
        results += [(state.output, state) for _, state in self._written()]
        for name, spec in results:
            if self._ancestors(name) & refusing:
                if not spec.HasField("batch_axis") or spec.shape[spec.batch_axis] >= 0:
                    raise FusionError(f"{name!r} has no batch axis and is computed by operators that may refuse values")
                yield name, spec.batch_axis

    def _ancestors(self, value: str) -> set[str]:
        """What a value of the author's graph is computed from, itself included."""
        makers = {name: node for node in self._graph.node for name in node.output}
        found, waiting = set[str](), [value]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                if name in makers:
                    waiting.extend(uses(makers[name]))
        return found

    def _finish(self, names: Names) -> None:
        graph = self._graph
        nodes = [*self._reads, *self._before, *graph.node, *self._after]
        plain = set(names.inputs)
        hints = [value for value in graph.value_info if value.name not in plain]
        for field in ("node", "input", "output", "value_info"):
            graph.ClearField(field)
        graph.node.extend(nodes)
        graph.value_info.extend(hints)
        graph.initializer.extend(self._weights)
        inputs = zip(names.inputs, self._signature.inputs, strict=True)
        outputs = zip(names.outputs, self._signature.outputs, strict=True)
        graph.input.append(info(names.source, np.dtype(np.int64), ["n"]))
        graph.input.append(info(names.target, np.dtype(np.int64), ["n"]))
        if names.slots:
            graph.input.append(info(names.slots, np.dtype(np.int64), ["n"]))
        graph.input.extend(_stepinfo(name, spec) for name, spec in inputs)
        for slab, column in zip(names.slabs, columns_of(self._signature), strict=True):
            shape = ("items", *slab.item)
            graph.input.append(info(slab.before, column.dtype, shape))
            if slab.after:
                graph.output.append(info(slab.after, column.dtype, shape))
        graph.output.extend(_stepinfo(name, spec) for name, spec in outputs)
        if names.bad:
            graph.output.append(info(names.bad, np.dtype(np.bool_), [1, "n"]))

    def _put(
        self, nodes: list[onnx.NodeProto], op: str, inputs: Sequence[str], out: str = "", **attributes: Any
    ) -> str:
        name = out or self._fresh()
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        name = self._fresh()
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def _turns(perm: tuple[int, ...]) -> bool:
    """Whether a transposition changes anything; of no axes at all ONNX has none."""
    return perm != tuple(range(len(perm)))


def _place(state: StateSpec) -> tuple[int, ...] | None:
    """The axes before a state's batch axis, where rows can be gathered item by item into the graph's arrangement.

    Else None: they are gathered whole and transposed. Items of a few bytes are slower than a transposition.
    """
    if not state.HasField("batch_axis"):
        return None
    before, after = tuple(state.shape[: state.batch_axis]), tuple(state.shape[state.batch_axis + 1 :])
    nbytes = math.prod(after) * signatures.numpy_dtype(state.dtype).itemsize
    return before if math.prod(before) == 1 or nbytes >= _SMALLEST_ITEM else None


def _stepinfo(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    step: list[int | str] = [size if size >= 0 else f"{name}_{i}" for i, size in enumerate(signatures.step_shape(spec))]
    time = "steps" if spec.HasField("time_axis") else 1
    return info(name, signatures.numpy_dtype(spec.dtype), ["n", time, *step])


def _fresh_prefix(graph: onnx.GraphProto) -> str:
    """A prefix that no name of the graph has."""
    taken = set(_names(graph))
    prefix = "rows/"
    while any(name.startswith(prefix) for name in taken):
        prefix = "_" + prefix
    return prefix


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names(inner)
