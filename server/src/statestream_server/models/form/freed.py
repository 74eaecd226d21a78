"""Freed: how a graph that was exported with a batch of 1 becomes one of any, if its operators keep sessions apart.

It is followed through the graph along which axis sessions lie. Where an operator fixes their number (the target of a
Reshape, zeros that an LSTM starts from) that is changed; where one mixes sessions, or is not known, the graph stays as
it is. With one session nothing of it changes any value; that many are as one alone, is proved like of any other graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

import onnx
from onnx import numpy_helper

from statestream_server.arrays import Array
from statestream_server.models.form.apart import RULES
from statestream_server.models.form.edits import opset_of
from statestream_server.models.form.places import At, BoundError, Edit, Place, Way, called
from statestream_server.models.graphs.operators import uses

_MOST_TRIED: Final = 50_000
"""Operators that are looked at, each time that another way is tried."""


class Freedom(NamedTuple):
    """How a graph's batch is freed.

    Attributes:
        axes: By input and output, along which axis sessions lie.
        edits: What changes inside.
    """

    axes: Mapping[str, int]
    edits: Sequence[Edit]


def freedom(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, Array],
    options: Mapping[str, Sequence[int]],
    states: Mapping[str, str],
    outputs: Sequence[str],
) -> Freedom:
    """How the batch of a graph can be freed.

    Args:
        model: The graph, without functions.
        shapes: Of all its values, in a run of one session.
        values: What it computes that no input changes, as far as it is known.
        options: By input, the axes along which sessions may lie.
        states: The states: input to output.
        outputs: What callers get.

    Raises:
        BoundError: It cannot.
    """
    return _Search(model, shapes, values, options, states, outputs).found()


class _Search:
    """The search for places of all values that agree with each other."""

    def __init__(
        self,
        model: onnx.ModelProto,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Array],
        options: Mapping[str, Sequence[int]],
        states: Mapping[str, str],
        outputs: Sequence[str],
    ) -> None:
        self.shapes, self.opset = shapes, opset_of(model)
        self._options, self._states, self._outputs = options, states, outputs
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values = values
        self._with = _with_sessions(model.graph, options)
        self._nodes = _order(model.graph, self._with, [*states.values(), *outputs])
        self._places = dict[str, Place]()
        self._deepest, self._why = -1, BoundError("it computes nothing")

    def found(self) -> Freedom:
        """The first places that agree."""
        ways, made = list[Iterator[tuple[dict[str, Place], Way]]](), list[list[str]]()
        edits, tried = list[Sequence[Edit]](), 0
        while True:
            if len(ways) == len(self._nodes) and (why := self._misfit()):
                self._note(len(ways), BoundError(why))
            elif len(ways) == len(self._nodes):
                axes = {name: self._of_input(name).axis for name in self._options}
                axes |= {name: self._places[name].axis for name in (*self._states.values(), *self._outputs)}
                return Freedom(axes, [edit for some in edits for edit in some])
            else:
                ways.append(self._ways(self._nodes[len(ways)], len(ways)))
                made.append([])
                edits.append(())
            while ways:
                tried += 1
                for name in made[-1]:
                    del self._places[name]
                made[-1] = []
                way = next(ways[-1], None)
                if way is not None:
                    chosen, (places, edits[-1]) = way
                    named = zip(self._nodes[len(ways) - 1].output, places, strict=False)
                    new = chosen | {name: place for name, place in named if name and place is not None}
                    self._places.update(new)
                    made[-1] = [*new]
                    break
                ways.pop()
                made.pop()
                edits.pop()
            if not ways or tried > _MOST_TRIED:
                raise self._why

    def _ways(self, node: onnx.NodeProto, depth: int) -> Iterator[tuple[dict[str, Place], Way]]:
        """The ways to see a node, each with the places of inputs of the graph that nothing decided before."""
        open_ = [name for name in dict.fromkeys(node.input) if name in self._options and name not in self._places]
        for axes in product(*(self._options[name] for name in open_)):
            chosen = {name: Place(axis) for name, axis in zip(open_, axes, strict=True)}
            try:
                for way in self._seen(node, chosen):
                    yield chosen, way
            except BoundError as error:
                self._note(depth, error)

    def _seen(self, node: onnx.NodeProto, chosen: Mapping[str, Place]) -> list[Way]:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise BoundError(f"nothing is known of {called(node)} that would keep sessions apart")
        return rule(At(self, node, {**self._places, **chosen}))

    def _of_input(self, name: str) -> Place:
        return self._places.get(name) or Place(self._options[name][0])

    def _misfit(self) -> str:
        """Why places that agree inside do not do at the ends; "" where they do."""
        for name in (*self._states.values(), *self._outputs):
            place = self._places.get(name)
            if place is None:
                return f"output {name} is the same for all sessions"
            if not place.plain:
                return f"output {name} has sessions and something else along one axis"
        for old, new in self._states.items():
            if self._of_input(old) != self._places[new]:
                return f"sessions lie along another axis in {new} than in {old}"
        return ""

    def _note(self, depth: int, why: BoundError) -> None:
        if depth > self._deepest:
            self._deepest, self._why = depth, why

    def constant(self, name: str) -> Array | None:
        """The value of a constant; None where it is computed."""
        if name in self._weights:
            return numpy_helper.to_array(self._weights[name])
        return self._values.get(name)


def _with_sessions(graph: onnx.GraphProto, inputs: Mapping[str, Sequence[int]]) -> set[str]:
    """The values that are others for every session: what depends on inputs, but not on their shapes alone."""
    found = set(inputs)
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and any(name in found for name in uses(node)):
            found.update(filter(None, node.output))
    return found


def _order(graph: onnx.GraphProto, having: set[str], ends: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes with sessions that outputs need, what a node takes near before it.

    A wrong choice for an input is then seen soon, before others are made.
    """
    makers = {name: node for node in graph.node for name in node.output if name in having}
    depth = dict[str, int]()
    for node in graph.node:
        deep = 1 + max((depth.get(name, 0) for name in uses(node)), default=0)
        depth.update({name: deep for name in node.output})
    found, seen = list[onnx.NodeProto](), set[str]()
    for end in ends:
        waiting = [(end, False)]
        while waiting:
            name, ready = waiting.pop()
            if name not in makers or (node := makers[name]).output[0] in seen:
                continue
            if ready:
                seen.add(node.output[0])
                found.append(node)
                continue
            waiting.append((name, True))
            waiting += [(each, False) for each in sorted(set(uses(node)), key=lambda each: depth.get(each, 0))]
    return found
