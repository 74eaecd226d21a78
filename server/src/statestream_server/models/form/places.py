"""Places: where sessions lie in a value, and what is known of an operator where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import onnx
from onnx import helper

from statestream_server.arrays import Array


class BoundError(Exception):
    """The batch of a graph cannot be freed; the message says what is in the way."""


class Place(NamedTuple):
    """Where sessions lie in a value: along an axis, whose length with one session is outer · inner.

    Attributes:
        axis: The axis.
        outer: What else the axis has outside of them, 1 where it is theirs alone.
        inner: The same inside.
    """

    axis: int
    outer: int = 1
    inner: int = 1

    @property
    def plain(self) -> bool:
        """Whether the axis is theirs alone."""
        return self.outer == self.inner == 1


class Edit(NamedTuple):
    """What has to change at an operator, named by its first output.

    Attributes:
        kind: "target": the shape that a Reshape makes; "spread": a constant that stands for one session.
        node: The operator's first output.
        values: Of a target: the place of sessions, how much else is there, and all lengths; of a constant: which input
            it is, the axis, and how many axes it has.
    """

    kind: str
    node: str
    values: tuple[int, ...]


ACROSS: Final = frozenset(
    "ArgMax ArgMin Concat CumSum Gather Gemm Hardmax LogSoftmax MatMul Pad ReduceL1 ReduceL2 ReduceLogSum"
    " ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Slice Softmax Split"
    " TopK".split()
)
"""Operators of which it is certain along which axis they work."""


class AcrossError(BoundError):
    """An operator takes one session's values for another's, whatever they are."""


class Way(NamedTuple):
    """One way to see an operator: where sessions lie in its outputs, and what has to change."""

    outputs: Sequence[Place | None]
    edits: Sequence[Edit] = ()


class Known(Protocol):
    """What is known of a graph."""

    shapes: Mapping[str, tuple[int, ...]]
    opset: int

    def constant(self, name: str) -> Array | None:
        """The value of a constant; None where it is computed."""


class At:
    """One node, and what is known where it stands."""

    def __init__(self, known: Known, node: onnx.NodeProto, places: Mapping[str, Place]) -> None:
        self.node, self._known, self._places = node, known, places
        self.opset = known.opset
        self.inputs = list(node.input)
        self.what = called(node)

    def place(self, at: int) -> Place | None:
        """Where sessions lie in an input; None where it has none."""
        return self._places.get(self.inputs[at]) if at < len(self.inputs) else None

    def shape(self, at: int) -> tuple[int, ...]:
        """The shape of an input, with one session."""
        return self._known.shapes[self.inputs[at]]

    def made(self, at: int = 0) -> tuple[int, ...]:
        """The shape of an output, with one session."""
        return self._known.shapes[self.node.output[at]]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        for entry in self.node.attribute:
            if entry.name == name:
                return helper.get_attribute_value(entry)
        return default

    def constant(self, at: int) -> list[int] | None:
        """A constant input's whole numbers; None where it is none, or computed."""
        if at >= len(self.inputs) or not self.inputs[at]:
            return None
        value = self._known.constant(self.inputs[at])
        return None if value is None else [int(each) for each in np.atleast_1d(value)]

    def whole(self, at: int, name: str) -> list[int] | None:
        """Numbers that older operators have as an attribute, newer ones as an input; None where there are none.

        Raises:
            BoundError: They are computed.
        """
        given = self.attribute(name)
        if given is not None:
            return [int(each) for each in np.atleast_1d(given)]
        if at >= len(self.inputs) or not self.inputs[at]:
            return None
        value = self.constant(at)
        if value is None:
            raise BoundError(f"{self.what} computes its {name}")
        return value

    def only(self, *places: int) -> Place:
        """Where sessions lie in the one input, of those named, that has them.

        Raises:
            BoundError: None of them has, or another input has.
        """
        having = [at for at in range(len(self.inputs)) if self.place(at) is not None]
        if len(having) != 1 or having[0] not in places:
            raise BoundError(f"{self.what} takes values of sessions where it is not known to keep them apart")
        place = self.place(having[0])
        assert place is not None
        return place

    def apart(self, good: bool) -> None:
        """Raises BoundError where an operator does not keep sessions apart."""
        if not good:
            text = f"{self.what} works across the axis along which sessions lie"
            raise (AcrossError if self.node.op_type in ACROSS else BoundError)(text)

    def alike(self, place: Place) -> list[Way]:
        """All outputs have sessions at the same place."""
        return [Way([place] * len(self.node.output))]

    def edit(self, kind: str, *values: int) -> Edit:
        """Something that has to change here."""
        return Edit(kind, self.node.output[0], values)


def called(node: onnx.NodeProto) -> str:
    """An operator in words: its kind, and how it, or what it makes, is called."""
    return f"{node.op_type} ({node.name or node.output[0]})"
