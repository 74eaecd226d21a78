"""`export`: a module becomes one self-describing ONNX file, or an error that says why not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import onnx
import torch
from torch import nn

from statestream.contract import signature as signatures
from statestream.contract.signature import (
    Decoding,
    Head,
    Quantization,
    Signature,
    Text,
)
from statestream_export import asked, forecasting, gate, graph, observing, quantization, scaling, signing, wrapping
from statestream_export.adapting import Nest, adapted, flat
from statestream_export.asked import Axes, Example
from statestream_export.domain import Ranges
from statestream_export.errors import ExportError, ForwardError
from statestream_export.gate import GateReport
from statestream_export.interface import Interface, Port, describe
from statestream_export.loss import LIMIT, judge
from statestream_export.scaling import Scaler


@dataclass(frozen=True, slots=True)
class Export:
    """A file that passed the gate.

    Attributes:
        path: The file.
        signature: What the file says of itself.
        exporter: Which of torch's exporters wrote the graph.
        gate: What was compared, and how far apart it was.
        interface: What the module takes and gives, with the example.
    """

    path: Path
    signature: Signature
    exporter: graph.Exporter
    gate: GateReport
    interface: Interface = field(repr=False)

    def __repr__(self) -> str:
        """One line: the file, what it takes and gives, and how often it was compared."""
        takes, gives = (
            ", ".join(spec.name for spec in specs) for specs in (self.signature.inputs, self.signature.outputs)
        )
        states = ", ".join(spec.input for spec in self.signature.states)
        memory = f", states {states}" if states else ""
        return f"<Export {self.path}: {takes} → {gives}{memory}; {self.exporter}, {len(self.gate.cases)} comparisons>"


def export(
    module: nn.Module,
    example: Example,
    *,
    path: str | os.PathLike[str],
    states: Mapping[str, Nest] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    batch_axis: Axes = 0,
    time_axis: Axes = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    text: Mapping[str, Text] | None = None,
    feedback: Mapping[str, str | tuple[str, Sequence[int | str]]] | None = None,
    head: Head | Mapping[str, Head] | None = None,
    horizon_axis: Mapping[str, int] | None = None,
    ahead: Sequence[str] = (),
    lookback: int = 0,
    missing: Mapping[str, observing.Policy] | None = None,
    elapsed: Mapping[str, observing.Unit] | None = None,
    score_past: int = 0,
    decoding: Decoding | None = None,
    ranges: Mapping[str, Ranges] | None = None,
    scaler: Scaler | Mapping[str, Scaler] | None = None,
    description: str = "",
    exporter: Literal["auto", "torch.export", "torchscript"] = "auto",
    quantize: Literal["int8"] | None = None,
    calibration: Example | None = None,
    max_loss: float = LIMIT,
) -> Export:
    """Writes a module as one .onnx file that carries its weights and its signature.

    The module's forward takes `(inputs..., states...)` and returns `(outputs..., new states...)`, tensors
    all: `forward(self, x, h, c) -> (y, h, c)`. It is exported in eval mode and left in the mode it was in.
    Scaling, one-hot and the like belong inside forward, or into `scaler`: callers send and get raw values. Of
    DataParallel and of what torch.compile gives, the module inside is exported.

    The file is written only if onnx.checker takes it, its layers became the operators they stand for, and
    ONNX Runtime agrees with torch at batch sizes 1 and 3 and at 1, 2 and 7 steps, from states that the module reaches,
    at once and step by step: within 1e-5 of the output's scale and of each value (float16: 8e-3, float64: 1e-12).
    Interrupting leaves no file behind.

    Args:
        module: The module, on the CPU.
        example: The inputs as a tensor, a sequence of tensors, or a mapping by input name. Realistic values, several
            sessions and steps of them: the gate, and the server when it loads the file, try the module with entries of
            the example and values between them. A column of whole numbers (flags, codes) is tried with those it has.
        path: Where the file goes; a file there is replaced. The folder of a model or a version, `models/name` or
            `models/name/1`, gets a model.onnx.
        states: The states by input name, in the order of forward; a new value is called `<name>_out`. Where forward
            takes and returns several as one tuple, list or dict, so do they come here: `{"hc": (State(…), State(…))}`
            are the states `hc_0` and `hc_1`.
        inputs: The inputs' names; by default the mapping's, or those of forward's parameters.
        outputs: The outputs' names; by default `y`, or `y0`, `y1`, ….
        batch_axis: The axis of the inputs that holds the sessions, or one for every input by name; None where
            there is none. The outputs' axes are found by running the module.
        time_axis: The axis of the inputs that holds the steps, in the same way. None: one run is one step.
        columns: Names of the features along the last axis, by input or output.
        classes: Names of the classes that the last axis (scores) or the values (labels) stand for, by output.
        text: How text becomes an input of token numbers, by input.
        feedback: Which output, or which head, becomes which input when the model forecasts: `{"y": "x"}`; or which part
            of one, by places along its last axis or by columns: `{"y": ("x", ["sales"])}`. What nothing is fed to is
            known beforehand (calendar, prices), and a forecast brings it.
        head: Which outputs are the parameters of a distribution, by what its value is called; one alone is called "y".
            See `statestream_export.heads`.
        horizon_axis: Of an output that has several steps ahead at once, the next first: along which axis.
        ahead: Inputs known beforehand whose value at a step is that of the step which the model predicts there.
        lookback: How many steps a forecast needs before it, where the model looks back at a fixed number.
        missing: What becomes of NaN, by input: "refuse", "hold" (the last value stands in) or "predict" (what the
            model itself predicted does, by `feedback`). Where nothing is said the module gets it, and the server
            refuses what would reach the memory.
        elapsed: Inputs that are the time since the step before, by their unit: "s", "ms", "min", "h", "D" or a number
            of seconds; or a pair of that and what a first step is given, else 0. Callers send the time of each step.
        score_past: How many scores a session keeps, that later ones are compared with; 255 where it is 0.
        decoding: How a decoder is driven.
        ranges: Which values inputs and states may take, by name, where the example does not show them all: a pair
            (lowest, highest), or one pair (or None: as in the example) for each place along the last axis. Two int
            stand for whole numbers: `{"x": [(-3.0, 3.0), (0, 6)]}`.
        scaler: The fitted scaler of scikit-learn that the module was trained behind, which becomes part of the graph;
            the example, and what callers send, is raw. Of several inputs by name; that of an output is undone there.
            Columns are called as in the table that it was fitted on.
        description: One sentence for people.
        exporter: Which of torch's exporters; "auto" chooses by the layers that run, TorchScript's for what is scripted.
        quantize: "int8" makes the layers that cost most smaller and faster, and the answers coarser; see `quantized`.
        calibration: Inputs to quantise by, in the form of the example; the example itself where not given.
        max_loss: The largest loss that quantisation may have; see `quantized`.

    Raises:
        ExportError: What was asked for cannot be, or contradicts itself. `ForwardError`: the module refuses values of
            its own example. `GateError`: the graph does not do what the module does, or quantised loses too much; it
            names the case and the difference. Nothing is written.
    """
    asked.check_is_module(module)
    nests, module, target = dict(states or {}), wrapping.unwrapped(module), asked.target(path)
    known = dict(each for name, nest in nests.items() for each in flat(name, nest))
    ports = asked.ports(module, example, inputs, batch_axis, time_axis)
    if quantize not in (None, "int8"):
        raise ExportError(f"quantize is {quantize!r}; expected 'int8' or None")
    if calibration is not None and quantize is None:
        raise ExportError("calibration is given and quantize is not; add quantize='int8', or leave calibration out")
    asked.check_states(known, ports)
    asked.check_module(module, ports, bool(known))
    graph.refuse_layers(module, stateful=bool(known))
    asked.check_count(module, ports, list(nests))
    scalers = scaling.by_name(scaler, ports)
    named = scaling.columns(scalers, columns or {})
    taken, undone = scaling.places(scalers, ports, outputs, forecasting.whole(feedback or {}, head or {}))
    kept = [
        Port(name, state.value.detach(), state.batch_axis, unknown_start=bool(state.from_encoder))
        for name, state in known.items()
    ]
    asked.known_ranges(ports, kept, ranges or {})

    def signed(interface: Interface) -> Signature:
        made = signing.signature(interface, known, named, classes or {}, text or {})
        forecasting.describe(made, feedback or {}, head or {}, horizon_axis or {}, ahead, lookback)
        observing.describe(made, missing or {}, elapsed or {}, score_past)
        made.description = description
        if decoding is not None:
            made.decoding.CopyFrom(decoding)
        signing.check(made)
        return made

    with graph.evaluating(module), wrapping.bare(module):
        whole = adapted(module, nests, len(ports), taken, undone)
        made, model = _tried(
            whole.eval() if whole is not module else module, list(_ways(ports)), kept, outputs, exporter, signed, target
        )
    if quantize is not None:
        return _quantised(made, model, calibration, max_loss)
    _write(_signed(model, made.signature), made.path)
    return made


def _tried(
    module: nn.Module,
    ways: Sequence[Sequence[Port]],
    states: Sequence[Port],
    outputs: Sequence[str] | None,
    exporter: str,
    signed: Callable[[Interface], Signature],
    target: Path,
) -> tuple[Export, onnx.ModelProto]:
    """The graph, through the gate, with inputs drawn in the first way that the module takes.

    Raises:
        ForwardError: It takes none; what it said to the first.
    """
    first: ForwardError | None = None
    for ports in ways:
        try:
            known = Interface(tuple(ports), (), tuple(states), ())
            drawn, start = known.draw(2, 3, torch.Generator().manual_seed(0))
            wrapping.refuse_memory(module, [*drawn, *start])
            interface = describe(module, ports, states, outputs)
            signature = signed(interface)
            chosen, model, report = _through_the_gate(module, interface, exporter)
            return Export(target, signature, chosen, report, interface), model
        except ForwardError as error:
            first = first or error
    assert first is not None
    raise first


def _through_the_gate(
    module: nn.Module, interface: Interface, exporter: str
) -> tuple[graph.Exporter, onnx.ModelProto, GateReport]:
    """The graph, which exporter wrote it, and what the gate saw of it."""
    drawn = interface.draw(3, 5, torch.Generator().manual_seed(0))
    layers = graph.layers_run(module, [*drawn[0], *drawn[1]])
    chosen = graph.choose(module, layers) if exporter == "auto" else cast("graph.Exporter", exporter)

    def passed(by: graph.Exporter) -> tuple[graph.Exporter, onnx.ModelProto, GateReport]:
        model = graph.build(module, interface, by)
        operators = graph.check_ops(model, layers)
        gate.check_file(model)
        return by, model, GateReport(operators, gate.compare(model, module, interface))

    try:
        return passed(chosen)
    except ForwardError:
        raise
    except ExportError as error:
        other: graph.Exporter = "torchscript" if chosen == "torch.export" else "torch.export"
        # What decides by values the other one would freeze as the example has it, and the gate might not see it.
        if "torch.where" not in str(error):
            with contextlib.suppress(ExportError):
                passed(other)
                error.args = (f"{str(error).rstrip('.')}. exporter={other!r} would pass",)
        raise


def _ways(ports: Sequence[Port]) -> Iterator[list[Port]]:
    """Ways to draw inputs: beyond an example that says little first; then, too, whole numbers that may count steps."""
    longest = max((port.example.shape[port.time_axis] for port in ports if port.time_axis is not None), default=0)
    counting = {port.name for port in ports if _may_count(port, longest)}
    for wide in (True, False):
        for counts in (False, True) if counting else (False,):
            yield [replace(port, wide=wide, counts=counts and port.name in counting) for port in ports]


def _may_count(port: Port, longest: int) -> bool:
    """Whether it may hold lengths: one whole number a session, up to the steps that the example has."""
    (known, *more) = port.domain.columns
    single = port.time_axis is None and port.batch_axis is not None and port.example.dim() == 1
    return single and not more and known.whole and known.lowest >= 0 and known.highest <= longest


def quantized(
    made: Export,
    *,
    path: str | os.PathLike[str] | None = None,
    calibration: Example | None = None,
    max_loss: float = LIMIT,
) -> Export:
    """Writes an exported model once more, its large layers on whole numbers of 8 bits.

    Quantised are LSTM (its products with h, and with the h of an LSTM below), Conv, and Gemm and MatMul with 4,096
    weights or more; GRU, RNN and small layers stay float. All scales are fixed here, by the calibration, so that a
    session's outputs do not depend on those that run beside it. Inputs far outside the calibration are clipped where
    they enter a quantised Conv, Gemm or MatMul; so is an h beyond -1 and 1, which no LSTM gives.

    The gate compares with the float graph over the examples, with memory over 256 steps or more. The loss is the mean
    difference of an output as a share of its spread, the mean distance of its values from their mean.

    Args:
        made: What `export` gave; its file is read.
        path: Where the file goes; in the place of the one that was read where not given.
        calibration: Inputs to take the scales from, in the form of the example; the example where not given.
        max_loss: The largest loss of an output that is let through.

    Raises:
        ExportError: Nothing in it can be quantised, it is already, or it is a decoder. `GateError`: it loses too much.
            Nothing is written.
    """
    if made.gate.loss is not None:
        raise ExportError(f"{made.path} is quantised already; quantise the float model")
    target = replace(made, path=made.path if path is None else asked.target(path))
    return _quantised(target, onnx.load_model(made.path), calibration, max_loss)


def _quantised(made: Export, model: onnx.ModelProto, calibration: Example | None, max_loss: float) -> Export:
    if made.signature.HasField("decoding") or any(state.from_encoder for state in made.signature.states):
        raise ExportError(
            "quantize='int8' is not for decoders: their first state is what an encoder says, whose range is not known"
            " here. Leave quantize out"
        )
    if not max_loss >= 0:
        raise ExportError(f"max_loss is {max_loss}; expected a share of the outputs' spread, 0 or more, like {LIMIT}")
    known = made.interface
    if calibration is not None:
        known = replace(known, inputs=asked.calibrated(known.inputs, calibration))
    small, loss = quantization.apply(model, known, made.interface)
    signature = Signature()
    signature.CopyFrom(made.signature)
    signature.quantization.CopyFrom(Quantization(dtype="int8", layers=loss.layers, loss=loss.worst.share))
    judge(loss, max_loss)
    _signed(small, signature)
    gate.check_file(small)
    _write(small, made.path)
    return replace(made, signature=signature, gate=replace(made.gate, loss=loss))


def _signed(model: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    onnx.helper.set_model_props(model, {signatures.METADATA_KEY: signatures.dumps(signature)})
    return model


def _write(model: onnx.ModelProto, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(model.SerializeToString())
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}; give another path, or make room") from error
    return path
