"""What a module takes and gives: names, axes, start values, and values to try it with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from statestream_export import domain
from statestream_export.domain import Domain, Places
from statestream_export.errors import ExportError, ForwardError

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RUNS, _SESSIONS = 6, 4
"""How long, and for how many sessions, a module is run to see what states it reaches."""

Axis = int | None
Check = Literal["finite", "nan", "off"]

DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "bool",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}
"""The element types that a signature can name."""


@dataclass(frozen=True, slots=True)
class State:
    """One state tensor of a module: memory that the server keeps, one row a session.

    Attributes:
        value: The state at position 0, with its batch axis (of any length from 1 on; all sessions start
            alike). Of any dtype that a signature names, int64 and bool too. `torch.zeros(2, 1, 64)` is what an LSTM
            of two layers starts with.
        batch_axis: The axis that holds the sessions; 1 for the states of torch's recurrent layers,
            whatever their batch_first. None where the module has no batch axis at all.
        check: What a new value must satisfy to be committed: "finite" (no NaN, no infinity), "nan" (no
            NaN; infinities are legitimate) or "off".
        from_encoder: The encoder's output that is the value at position 0; only in decoders.
    """

    value: Tensor
    batch_axis: Axis = 0
    check: Check = "finite"
    from_encoder: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """One input, output or state of the graph.

    Attributes:
        name: Its name in the graph.
        example: A tensor of its dtype and shape.
        batch_axis: The axis that holds the sessions, or None.
        time_axis: The axis that holds the steps, or None.
        free: Axes of another length that depends on the number of steps.
        values: The values that it takes; where None, those of the example.
        wide: Whether it is drawn beyond an example that says little; see `domain.draw`.
        counts: Whether its values count steps of the run, as lengths do.
        unknown_start: Whether it is a state that starts with what an encoder says, not with its example.
    """

    name: str
    example: Tensor
    batch_axis: Axis
    time_axis: Axis = None
    free: tuple[int, ...] = ()
    values: Domain | None = None
    wide: bool = True
    counts: bool = False
    unknown_start: bool = False

    @property
    def dtype(self) -> str:
        """The element type by its NumPy name."""
        return DTYPES[self.example.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the graph; -1 on the axes whose length is free."""
        loose = {self.batch_axis, self.time_axis, *self.free}
        return tuple(-1 if axis in loose else size for axis, size in enumerate(self.example.shape))

    @property
    def entries(self) -> Tensor:
        """The example's entries: [sessions × steps, *step]."""
        axes = [axis for axis in (self.batch_axis, self.time_axis) if axis is not None]
        front = self.example.detach().movedim(axes, list(range(len(axes))))
        return front.reshape(-1, *front.shape[len(axes) :])

    @property
    def domain(self) -> Domain:
        """The values that it takes."""
        return self.values or domain.seen(self.entries)

    def draw(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """A tensor like the example, of `batch` sessions and `length` steps, its values from the example's domain."""
        axes = [axis for axis in (self.batch_axis, self.time_axis) if axis is not None]
        sizes = [batch if axis == self.batch_axis else length for axis in axes]
        count = int(torch.tensor(sizes).prod()) if sizes else 1
        entries = self.entries
        drawn = domain.draw(entries, self.domain, Places.among(len(entries), count, generator), wide=self.wide)
        if self.counts:
            drawn = drawn.clamp(max=length)
            drawn[0] = length  # As the longest of a batch has.
        step = entries.shape[1:]
        return drawn.reshape(*sizes, *step).movedim(list(range(len(axes))), axes).contiguous()

    def sequence(self, length: int, generator: torch.Generator) -> Tensor:
        """The example itself, its steps in order, repeated or cut to `length`; normal noise where it is all zeros."""
        value = self.example.detach()
        if self.time_axis is not None:
            steps = torch.arange(length) % value.shape[self.time_axis]
            value = value.index_select(self.time_axis, steps)
        if value.is_floating_point() and not bool(value.any()):
            value = torch.randn(value.shape, generator=generator).to(value.dtype)
        return value


@dataclass(frozen=True, slots=True)
class Reached:
    """Values of one state that the module reached by itself: [n, *row], and the domain of all that it may be given."""

    rows: Tensor
    domain: Domain


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs, outputs and states of one module, in the order of its forward.

    Attributes:
        inputs: What the caller sends.
        outputs: What the caller gets.
        states: The memory before a run; an example is what it starts with.
        new_states: The memory after it.
        reached: For every state what the module reached by itself; entries of one place belong together.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...]
    new_states: tuple[Port, ...]
    reached: tuple[Reached, ...] = field(default=(), repr=False)

    @property
    def batched(self) -> bool:
        """Whether the graph has a batch axis."""
        return any(port.batch_axis is not None for port in self.inputs)

    @property
    def timed(self) -> bool:
        """Whether one run of the graph takes any number of steps."""
        return any(port.time_axis is not None for port in self.inputs)

    def draw(self, batch: int, length: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of `batch` sessions and `length` steps, and states that such sessions reach."""
        inputs = [port.draw(batch, length, generator) for port in self.inputs]
        if not self.reached:
            return inputs, self.start(batch)
        places = Places.among(len(self.reached[0].rows), batch if self.batched else 1, generator)
        states = []
        for port, known in zip(self.states, self.reached, strict=True):
            drawn = domain.draw(known.rows, known.domain, places, wide=False)
            axis = port.batch_axis
            states.append((drawn[0] if axis is None else drawn.movedim(0, axis)).contiguous())
        return inputs, states

    def start(self, batch: int) -> list[Tensor]:
        """The states of `batch` sessions at position 0."""
        return [
            port.example.detach().clone()
            if port.batch_axis is None
            else port.example.detach().narrow(port.batch_axis, 0, 1).repeat_interleave(batch, port.batch_axis)
            for port in self.states
        ]


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks and colours."""
    said = " ".join(_COLOURS.sub("", str(error)).split())
    return said or type(error).__name__


def run(module: nn.Module, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One forward without gradients, as a flat tuple.

    Raises:
        ExportError: The module raised, or gave something other than tensors.
    """
    try:
        with torch.no_grad():
            given = module(*values)
    except Exception as error:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        raise ForwardError(
            f"{type(module).__name__}.forward failed on tensors of shapes {shapes}: {one_line(error)}"
        ) from error
    answer = tuple(given) if isinstance(given, tuple | list) else (given,)
    for number, item in enumerate(answer):
        if not isinstance(item, Tensor):
            raise ExportError(
                f"{type(module).__name__}.forward gave a {type(item).__name__} as value {number}; expected tensors"
                " (outputs..., new states...): return (y, h, c) rather than (y, (h, c)), or say that states come"
                " together: states={'hc': (State(…), State(…))}"
            )
    return answer


def describe(
    module: nn.Module,
    inputs: Sequence[Port],
    states: Sequence[Port],
    outputs: Sequence[str] | None,
) -> Interface:
    """Runs the module at a few sizes and finds the batch and time axis of everything it gives, and states it reaches.

    Raises:
        ExportError: Names, counts, dtypes, shapes or axes do not fit together. `ForwardError`: it refuses what was
            drawn.
    """
    ports = tuple(states)
    known = Interface(tuple(inputs), (), ports, ())
    generator = torch.Generator().manual_seed(0)
    sizes = {"base": (2, 3), "batch": (4, 3), "time": (2, 5)}
    runs = {}
    for what, (batch, length) in sizes.items():
        drawn, rows = known.draw(batch, length, generator)
        runs[what] = run(module, [*drawn, *rows])
    names = _names(module, len(runs["base"]), known, outputs)
    found = tuple(
        _axes(name, known, base, more, longer)
        for name, base, more, longer in zip(names, runs["base"], runs["batch"], runs["time"], strict=True)
    )
    count = len(found) - len(ports)
    for before, after in zip(ports, found[count:], strict=True):
        if after.shape != before.shape or after.dtype != before.dtype:
            raise ExportError(
                f"state {before.name!r} is {before.dtype}{list(before.shape)} and its new value"
                f" {after.dtype}{list(after.shape)} (-1 is free); expected the same. Is the order of forward"
                " (inputs..., states...) → (outputs..., new states...), and batch_axis right?"
            )
    if ports and known.timed:
        for port in found[:count]:
            if port.time_axis is None:
                raise ExportError(
                    f"output {port.name!r} has shape {list(port.shape)} without a time axis; sessions need one"
                    " answer for every step: return all steps, not the last one only"
                )
    made = Interface(known.inputs, found[:count], ports, found[count:])
    return replace(made, reached=_reached(module, made, generator))


def _reached(module: nn.Module, interface: Interface, generator: torch.Generator) -> tuple[Reached, ...]:
    """For every state its value at the start and after some runs, session by session: [n, *row]."""
    if not interface.states:
        return ()
    states = interface.start(_SESSIONS)
    for index, port in enumerate(interface.states):
        if port.wide and port.unknown_start and port.values is None and port.example.is_floating_point():
            states[index] = states[index] + 0.5 * torch.randn(states[index].shape, generator=generator).to(port.example)
    found: list[list[Tensor]] = [[_rows(port, value)] for port, value in zip(interface.states, states, strict=True)]
    for _ in range(_RUNS):
        inputs = [port.draw(_SESSIONS, 3, generator) for port in interface.inputs]
        states = list(run(module, [*inputs, *states])[len(interface.outputs) :])
        for rows, port, value in zip(found, interface.states, states, strict=True):
            rows.append(_rows(port, value))
    joined = [torch.cat(rows) for rows in found]
    numbers = torch.stack([~torch.isnan(rows.reshape(len(rows), -1)).any(1) for rows in joined]).all(0)
    kept = [rows[numbers] if bool(numbers.any()) else rows for rows in joined]
    return tuple(
        Reached(rows, port.values or domain.seen(rows)) for port, rows in zip(interface.states, kept, strict=True)
    )


def _rows(port: Port, value: Tensor) -> Tensor:
    return value[None] if port.batch_axis is None else value.movedim(port.batch_axis, 0)


def _names(module: nn.Module, given: int, known: Interface, outputs: Sequence[str] | None) -> list[str]:
    """The names of what forward gives: those of the outputs, and for every state one that nothing else has."""
    states = [port.name for port in known.states]
    taken = {port.name for port in (*known.inputs, *known.states)}
    count = given - len(states)
    kind = type(module).__name__
    if count < 1:
        raise ExportError(
            f"{kind}.forward gave {given} tensors; expected at least one output and then one new value for each of"
            f" the {len(states)} states ({', '.join(states)})"
        )
    if outputs is None:
        own = next(name for name in itertools.chain(("y",), _free("output")) if not _meets(name, count, taken))
        outputs = [own] if count == 1 else [f"{own}{number}" for number in range(count)]
    if len(outputs) != count:
        raise ExportError(
            f"{kind}.forward gave {given} tensors, {len(states)} of them new states, so {count} outputs;"
            f" outputs names {len(outputs)}: {', '.join(outputs)}"
        )
    for name in outputs:
        if name in taken or list(outputs).count(name) > 1:
            what = "a state" if name in states else "an input" if name in taken else "another output"
            raise ExportError(
                f"output {name!r} has the name of {what}; a graph tells them apart by name: give other ones with"
                " outputs=[…]"
            )
    taken |= set(outputs)
    names = list(outputs)
    for state in states:
        names.append(next(name for name in _free(f"{state}_out") if name not in taken))
        taken.add(names[-1])
    return names


def _free(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}{number}" for number in itertools.count(1))


def _meets(name: str, count: int, taken: set[str]) -> bool:
    """Whether outputs called so, or numbered so, meet names that are taken."""
    return name in taken if count == 1 else any(f"{name}{number}" in taken for number in range(count))


def _axes(name: str, known: Interface, base: Tensor, more: Tensor, longer: Tensor) -> Port:
    port = Port(name, base.detach(), None)
    if base.dtype not in DTYPES:
        raise ExportError(f"output {name!r} has dtype {base.dtype}; expected one of {', '.join(DTYPES.values())}")
    if base.dim() != more.dim() or base.dim() != longer.dim():
        raise ExportError(
            f"output {name!r} has {base.dim()} axes or more, depending on the batch; expected a fixed number"
        )
    batch = [axis for axis in range(base.dim()) if base.shape[axis] != more.shape[axis]]
    time = [axis for axis in range(base.dim()) if base.shape[axis] != longer.shape[axis]]
    if known.batched:
        if len(batch) != 1 or (base.shape[batch[0]], more.shape[batch[0]]) != (2, 4):
            raise ExportError(
                f"output {name!r} has shape {list(base.shape)} for 2 sessions and {list(more.shape)} for 4; expected"
                " exactly one axis that holds the sessions. Is batch_axis right?"
            )
        port = replace(port, batch_axis=batch[0])
    if known.timed and time:
        whole = [axis for axis in time if (base.shape[axis], longer.shape[axis]) == (3, 5)]
        port = replace(port, time_axis=whole[0]) if len(time) == 1 and whole else replace(port, free=tuple(time))
    return port
