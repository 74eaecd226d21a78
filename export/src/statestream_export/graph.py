"""From a module to an ONNX graph: which of torch's exporters, and what is put right afterwards."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from statestream_export import blame
from statestream_export.errors import ExportError
from statestream_export.interface import Interface, Port, one_line

Exporter = Literal["torch.export", "torchscript"]

OPS: dict[type[nn.Module], str] = {
    nn.RNN: "RNN",
    nn.LSTM: "LSTM",
    nn.GRU: "GRU",
    nn.Conv1d: "Conv",
    nn.Conv2d: "Conv",
    nn.Conv3d: "Conv",
    nn.ConvTranspose1d: "ConvTranspose",
    nn.ConvTranspose2d: "ConvTranspose",
    nn.ConvTranspose3d: "ConvTranspose",
    nn.MaxPool1d: "MaxPool",
    nn.MaxPool2d: "MaxPool",
    nn.MaxPool3d: "MaxPool",
}
"""The operator that a layer is meant to become."""


def operator_of(layer: nn.Module) -> str | None:
    """The operator that a layer is meant to become; None where any will do."""
    return next((operator for kind, operator in OPS.items() if isinstance(layer, kind)), None)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module and its parts in eval mode, and each back into the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
    except NotImplementedError as error:
        raise ExportError(
            f"{type(module).__name__} cannot be put in eval mode ({one_line(error)}); export the nn.Module that it was"
            " made from, not what torch.export gave"
        ) from error
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def is_scripted(module: nn.Module) -> bool:
    """Whether the module or a part of it is TorchScript."""
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def layers_run(module: nn.Module, values: Sequence[Tensor]) -> list[nn.Module]:
    """The layers that one forward calls, in order; one called twice is there twice."""
    called: list[nn.Module] = []
    hooks = [
        part.register_forward_hook(lambda layer, _inputs, _output: called.append(layer))
        for part in module.modules()
        if operator_of(part) and not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        with torch.no_grad():
            module(*values)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def refuse_layers(module: nn.Module, *, stateful: bool) -> None:
    """Refuses layers that no exporter writes as they are meant, or that cannot be streamed.

    Raises:
        ExportError: A projection, or a bidirectional layer in a module with states.
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.RNNBase):
            continue
        where = f"{type(part).__name__} {name!r}" if name else type(part).__name__
        if part.proj_size > 0:
            raise ExportError(
                f"{where} has proj_size={part.proj_size}, which ONNX's LSTM does not have; use proj_size=0 and a"
                " Linear layer behind it, or write the layer with LSTM cells"
            )
        if part.bidirectional and stateful:
            raise ExportError(
                f"{where} is bidirectional: its answer to a step needs the steps that have not come yet, so it cannot"
                " be streamed. Export it without states (it is served by Predict), or make it one-directional"
            )


def choose(module: nn.Module, layers: Sequence[nn.Module]) -> Exporter:
    """The exporter that is right for a module and the layers that ran.

    `torch.export` unrolls nn.RNN for the example's length, and with nn.LSTM and nn.GRU it takes the
    length of their outputs for fixed, which whatever follows them may then rely on. The TorchScript
    exporter writes all three as the native operators with free batch and time. It alone takes what is scripted, and
    keeps its loops and branches; of anything else it would freeze branches, which torch.export refuses.
    """
    scripted = is_scripted(module) or any(isinstance(layer, nn.RNNBase) for layer in layers)
    return "torchscript" if scripted else "torch.export"


def build(module: nn.Module, interface: Interface, exporter: Exporter) -> onnx.ModelProto:
    """Exports a module in eval mode: native operators, free batch and time axes, weights inside.

    Raises:
        ExportError: torch's exporter failed, or what it wrote has not the inputs and outputs that were meant.
    """
    values = interface.draw(3, 5, torch.Generator().manual_seed(1))
    arguments = tuple(values[0] + values[1])
    try:
        with _quiet():
            if exporter == "torchscript":
                model = _torchscript(module, arguments, interface)
            else:
                model = _torch_export(module, arguments, interface)
    except Exception as error:
        why = f"{_reason(error)}{blame.raised(error)}"
        raise ExportError(f"torch cannot export {type(module).__name__} ({exporter}): {why}") from error
    _strip(model)
    for what, entries, ports in (
        ("input", model.graph.input, (*interface.inputs, *interface.states)),
        ("output", model.graph.output, (*interface.outputs, *interface.new_states)),
    ):
        _check_names(what, [entry.name for entry in entries], [port.name for port in ports])
        for entry, port in zip(entries, ports, strict=True):
            _set_shape(entry, port)
    return model


def _reason(error: Exception) -> str:
    """What torch says at the end of its chain of causes, and what to do about it where that is known."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = one_line(root).split(" For more information, run with TORCH_LOGS")[0]
    said = said if len(said) <= _MOST_TOLD else said[:_MOST_TOLD].rsplit(" ", 1)[0] + " …"
    return said.rstrip(".") + next((f". What to do: {advice}" for sign, advice in _ADVICE.items() if sign in said), "")


_MOST_TOLD = 400
_ADVICE = {
    "data-dependent": "forward decides in Python by values (if, while, int(), .item()): use torch.where and tensor"
    " operations, or torch.jit.script(module), which keeps branches and loops",
    "specialized": "a batch size or a length is frozen in forward: use tensor operations instead of Python numbers and"
    " loops, or torch.jit.script(module), or export one step with time_axis=None",
    "ONNX symbolic expected": "TorchScript holds what this exporter does not know; export the plain module that was"
    " scripted",
    "ScriptModule is not supported": "leave exporter out, or export the plain module that was scripted",
    "vector::_M_range_check": "where forward packs sequences, unpack them again (pad_packed_sequence) and take the last"
    " step from there by index, or gather it from the padded output: y[torch.arange(n), lengths - 1]",
}
"""By a sign in torch's words: what to do."""


def check_ops(model: onnx.ModelProto, layers: Sequence[nn.Module]) -> dict[str, int]:
    """Checks that every layer that ran became the operator it was meant to become; the operators' counts.

    Raises:
        ExportError: An operator is missing: the exporter unrolled or decomposed the layer.
    """
    meant: Counter[str] = Counter()
    for layer in layers:
        operator = operator_of(layer)
        if operator:
            meant[operator] += layer.num_layers if isinstance(layer, nn.RNNBase) else 1
    found = Counter(node.op_type for node in model.graph.node)
    for operator, count in meant.items():
        if found[operator] < count:
            others = ", ".join(f"{name}×{number}" for name, number in sorted(found.items()))
            raise ExportError(
                f"the graph has {found[operator]} {operator} operators; the module's layers call for {count}. It has"
                f" {others}: this exporter takes the layer apart. Leave exporter out, which chooses by the layers"
            )
    return dict(found)


def _names(interface: Interface) -> tuple[list[str], list[str]]:
    taken = [port.name for port in (*interface.inputs, *interface.states)]
    given = [port.name for port in (*interface.outputs, *interface.new_states)]
    return taken, given


def _axes(port: Port) -> dict[int, str]:
    axes = {axis: f"{port.name}_{axis}" for axis in port.free}
    if port.batch_axis is not None:
        axes[port.batch_axis] = "batch"
    if port.time_axis is not None:
        axes[port.time_axis] = "time"
    return axes


def _torchscript(module: nn.Module, arguments: tuple[Tensor, ...], interface: Interface) -> onnx.ModelProto:
    taken, given = _names(interface)
    ports = (*interface.inputs, *interface.states, *interface.outputs, *interface.new_states)
    if is_scripted(module) and not isinstance(module, torch.jit.ScriptModule):
        # The exporter's own trace refuses scripted parts; torch's keeps them.
        with torch.no_grad():
            module = torch.jit.trace(module, arguments, check_trace=False)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            module,
            arguments,
            file,
            dynamo=False,
            external_data=False,
            input_names=taken,
            output_names=given,
            dynamic_axes={port.name: _axes(port) for port in ports},
        )
        return onnx.load_model(file)


def _torch_export(module: nn.Module, arguments: tuple[Tensor, ...], interface: Interface) -> onnx.ModelProto:
    taken, given = _names(interface)
    dims = {"batch": torch.export.Dim("batch"), "time": torch.export.Dim("time")}
    shapes = [
        {axis: dims[name] for axis, name in _axes(port).items()} for port in (*interface.inputs, *interface.states)
    ]
    dynamic: Any = shapes if len(arguments) > 1 or shapes[0] else None
    if dynamic is not None and _takes_any(module):
        dynamic = (tuple(shapes),)
    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        input_names=taken,
        output_names=given,
        dynamic_shapes=dynamic,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _takes_any(module: nn.Module) -> bool:
    """Whether forward takes all of its tensors as one `*values`."""
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    return kinds == [inspect.Parameter.VAR_POSITIONAL]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what torch's exporters say about themselves; the gate is the judge."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _strip(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes: guessed inner shapes, and stack traces with paths of this machine."""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]


def _check_names(what: str, found: list[str], meant: list[str]) -> None:
    missing = [name for name in meant if name not in found]
    if missing:
        raise ExportError(
            f"the graph has no {what} {missing[0]!r}: forward does not use it, so the exporter left it out. Leave it"
            " out of forward, too"
        )
    if found != meant:
        raise ExportError(f"the graph's {what}s are {', '.join(found)}; meant were {', '.join(meant)}. Rename them")


def _set_shape(value: onnx.ValueInfoProto, port: Port) -> None:
    """Writes the shape found by running the module; exporters may have put the example's length there."""
    axes = _axes(port)
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for axis, size in enumerate(port.example.shape):
        if axis in axes:
            shape.dim.add().dim_param = axes[axis]
        else:
            shape.dim.add().dim_value = size
