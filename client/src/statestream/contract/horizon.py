"""Forecasts as a signature tells of them: its heads, what is fed back, and how many steps come at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from statestream.contract.specs import (
    SignatureError,
    batch_axis_of,
    check_axis,
    check_unique,
    numpy_dtype,
    step_shape,
    time_axis_of,
)
from statestream.v1.signature_pb2 import Head, HeadKind, Signature

PARAMETERS: Final[Mapping[int, Sequence[frozenset[str]]]] = {
    HeadKind.HEAD_KIND_GAUSSIAN: [frozenset({"loc", "scale"})],
    HeadKind.HEAD_KIND_STUDENT_T: [frozenset({"df", "loc", "scale"})],
    HeadKind.HEAD_KIND_NEGATIVE_BINOMIAL: [frozenset({"total_count", how}) for how in ("probs", "logits", "mean")],
    HeadKind.HEAD_KIND_CATEGORICAL: [frozenset({"logits"}), frozenset({"probs"})],
    HeadKind.HEAD_KIND_QUANTILES: [frozenset({"quantiles"})],
}
"""The parameters of every distribution, by torch's names; of some there are several ways to say it."""

_ONE_AXIS_MORE: Final = (HeadKind.HEAD_KIND_CATEGORICAL, HeadKind.HEAD_KIND_QUANTILES)


class Value(NamedTuple):
    """A value that a forecast tells.

    Attributes:
        name: The output, or the head.
        head: The head; None of an output.
        outputs: The outputs that it is made of: itself, or the head's parameters in the order of their names.
        dtype: The element type of one value.
        shape: The shape of one step, without the axis of several steps.
        steps: How many steps one run gives; 0 where its outputs have no axis for it, which is one.
        axis: Where in the shape of one step the outputs have that axis.
    """

    name: str
    head: Head | None
    outputs: tuple[str, ...]
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    steps: int
    axis: int


def value_of(signature: Signature, name: str) -> Value:
    """What a head or an output of a valid signature tells, by name."""
    specs = {spec.name: spec for spec in signature.outputs}
    head = next((head for head in signature.heads if head.name == name), None)
    outputs = (name,) if head is None else tuple(head.parameters[each] for each in sorted(head.parameters))
    spec = specs[outputs[0]]
    shape, dtype, steps, axis = list(step_shape(spec)), numpy_dtype(spec.dtype), 0, 0
    if spec.HasField("horizon_axis"):
        axis = spec.horizon_axis - sum(
            one < spec.horizon_axis for one in (batch_axis_of(spec), time_axis_of(spec)) if one is not None
        )
        steps = shape.pop(axis)
    if head is not None and head.kind in _ONE_AXIS_MORE:
        del shape[-1:]
    if head is not None and head.kind == HeadKind.HEAD_KIND_CATEGORICAL and not head.values:
        dtype = numpy_dtype("int64")
    return Value(name, head, outputs, dtype, tuple(shape), steps, axis)


def forecast_values(signature: Signature) -> list[Value]:
    """What a forecast with this model tells: what is fed back, the other heads, the other outputs of several steps."""
    names = [feedback.output for feedback in signature.feedback] + [head.name for head in signature.heads]
    taken = {output for head in signature.heads for output in head.parameters.values()}
    names += [spec.name for spec in signature.outputs if spec.HasField("horizon_axis") and spec.name not in taken]
    return [value_of(signature, name) for name in dict.fromkeys(names)]


def is_spread(value: Value) -> bool:
    """Whether the model gives quantiles of it."""
    return value.head is not None and value.head.kind == HeadKind.HEAD_KIND_QUANTILES


def steps_before(signature: Signature) -> int:
    """How many steps a forecast needs before it, 1 at least."""
    return max(1, signature.lookback, *[window.steps for window in signature.windows])


def errors_needed(quantiles: Sequence[float]) -> int:
    """How many past errors it takes until some of them are at these quantiles: what conformal bands are made of."""
    return max(math.ceil(max(q, 1 - q) / min(q, 1 - q) - 1e-9) for q in quantiles)


def forecast_outputs(signature: Signature) -> list[str]:
    """The outputs whose last step a forecast starts from, each once."""
    return list(dict.fromkeys(name for value in forecast_values(signature) for name in value.outputs))


def known_places(signature: Signature, name: str) -> list[int] | None:
    """What of an input nothing is fed to: places along the last axis of its step, or None for the whole step."""
    spec = next(spec for spec in signature.inputs if spec.name == name)
    fed = [feedback for feedback in signature.feedback if feedback.input == name]
    if not fed:
        return None
    places = {place for feedback in fed for place in feedback.places}
    if not all(feedback.places for feedback in fed):
        return []
    return [place for place in range(step_shape(spec)[-1]) if place not in places]


def check_forecast(signature: Signature) -> None:
    """Checks what a signature says of forecasts; its inputs and outputs are right by themselves.

    Raises:
        SignatureError: Names the field, what it is, and what it must be.
    """
    _check_heads(signature)
    _check_feedback(signature)
    _check_horizons(signature)


def _check_feedback(signature: Signature) -> None:
    inputs = {spec.name: spec for spec in signature.inputs}
    known = {spec.name for spec in signature.outputs} | {head.name for head in signature.heads}
    places: dict[str, list[int]] = {}
    for feedback in signature.feedback:
        where = f"feedback {feedback.output!r} → {feedback.input!r}"
        if feedback.output not in known or feedback.input not in inputs:
            raise SignatureError(f"{where}: no such output or input")
        value, target = value_of(signature, feedback.output), inputs[feedback.input]
        shape = step_shape(target)
        if feedback.places:
            if not shape or not all(place < shape[-1] for place in feedback.places):
                raise SignatureError(f"{where}: places are {list(feedback.places)}; a step has shape {list(shape)}")
            shape = (*shape[:-1], len(feedback.places))
        if value.shape != shape or (value.head is None and value.dtype != numpy_dtype(target.dtype)):
            raise SignatureError(
                f"{where}: a step is {value.dtype}{list(value.shape)} and {target.dtype}{list(shape)}; expected the"
                " same"
            )
        if (
            value.head is not None
            and value.head.kind == HeadKind.HEAD_KIND_QUANTILES
            and 0.5 not in value.head.quantiles
        ):
            raise SignatureError(f"{where}: the head has no quantile 0.5, which is what is fed back")
        taken = places.setdefault(feedback.input, [])
        taken += feedback.places or [-1]
        if len(set(taken)) < len(taken) or (-1 in taken and len(taken) > 1):
            raise SignatureError(f"{where}: something else is fed to the same place; expected each place once")
    for spec in signature.inputs:
        if spec.ahead and known_places(signature, spec.name) == []:
            raise SignatureError(f"inputs[{spec.name!r}].ahead is set, and the input is fed back; expected a known one")


def _check_horizons(signature: Signature) -> None:
    for spec in signature.outputs:
        if not spec.HasField("horizon_axis"):
            continue
        check_axis(f"outputs[{spec.name!r}].horizon_axis", spec.horizon_axis, len(spec.shape))
        if spec.horizon_axis in (batch_axis_of(spec), time_axis_of(spec)) or spec.shape[spec.horizon_axis] < 1:
            raise SignatureError(
                f"outputs[{spec.name!r}].horizon_axis is {spec.horizon_axis} of shape {list(spec.shape)}; expected an"
                " axis of its own, of fixed length"
            )
    for value in forecast_values(signature):
        if any(size < 0 for size in value.shape):
            raise SignatureError(
                f"{value.name!r} is forecast, and a step has shape {list(value.shape)}; expected lengths that are all"
                " fixed"
            )
    steps = {value.steps or 1 for value in forecast_values(signature)}
    if len(steps) > 1:
        raise SignatureError(f"forecasts come in {sorted(steps)} steps a run; expected one number for all outputs")


def _check_heads(signature: Signature) -> None:
    outputs = {spec.name: spec for spec in signature.outputs}
    check_unique("head", [head.name for head in signature.heads] + list(outputs))
    for head in signature.heads:
        where, ways = f"heads[{head.name!r}]", PARAMETERS.get(head.kind)
        if not head.name or ways is None:
            raise SignatureError(f"{where}: name and kind must be set; kind is {head.kind}")
        if frozenset(head.parameters) not in ways:
            expected = " or ".join(", ".join(sorted(way)) for way in ways)
            raise SignatureError(f"{where} has parameters {', '.join(sorted(head.parameters))}; expected {expected}")
        gone = [name for name in head.parameters.values() if name not in outputs]
        if gone:
            raise SignatureError(f"{where} takes output {gone[0]!r}; the outputs are {', '.join(outputs)}")
        specs = [outputs[name] for name in head.parameters.values()]
        shapes = {(step_shape(spec), spec.horizon_axis if spec.HasField("horizon_axis") else -1) for spec in specs}
        if len(shapes) > 1 or any(numpy_dtype(spec.dtype).kind != "f" for spec in specs):
            raise SignatureError(
                f"{where}: its outputs differ in shape, or are no floats; expected floats of one shape"
            )
        ((shape, _),) = shapes
        last = shape[-1] if shape else 0
        if head.kind == HeadKind.HEAD_KIND_QUANTILES:
            levels = list(head.quantiles)
            if levels != sorted(set(levels)) or not levels or not 0 < levels[0] <= levels[-1] < 1:
                raise SignatureError(f"{where}.quantiles are {levels}; expected ascending numbers between 0 and 1")
            if last != len(levels):
                raise SignatureError(
                    f"{where}.quantiles are {len(levels)}; a step of its output has shape {list(shape)}"
                )
        elif head.quantiles:
            raise SignatureError(f"{where}.quantiles are set; only a head of quantiles has some")
        if head.kind == HeadKind.HEAD_KIND_CATEGORICAL:
            if last < 1 or (head.values and len(head.values) != last):
                raise SignatureError(
                    f"{where}.values are {len(head.values)}; a step of its output has shape {list(shape)}, a class each"
                    " along the last axis"
                )
        elif head.values:
            raise SignatureError(f"{where}.values are set; only a head of classes has some")
