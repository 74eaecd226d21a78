"""What a module takes and gives: names, axes, start values, and values to try it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from statestream_export.errors import ExportError

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
            alike). A floating dtype. `torch.zeros(2, 1, 64)` is what an LSTM of two layers starts with.
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
    """

    name: str
    example: Tensor
    batch_axis: Axis
    time_axis: Axis = None
    free: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """The element type by its NumPy name."""
        return DTYPES[self.example.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the graph; -1 on the axes whose length is free."""
        loose = {self.batch_axis, self.time_axis, *self.free}
        return tuple(-1 if axis in loose else size for axis, size in enumerate(self.example.shape))

    def draw(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """A tensor like the example, of `batch` sessions and `length` steps.

        Its steps are the example's, drawn with replacement; floating values are scaled by 1 ± 0.1, or
        replaced by normal noise where the example is all zeros, so that no two sessions are alike.
        """
        axes = [axis for axis in (self.batch_axis, self.time_axis) if axis is not None]
        sizes = [batch if axis == self.batch_axis else length for axis in axes]
        front = self.example.detach().movedim(axes, list(range(len(axes))))
        rows = front.reshape(-1, *front.shape[len(axes) :])
        count = int(torch.tensor(sizes).prod()) if sizes else 1
        drawn = rows[torch.randint(len(rows), (count,), generator=generator)]
        if drawn.is_floating_point():
            noise = torch.randn(drawn.shape, generator=generator).to(drawn.dtype)
            drawn = drawn * (1 + 0.1 * noise) if bool(rows.any()) else noise
        return drawn.reshape(*sizes, *front.shape[len(axes) :]).movedim(list(range(len(axes))), axes).contiguous()

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
class Interface:
    """Inputs, outputs and states of one module, in the order of its forward."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...]
    new_states: tuple[Port, ...]

    @property
    def batched(self) -> bool:
        """Whether the graph has a batch axis."""
        return any(port.batch_axis is not None for port in self.inputs)

    @property
    def timed(self) -> bool:
        """Whether one run of the graph takes any number of steps."""
        return any(port.time_axis is not None for port in self.inputs)

    def draw(self, batch: int, length: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and random non-zero states of `batch` sessions and `length` steps."""
        inputs = [port.draw(batch, length, generator) for port in self.inputs]
        states = []
        for port in self.states:
            value = port.draw(batch, 1, generator)
            noise = torch.randn(value.shape, generator=generator).to(value.dtype)
            states.append(torch.nan_to_num(value, posinf=0.0, neginf=0.0) + 0.5 * noise)
        return inputs, states


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
        raise ExportError(f"{type(module).__name__}.forward failed on tensors of shapes {shapes}: {error}") from error
    answer = tuple(given) if isinstance(given, tuple | list) else (given,)
    for number, item in enumerate(answer):
        if not isinstance(item, Tensor):
            raise ExportError(
                f"{type(module).__name__}.forward gave a {type(item).__name__} as value {number}; expected tensors"
                " (outputs..., new states...): return (y, h, c) rather than (y, (h, c))"
            )
    return answer


def describe(
    module: nn.Module,
    inputs: Sequence[Port],
    states: Mapping[str, State],
    outputs: Sequence[str] | None,
) -> Interface:
    """Runs the module at a few sizes and finds the batch and time axis of everything it gives.

    Raises:
        ExportError: Names, counts, dtypes, shapes or axes do not fit together.
    """
    ports = tuple(Port(name, state.value.detach(), state.batch_axis) for name, state in states.items())
    known = Interface(tuple(inputs), (), ports, ())
    generator = torch.Generator().manual_seed(0)
    sizes = {"base": (2, 3), "batch": (4, 3), "time": (2, 5)}
    runs = {}
    for what, (batch, length) in sizes.items():
        drawn, rows = known.draw(batch, length, generator)
        runs[what] = run(module, [*drawn, *rows])
    names = _names(module, len(runs["base"]), list(states), outputs)
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
    if states and known.timed:
        for port in found[:count]:
            if port.time_axis is None:
                raise ExportError(
                    f"output {port.name!r} has shape {list(port.shape)} without a time axis; sessions need one"
                    " answer for every step: return all steps, not the last one only"
                )
    return Interface(known.inputs, found[:count], ports, found[count:])


def _names(module: nn.Module, given: int, states: list[str], outputs: Sequence[str] | None) -> list[str]:
    count = given - len(states)
    kind = type(module).__name__
    if count < 1:
        raise ExportError(
            f"{kind}.forward gave {given} tensors; expected at least one output and then one new value for each of"
            f" the {len(states)} states ({', '.join(states)})"
        )
    if outputs is None:
        outputs = ["y"] if count == 1 else [f"y{number}" for number in range(count)]
    if len(outputs) != count:
        raise ExportError(
            f"{kind}.forward gave {given} tensors, {len(states)} of them new states, so {count} outputs;"
            f" outputs names {len(outputs)}: {', '.join(outputs)}"
        )
    return [*outputs, *(f"{name}_out" for name in states)]


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
