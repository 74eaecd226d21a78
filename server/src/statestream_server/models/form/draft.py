"""The draft of a form: which tensors are memory and what is done to the graph; axes are not known yet. Pure.

It comes from what is told (model.toml), else from what the graph shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx

from statestream.contract.signature import Window, WindowStart
from statestream_server.models.form import narrow, pairs
from statestream_server.models.form.chain import Joined
from statestream_server.models.form.edits import fresh, taken
from statestream_server.models.form.flow import Flow
from statestream_server.models.form.pairs import Tensor, UnsettledError, shapes_line, tensor
from statestream_server.models.form.plan import FOUND, TOLD, Note
from statestream_server.models.form.surgery import Change, together
from statestream_server.models.form.told import (
    BATCH,
    HOLD,
    PAD,
    START,
    TIME,
    Context,
    Shape,
    Told,
    ToldError,
    quoted,
)
from statestream_server.models.form.told import Window as Wished


@dataclass(frozen=True, slots=True)
class Held:
    """A state of the changed graph.

    Attributes:
        old: The input that takes the old value.
        new: The output that gives the new one.
        start: What it starts from; zeros where it is empty.
        alone: Whether it has no axis for sessions by what it is.
        constant: Whether it is set once, when a session is opened.
    """

    old: Tensor
    new: str
    start: Sequence[float] = ()
    alone: bool = False
    constant: bool = False


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
        windows: Inputs that take a window of past steps.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    states: Sequence[Held]
    changes: Sequence[Change]
    shapes: dict[str, Shape]
    notes: Sequence[Note]
    windows: Sequence[Window] = ()


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
        self._windows = list[Window]()

    def draft(self) -> Draft:
        parted = self._part()
        self._cast(parted)
        for name, values in self._told.start.items():
            _check_held("start", self._given[name], values)
        set_apart = {*self._told.constants, *self._told.session, *self._told.counters}
        found = self._pairs([each for name, each in self._given.items() if name not in set_apart])
        for old, new, why in found:
            start, constant = self._told.start.get(old, self._chain.start.get(old, ())), self._flow.same(old, new)
            self._states.append(Held(self._given[old], parted.get(new, new), start, constant=constant))
            self._notes.append(Note("evidence", f"{old} → {new}: {why}"))
        self._set_apart()
        set_apart |= {pair.old for pair in found}
        sent = [self._sent(each) for name, each in self._given.items() if name not in set_apart]
        outputs = self._results(
            [
                each._replace(name=parted.get(each.name, each.name))
                for each in self._outputs
                if each.name not in self._chain.wired
            ]
        )
        kept = {state.new for state in self._states}
        wired = [parted.get(name, name) for name in sorted(self._chain.wired)]
        self._changes += [Change("inner", name) for name in wired if name not in kept]
        if self._states:
            self._leave_out(outputs, {new: old for old, new in parted.items()})
        self._mask(outputs)
        origin = Note("form", TOLD if replace(self._told, chain=(), wires=None) != Told() else FOUND)
        changed = [Note("surgery", str(change)) for change in together(self._changes)]
        wires = [Note("wire", text) for text in self._chain.notes]
        notes = [origin, *wires, *self._notes, *changed]
        return Draft(sent, outputs, self._states, self._changes, self._shapes, notes, self._windows)

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
        sent = {*self._told.context, *self._told.window}
        return [*signed, *pairs.found(self._flow, open_, outputs, sent, chain.whose)]

    def _set_apart(self) -> None:
        """Inputs that are neither sent nor computed by the graph: constants, what a session sets, what counts."""
        told = self._told
        for name, values in told.constants.items():
            _check_values("constants", self._given[name], values)
            self._changes.append(Change("freeze", name, "", values))
        for name, values in told.session.items():
            _check_values("session", self._given[name], values)
            made = fresh(f"{name}_next", self._used)
            self._changes.append(Change("hold", name, made))
            alone = not self._given[name].dims
            self._states.append(Held(self._given[name], made, values, alone, constant=True))
        for name, by in told.counters.items():
            _check_held("counters", self._given[name], [by])
            made = fresh(f"{name}_next", self._used)
            self._changes.append(Change("count", name, made, [by]))
            start, alone = told.start.get(name, ()), not self._given[name].dims
            self._states.append(Held(self._given[name], made, start, alone=alone))

    def _sent(self, each: Tensor) -> Tensor:
        """An input as callers send it."""
        if each.name in self._told.window:
            return self._window(each, self._told.window[each.name])
        return self._context(each, self._told.context[each.name]) if each.name in self._told.context else each

    def _context(self, each: Tensor, context: Context) -> Tensor:
        """An input as callers send it; what it is given again is a state."""
        shape = self._told.shapes.get(each.name)
        axis = _context_axis(each, context.axis, shape)
        made = fresh(f"{each.name}_last", self._used)
        after = fresh(f"{made}_next", self._used)
        # Where each of a run's steps has values of its own, the last values are those of the step before it.
        sizes = {axis: context.keep}
        if shape and TIME in shape and shape.index(TIME) != axis:
            sizes[shape.index(TIME)] = 1
        self._changes.append(Change("context", each.name, made, [context.keep, *sizes]))
        dims = list(each.dims or ())
        start = self._told.start.get(each.name, ())
        kept = tuple(sizes.get(at, size) for at, size in enumerate(dims))
        self._states.append(Held(Tensor(made, each.dtype, kept), after, start))
        if shape:
            self._shapes[made] = tuple(sizes.get(at, size) for at, size in enumerate(shape))
        size = dims[axis]
        if isinstance(size, int):
            if size <= context.keep:
                raise ToldError(f"context: {each} has {size} values, so it cannot be given {context.keep} again")
            dims[axis] = size - context.keep
        own = shape[axis] if shape else dims[axis]
        if len(sizes) > 1 and isinstance(own, int) and own < context.keep:
            raise ToldError(f"context: a step of {each} has {own} values of its own, fewer than the {context.keep}")
        return each._replace(dims=tuple(dims))

    def _window(self, each: Tensor, window: Wished) -> Tensor:
        """An input as callers send it, one step; those before it are a state."""
        dims, shape, keep = list(each.dims or ()), self._told.shapes.get(each.name), window.steps - 1
        axis = _window_axis(each, window, shape)
        del dims[axis]
        free = [at for at, size in enumerate(dims) if not isinstance(size, int)]
        if shape is None and len(free) > 1:
            line = shapes_line(each._replace(dims=tuple(dims)), None)
            raise UnsettledError(f"a step of {each} has more free axes than sessions need", [line])
        batch = next((at for at, size in enumerate(shape) if size == BATCH), -1) if shape else (free or [-1])[0]
        made = fresh(f"{each.name}_last", self._used)
        after = fresh(f"{made}_next", self._used)
        entry = Window(input=each.name, steps=window.steps, state=made, before=_BEFORE[window.before], axis=axis)
        if window.before != START:
            entry.count = fresh(f"{each.name}_count", self._used)
            self._tally(each, entry, [*dims[:axis], 1, *dims[axis:]], batch + (batch >= axis))
        self._changes.append(
            Change("window", each.name, made, [keep, axis], entry.count if window.before == PAD else "")
        )
        last = tuple([*dims[:axis], keep, *dims[axis:]])
        self._states.append(Held(Tensor(made, each.dtype, last), after, self._told.start.get(each.name, ())))
        if shape:
            self._shapes[made] = (*shape[:axis], keep, *shape[axis:])
        self._windows.append(entry)
        return each._replace(dims=tuple(dims))

    def _tally(self, each: Tensor, window: Window, dims: Sequence[int | str | None], batch: int) -> None:
        """A state that counts the steps of a window's input; it is tried as it is when the window is full."""
        after = fresh(f"{window.count}_next", self._used)
        self._changes.append(Change("tally", each.name, window.count, [batch]))
        ones = tuple(size if at == batch else 1 for at, size in enumerate(dims))
        self._states.append(Held(Tensor(window.count, "int64", ones), after, (window.steps,)))
        if each.name in self._shapes:
            self._shapes[window.count] = tuple(BATCH if at == batch else 1 for at in range(len(dims)))

    def _mask(self, outputs: list[Tensor]) -> None:
        """Has outputs say nothing before a window that holds them back is full; if one has no NaN, another tells."""
        for window in self._windows:
            if window.before != WindowStart.WINDOW_START_HOLD:
                continue
            batch = next((size for size in self._given[window.input].dims or () if isinstance(size, str)), None)
            for each in outputs:
                shape = self._shapes.get(each.name, each.dims)
                if shape is None:
                    raise ToldError(
                        f"window: output {each} is held back; say its shape, as in {shapes_line(each, None)}"
                    )
                at = next((at for at, size in enumerate(shape) if size == BATCH or size == batch is not None), 0)
                self._changes.append(Change("mask", each.name, "", [window.steps, at], window.count))
            if not all(each.dtype.startswith(("float", "bfloat")) for each in outputs):
                window.full = fresh("full", self._used)
                self._changes.append(Change("full", window.input, window.full, [window.steps], window.count))
                outputs.append(Tensor(window.full, "bool", (batch,)))

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


def _check_values(where: str, tensor: Tensor, values: Sequence[float]) -> None:
    """Checks that an input can have the values that are told of it, so that none is cut to another one."""
    count = math.prod(size if isinstance(size, int) else 1 for size in tensor.dims or ())
    if len(values) not in (1, count):
        raise ToldError(f"{where}: {tensor} is given {len(values)} numbers; expected one or {count}")
    _check_held(where, tensor, values)


def _check_held(where: str, tensor: Tensor, values: Sequence[float]) -> None:
    dtype = np.dtype(tensor.dtype)
    for value in values:
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                held = not math.isfinite(value) or bool(np.isfinite(np.asarray(value, np.float64).astype(dtype)))
        elif dtype.kind == "b":
            held = value in (0, 1)
        else:
            limits = np.iinfo(dtype.name)
            held = math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
            held = held and (where == "constants" or float(value) == value)  # A signature has doubles.
        if not held:
            raise ToldError(f"{where}: {tensor} is given {value}, which {dtype} does not hold; expected numbers of it")


def _window_axis(tensor: Tensor, window: Wished, shape: Shape | None) -> int:
    """The axis of an input that holds a window's steps."""
    dims, steps = tensor.dims or (), window.steps
    entry = f"window = {{ {quoted(tensor.name)} = {{ steps = {steps}, axis = … }} }}"
    if shape is not None and len(shape) != len(dims) - 1:
        raise ToldError(
            f"shapes.{tensor.name} has {len(shape)} axes; with a window it is that of one step as callers send it,"
            f" {len(dims) - 1} axes. Where the last {steps} values are wanted before new ones, say context, not window"
        )
    if window.axis is not None:
        if not -len(dims) <= window.axis < len(dims):
            raise ToldError(f"window: {tensor} has no axis {window.axis}")
        fits = [window.axis % len(dims)]
    else:
        free = [axis for axis, size in enumerate(dims) if not isinstance(size, int)]
        fits = [axis for axis, size in enumerate(dims) if size == steps] or free[len(dims) > 1 :]
    if len(fits) > 1:
        raise ToldError(f"window: axes {fits} of {tensor} may hold its {steps} steps; say which: {entry}")
    if not fits or (isinstance(size := dims[fits[0]], int) and size != steps):
        raise ToldError(
            f"window: {tensor} has no axis of {steps} steps; say how many it takes. Where its last {steps} values are"
            f" wanted before new ones: context = {{ {quoted(tensor.name)} = {steps} }}"
        )
    return fits[0]


_BEFORE: Final = {
    START: WindowStart.WINDOW_START_VALUE,
    PAD: WindowStart.WINDOW_START_PAD,
    HOLD: WindowStart.WINDOW_START_HOLD,
}


def _context_axis(tensor: Tensor, axis: int | None, shape: Shape | None) -> int:
    rank = len(tensor.dims or ())
    if axis is None:
        axis = shape.index(TIME) if shape and TIME in shape else rank - 1
    if not -rank <= axis < rank:
        raise ToldError(f"context: {tensor} has no axis {axis}")
    return axis % rank
