"""More files without a signature, as Keras, TensorFlow and torch write them: their axes, loops and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.server.models.form_zoo import Case, Value, ints, model
from tests.server.models.graphs import Builder

F: Final = "float32"
_INFO: Final = helper.make_tensor_value_info
_FLOAT, _INT, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def keras_lstm() -> Case:
    """tf2onnx of a Keras LSTM that is given its states: [B, H] each, steps transposed to the front, names by number."""
    b, hidden = Builder(41), 6
    steps = b.add("Transpose", ["input_1:0"], perm=[1, 0, 2])
    olds = [b.add("Unsqueeze", [f"input_{i}:0", ints(b, 0)]) for i in (2, 3)]
    y, h, c = b.add(
        "LSTM",
        [steps, b.weight(1, 4 * hidden, 3), b.weight(1, 4 * hidden, hidden), b.weight(1, 8 * hidden), "", *olds],
        3,
        hidden_size=hidden,
        direction="forward",
    )
    back = b.add("Transpose", [b.add("Squeeze", [y, ints(b, 1)])], perm=[1, 0, 2])
    b.add("Add", [b.add("MatMul", [back, b.weight(hidden, 2)]), b.weight(2)], ["Identity:0"])
    b.add("Squeeze", [h, ints(b, 0)], ["Identity_1:0"])
    b.add("Squeeze", [c, ints(b, 0)], ["Identity_2:0"])
    made = model(
        b,
        [("input_1:0", F, [None, None, 3]), ("input_2:0", F, [None, hidden]), ("input_3:0", F, [None, hidden])],
        [("Identity:0", F, [None, None, 2]), ("Identity_1:0", F, [None, hidden]), ("Identity_2:0", F, [None, hidden])],
    )
    return Case(made, {"input_2:0": "Identity_1:0", "input_3:0": "Identity_2:0"}, {"input_1:0": (3,)})


def joined_states(layers: int = 2, hidden: int = 4) -> Case:
    """TensorFlow's states that are no tuple: all layers side by side, [B, L·H], and steps first (time_major)."""
    b, value = Builder(42), "x"
    olds = {name: b.add("Split", [name], layers, axis=1) for name in ("c_all", "h_all")}
    news: dict[str, list[str]] = {name: [] for name in olds}
    for layer in range(layers):
        width = 3 if layer == 0 else hidden
        old = {name: b.add("Unsqueeze", [parts[layer], ints(b, 0)]) for name, parts in olds.items()}
        y, h, c = b.add(
            "LSTM",
            [
                value,
                b.weight(1, 4 * hidden, width),
                b.weight(1, 4 * hidden, hidden),
                "",
                "",
                old["h_all"],
                old["c_all"],
            ],
            3,
            hidden_size=hidden,
        )
        value = b.add("Squeeze", [y, ints(b, 1)])
        for name, new in (("h_all", h), ("c_all", c)):
            news[name].append(b.add("Squeeze", [new, ints(b, 0)]))
    for name, parts in news.items():
        b.add("Concat", parts, [f"{name}_new"], axis=1)
    b.add("MatMul", [value, b.weight(hidden, 2)], ["y"])
    wide = layers * hidden
    made = model(
        b,
        [("c_all", F, ["batch", wide]), ("x", F, ["time", "batch", 3]), ("h_all", F, ["batch", wide])],
        [("y", F, ["time", "batch", 2]), ("h_all_new", F, ["batch", wide]), ("c_all_new", F, ["batch", wide])],
    )
    return Case(made, {"h_all": "h_all_new", "c_all": "c_all_new"}, {"x": (3,)})


def one_state() -> Case:
    """c and h in one tensor [B, 2·H], reshaped and cut."""
    b, hidden = Builder(43), 5
    parts = b.add("Split", [b.add("Unsqueeze", ["state", ints(b, 0)])], 2, axis=2)
    y, h, c = b.add(
        "LSTM",
        [b.add("Transpose", ["x"], perm=[1, 0, 2]), b.weight(1, 20, 3), b.weight(1, 20, hidden), "", "",
         parts[1], parts[0]],
        3,
        hidden_size=hidden,
    )  # fmt: skip
    b.add("Reshape", [b.add("Concat", [c, h], axis=2), ints(b, -1, 2 * hidden)], ["state_1"])
    b.add("Transpose", [b.add("Squeeze", [y, ints(b, 1)])], ["y"], perm=[1, 0, 2])
    made = model(
        b,
        [("x", F, ["n", "t", 3]), ("state", F, ["n", 2 * hidden])],
        [("state_1", F, ["n", 2 * hidden]), ("y", F, ["n", "t", hidden])],
    )
    return Case(made, {"state": "state_1"}, {"x": (3,)})


def _body(nodes: Sequence[onnx.NodeProto], inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def scan() -> Case:
    """A cell of primitive operators in a Scan over time, weights from outside, its last state an output."""
    b = Builder(44)
    w, u = b.weight(3, 4), b.weight(4, 4)
    node = helper.make_node
    body = _body(
        [
            node("MatMul", ["row", w], ["in_w"]),
            node("MatMul", ["old", u], ["in_u"]),
            node("Add", ["in_w", "in_u"], ["in_sum"]),
            node("Tanh", ["in_sum"], ["new"]),
            node("Identity", ["new"], ["each"]),
        ],
        [_INFO("old", _FLOAT, None), _INFO("row", _FLOAT, None)],
        [_INFO("new", _FLOAT, None), _INFO("each", _FLOAT, None)],
    )
    b.add("Scan", ["p", b.add("Transpose", ["q"], perm=[1, 0, 2])], ["r", "all"], body=body, num_scan_inputs=1)
    b.add("Transpose", ["all"], ["s"], perm=[1, 0, 2])
    made = model(b, [("q", F, ["n", "t", 3]), ("p", F, ["n", 4])], [("s", F, ["n", "t", 4]), ("r", F, ["n", 4])])
    return Case(made, {"p": "r"}, {"q": (3,)})


def while_loop() -> Case:
    """TensorFlow's while_loop over time: it counts for itself, and carries what never changes beside its state."""
    b = Builder(45)
    w, u = b.weight(3, 4), b.weight(4, 4)
    turns = b.add("Gather", [b.add("Shape", ["args_0"]), b.constant(np.asarray(1, np.int64))])
    first, one = b.constant(np.asarray(0, np.int64)), b.constant(np.asarray(1, np.int64))
    node = helper.make_node
    body = _body(
        [
            node("Gather", ["in_rows", "in_time"], ["in_row"], axis=1),
            node("MatMul", ["in_row", w], ["in_w"]),
            node("MatMul", ["in_h", u], ["in_u"]),
            node("Add", ["in_w", "in_u"], ["in_sum"]),
            node("Sigmoid", ["in_sum"], ["in_gate"]),
            node("Mul", ["in_gate", "in_h"], ["in_kept"]),
            node("Tanh", ["in_w"], ["in_fresh"]),
            node("Add", ["in_kept", "in_fresh"], ["in_new"]),
            node("Add", ["in_time", one], ["in_next"]),
            node("Identity", ["in_rows"], ["in_rows_out"]),
            node("Less", ["in_next", turns], ["in_more"]),
            node("Identity", ["in_new"], ["in_each"]),
        ],
        [_INFO("in_i", _INT, []), _INFO("in_cond", _BOOL, []), _INFO("in_time", _INT, []), _INFO("in_h", _FLOAT, None),
         _INFO("in_rows", _FLOAT, None)],
        [_INFO("in_more", _BOOL, []), _INFO("in_next", _INT, []), _INFO("in_new", _FLOAT, None),
         _INFO("in_rows_out", _FLOAT, None), _INFO("in_each", _FLOAT, None)],
    )  # fmt: skip
    b.add(
        "Loop",
        [turns, b.constant(np.asarray(True)), first, "args_1", "args_0"],
        [b.name(), "Identity_1", b.name(), "stack"],
        body=body,
    )
    b.add("Transpose", ["stack"], ["Identity"], perm=[1, 0, 2])
    made = model(
        b,
        [("args_0", F, ["n", "t", 3]), ("args_1", F, ["n", 4])],
        [("Identity", F, ["n", "t", 4]), ("Identity_1", F, ["n", 4])],
    )
    return Case(made, {"args_1": "Identity_1"}, {"args_0": (3,)})


def scripted() -> Case:
    """torch.jit.script of a loop over time: what it gives is gathered in a sequence, then stacked."""
    b = Builder(46)
    w, u = b.weight(3, 4), b.weight(4, 4)
    turns = b.add("Gather", [b.add("Shape", ["x"]), b.constant(np.asarray(1, np.int64))])
    node = helper.make_node
    rows = helper.make_tensor_sequence_value_info
    body = _body(
        [
            node("Gather", ["x", "in_i"], ["in_row"], axis=1),
            node("MatMul", ["in_row", w], ["in_w"]),
            node("MatMul", ["in_h", u], ["in_u"]),
            node("Add", ["in_w", "in_u"], ["in_sum"]),
            node("Tanh", ["in_sum"], ["in_new"]),
            node("SequenceInsert", ["in_seq", "in_new"], ["in_longer"]),
            node("Identity", ["in_cond"], ["in_more"]),
        ],
        [_INFO("in_i", _INT, []), _INFO("in_cond", _BOOL, []), rows("in_seq", _FLOAT, None),
         _INFO("in_h", _FLOAT, None)],
        [_INFO("in_more", _BOOL, []), rows("in_longer", _FLOAT, None), _INFO("in_new", _FLOAT, None)],
    )  # fmt: skip
    empty = b.add("SequenceEmpty", [])
    b.add("Loop", [turns, b.constant(np.asarray(True)), empty, "h.1"], ["list", "21"], body=body)
    b.add("ConcatFromSequence", ["list"], ["y"], axis=1, new_axis=1)
    made = model(b, [("x", F, ["n", "t", 3]), ("h.1", F, ["n", 4])], [("y", F, ["n", "t", 4]), ("21", F, ["n", 4])])
    return Case(made, {"h.1": "21"}, {"x": (3,)})


def gru_of_batch_1() -> Case:
    """A Keras GRU that was built stateful: its batch is 1, its state without a layer axis."""
    b, hidden = Builder(47), 4
    inputs: list[Value] = [("serving_default_x", F, [1, 1, 3]), ("serving_default_h", F, [1, hidden])]
    y, h = b.add(
        "GRU",
        [b.add("Transpose", ["serving_default_x"], perm=[1, 0, 2]), b.weight(1, 12, 3), b.weight(1, 12, hidden),
         b.weight(1, 24), "", b.add("Unsqueeze", ["serving_default_h", ints(b, 0)])],
        2,
        hidden_size=hidden,
        linear_before_reset=1,
    )  # fmt: skip
    b.add("Transpose", [b.add("Squeeze", [y, ints(b, 1)])], ["StatefulPartitionedCall"], perm=[1, 0, 2])
    b.add("Squeeze", [h, ints(b, 0)], ["StatefulPartitionedCall_1"])
    made = model(b, inputs, [("StatefulPartitionedCall", F, [1, 1, hidden]),
                             ("StatefulPartitionedCall_1", F, [1, hidden])])  # fmt: skip
    return Case(made, {"serving_default_h": "StatefulPartitionedCall_1"}, {"serving_default_x": (1, 3)})


FRAMEWORKS: Final[Mapping[str, Callable[[], Case]]] = {
    "keras lstm": keras_lstm,
    "states side by side, time first": joined_states,
    "one state of two": one_state,
    "scan": scan,
    "while loop": while_loop,
    "scripted loop": scripted,
    "keras gru of batch 1": gru_of_batch_1,
}
