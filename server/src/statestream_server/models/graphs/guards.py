"""Guards: a graph refuses the values that would end the process, take all memory or never return. ONNX in, ONNX out.

A processor traps where a whole number is divided by zero, and the smallest one by −1. Where a caller's numbers, or a
state's, decide how large an array is or how often a loop turns, there is no end to either. A guard looks at such values
before they are used. What it does not let through makes the run fail, as a token beyond a table does, so that callers
hear BAD_TENSOR and the process goes on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from statestream_server.models.graphs.operators import inner_graphs, uses
from statestream_server.models.graphs.refused import MARK, GuardError

MOST_ELEMENTS: Final = 1 << 24
"""Numbers in an array whose size values decide."""
MOST_TURNS: Final = 1 << 16
"""Turns of a loop that values end."""
_OWN: Final = ("", "ai.onnx")
_LARGE: Final = 1 << 12
"""Bytes; types are found without weights that are larger."""
_CAST_LIKE_OPSET: Final = 15
_AXES_AS_INPUT: Final = 13

_WHOLE: Final = {getattr(TensorProto, name) for name in "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()}
_SIGNED: Final[dict[int, type[np.signedinteger[Any]]]] = {TensorProto.INT32: np.int32, TensorProto.INT64: np.int64}
"""Whose smallest number divided by −1 traps; narrower ones are computed as these."""

_SHAPED: Final = {
    # Operators whose inputs at these places say how large their result is.
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1,),
    "MaxUnpool": (2,),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "DFT": (1,),
    "MelWeightMatrix": (0, 1),
}
_TIMES_INPUT: Final = ("Tile", "OneHot", "Pad", "Resize", "Upsample")
"""Those whose result is that many times as large as their first input."""
_DIVIDING: Final = ("Div", "Mod")
_GUARDED: Final = {*_DIVIDING, *_SHAPED, "Loop"}


def guarded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph with guards, or the graph itself where it needs none.

    Raises:
        GuardError: Whether it divides whole numbers cannot be told.
    """
    if not any(_wanting(node) for node in _all_nodes(model.graph.node)) and not any(
        _wanting(node) for function in model.functions for node in _all_nodes(function.node)
    ):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if any(_wanting(node) for function in model.functions for node in _all_nodes(function.node)):
        copy = inliner.inline_local_functions(copy)
    opset = next((entry.version for entry in copy.opset_import if entry.domain in _OWN), 0)
    guard = _Guard(opset, _types(copy))
    guard.graph(copy.graph, {}, {value.name for value in copy.graph.input}, inside=False)
    return copy if guard.count else model


def _wanting(node: onnx.NodeProto) -> bool:
    return node.op_type in _GUARDED and node.domain in _OWN


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in inner_graphs(node):
            yield from _all_nodes(graph.node)


class _Types:
    """The element types of a model's values by name, as far as they can be inferred."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def add(self, graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type:
                self._known[value.name] = value.type.tensor_type.elem_type
        for tensor in graph.initializer:
            self._known[tensor.name] = tensor.data_type
        for node in graph.node:
            for inner in inner_graphs(node):
                self.add(inner)

    def of(self, node: onnx.NodeProto) -> int:
        """The type of what a node with operands of one type takes; 0 where it is not known."""
        names = (*node.input, *node.output)
        return next((self._known[name] for name in names if name in self._known), 0)


def _types(model: onnx.ModelProto) -> _Types:
    light = onnx.ModelProto()
    light.CopyFrom(model)
    kept = [tensor for tensor in light.graph.initializer if len(tensor.raw_data) <= _LARGE and not tensor.external_data]
    taken = {value.name for value in light.graph.input}
    for tensor in light.graph.initializer:
        if tensor not in kept and tensor.name not in taken:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept_copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    light.graph.ClearField("initializer")
    light.graph.initializer.extend(kept_copies)
    types = _Types()
    types.add(model.graph)
    try:
        types.add(shape_inference.infer_shapes(light).graph)
    except Exception:  # It refuses some graphs that run; then types are found as the graph runs.
        return types
    return types


class _Guard:
    """Adds guards to a graph and those inside it."""

    def __init__(self, opset: int, types: _Types) -> None:
        self.count = 0
        self._opset, self._types = opset, types
        self._numbers = itertools.count(1)

    def graph(
        self, graph: onnx.GraphProto, constants: dict[str, np.ndarray], tainted: set[str], *, inside: bool
    ) -> None:
        """Guards the nodes of one graph in place.

        Args:
            graph: The graph.
            constants: Known values of the graphs around it, by name.
            tainted: Values around it, or of its inputs, that callers' numbers decide.
            inside: Whether it is the body of a node.
        """
        constants = {**constants, **{t.name: _value(t) for t in graph.initializer if _small(t)}}
        tainted = {*tainted, *(value.name for value in graph.input)} if inside else set(tainted)
        tainted -= {tensor.name for tensor in graph.initializer}
        nodes, made = list(graph.node), list[onnx.NodeProto]()
        for node in nodes:
            if node.op_type == "Constant" and (tensor := _constant_of(node)) is not None:
                constants[node.output[0]] = tensor
            self._put = made.append
            if node.domain in _OWN:
                self._node(node, constants, tainted)
            read = [name for name in uses(node) if name]
            if node.op_type not in ("Shape", "Size") and any(name in tainted for name in read):
                tainted.update(name for name in node.output if name)
            for inner in inner_graphs(node):
                self.graph(inner, constants, tainted, inside=True)
            if node.op_type == "Loop" and node.domain in _OWN:
                self._turns(node, constants, tainted)
            made.append(node)
        if len(made) != len(nodes):
            graph.ClearField("node")
            graph.node.extend(made)

    def _node(self, node: onnx.NodeProto, constants: dict[str, np.ndarray], tainted: set[str]) -> None:
        if node.op_type in _DIVIDING and len(node.input) == 2:
            self._division(node, constants)
            return
        places = [place for place in _SHAPED.get(node.op_type, ()) if place < len(node.input) and node.input[place]]
        if any(node.input[place] in tainted for place in places):
            self._size(node, places)
        if node.op_type == "Loop" and node.input and node.input[0] in tainted:
            turns = self._op("Cast", [node.input[0]], to=TensorProto.FLOAT)
            flag = self._op("Greater", [turns, self._constant(MOST_TURNS, np.float32)])
            why = f"{_named(node)} would turn more than {MOST_TURNS} times"
            node.input[0] = self._held(node.input[0], flag, why)

    def _division(self, node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
        kind, (dividend, divisor) = self._types.of(node), node.input
        known = constants.get(divisor)
        if (kind and kind not in _WHOLE) or (known is not None and known.size and not np.isin(known, (0, -1)).any()):
            return
        if not kind and self._opset < _CAST_LIKE_OPSET:
            raise GuardError(
                f"cannot tell whether {_named(node)} divides whole numbers, which ends the process where it divides by"
                f" zero; export it with opset {_CAST_LIKE_OPSET} or newer, or with the types of its values"
            )
        whole = self._op("Cast", [divisor], to=TensorProto.INT64)
        flag = self._op("Equal", [whole, self._constant(0)])
        if kind in _SIGNED or not kind:
            lowest = self._constant(np.iinfo(_SIGNED.get(kind, np.int64)).min)
            smallest = self._op("Equal", [self._op("Cast", [dividend], to=TensorProto.INT64), lowest])
            if not kind:
                narrow = self._constant(np.iinfo(np.int32).min)
                other = self._op("Equal", [self._op("Cast", [dividend], to=TensorProto.INT64), narrow])
                smallest = self._op("Or", [smallest, other])
            minus = self._op("Equal", [whole, self._constant(-1)])
            flag = self._op("Or", [flag, self._op("And", [smallest, minus])])
        if not kind:
            # Half of one is nothing in whole numbers: so the graph finds out by itself what it divides.
            half = self._op("CastLike", [self._constant(0.5, np.float32), divisor])
            halves = self._op("Cast", [half], to=TensorProto.FLOAT)
            flag = self._op("And", [flag, self._op("Equal", [halves, self._constant(0, np.float32)])])
        why = f"{_named(node)} divides a whole number by zero, or the smallest one by -1"
        node.input[1] = self._held(divisor, flag, why)

    def _size(self, node: onnx.NodeProto, places: Sequence[int]) -> None:
        one = self._constant(1, np.float32)
        factors = list[str]()
        if node.op_type == "Range":
            start, limit, delta = (self._op("Cast", [name], to=TensorProto.FLOAT) for name in node.input)
            factors.append(self._op("Abs", [self._op("Div", [self._op("Sub", [limit, start]), delta])]))
        else:
            for place in places:
                sizes = self._op("Abs", [self._op("Cast", [node.input[place]], to=TensorProto.FLOAT)])
                if node.op_type == "Pad":
                    sizes = self._op("Add", [sizes, one])
                elif node.op_type not in ("Resize", "Upsample") or place == 3:
                    sizes = self._op("Max", [sizes, one])
                factors.append(self._op("ReduceProd", [sizes], keepdims=0))
        if node.op_type in _TIMES_INPUT:
            factors.append(self._op("Cast", [self._op("Size", [node.input[0]])], to=TensorProto.FLOAT))
        total = factors[0]
        for factor in factors[1:]:
            total = self._op("Mul", [total, factor])
        flag = self._op("Greater", [total, self._constant(MOST_ELEMENTS, np.float32)])
        why = f"{_named(node)} would make an array of more than {MOST_ELEMENTS} numbers"
        node.input[places[-1]] = self._held(node.input[places[-1]], flag, why)

    def _turns(self, node: onnx.NodeProto, constants: dict[str, np.ndarray], tainted: set[str]) -> None:
        """Lets a loop fail that nothing but its own condition ends."""
        limit = node.input[0] if node.input else ""
        known = constants.get(limit)
        if limit and (known is None or int(known.reshape(-1)[0]) <= MOST_TURNS):
            return  # It was guarded, is small, or is the length of something that is there.
        (body,) = inner_graphs(node)
        made = list[onnx.NodeProto]()
        self._put = made.append
        goes_on, number = body.output[0].name, body.input[0].name
        flag = self._op(
            "Greater", [self._op("Cast", [number], to=TensorProto.FLOAT), self._constant(MOST_TURNS, np.float32)]
        )
        inner = self._fresh()
        for other in body.node:
            for place, name in enumerate(other.output):
                if name == goes_on:
                    other.output[place] = inner
            _rename(other, goes_on, inner)
        if goes_on in {value.name for value in body.input} or goes_on in {t.name for t in body.initializer}:
            inner = goes_on
            body.output[0].name = goes_on = self._fresh()
        held = self._held(inner, flag, f"{_named(node)} turned more than {MOST_TURNS} times")
        made.append(helper.make_node("Identity", [held], [goes_on], self._fresh()))
        body.node.extend(made)

    def _held(self, value: str, flag: str, why: str) -> str:
        """A value of any type; where a flag is set, the run fails instead."""
        self.count += 1
        index = self._op("ReduceSum", [self._op("Cast", [flag], to=TensorProto.INT64)], keepdims=0)
        if self._opset < _AXES_AS_INPUT:
            only = self._op("Unsqueeze", [value], axes=[0])
        else:
            only = self._op("Unsqueeze", [value, self._constant([0])])
        name = self._fresh()
        # There is one to pick: any number but 0 makes ONNX Runtime refuse, and name this node.
        mark = f"{MARK}{why.replace(' #', ' ')} #{next(self._numbers)}"
        self._put(helper.make_node("Gather", [only, index], [name], mark, axis=0))
        return name

    def _op(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = self._fresh()
        self._put(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def _constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = self._fresh()
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        self._put(helper.make_node("Constant", [], [name], name, value=tensor))
        return name

    def _fresh(self) -> str:
        return f"guard/{next(self._numbers)}"

    _put: Callable[[onnx.NodeProto], object]


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new
    for graph in inner_graphs(node):
        for inner in graph.node:
            _rename(inner, old, new)
        for value in graph.output:
            if value.name == old:
                value.name = new


def _named(node: onnx.NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"{node.op_type} {name!r}".replace("\n", " ")


def _small(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) <= 1024 and tensor.data_location != TensorProto.EXTERNAL


def _value(tensor: onnx.TensorProto) -> np.ndarray:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception:  # Damaged: ONNX Runtime will say so.
        return np.zeros(1, np.int64)


def _constant_of(node: onnx.NodeProto) -> np.ndarray | None:
    for attribute in node.attribute:
        if attribute.name == "value" and _small(attribute.t):
            return _value(attribute.t)
        if attribute.name == "value_int":
            return np.asarray(attribute.i)
        if attribute.name == "value_ints":
            return np.asarray(attribute.ints)
    return None
