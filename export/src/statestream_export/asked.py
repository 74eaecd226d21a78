"""What export is asked for, checked: a path, inputs, states, ranges, and a module that can be exported at all."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statestream_export import domain
from statestream_export.domain import Ranges
from statestream_export.errors import ExportError
from statestream_export.interface import DTYPES, Axis, Port, State

Axes = Axis | Mapping[str, Axis]
Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

_MOST_BYTES = (1 << 31) - (1 << 20)
"""Protocol Buffers' limit of 2 GiB, less the graph around the weights."""


def target(path: str | os.PathLike[str]) -> Path:
    """The file that a path stands for; the folder of a model or a version gets a model.onnx.

    Raises:
        ExportError: No server would find it there, or the folder is one of several models or versions.
    """
    if not isinstance(path, str | os.PathLike):
        raise ExportError(f"path is {'None' if path is None else f'a {type(path).__name__}'}{_PLACES}")
    target, shown = Path(path), repr(os.fspath(path))
    if target.suffix == _SUFFIX and not target.is_dir():
        return target
    number = target.name.isdecimal() and target.name.isascii()
    if target.is_file() or (target.suffix and not target.is_dir() and not number) or (number and not int(target.name)):
        raise ExportError(f"path is {shown}, no {_SUFFIX} file{_PLACES}")
    if not target.name or target.suffix == _SUFFIX:
        raise ExportError(f"path is {shown}, a folder without a model's name{_PLACES}")
    if not number and target.is_dir():
        _check_folder(target, shown)
    return target / _SINGLE


_SUFFIX, _SINGLE = ".onnx", "model.onnx"
_PLACES = (
    "; expected a file, where a server finds it MODELS/<model>/<version>/model.onnx, or the folder of a model or a"
    " version, like models/mine or models/mine/1"
)


def _check_folder(folder: Path, shown: str) -> None:
    """Refuses a folder of versions or of other models: which one is meant is not known."""
    inside = sorted(folder.iterdir())
    versions = [int(each.name) for each in inside if each.is_dir() and each.name.isdecimal() and each.name.isascii()]
    if versions:
        raise ExportError(
            f"path is {shown}, a folder of versions ({', '.join(map(str, sorted(versions)))}); name the one to write,"
            f" like {os.fspath(folder / str(max(versions) + 1))!r}"
        )
    others = [each.name for each in inside if each.suffix == _SUFFIX and each.name != _SINGLE]
    others += [each.parent.name for each in folder.glob(f"*/*{_SUFFIX}")]
    others += [each.parents[1].name for each in folder.glob(f"*/*/*{_SUFFIX}")]
    if others:
        raise ExportError(
            f"path is {shown}, a folder of models ({', '.join(dict.fromkeys(others))}); name the one to write, like"
            f" {os.fspath(folder / 'mine')!r}"
        )


def check_is_module(module: object) -> None:
    """Refuses what has no forward to write: a class that is not called yet, weights without their module.

    Raises:
        ExportError: It is no nn.Module; says what is missing.
    """
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type):
        came, hint = f"the class {module.__name__}", f"call it: {module.__name__}(…)"
    elif isinstance(module, Mapping):
        came, hint = "a dict, as of weights", "make the module and load them: module.load_state_dict(…)"
    else:
        came, hint = f"a {type(module).__name__}", "put what it computes into the forward of one"
    raise ExportError(f"module is {came}; expected an nn.Module: {hint}")


def ports(
    module: nn.Module, example: Example, names: Sequence[str] | None, batch_axis: Axes, time_axis: Axes
) -> list[Port]:
    """The inputs, as the example and the caller name them.

    Raises:
        ExportError: Names, axes or element types do not fit.
    """
    if isinstance(example, Mapping):
        tensors, own = list(example.values()), list(example)
    else:
        tensors = [example] if isinstance(example, Tensor) else list(example)
        own = parameters(module)[: len(tensors)]
    names = list(names or own)
    if not tensors:
        raise ExportError("example is empty; expected one tensor for every input")
    if len(names) != len(tensors):
        raise ExportError(f"example has {len(tensors)} tensors and there are {len(names)} input names: {names}")
    ports = []
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"example of input {name!r} is a {type(tensor).__name__}; expected a torch.Tensor: torch.as_tensor(…)"
            )
        port = Port(name, tensor.detach(), _axis(batch_axis, name), _axis(time_axis, name))
        for what, axis in (("batch_axis", port.batch_axis), ("time_axis", port.time_axis)):
            if axis is not None and not (isinstance(axis, int) and 0 <= axis < tensor.dim()):
                raise ExportError(
                    f"{what} of input {name!r} is {axis!r}; the example has shape {list(tensor.shape)}, so expected"
                    f" 0 to {tensor.dim() - 1}, or None"
                )
        if port.batch_axis is not None and port.batch_axis == port.time_axis:
            raise ExportError(f"batch_axis and time_axis of input {name!r} are both {port.batch_axis}")
        if tensor.dtype not in DTYPES:
            raise ExportError(
                f"input {name!r} has dtype {tensor.dtype}; expected one of {', '.join(DTYPES.values())}{CONVERT}"
            )
        if not tensor.numel():
            raise ExportError(f"example of input {name!r} has shape {list(tensor.shape)}: it holds no values")
        ports.append(port)
    return ports


CONVERT = ". ONNX files and callers know no other: export module.float() with float32 examples"


def parameters(module: nn.Module) -> list[str]:
    """The names of forward's arguments."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except ValueError:  # A traced module has a schema instead.
        schema: Any = getattr(module.forward, "schema")  # noqa: B009  # mypy knows of none
        return [argument.name for argument in schema.arguments if argument.name != "self"]


def _axis(axes: Axes, name: str) -> Axis:
    return axes.get(name) if isinstance(axes, Mapping) else axes


def check_states(states: Mapping[str, State], ports: Sequence[Port]) -> None:
    """Refuses states that no session can start from.

    Raises:
        ExportError: An element type, an axis or a value is none that a state can have.
    """
    batched = any(port.batch_axis is not None for port in ports)
    for name, state in states.items():
        if state.value.dtype not in DTYPES:
            raise ExportError(
                f"state {name!r} has dtype {state.value.dtype}; expected one of {', '.join(DTYPES.values())}{CONVERT}"
            )
        if (state.batch_axis is not None) != batched:
            raise ExportError(
                f"state {name!r} has batch_axis {state.batch_axis} and the inputs have"
                f" {'one' if batched else 'none'}; either all have one or none has"
            )
        if state.batch_axis is None:
            continue
        if not 0 <= state.batch_axis < state.value.dim():
            raise ExportError(
                f"batch_axis of state {name!r} is {state.batch_axis}; its value has shape {list(state.value.shape)}"
            )
        first = state.value.narrow(state.batch_axis, 0, 1)
        if not torch.equal(first.expand_as(state.value), state.value):
            raise ExportError(f"the start value of state {name!r} differs between sessions; expected the same for all")


def check_count(module: nn.Module, ports: Sequence[Port], states: Sequence[str]) -> None:
    """Refuses a forward that takes another number of values than there are.

    Raises:
        ExportError: It does.
    """
    try:
        taken = list(inspect.signature(module.forward).parameters.values())
    except ValueError:
        return  # Traced: running it tells.
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in taken):
        return
    least = sum(each.default is each.empty and each.kind is not each.KEYWORD_ONLY for each in taken)
    given = [*(port.name for port in ports), *states]
    if least <= len(given) <= len(taken):
        return
    kind, missing = type(module).__name__, least - len(given)
    names = ", ".join(each.name for each in taken)
    if missing > 0:
        last = taken[-1].name
        advice = (
            f"every argument is an input (example={{name: tensor}}) or a state: {last!r} may be memory, then add"
            f" states={{{last!r}: State(torch.zeros(…), batch_axis=…)}}"
        )
    elif len(taken) > len(ports):
        together = taken[len(ports)].name
        advice = (
            "where forward takes several states as one tuple, list or dict, give them so:"
            f" states={{{together!r}: (State(…), State(…))}}"
        )
    else:
        advice = "it takes no states: take them as arguments, and return their new values behind the outputs"
    raise ExportError(
        f"{kind}.forward takes {names or 'nothing'}: {len(taken)} values; there are {len(given)}, inputs and states:"
        f" {', '.join(given)}. Write forward(inputs..., states...); {advice}"
    )


def check_module(module: nn.Module, ports: Sequence[Port], stateful: bool) -> None:
    """Refuses a module that no exporter can write.

    Raises:
        ExportError: It is not on the CPU, has odd element types, is too large, or its steps are along no axis.
    """
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.device.type != "cpu":
            raise ExportError(f"{name} is on {value.device}; move the module to the CPU first: module.cpu()")
        if value.is_floating_point() and value.dtype not in DTYPES:
            raise ExportError(f"{name} has dtype {value.dtype}; expected float16, float32 or float64{CONVERT}")
    weights = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    if weights > _MOST_BYTES:
        raise ExportError(
            f"the weights of {type(module).__name__} are {weights} bytes; one file holds {_MOST_BYTES}. Use a smaller"
            " model, or module.half()"
        )
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    if stateful and layers and all(port.time_axis is None for port in ports) and ports[0].example.dim() > 2:
        raise ExportError(
            f"{type(module).__name__} has a {type(layers[0]).__name__} layer and states, and time_axis is None; say"
            " which axis holds the steps: time_axis=1 for [batch, time, features]"
        )


def known_ranges(ports: list[Port], states: list[Port], ranges: Mapping[str, Ranges]) -> None:
    """Notes what values inputs and states take, as given or as seen."""
    names = [port.name for port in (*ports, *states)]
    for name in ranges:
        if name not in names:
            raise ExportError(f"ranges names {name!r}; inputs and states are {', '.join(names)}")
    for every in (ports, states):
        for index, port in enumerate(every):
            if port.name in ranges:
                every[index] = replace(port, values=domain.told(port.name, port.entries, ranges[port.name]))
            elif every is ports:
                every[index] = replace(port, values=domain.seen(port.entries))


def calibrated(ports: Sequence[Port], given: Example) -> tuple[Port, ...]:
    """The inputs with other examples."""
    if isinstance(given, Mapping):
        missing = [port.name for port in ports if port.name not in given]
        if missing or len(given) != len(ports):
            raise ExportError(
                f"calibration has {', '.join(given)}; expected the inputs {', '.join(port.name for port in ports)}"
            )
        tensors = [given[port.name] for port in ports]
    else:
        tensors = [given] if isinstance(given, Tensor) else list(given)
    if len(tensors) != len(ports):
        raise ExportError(f"calibration has {len(tensors)} tensors; there are {len(ports)} inputs")
    found = []
    for port, tensor in zip(ports, tensors, strict=True):
        fits = (
            isinstance(tensor, Tensor)
            and tensor.dtype == port.example.dtype
            and tensor.dim() == len(port.shape)
            and all(size in (-1, length) for size, length in zip(port.shape, tensor.shape, strict=True))
        )
        if not fits or not tensor.numel():
            came = f"{tensor.dtype}{list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ExportError(
                f"calibration of input {port.name!r} is {came}; expected {port.example.dtype}{list(port.shape)}, -1"
                " being any length"
            )
        found.append(replace(port, example=tensor.detach(), values=None))
    return tuple(found)
