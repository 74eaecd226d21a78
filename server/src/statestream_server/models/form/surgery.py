"""Surgery: the few changes by which a graph gets its normal form. ONNX in, ONNX out; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from statestream_server.models.form import freeing, narrow, tokens
from statestream_server.models.form.edits import called, fresh, inlined, made_as, named, opset_of, read_as, taken

_END: Final = (1 << 63) - 1
_SLICE_OPSET: Final = 10
"""Slice takes its bounds as inputs since."""
_AXES_OPSET: Final = 13
"""Unsqueeze takes its axes as an input since."""


_FREED: Final = ("shapes inside that follow it", "constants that are repeated for all sessions")
"""What is told of the numbers of a batch that was freed."""


class Change(NamedTuple):
    """One change.

    Attributes:
        kind: "freeze": an input becomes a value of the graph; "hold": an input is given on as an output; "count": an
            input and a number become an output; "context": an input is given its last values before new ones; "tally":
            the steps of an input are counted; "window": an input of one step is put behind the last ones; "mask": an
            output says nothing before so many steps; "full": whether there were so many becomes an output; "alias":
            an output is given under another name, too; "part": an output called as an input gets a name of its own;
            "cast": an input or output of bfloat16 is float32; "widen": what ONNX Runtime lacks does in float32;
            "free": an axis of an input or output has any length; "target", "spread": so has what an operator makes, or
            takes for one session; "inline": functions are laid open; "inner": an output is
            none any more. Those of an encoder and its decoder are in tokens.py.
        name: The input or output; of full the input that is counted.
        made: The name of what is added: an output, or of a context, window or tally its state ("" for freeze). Of a
            target and of what is spread the input whose axis, the first of its values, tells how many sessions there
            are.
        values: The number or numbers of freeze and count; of a context or window how many values or steps it keeps,
            and their axis, then that of steps where each of a run's has a context; of a tally the axis of sessions,
            -1 for none; of mask and full how many steps, of mask the axis of sessions, too.
        tally: The state of the tally by which a window is padded with its first step, or an output is masked.
    """

    kind: str
    name: str
    made: str = ""
    values: Sequence[float] = ()
    tally: str = ""

    def __str__(self) -> str:
        """What is done, in words."""
        numbers = ", ".join(f"{value:g}" for value in self.values)
        if self.kind in tokens.SAID:
            return tokens.SAID[self.kind](self.name, self.made, numbers)
        return {
            "freeze": f"input {self.name} became the constant {numbers}",
            "hold": f"input {self.name} is kept for a session as it was opened with",
            "count": f"input {self.name} is kept and counts up by {numbers} a step",
            "context": f"the last {self.values[0] if self.values else 0} values of {self.name} are kept and put before"
            " new ones",
            "tally": f"the steps of {self.name} are counted",
            "window": f"the last {self.values[0] if self.values else 0} steps of {self.name} are kept and put before"
            " the new one" + (", the first one where none came yet" if self.tally else ""),
            "mask": f"output {self.name} says nothing before {numbers.split(',')[0]} steps",
            "full": f"output {self.made} tells whether {numbers} steps came",
            "alias": f"output {self.name} is a state and an output",
            "part": f"output {self.name} has an input's name and is called {self.made}",
            "cast": f"bfloat16 is float32 where it comes in and goes out: {self.name}",
            "widen": f"operators that ONNX Runtime lacks compute in float32 and round: {self.name}",
            "free": "the batch of 1 became one of any length"
            + "".join(f"; {what}: {count:g}" for count, what in zip(self.values, _FREED, strict=False) if count),
        }[self.kind]


def together(changes: Sequence[Change]) -> list[Change]:
    """The changes as they are told: of one kind that says nothing but names, one."""
    kinds = [change.kind for change in changes]
    names = ", ".join(change.name for change in changes if change.kind == "cast")
    inner = (kinds.count("target"), kinds.count("spread"))
    return (
        [Change("cast", names)] * bool(names)
        + [change for change in changes if change.kind not in ("cast", "inline", "inner", "target", "spread", "free")]
        + [Change("free", "", "", inner)] * ("free" in kinds)
    )


def applied(model: onnx.ModelProto, changes: Iterable[Change]) -> onnx.ModelProto:
    """A changed copy of a model.

    Raises:
        KeyError: A change names what the graph does not have.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = opset_of(copy)
    for change in changes:
        if change.kind in _OF_MODELS:
            _OF_MODELS[change.kind](copy, change)
        elif change.kind in tokens.WAYS:
            tokens.WAYS[change.kind](copy.graph, *change[1:])
        else:
            _WAYS[change.kind](copy.graph, change, opset)
    return copy


def _freeze(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.input, change.name)
    graph.input.remove(value)
    sizes = [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    given = np.asarray(change.values, np.float64 if dtype.kind == "f" else None).astype(dtype)
    shaped = np.broadcast_to(given.reshape(sizes if given.size > 1 else ()), sizes)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(shaped).reshape(sizes), change.name))


def _hold(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))
    graph.output.append(called(named(graph.input, change.name), change.made))


def _count(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.input, change.name)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    added = fresh(f"{change.made}_by", taken(graph))
    graph.initializer.append(numpy_helper.from_array(np.asarray(change.values[0]).astype(dtype), added))
    graph.node.append(helper.make_node("Add", [change.name, added], [change.made]))
    graph.output.append(called(value, change.made))


def _context(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.input, change.name)
    keep, axis, *steps = map(int, change.values)
    if steps:
        _keep_of_each(graph, change, opset)
    else:
        _keep(graph, change, opset, (change.made, change.name), [])
    size = value.type.tensor_type.shape.dim[axis]
    if size.HasField("dim_value"):
        size.dim_value -= keep


def _tally(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value, one = named(graph.input, change.name), fresh(f"{change.made}_one", taken(graph))
    state = called(value, change.made)
    state.type.tensor_type.elem_type = TensorProto.INT64
    for axis, size in enumerate(state.type.tensor_type.shape.dim):
        if axis != change.values[0]:
            size.Clear()
            size.dim_value = 1
    graph.initializer.append(numpy_helper.from_array(np.asarray(1, np.int64), one))
    graph.node.insert(0, helper.make_node("Add", [change.made, one], [f"{change.made}_next"]))
    graph.input.append(state)
    graph.output.append(called(state, f"{change.made}_next"))


def _window(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value, used = named(graph.input, change.name), taken(graph)
    axis = int(change.values[1])
    step, past = fresh(f"{change.name}_step", used), change.made
    nodes = [_with_axis(graph, change.name, step, axis, opset, used)]
    if change.tally:
        past, none, zero = (fresh(f"{change.made}_{what}", used) for what in ("padded", "none", "zero"))
        graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int64), zero))
        nodes.append(helper.make_node("Equal", [change.tally, zero], [none]))
        nodes.append(helper.make_node("Where", [none, step, change.made], [past]))
    _keep(graph, change, opset, (past, step), nodes)
    del value.type.tensor_type.shape.dim[axis]


def _with_axis(graph: onnx.GraphProto, name: str, made: str, axis: int, opset: int, used: set[str]) -> onnx.NodeProto:
    if opset < _AXES_OPSET:
        return helper.make_node("Unsqueeze", [name], [made], axes=[axis])
    axes = fresh(f"{made}_axes", used)
    graph.initializer.append(numpy_helper.from_array(np.asarray([axis], np.int64), axes))
    return helper.make_node("Unsqueeze", [name, axes], [made])


def _keep(
    graph: onnx.GraphProto, change: Change, opset: int, parts: tuple[str, str], nodes: list[onnx.NodeProto]
) -> None:
    """Lets what reads an input read two parts in a row, and a state keep the last of them; nodes make the parts."""
    keep, axis = map(int, change.values)
    used = taken(graph) | {name for node in nodes for name in node.output}
    joined, after = fresh(f"{change.name}_joined", used), f"{change.made}_next"
    read_as(graph.node, change.name, joined)
    nodes.append(helper.make_node("Concat", parts, [joined], axis=axis))
    nodes.append(_cut(graph, joined, after, (-keep, _END, axis), used, opset))
    _kept(graph, change, nodes, {axis: keep})


def _keep_of_each(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    """The same where a run has many steps, each of which is given the last values of the step before it."""
    keep, axis, steps = map(int, change.values)
    used = taken(graph)
    tails, lasts, before, joined = (fresh(f"{change.made}_{what}", used) for what in ("of", "all", "before", "joined"))
    read_as(graph.node, change.name, joined)
    nodes = [
        _cut(graph, change.name, tails, (-keep, _END, axis), used, opset),
        helper.make_node("Concat", [change.made, tails], [lasts], axis=steps),
        _cut(graph, lasts, before, (0, -1, steps), used, opset),
        helper.make_node("Concat", [before, change.name], [joined], axis=axis),
        _cut(graph, lasts, f"{change.made}_next", (-1, _END, steps), used, opset),
    ]
    _kept(graph, change, nodes, {axis: keep, steps: 1})


def _cut(
    graph: onnx.GraphProto, source: str, made: str, where: tuple[int, int, int], used: set[str], opset: int
) -> onnx.NodeProto:
    """A node that cuts a value from a start to an end along an axis."""
    if opset < _SLICE_OPSET:
        start, end, axis = where
        return helper.make_node("Slice", [source], [made], starts=[start], ends=[end], axes=[axis])
    bounds = [fresh(f"{made}_{what}", used) for what in ("starts", "ends", "axes")]
    for name, bound in zip(bounds, where, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray([bound], np.int64), name))
    return helper.make_node("Slice", [source, *bounds], [made])


def _kept(graph: onnx.GraphProto, change: Change, nodes: list[onnx.NodeProto], sizes: Mapping[int, int]) -> None:
    """Puts nodes before all others, and declares the state that they read and make: the input's, but for some sizes."""
    for node in reversed(nodes):
        graph.node.insert(0, node)
    state = called(named(graph.input, change.name), change.made)
    for axis, size in sizes.items():
        state.type.tensor_type.shape.dim[axis].Clear()
        state.type.tensor_type.shape.dim[axis].dim_value = size
    graph.input.append(state)
    graph.output.append(called(state, f"{change.made}_next"))


def _mask(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.output, change.name)
    used, (steps, batch) = taken(graph), map(int, change.values)
    open_, early, nothing = (fresh(f"{change.name}_{what}", used) for what in ("open", "early", "nothing"))
    read_as(graph.node, change.name, open_)
    made_as(graph.node, change.name, open_)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    none = np.asarray(np.nan if dtype.kind not in "iub" else 0).astype(dtype)
    graph.initializer.append(numpy_helper.from_array(none, nothing))
    shape = [-1 if axis == batch else 1 for axis in range(len(value.type.tensor_type.shape.dim))]
    graph.node.extend(_early(graph, change.tally, steps, early, shape, used))
    graph.node.append(helper.make_node("Where", [early, nothing, open_], [change.name]))


def _full(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    used = taken(graph)
    early = fresh(f"{change.made}_not", used)
    graph.node.extend(_early(graph, change.tally, int(change.values[0]), early, [-1], used))
    graph.node.append(helper.make_node("Not", [early], [change.made]))
    graph.output.append(helper.make_tensor_value_info(change.made, TensorProto.BOOL, [None]))


def _early(
    graph: onnx.GraphProto, tally: str, steps: int, made: str, shape: Sequence[int], used: set[str]
) -> list[onnx.NodeProto]:
    """Nodes that tell of each session whether fewer steps came, in a shape."""
    least, sizes, less = (fresh(f"{made}_{what}", used) for what in ("least", "shape", "less"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(steps, np.int64), least))
    graph.initializer.append(numpy_helper.from_array(np.asarray(shape, np.int64), sizes))
    return [
        helper.make_node("Less", [f"{tally}_next", least], [less]),
        helper.make_node("Reshape", [less, sizes], [made]),
    ]


def _alias(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.output, change.name)
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))
    graph.output.append(called(value, change.made))


def _part(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.output, change.name)
    value.name = change.made
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))


def _inner(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    graph.output.remove(named(graph.output, change.name))


_WAYS: Final[Mapping[str, Callable[[onnx.GraphProto, Change, int], None]]] = {
    "freeze": _freeze,
    "hold": _hold,
    "count": _count,
    "context": _context,
    "tally": _tally,
    "window": _window,
    "mask": _mask,
    "full": _full,
    "alias": _alias,
    "part": _part,
    "inner": _inner,
}


def _source(change: Change) -> tuple[tuple[str, int], list[int]]:
    """Where the sessions of a run are counted, and the other numbers."""
    axis, *values = map(int, change.values)
    return (change.made, axis), values


_OF_MODELS: Final[Mapping[str, Callable[[onnx.ModelProto, Change], None]]] = {
    "cast": lambda model, change: narrow.cast(model.graph, change.name),
    "widen": lambda model, change: narrow.widen(model),
    "inline": lambda model, change: inlined(model),
    "free": lambda model, change: freeing.free(model, change.name, int(change.values[0])),
    "target": lambda model, change: freeing.retarget(model, change.name, *_source(change)),
    "spread": lambda model, change: freeing.spread(model, change.name, *_source(change)),
}
"""Those that need to know more than the graph."""
