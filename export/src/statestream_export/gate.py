"""The gate: a graph is let through when it does what the module does, and says what it found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from statestream_export import blame
from statestream_export.errors import ForwardError, GateError
from statestream_export.interface import Interface, Port, run
from statestream_export.loss import Loss
from statestream_export.running import FROZEN, Graph

BATCHES = (1, 3)
LENGTHS = (1, 2, 7)
TOLERANCES = {torch.float16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}
"""How far ONNX Runtime may be from torch, by the coarsest element type that a value went through: as a share of the
output's scale, plus as a share of the value itself."""
_PYTHON = re.compile(f"{FROZEN}|values in Python")
"""Says that lines of forward that Python runs are at fault."""
_COARSE = (torch.float16, torch.float32, torch.float64)

Array = np.ndarray
Way = Literal["whole", "streamed"]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison of ONNX Runtime with torch.

    Attributes:
        way: "whole" is one run over all steps; "streamed" is step by step, the state carried along.
        batch: The batch size, or None where the graph has no batch axis.
        length: The number of steps.
        output: The output, or new state, that was compared.
        difference: The largest absolute difference.
        scale: The largest absolute value that torch gave.
    """

    way: Way
    batch: int | None
    length: int
    output: str
    difference: float
    scale: float


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate saw of a graph that it let through.

    Attributes:
        operators: How many of each operator the graph has.
        cases: Every comparison; of a quantised file, those of the float graph that it was made from.
        loss: What quantisation lost; None where nothing is quantised.
    """

    operators: dict[str, int]
    cases: tuple[Case, ...]
    loss: Loss | None = None

    @property
    def largest(self) -> Case:
        """The case with the largest difference for its scale."""
        return max(self.cases, key=lambda case: case.difference / (case.scale or 1.0))


def check_file(model: onnx.ModelProto) -> None:
    """Runs onnx.checker with full shape inference.

    Raises:
        GateError: The checker refuses the graph.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise GateError(f"onnx.checker refuses the graph; nothing was written: {error}") from error


def compare(model: onnx.ModelProto, module: nn.Module, interface: Interface) -> tuple[Case, ...]:
    """Compares ONNX Runtime with torch at every batch size and length, whole and streamed.

    The module must be in eval mode. Inputs are drawn from the example, states are those that the module reaches.

    Raises:
        GateError: Names the first case that differs, and by how much; or the graph cannot run, or ends the process that
            runs it.
        ForwardError: torch itself refuses what was drawn, or gives NaN.
        ExportError: onnxruntime is missing.
    """
    try:
        with Graph(model, interface) as graph:
            return _compared(graph, module, interface)
    except GateError as error:
        error.args = (f"{error}{blame.frozen(module) if _PYTHON.search(str(error)) else ''}",)
        raise


def _compared(graph: Graph, module: nn.Module, interface: Interface) -> tuple[Case, ...]:
    generator = torch.Generator().manual_seed(2)
    inside = [value.dtype for value in (*module.parameters(), *module.buffers())]
    batches = BATCHES if interface.batched else (1,)
    lengths = LENGTHS if interface.timed or interface.states else (1,)
    cases: list[Case] = []
    for batch in batches:
        for length in lengths:
            shown = batch if interface.batched else None
            for way, want, got in _ways(graph, module, interface, batch, length, generator):
                for port, expected, given in zip(interface.outputs + interface.new_states, want, got, strict=True):
                    tolerance = _tolerance([expected.dtype, *inside])
                    cases.append(_judge(way, shown, length, port.name, expected.numpy(), given, tolerance))
    return tuple(cases)


def _tolerance(dtypes: Sequence[torch.dtype]) -> float:
    """That of the coarsest floating type; 0 where there is none."""
    if not dtypes[0].is_floating_point:
        return 0.0
    return next((TOLERANCES[dtype] for dtype in _COARSE if dtype in dtypes), TOLERANCES[torch.float16])


def _ways(
    graph: Graph, module: nn.Module, interface: Interface, batch: int, length: int, generator: torch.Generator
) -> Iterator[tuple[Way, list[Tensor], list[Array]]]:
    if interface.timed or not interface.states:
        inputs, states = interface.draw(batch, length, generator)
        want = list(run(module, [*inputs, *states]))
        yield "whole", want, graph([value.numpy() for value in (*inputs, *states)], batch, length)
        if interface.states:
            steps = [_cut(inputs, interface.inputs, at) for at in range(length)]
            yield "streamed", want, _stream(graph, interface, steps, states, batch)
        return
    drawn = [interface.draw(batch, 1, generator) for _ in range(length)]
    steps = [[value.numpy() for value in inputs] for inputs, _ in drawn]
    states, given = drawn[0][1], drawn[0][1]
    for inputs, _ in drawn:
        want = list(run(module, [*inputs, *given]))
        given = want[len(interface.outputs) :]
    yield "streamed", want, _stream(graph, interface, steps, states, batch)


def _stream(
    graph: Graph, interface: Interface, steps: Sequence[Sequence[Array]], states: Sequence[Tensor], batch: int
) -> list[Array]:
    carried = [value.numpy() for value in states]
    count = len(interface.outputs)
    outputs: list[list[Array]] = [[] for _ in range(count)]
    for step in steps:
        given = graph([*step, *carried], batch, 1)
        carried = given[count:]
        for all_steps, value in zip(outputs, given[:count], strict=True):
            all_steps.append(value)
    joined = [
        values[-1] if port.time_axis is None else np.concatenate(values, axis=port.time_axis)
        for port, values in zip(interface.outputs, outputs, strict=True)
    ]
    return joined + carried


def _cut(values: Sequence[Tensor], ports: Sequence[Port], at: int) -> list[Array]:
    """One step of every input; an input without a time axis goes into every step."""
    return [
        (value if port.time_axis is None else value.narrow(port.time_axis, at, 1)).numpy()
        for value, port in zip(values, ports, strict=True)
    ]


def _judge(way: Way, batch: int | None, length: int, output: str, want: Array, got: Array, tolerance: float) -> Case:
    where = f"at {'' if batch is None else f'batch {batch}, '}{length} steps {way}, output {output!r}"
    if want.shape != got.shape:
        raise GateError(
            f"{where} has shape {list(got.shape)} from ONNX Runtime and {list(want.shape)} from torch; nothing was"
            " written. A length or batch size is probably frozen in forward (int(x.shape[…]), a Python loop over"
            " steps): use tensor operations, or export one step with time_axis=None",
            output=output,
            batch=batch,
            length=length,
        )
    if want.dtype.kind == "f" and np.isnan(want).any():
        raise ForwardError(f"{where}: the module itself gives NaN; give an example with values that it can take")
    first, second = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(first)
    scale = float(np.abs(first[finite]).max(initial=0.0))
    apart = np.where(
        first == second, 0.0, np.abs(np.subtract(first, second, where=first != second, out=np.zeros_like(first)))
    )
    difference = float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))
    allowed = tolerance * ((scale or 1.0) + np.abs(np.where(finite, first, 0.0)))
    if not (apart <= allowed).all():
        raise GateError(
            f"{where}: ONNX Runtime and torch differ by {difference:.3g} at most, where values go up to {scale:.3g};"
            f" allowed are {tolerance:g} of that and of each value ({want.dtype}). Nothing was written. {_hint(way)}",
            output=output,
            batch=batch,
            length=length,
            difference=difference,
        )
    return Case(way, batch, length, output, difference, scale)


def _hint(way: Way) -> str:
    if way == "streamed":
        return (
            "Step by step must give what all steps at once give: is every memory of forward among the states, and does"
            " no step look at later ones?"
        )
    return "Does forward depend on values in Python (if, int(), .item()), or draw random numbers?"
