"""Unfolding: a model over windows takes several steps of a session in one run, each as a row of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from statestream.contract import signature as signatures
from statestream.contract.signature import Signature, StateSpec, TensorSpec, Window, WindowStart
from statestream_server.models.form.edits import fresh, made_as, named, opset_of, read_as, taken

_OPSET: Final = 11
"""Range is there since."""
_END: Final = (1 << 63) - 1


def unfolded(model: onnx.ModelProto, signature: Signature) -> tuple[onnx.ModelProto, Signature] | None:
    """A graph that takes T steps of every session at once, and its signature; None where that cannot be.

    Its memory is windows and nothing else, so that what a step sees follows from the steps before it: it is laid out
    beforehand. Inputs and outputs are [N, T, …one step], states as they were.

    Args:
        model: The graph that takes one step, weights included; it stays as it is.
        signature: Its signature, with windows.
    """
    kept = {name for window in signature.windows for name in (window.state, window.count)}
    specs: list[TensorSpec | StateSpec] = [*signature.inputs, *signature.outputs, *signature.states]
    fits = (
        signature.windows
        and all(window.axis for window in signature.windows)
        and all(state.input in kept for state in signature.states)
        and all(spec.HasField("batch_axis") and not spec.batch_axis and spec.shape[0] < 0 for spec in specs)
        and not any(spec.HasField("time_axis") for spec in (*signature.inputs, *signature.outputs))
        and opset_of(model) >= _OPSET
    )
    return _Unfolding(model, signature).unfold() if fits else None


class _Unfolding:
    """A graph while it is unfolded."""

    def __init__(self, model: onnx.ModelProto, signature: Signature) -> None:
        self._model, self._signature = onnx.ModelProto(), Signature()
        self._model.CopyFrom(model)
        self._signature.CopyFrom(signature)
        self._graph = self._model.graph
        self._used = taken(self._graph)
        self._before, self._after = list[onnx.NodeProto](), list[onnx.NodeProto]()

    def unfold(self) -> tuple[onnx.ModelProto, Signature]:
        signature, first = self._signature, self._signature.inputs[0]
        both = self._put("Slice", [self._put("Shape", [first.name]), *self._numbers([0], [2])])
        self._steps = self._put("Gather", [both, self._number(1)])
        self._places = self._put("Range", [self._number(0), self._steps, self._number(1)])
        rows = {state.input: signatures.row_shape(state) for state in signature.states}
        for window in signature.windows:
            self._lay(window, rows)
        for spec in signature.inputs:
            one = fresh(f"{spec.name}_one", self._used)
            read_as(self._graph.node, spec.name, one)
            self._put("Reshape", [spec.name, self._shape([-1, *signatures.step_shape(spec)])], one)
            self._widen(named(self._graph.input, spec.name))
        for spec in signature.outputs:
            flat = fresh(f"{spec.name}_flat", self._used)
            read_as(self._graph.node, spec.name, flat)
            made_as(self._graph.node, spec.name, flat)
            sizes = [both, self._shape(signatures.step_shape(spec))] if signatures.step_shape(spec) else [both]
            shape = self._put("Concat", sizes, axis=0) if len(sizes) > 1 else both
            self._after.append(helper.make_node("Reshape", [flat, shape], [spec.name]))
            self._widen(named(self._graph.output, spec.name))
        for each in (*signature.inputs, *signature.outputs):
            each.shape.insert(1, -1)
            each.time_axis = 1
        nodes = [*self._before, *self._graph.node, *self._after]
        self._graph.ClearField("node")
        self._graph.ClearField("value_info")
        self._graph.node.extend(nodes)
        return self._model, signature

    def _lay(self, window: Window, rows: dict[str, tuple[int, ...]]) -> None:
        """Lays out what every step sees of a window, and what is left of it behind the last."""
        name, axis = window.state, window.axis
        keep, rank = rows[name][axis - 1], len(rows[name]) + 1
        others = [2 + at for at in range(rank - 2)]
        order = [0, *others[: axis - 1], 1, *others[axis - 1 :]]
        came = self._put("Transpose", [window.input], perm=order) if order != sorted(order) else window.input
        past = name
        if window.before == WindowStart.WINDOW_START_PAD:
            none = self._put("Equal", [window.count, self._number(0)])
            past = self._put("Where", [none, self._put("Slice", [came, *self._numbers([0], [1], [axis])]), name])
        whole = self._put("Concat", [past, came], axis=axis)
        self._state(name, self._put("Slice", [whole, *self._numbers([-keep], [_END], [axis])]))
        column = self._put("Reshape", [self._places, self._shape([-1, 1])])
        index = self._put("Add", [column, self._constant(np.arange(keep, dtype=np.int64)[None])])
        seen = self._put("Gather", [whole, index], axis=axis)  # [N, …, T, keep, …]
        order = [0, axis, *(at for at in range(1, rank + 1) if at != axis)]
        seen = self._put("Transpose", [seen], perm=order) if order != sorted(order) else seen
        self._read(name, self._put("Reshape", [seen, self._shape([-1, *rows[name]])]))
        if window.count:
            counts = self._put("Add", [self._put("Reshape", [window.count, self._shape([-1, 1])]), self._places])
            self._read(window.count, self._put("Reshape", [counts, self._shape([-1, *rows[window.count]])]))
            self._state(window.count, self._put("Add", [window.count, self._steps]))

    def _read(self, state: str, value: str) -> None:
        """Lets the author's nodes read a value in place of a state."""
        read_as(self._graph.node, state, value)

    def _state(self, state: str, value: str) -> None:
        """Makes a value the next one of a state."""
        after = next(each.output for each in self._signature.states if each.input == state)
        unused = fresh(f"{after}_unused", self._used)
        read_as(self._graph.node, after, unused)
        made_as(self._graph.node, after, unused)
        self._after.append(helper.make_node("Identity", [value], [after]))

    def _widen(self, value: onnx.ValueInfoProto) -> None:
        """Gives a value an axis of steps."""
        shape = value.type.tensor_type.shape
        sizes = [size.dim_value if size.HasField("dim_value") else size.dim_param or "n" for size in shape.dim]
        sizes.insert(1, "steps")
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sizes))

    def _put(self, op: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        made = out or fresh("unfolded", self._used)
        self._before.append(helper.make_node(op, list(inputs), [made], **attributes))
        return made

    def _number(self, value: int) -> str:
        return self._constant(np.asarray(value, np.int64))

    def _numbers(self, *values: Sequence[int]) -> list[str]:
        return [self._shape(value) for value in values]

    def _shape(self, sizes: Sequence[int]) -> str:
        return self._constant(np.asarray(sizes, np.int64))

    def _constant(self, value: np.ndarray[Any, np.dtype[np.int64]]) -> str:
        name = fresh("unfolded_number", self._used)
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name
