"""Surgery: the few changes by which a graph gets its normal form. ONNX in, ONNX out; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from statestream_server.models.graphs.operators import inner_graphs

_END: Final = (1 << 63) - 1
_SLICE_OPSET: Final = 10
"""Slice takes its bounds as inputs since."""


class Change(NamedTuple):
    """One change.

    Attributes:
        kind: "freeze": an input becomes a value of the graph; "hold": an input is given on as an output; "count": an
            input and a number become an output; "window": an input is given its last values before new ones; "alias":
            an output is given under another name, too; "part": an output called as an input gets a name of its own.
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
        }[self.kind]


def applied(model: onnx.ModelProto, changes: Iterable[Change]) -> onnx.ModelProto:
    """A changed copy of a model.

    Raises:
        KeyError: A change names what the graph does not have.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((entry.version for entry in copy.opset_import if entry.domain in ("", "ai.onnx")), 0)
    for change in changes:
        _WAYS[change.kind](copy.graph, change, opset)
    return copy


def taken(graph: onnx.GraphProto) -> set[str]:
    """All names of values in a graph and those inside it."""
    return set(_names(graph))


def fresh(name: str, used: set[str]) -> str:
    """A name that is not used yet; it is from now on."""
    found, count = name, 2
    while found in used:
        found, count = f"{name}_{count}", count + 1
    used.add(found)
    return found


def _freeze(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = _input(graph, change.name)
    graph.input.remove(value)
    sizes = [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    given = np.asarray(change.values, np.float64 if dtype.kind == "f" else None).astype(dtype)
    shaped = np.broadcast_to(given.reshape(sizes if given.size > 1 else ()), sizes)
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(shaped).reshape(sizes), change.name))


def _hold(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))
    graph.output.append(_called(_input(graph, change.name), change.made))


def _count(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = _input(graph, change.name)
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    added = fresh(f"{change.made}_by", taken(graph))
    graph.initializer.append(numpy_helper.from_array(np.asarray(change.values[0]).astype(dtype), added))
    graph.node.append(helper.make_node("Add", [change.name, added], [change.made]))
    graph.output.append(_called(value, change.made))


def _window(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = _input(graph, change.name)
    keep, axis = map(int, change.values)
    used = taken(graph)
    joined, after = fresh(f"{change.name}_joined", used), f"{change.made}_next"
    _rename(graph.node, change.name, joined)
    graph.node.insert(0, helper.make_node("Concat", [change.made, change.name], [joined], axis=axis))
    if opset < _SLICE_OPSET:
        slicing = helper.make_node("Slice", [joined], [after], starts=[-keep], ends=[_END], axes=[axis])
    else:
        bounds = [fresh(f"{change.made}_{what}", used) for what in ("starts", "ends", "axes")]
        for name, bound in zip(bounds, (-keep, _END, axis), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray([bound], np.int64), name))
        slicing = helper.make_node("Slice", [joined, *bounds], [after])
    graph.node.insert(1, slicing)
    state = _called(value, change.made)
    state.type.tensor_type.shape.dim[axis].Clear()
    state.type.tensor_type.shape.dim[axis].dim_value = keep
    graph.input.append(state)
    graph.output.append(_called(state, after))
    size = value.type.tensor_type.shape.dim[axis]
    if size.HasField("dim_value"):
        size.dim_value -= keep


def _alias(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = next(each for each in graph.output if each.name == change.name)
    graph.node.append(helper.make_node("Identity", [change.name], [change.made]))
    graph.output.append(_called(value, change.made))


def _part(graph: onnx.GraphProto, change: Change, opset: int) -> None:
    value = next(each for each in graph.output if each.name == change.name)
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


def _input(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    for value in graph.input:
        if value.name == name:
            return value
    raise KeyError(f"there is no input {name!r}")


def _called(value: onnx.ValueInfoProto, name: str) -> Any:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Lets all that read a value read another one, in inner graphs too."""
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for graph in inner_graphs(node):
            _rename(graph.node, old, new)
            for value in graph.output:
                if value.name == old:
                    value.name = new


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in inner_graphs(node):
            yield from _names(inner)
