"""Flow: what a graph computes from what, its loops, branches and functions laid open. Nothing is run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import onnx
from onnx import inliner

from statestream_server.models.graphs.operators import uses

_MOVES: Final[Mapping[str, int | None]] = {
    # Operators whose result holds values of an input and nothing computed, and which input; None for all.
    "Identity": 0,
    "Squeeze": 0,
    "Unsqueeze": 0,
    "Reshape": 0,
    "Flatten": 0,
    "Transpose": 0,
    "Slice": 0,
    "Split": 0,
    "Gather": 0,
    "Cast": 0,
    "Expand": 0,
    "Concat": None,
    "Pad": 0,
}
_GATES: Final = ("Mul", "Where")
"""Operators by which a caller clears a state: 0 where a sequence begins, 1 elsewhere."""
_RECURRENT: Final[Mapping[str, Sequence[tuple[int, int]]]] = {
    # Which input is a state at the start, and which output is it at the end.
    "RNN": [(5, 1)],
    "GRU": [(5, 1)],
    "LSTM": [(5, 1), (6, 2)],
    "DynamicQuantizeLSTM": [(5, 1), (6, 2)],
}


_SCAN_OPSET: Final = 9


class Step(NamedTuple):
    """One way by which values come from others: `kind` is the operator's type, names are unique over all graphs."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Recurrence(NamedTuple):
    """A value that an operator carries on from step to step.

    Attributes:
        kind: The operator: "LSTM", "Loop", ….
        start: The value it starts from.
        end: The value it ends with.
    """

    kind: str
    start: str
    end: str


class Flow:
    """What a graph computes from what.

    Attributes:
        recurrences: All values that recurrent operators and loops carry on.
        queues: The concatenations of two values or more.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Lays a model open; it stays as it is."""
        if model.functions:
            model = inliner.inline_local_functions(model)
        # Before opset 9 a Scan had the lengths of sequences before its other inputs, and its states axes for batches.
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self._before_scan = 1 if opset < _SCAN_OPSET else 0
        self.recurrences = list[Recurrence]()
        self._steps = list[Step]()
        self._count = 0
        self._known: dict[tuple[str, str], set[str]] = {}
        self._lay(model.graph, {})
        self.queues = [step for step in self._steps if step.kind == "Concat" and len(step.inputs) > 1]
        self._makers = defaultdict[str, list[Step]](list)
        self._users = defaultdict[str, list[Step]](list)
        for step in self._steps:
            for name in step.outputs:
                self._makers[name].append(step)
            for name in step.inputs:
                self._users[name].append(step)

    def sources(self, value: str) -> set[str]:
        """The values that a value is computed from, itself included."""
        return self._closure(
            "sources", value, lambda name: (each for step in self._makers[name] for each in step.inputs)
        )

    def moved_from(self, value: str, *, gated: bool = False) -> set[str]:
        """The values that hold numbers of a value and nothing computed, itself included; `gated`: or cleared."""

        def ahead(name: str) -> Iterable[str]:
            for step in self._users[name]:
                if (gated and step.kind in _GATES) or name in _moved(step):
                    yield from step.outputs

        return self._closure("gated" if gated else "from", value, ahead)

    def same(self, value: str, other: str) -> bool:
        """Whether one value is another that is only called otherwise."""
        seen = set[str]()
        while other != value and other not in seen:
            seen.add(other)
            made = self._makers[other]  # What a loop or a branch gives has several.
            if len(made) != 1 or made[0].kind != "Identity":
                return False
            (other,) = made[0].inputs
        return other == value

    def moved_to(self, value: str) -> set[str]:
        """The values whose numbers a value holds unchanged, itself included."""
        return self._closure("to", value, lambda name: (each for step in self._makers[name] for each in _moved(step)))

    def _closure(self, way: str, first: str, onward: Callable[[str], Iterable[str]]) -> set[str]:
        if (way, first) not in self._known:
            found, waiting = {first}, [first]
            while waiting:
                for name in onward(waiting.pop()):
                    if name not in found:
                        found.add(name)
                        waiting.append(name)
            self._known[way, first] = found
        return self._known[way, first]

    def _lay(self, graph: onnx.GraphProto, outer: Mapping[str, str]) -> dict[str, str]:
        """Adds a graph's steps; the names that its values have here."""
        self._count += 1
        scope, prefix = dict(outer), f"{self._count}/" if outer or self._count > 1 else ""
        for name in (*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)):
            scope[name] = prefix + name
        for node in graph.node:
            given = [scope.get(name, name) if name else "" for name in node.input]
            made = [prefix + name if name else "" for name in node.output]
            scope.update(zip(node.output, made, strict=True))
            self._lay_node(node, given, made, scope)
        return scope

    def _lay_node(self, node: onnx.NodeProto, given: list[str], made: list[str], scope: Mapping[str, str]) -> None:
        graphs = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
        kind = node.op_type
        if kind == "If":
            self._add(kind, given, made)
            for branch in graphs.values():
                inner = self._lay(branch, scope)
                for value, result in zip(branch.output, made, strict=False):
                    self._add("Identity", [inner.get(value.name, value.name)], [result])
        elif kind == "Loop" and "body" in graphs:
            self._add(kind, given[:2], made)
            self._lay_body(kind, graphs["body"], given[2:], made, scope, before=2, after=1)
        elif kind == "Scan" and "body" in graphs:
            scanned = next((entry.i for entry in node.attribute if entry.name == "num_scan_inputs"), 0)
            given = given[self._before_scan :]
            self._lay_body(kind, graphs["body"], given, made, scope, states=len(given) - scanned)
        else:
            self._add(kind, [*given, *(scope.get(name, name) for name in uses(node) if graphs)], made)
            for place, (start, end) in enumerate(_RECURRENT.get(kind, ())):
                if start < len(given) and given[start] and end < len(made) and made[end]:
                    name = kind if len(_RECURRENT[kind]) == 1 else f"{kind}'s {('hidden', 'cell')[place]} state"
                    self.recurrences.append(Recurrence(name, given[start], made[end]))

    def _lay_body(
        self,
        kind: str,
        body: onnx.GraphProto,
        given: list[str],
        made: list[str],
        scope: Mapping[str, str],
        *,
        before: int = 0,
        after: int = 0,
        states: int | None = None,
    ) -> None:
        """Adds the body of a loop, whose first inputs and outputs (`before`, `after`) count turns."""
        inner = self._lay(body, scope)
        starts = [inner[value.name] for value in body.input][before:]
        ends = [inner.get(value.name, value.name) for value in body.output][after:]
        carried = len(given) if states is None else states
        for place, (value, start) in enumerate(zip(given, starts, strict=False)):
            self._add("Identity", [value], [start])
            if place < min(carried, len(ends), len(made)):
                self._add("Identity", [ends[place]], [start])
                if made[place] and ends[place] != start:
                    self.recurrences.append(Recurrence(kind, value, made[place]))
        for end, result in zip(ends, made, strict=False):
            self._add("Identity", [end], [result])

    def _add(self, kind: str, given: Iterable[str], made: Iterable[str]) -> None:
        self._steps.append(Step(kind, tuple(filter(None, given)), tuple(filter(None, made))))


def _moved(step: Step) -> Sequence[str]:
    """The inputs whose numbers a step's results hold."""
    if step.kind not in _MOVES:
        return ()
    place = _MOVES[step.kind]
    return step.inputs if place is None else step.inputs[place : place + 1]
