"""Surgery: the few changes by which a graph gets its normal form. ONNX in, ONNX out; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from statestream_server.models.form import narrow
from statestream_server.models.form.edits import called, fresh, named, opset_of, read_as, taken

_END: Final = (1 << 63) - 1
_SLICE_OPSET: Final = 10
"""Slice takes its bounds as inputs since."""


class Change(NamedTuple):
    """One change.

    Attributes:
        kind: "freeze": an input becomes a value of the graph; "hold": an input is given on as an output; "count": an
            input and a number become an output; "window": an input is given its last values before new ones; "alias":
            an output is given under another name, too; "part": an output called as an input gets a name of its own;
            "cast": an input or output of bfloat16 is float32; "widen": what computes with bfloat16 does in float32.
        name: The input or output.
        made: The name of what is added: an output, or of a window its state ("" for freeze).
        values: The number or numbers of freeze and count; of a window how many values it keeps, and their axis.
    """

    kind: str
    name: str
    made: str = ""
    values: Sequence[float] = ()

    def __str__(self) -> str:
        """What is done, in words."""
        numbers = ", ".join(f"{value:g}" for value in self.values)
        return {
            "freeze": f"input {self.name} became the constant {numbers}",
            "hold": f"input {self.name} is kept for a session as it was opened with",
            "count": f"input {self.name} is kept and counts up by {numbers} a step",
            "window": f"the last {self.values[0] if self.values else 0} values of {self.name} are kept and put before"
            " new ones",
            "alias": f"output {self.name} is a state and an output",
            "part": f"output {self.name} has an input's name and is called {self.made}",
            "cast": f"bfloat16 is float32 where it comes in and goes out: {self.name}",
            "widen": f"operators that compute with bfloat16 do so in float32 and round: {self.name}",
        }[self.kind]


def together(changes: Sequence[Change]) -> list[Change]:
    """The changes as they are told: of one kind that says nothing but names, one."""
    names = ", ".join(change.name for change in changes if change.kind == "cast")
    return [Change("cast", names)] * bool(names) + [change for change in changes if change.kind != "cast"]


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


def _window(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.input, change.name)
    keep, axis = map(int, change.values)
    used = taken(graph)
    joined, after = fresh(f"{change.name}_joined", used), f"{change.made}_next"
    read_as(graph.node, change.name, joined)
    graph.node.insert(0, helper.make_node("Concat", [change.made, change.name], [joined], axis=axis))
    if opset < _SLICE_OPSET:
        slicing = helper.make_node("Slice", [joined], [after], starts=[-keep], ends=[_END], axes=[axis])
    else:
        bounds = [fresh(f"{change.made}_{what}", used) for what in ("starts", "ends", "axes")]
        for name, bound in zip(bounds, (-keep, _END, axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray([bound], np.int64), name))
        slicing = helper.make_node("Slice", [joined, *bounds], [after])
    graph.node.insert(1, slicing)
    state = called(value, change.made)
    state.type.tensor_type.shape.dim[axis].Clear()
    state.type.tensor_type.shape.dim[axis].dim_value = keep
    graph.input.append(state)
    graph.output.append(called(state, after))
    size = value.type.tensor_type.shape.dim[axis]
    if size.HasField("dim_value"):
        size.dim_value -= keep


def _alias(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.output, change.name)
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))
    graph.output.append(called(value, change.made))


def _part(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = named(graph.output, change.name)
    value.name = change.made
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))


_WAYS: Final[Mapping[str, Callable[[onnx.GraphProto, Change, int], None]]] = {
    "freeze": _freeze,
    "hold": _hold,
    "count": _count,
    "window": _window,
    "alias": _alias,
    "part": _part,
}

_OF_MODELS: Final[Mapping[str, Callable[[onnx.ModelProto, Change], None]]] = {
    "cast": lambda model, change: narrow.cast(model.graph, change.name),
    "widen": lambda model, change: narrow.widen(model),
}
"""Those that need to know more than the graph."""
