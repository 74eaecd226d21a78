"""The LSTM on whole numbers: ONNX's operator as a Scan over steps whose matrix products are int8 × uint8.

An LSTM's h is a product of a sigmoid and a tanh: it lies between -1 and 1, whatever the weights and the inputs. So h
has one fixed scale, and a row's result depends on that row alone. ONNX Runtime's own DynamicQuantizeLSTM measures the
scale of the whole batch at every step: there a session's output depends on the sessions beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray

H_SCALE = np.float32(1 / 127)
"""What one step of the quantised h is worth; 128 stands for 0."""
MOST = 64
"""The largest quantised weight. Products of uint8 and 7 bits add up in 16 bits without overflow, as older processors
do it; with 8 bits the same file would give other results there."""


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """The values that a graph carries, by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def covers(node: onnx.NodeProto, known: Mapping[str, Array]) -> bool:
    """Whether a node is an LSTM as torch has it: float32 weights, the usual activations, no masks or peepholes."""
    if node.op_type != "LSTM" or len(node.input) < 7 or any(node.input[7:]) or node.input[4]:
        return False
    if not all(node.input[place] in known for place in (1, 2, 3)) or not (node.input[5] and node.input[6]):
        return False
    attributes = {attribute.name for attribute in node.attribute if attribute.name not in ("direction", "hidden_size")}
    return not attributes and known[node.input[1]].dtype == np.float32


def rewrite(graph: onnx.GraphProto) -> int:
    """Replaces every LSTM that is covered, in place; returns how many there were.

    The products with h are int8, and those with the inputs where they are another LSTM's h; other inputs keep a float
    MatMul of their own.
    """
    known, makers = constants(graph), {name: node for node in graph.node for name in node.output}
    chosen = [node for node in graph.node if covers(node, known)]
    for node in chosen:
        made = _Rewriting(node, known, bounded=_is_h(node.input[0], makers)).nodes
        place = list(graph.node).index(node)
        graph.initializer.extend(made[1])
        after = [*list(graph.node)[:place], *made[0], *list(graph.node)[place + 1 :]]
        del graph.node[:]
        graph.node.extend(after)
    _drop_unused(graph)
    return len(chosen)


def _is_h(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a value is an LSTM's h, arranged otherwise."""
    while name in makers:
        node = makers[name]
        if node.op_type == "LSTM":
            return name != (node.output[2] if len(node.output) > 2 else "")
        if node.op_type not in ("Squeeze", "Unsqueeze", "Transpose", "Reshape", "Identity"):
            return False
        name = node.input[0]
    return False


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drops the float weights that nothing reads any more."""
    used = {value.name for value in graph.output} | {name for node in graph.node for name in node.input}
    for node in graph.node:
        for attribute in node.attribute:
            used |= {name for inner in attribute.g.node for name in inner.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def quantise(weights: Array) -> tuple[Array, Array]:
    """Weights [K, N] as int8, and what one step is worth in each column: float32 [N]."""
    scale = np.asarray(np.abs(weights).max(axis=0) / MOST, np.float32)
    scale[scale == 0] = 1
    return np.clip(np.rint(weights / scale), -MOST, MOST).astype(np.int8), scale


class _Rewriting:
    """The nodes that stand for one LSTM, both directions of it where it has two."""

    def __init__(self, node: onnx.NodeProto, known: Mapping[str, Array], *, bounded: bool) -> None:
        self.nodes: tuple[list[onnx.NodeProto], list[onnx.TensorProto]] = ([], [])
        self._node, self._bounded = node, bounded
        self._prefix = f"{node.name or node.output[0]}/int8/"
        weights, recurrent, bias = (known[node.input[place]] for place in (1, 2, 3))
        self._zero = self._constant("zero", np.asarray(128, np.uint8))
        self._step = self._constant("step", np.asarray(H_SCALE))
        stated = next((each.s.decode() for each in node.attribute if each.name == "direction"), "forward")
        found = []
        for number in range(len(weights)):
            backwards = stated == "reverse" or number == 1
            found.append(self._direction(number, weights[number].T, recurrent[number].T, bias[number], backwards))
        for place, values in enumerate(zip(*found, strict=True)):
            if place < len(node.output) and node.output[place]:
                self._join(list(values), node.output[place], axis=1 if place == 0 else 0)

    def _direction(
        self, number: int, weights: Array, recurrent: Array, bias: Array, backwards: bool
    ) -> tuple[str, str, str]:
        """The names of all h [T, B, H], the last h and the last c [B, H] of one direction."""
        at, hidden = f"{number}/", recurrent.shape[0]
        projected = self._projection(at, np.ascontiguousarray(weights))
        both = self._constant(f"{at}bias", bias[: 4 * hidden] + bias[4 * hidden :])
        steps = self._add("Add", [projected, both], f"{at}inputs")
        index = self._constant(f"{at}index", np.asarray(number, np.int64))
        first = [self._add("Gather", [self._node.input[5 + k], index], f"{at}{'hc'[k]}0", axis=0) for k in (0, 1)]
        flags: dict[str, Any] = {"scan_input_directions": [1], "scan_output_directions": [1]} if backwards else {}
        last_h, last_c, every = (f"{self._prefix}{at}{what}" for what in ("h", "c", "every"))
        body = self._body(at, np.ascontiguousarray(recurrent), hidden)
        scan = helper.make_node(
            "Scan",
            [*first, steps],
            [last_h, last_c, every],
            f"{self._prefix}{at}scan",
            body=body,
            num_scan_inputs=1,
            **flags,
        )
        self.nodes[0].append(scan)
        return every, last_h, last_c

    def _projection(self, at: str, weights: Array) -> str:
        """The product of all steps' inputs with their weights: [T, B, 4H]."""
        inputs = self._node.input[0]
        if not self._bounded:
            return self._add("MatMul", [inputs, self._constant(f"{at}weights", weights)], f"{at}projected")
        whole = self._add("QuantizeLinear", [inputs, self._step, self._zero], f"{at}whole")
        return self._product(self.nodes[0], whole, weights, f"{at}projected")

    def _product(self, nodes: list[onnx.NodeProto], whole: str, weights: Array, name: str) -> str:
        """The product of a quantised h with weights [K, N], as float32."""
        small, scale = quantise(weights)
        table = self._constant(f"{name}/weights", small)
        factor = self._constant(f"{name}/scale", scale * H_SCALE)
        total = self._add("MatMulInteger", [whole, table, self._zero], f"{name}/total", nodes)
        number = self._add("Cast", [total], f"{name}/number", nodes, to=onnx.TensorProto.FLOAT)
        return self._add("Mul", [number, factor], name, nodes)

    def _body(self, at: str, recurrent: Array, hidden: int) -> onnx.GraphProto:
        """One step: h, c [B, H] and the inputs' part of the gates [B, 4H] become h, c and h once more."""
        nodes: list[onnx.NodeProto] = []
        h, c, inputs = (f"{self._prefix}{at}old_{what}" for what in ("h", "c", "x"))

        def add(op: str, given: list[str], name: str, **attributes: Any) -> str:
            return self._add(op, given, f"{at}step/{name}", nodes, **attributes)

        whole = add("QuantizeLinear", [h, self._step, self._zero], "whole")
        gates = add("Add", [self._product(nodes, whole, recurrent, f"{at}step/recurrent"), inputs], "gates")
        # ONNX orders the gates input, output, forget, cell.
        halves = self._constant(f"{at}halves", np.asarray([3 * hidden, hidden], np.int64))
        thirds = self._constant(f"{at}thirds", np.asarray([hidden] * 3, np.int64))
        sigmoids, cell = (f"{self._prefix}{at}step/{name}" for name in ("sigmoids", "cell"))
        nodes.append(helper.make_node("Split", [gates, halves], [sigmoids, cell], axis=1))
        opened = add("Sigmoid", [sigmoids], "opened")
        entry, leave, keep = (f"{self._prefix}{at}step/{name}" for name in ("entry", "leave", "keep"))
        nodes.append(helper.make_node("Split", [opened, thirds], [entry, leave, keep], axis=1))
        fresh = add("Mul", [entry, add("Tanh", [cell], "candidate")], "fresh")
        new_c = add("Add", [add("Mul", [keep, c], "kept"), fresh], "c")
        new_h = add("Mul", [leave, add("Tanh", [new_c], "bounded")], "h")
        every = add("Identity", [new_h], "every")

        def value(name: str, width: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [f"{self._prefix}rows", width])

        return helper.make_graph(
            nodes,
            "step",
            [value(h, hidden), value(c, hidden), value(inputs, 4 * hidden)],
            [value(name, hidden) for name in (new_h, new_c, every)],
        )

    def _join(self, parts: list[str], name: str, axis: int) -> None:
        """Puts the directions side by side along a new axis."""
        where = self._constant(f"axis{axis}", np.asarray([axis], np.int64))
        wider = [self._add("Unsqueeze", [part, where], f"{name}/{k}") for k, part in enumerate(parts)]
        self.nodes[0].append(helper.make_node("Concat", wider, [name], f"{self._prefix}{name}/join", axis=axis))

    def _constant(self, name: str, value: Array) -> str:
        full = self._prefix + name
        if all(tensor.name != full for tensor in self.nodes[1]):
            self.nodes[1].append(numpy_helper.from_array(np.asarray(value), full))
        return full

    def _add(
        self, op: str, given: list[str], name: str, nodes: list[onnx.NodeProto] | None = None, **attributes: Any
    ) -> str:
        full = self._prefix + name
        (self.nodes[0] if nodes is None else nodes).append(helper.make_node(op, given, [full], full, **attributes))
        return full
