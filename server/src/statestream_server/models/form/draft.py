"""The draft of a form: which tensors are memory and what is done to the graph; axes are not known yet. Pure.

It comes from what is told (model.toml), else from what the graph shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from statestream_server.models.form import narrow, pairs
from statestream_server.models.form.chain import Joined
from statestream_server.models.form.edits import fresh, taken
from statestream_server.models.form.flow import Flow
from statestream_server.models.form.pairs import Tensor, tensor
from statestream_server.models.form.plan import FOUND, TOLD, Note
from statestream_server.models.form.surgery import Change, together
from statestream_server.models.form.told import TIME, Shape, Told, ToldError


@dataclass(frozen=True, slots=True)
class Held:
    """A state of the changed graph; `alone` where it has no axis for sessions by what it is."""

    old: Tensor
    new: str
    start: Sequence[float] = ()
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """What a file is to become.

    Attributes:
        inputs: What callers send, after the changes.
        outputs: What they get.
        states: The memory.
        changes: What is done to the graph.
        shapes: What is told of shapes, by names of the changed graph.
        notes: Why.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    states: Sequence[Held]
    changes: Sequence[Change]
    shapes: dict[str, Shape]
    notes: Sequence[Note]


def drafted(model: onnx.ModelProto, told: Told, chain: Joined | None = None) -> Draft:
    """The draft of a file's form.

    Args:
        model: Its graph.
        told: What is told of it.
        chain: What it is made of, where it is several files.

    Raises:
        UnsettledError: Something may be memory, and neither the graph nor a person tells.
        ToldError: What is told does not fit the graph.
    """
    return _Drafting(model, told, chain or Joined(model)).draft()


class _Drafting:
    """A draft while it is made."""

    def __init__(self, model: onnx.ModelProto, told: Told, chain: Joined) -> None:
        graph, self._model, self._told, self._flow = model.graph, model, told, Flow(model)
        weights = {each.name for each in graph.initializer}
        inputs = [tensor(value) for value in graph.input if value.name not in weights]
        self._given = {each.name: each for each in inputs}
        self._outputs = [tensor(value) for value in graph.output]
        self._chain = chain
        told.check(self._given, [each.name for each in self._outputs])
        self._used = taken(graph)
        self._changes, self._notes = list[Change](), list[Note]()
        self._states, self._shapes = list[Held](), dict(told.shapes)

    def draft(self) -> Draft:
        parted = self._part()
        self._cast(parted)
        set_apart = {*self._told.constants, *self._told.session, *self._told.counters}
        found = self._pairs([each for name, each in self._given.items() if name not in set_apart])
        for old, new, why in found:
            start = self._told.start.get(old, self._chain.start.get(old, ()))
            self._states.append(Held(self._given[old], parted.get(new, new), start))
            self._notes.append(Note("evidence", f"{old} → {new}: {why}"))
        self._set_apart()
        set_apart |= {pair.old for pair in found}
        sent = [self._window(each) for name, each in self._given.items() if name not in set_apart]
        outputs = self._results(
            [
                each._replace(name=parted.get(each.name, each.name))
                for each in self._outputs
                if each.name not in self._chain.wired
            ]
        )
        if self._states:
            self._leave_out(outputs, {new: old for old, new in parted.items()})
        origin = Note("form", TOLD if replace(self._told, chain=(), wires=None) != Told() else FOUND)
        changed = [Note("surgery", str(change)) for change in together(self._changes)]
        wires = [Note("wire", text) for text in self._chain.notes]
        notes = [origin, *wires, *self._notes, *changed]
        return Draft(sent, outputs, self._states, self._changes, self._shapes, notes)

    def _part(self) -> dict[str, str]:
        """Names for outputs that are inputs, handed through."""
        parted = {}
        for each in self._outputs:
            if each.name in self._given:
                parted[each.name] = fresh(f"{each.name}_out", self._used)
                self._changes.append(Change("part", each.name, parted[each.name]))
        return parted

    def _cast(self, parted: dict[str, str]) -> None:
        """Gives callers a type that they have, and the graph one that there are operators for."""
        for each in (*self._given.values(), *self._outputs):
            if each.dtype == narrow.NAME:
                name = each.name if self._given.get(each.name) is each else parted.get(each.name, each.name)
                self._changes.append(Change("cast", name))
        self._given = {name: _wide(each) for name, each in self._given.items()}
        self._outputs = [_wide(each) for each in self._outputs]
        if kinds := narrow.computing(self._model):
            self._changes.append(Change("widen", ", ".join(kinds)))

    def _pairs(self, inputs: Sequence[Tensor]) -> Sequence[pairs.Pair]:
        if self._told.states is not None:
            return [pairs.Pair(old, new, TOLD) for old, new in self._told.states.items()]
        if self._told.stateless:
            return []
        chain = self._chain
        signed = [pairs.Pair(old, new, "the signature of its file says so") for old, new in chain.states.items()]
        open_ = [each for each in inputs if each.name not in chain.signed]
        outputs = [each for each in self._outputs if each.name not in chain.signed]
        return [*signed, *pairs.found(self._flow, open_, outputs, chain.whose)]

    def _set_apart(self) -> None:
        """Inputs that are neither sent nor computed by the graph: constants, what a session sets, what counts."""
        told = self._told
        for name, values in told.constants.items():
            _check_values(self._given[name], values)
            self._changes.append(Change("freeze", name, "", values))
        for name, values in told.session.items():
            _check_values(self._given[name], values)
            made = fresh(f"{name}_next", self._used)
            self._changes.append(Change("hold", name, made))
            self._states.append(Held(self._given[name], made, told.start.get(name, values), alone=True))
        for name, by in told.counters.items():
            made = fresh(f"{name}_next", self._used)
            self._changes.append(Change("count", name, made, [by]))
            start, alone = told.start.get(name, ()), not self._given[name].dims
            self._states.append(Held(self._given[name], made, start, alone=alone))

    def _window(self, each: Tensor) -> Tensor:
        """An input as callers send it; what it is given again is a state."""
        window, shape = self._told.window.get(each.name), self._told.shapes.get(each.name)
        if window is None:
            return each
        axis = _window_axis(each, window.axis, shape)
        made = fresh(f"{each.name}_last", self._used)
        after = fresh(f"{made}_next", self._used)
        self._changes.append(Change("window", each.name, made, [window.keep, axis]))
        dims = list(each.dims or ())
        before, dims[axis] = dims[axis], window.keep
        start = self._told.start.get(made, ())
        self._states.append(Held(Tensor(made, each.dtype, tuple(dims)), after, start))
        if shape:
            self._shapes[made] = tuple(window.keep if at == axis else size for at, size in enumerate(shape))
        if isinstance(before, int):
            if before <= window.keep:
                raise ToldError(f"window: {each} has {before} values, so it cannot be given {window.keep} again")
            dims[axis] = before - window.keep
        else:
            dims[axis] = before
        return each._replace(dims=tuple(dims))

    def _results(self, outputs: list[Tensor]) -> list[Tensor]:
        """What callers get: outputs that are no states, or where there are no others, those too."""
        kept = {state.new for state in self._states}
        results = [each for each in outputs if each.name not in kept]
        if results or not self._states:
            return results
        for each in outputs:
            made = fresh(f"{each.name}_state", self._used)
            self._changes.append(Change("alias", each.name, made))
            self._states = [replace(state, new=made) if state.new == each.name else state for state in self._states]
            if each.name in self._shapes:
                self._shapes[made] = self._shapes[each.name]
        return outputs

    def _leave_out(self, outputs: list[Tensor], names: dict[str, str]) -> None:
        """Takes out outputs that depend on no input: they tell of the model, and have no rows."""
        constant = [
            each for each in outputs if self._flow.sources(names.get(each.name, each.name)).isdisjoint(self._given)
        ]
        if constant and len(constant) < len(outputs):
            outputs[:] = [each for each in outputs if each not in constant]
            left = ", ".join(each.name for each in constant)
            self._notes.append(Note("left out", f"outputs that no input changes: {left}"))


def _wide(tensor: Tensor) -> Tensor:
    return tensor._replace(dtype=narrow.WIDE) if tensor.dtype == narrow.NAME else tensor


def _check_values(tensor: Tensor, values: Sequence[float]) -> None:
    sizes = [size if isinstance(size, int) else 1 for size in tensor.dims or ()]
    count = 1
    for size in sizes:
        count *= size
    if len(values) not in (1, count):
        raise ToldError(f"{tensor} is given {len(values)} numbers; expected one or {count}")


def _window_axis(tensor: Tensor, axis: int | None, shape: Shape | None) -> int:
    rank = len(tensor.dims or ())
    if axis is None:
        axis = shape.index(TIME) if shape and TIME in shape else rank - 1
    if not -rank <= axis < rank:
        raise ToldError(f"window: {tensor} has no axis {axis}")
    return axis % rank
