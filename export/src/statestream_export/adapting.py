"""Adapting: a module that takes states as tuples, lists or dicts, or scaled values, as one of raw flat tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from statestream_export.errors import ExportError
from statestream_export.interface import State
from statestream_export.scaling import Affine

Nest = State | Sequence["Nest"] | Mapping[str, "Nest"]
"""A state, or several in the form in which forward takes and returns them."""


def flat(name: str, nest: Nest) -> Iterator[tuple[str, State]]:
    """The states of a nest by name: `hc_0`, `hc_1` of a tuple or list, `memory_h` of a dict.

    Raises:
        ExportError: It holds something else than states.
    """
    if isinstance(nest, State):
        yield name, nest
    elif isinstance(nest, Mapping) and nest:
        for key, each in nest.items():
            yield from flat(f"{name}_{key}", each)
    elif isinstance(nest, tuple | list) and nest:
        for place, each in enumerate(nest):
            yield from flat(f"{name}_{place}", each)
    else:
        raise ExportError(
            f"state {name!r} is a {type(nest).__name__}; expected State(torch.zeros(…), batch_axis=…), or a tuple, list"
            " or dict of such where forward takes one"
        )


def adapted(
    module: nn.Module,
    states: Mapping[str, Nest],
    count: int,
    inputs: Mapping[int, Affine],
    outputs: Mapping[int, Affine],
) -> nn.Module:
    """A module that takes and gives flat tensors of raw values; itself where nothing is to be adapted.

    Args:
        module: The module.
        states: Its states as its forward takes them.
        count: How many inputs it has.
        inputs: What is done to inputs before forward, by place.
        outputs: What is undone behind it, by place.
    """
    if not inputs and not outputs and all(isinstance(nest, State) for nest in states.values()):
        return module
    kind = type(type(module).__name__, (_Adapted,), {})  # So that messages name the module that is meant.
    return cast(nn.Module, kind(module, list(states.items()), count, inputs, outputs))


def inner(module: nn.Module) -> nn.Module:
    """The module that was adapted; any other is itself."""
    return module.module if isinstance(module, _Adapted) else module


class _Adapted(nn.Module):
    def __init__(
        self,
        module: nn.Module,
        states: Sequence[tuple[str, Nest]],
        count: int,
        inputs: Mapping[int, Affine],
        outputs: Mapping[int, Affine],
    ) -> None:
        super().__init__()
        self.module = module
        self._states, self._count = states, count
        self._inputs = {place: _Scale(affine) for place, affine in inputs.items()}
        self._outputs = {place: _Scale(affine) for place, affine in outputs.items()}
        for scales in (self._inputs, self._outputs):
            for place, scale in scales.items():
                self.add_module(f"scale_{'input' if scales is self._inputs else 'output'}_{place}", scale)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = [
            self._inputs[place](value) if place in self._inputs else value
            for place, value in enumerate(values[: self._count])
        ]
        rest = list(values[self._count :])
        answer = self.module(*given, *(_nested(nest, rest) for _, nest in self._states))
        results = list(answer) if isinstance(answer, tuple | list) else [answer]
        split = len(results) - len(self._states)
        if split < 1:
            raise ExportError(
                f"forward gave {len(results)} values; expected at least one output and then the new"
                f" {', '.join(name for name, _ in self._states)}, in the form in which it takes them"
            )
        for place, scale in self._outputs.items():
            if place < split:
                results[place] = scale.undone(results[place])
        made = results[:split]
        for (name, nest), new in zip(self._states, results[split:], strict=True):
            made.extend(_tensors(name, nest, new))
        return tuple(made)


def _nested(nest: Nest, values: list[Tensor]) -> Any:
    """Values in the form of a nest, taken from the front."""
    if isinstance(nest, State):
        return values.pop(0)
    if isinstance(nest, Mapping):
        return {key: _nested(each, values) for key, each in nest.items()}
    return tuple(_nested(each, values) for each in nest) if isinstance(nest, tuple) else [
        _nested(each, values) for each in nest
    ]  # fmt: skip


def _tensors(name: str, nest: Nest, new: Any) -> Iterator[Tensor]:
    """The tensors of a new value, which has the form of its state.

    Raises:
        ExportError: It has another one.
    """
    if isinstance(nest, State):
        if not isinstance(new, Tensor):
            raise ExportError(
                f"the new value of state {name!r} is a {type(new).__name__}; expected a tensor. Where forward takes and"
                f" returns several together, say so: states={{{name!r}: (State(…), State(…))}}"
            )
        yield new
        return
    if isinstance(nest, Mapping):
        fits = isinstance(new, Mapping) and new.keys() == nest.keys()
        pairs = [(f"{name}_{key}", each, new[key]) for key, each in nest.items()] if fits else []
    else:
        fits = isinstance(new, tuple | list) and len(new) == len(nest)
        pairs = [(f"{name}_{place}", each, new[place]) for place, each in enumerate(nest)] if fits else []
    if not fits:
        raise ExportError(
            f"the new value of state {name!r} is {_told(new)}; forward takes {_told(nest)}, and returns the same form"
        )
    for inner, each, value in pairs:
        yield from _tensors(inner, each, value)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class _Scale(nn.Module):
    """An affine change along the last axis, in float64, as scikit-learn computes."""

    centre: Tensor
    factor: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.register_buffer("centre", torch.from_numpy(affine.centre.copy()))
        self.register_buffer("factor", torch.from_numpy(affine.factor.copy()))
        self._bounds = affine.bounds

    def forward(self, x: Tensor) -> Tensor:
        z = (x.to(torch.float64) - self.centre) * self.factor
        return (z if self._bounds is None else z.clamp(*self._bounds)).to(x.dtype)

    def undone(self, z: Tensor) -> Tensor:
        exact = z.to(torch.float64)
        exact = exact if self._bounds is None else exact.clamp(*self._bounds)
        return (exact / self.factor + self.centre).to(z.dtype)
